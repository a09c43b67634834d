// Forward attention on Hopper: the arguments of the kernel, what its warps share in shared memory, and rings of stages.
#pragma once

#include <cstddef>
#include <cstdint>

#include "slidetile/cuda/barrier.cuh"
#include "slidetile/cuda/lowering.h"
#include "slidetile/cuda/tensor_map.cuh"
#include "slidetile/cuda/tensor_map.h"
#include "slidetile/cuda/wgmma.cuh"

namespace slidetile::cuda {

inline constexpr int kForwardThreads = 128 * (1 + kUnitsPerCta);

struct HopperForwardParams {
  CUtensorMap q[2], k[2], v[2];  // of the canvas, of the whole sequence as a line
  SheetSteps q_steps, k_steps, v_steps;
  // The plan.
  const int32_t* head_class;
  const int32_t* row_of;
  const int64_t* row_begin;
  const int32_t* key_tile;
  ForwardLowering lowering;
  const int32_t* query_lengths;
  const int32_t* key_lengths;
  int32_t* counter;  // items taken
  // Items that overflowed (FirstStepSoftmax): how many, which ones, and for each item whether it is among them.
  int32_t *overflows, *overflowed, *has_overflowed;
  bool only_overflowed;  // work on those
  void* out;
  float* lse;
  int64_t out_strides[3], lse_strides[3];  // elements between batch items, heads, tokens
  int32_t batch, heads, plan_heads, query_tiles, total_items;
  int32_t query_tokens, query_always, key_tokens, key_always;  // always: in use whatever the lengths say
  int32_t before, canvas_h, canvas_w;                          // of the queries
  float scale_log2, slack;                                     // slack: how far a score may exceed the reference of its row
};

inline constexpr int kItemSlots = 4, kPartBatches = 4, kPartsPerBatch = 32;

struct ItemSlot {
  int32_t head, batch, query_length, index;  // head -1: no more items
  Block unit[kUnitsPerCta];                  // flags 0: none
};

/// A block to load, or a mark. flags: BlockFlag, from bit 8 on which warpgroups of this CTA see it.
using Part = Block;
enum PartFlag : uint32_t { kPartMembers = 8, kPartItemEnd = 1u << 16, kPartLast = 1u << 17 };

struct StepSlot {
  uint32_t flags;  // bits 0-2: the warpgroup sees some of it; 8-10: not all rows; 16: the item ends
  uint32_t pad[3];
  uint32_t visible[kUnitsPerCta][4];
};
enum StepFlag : uint32_t { kStepPartial = 8, kStepEnd = 1u << 16 };

template <int kDim, int kStepRows>
struct ForwardLayout {
  static constexpr int kSlabs = kDim / 64;
  static constexpr int kUnitBytes = kUnitRows * kSlabRowBytes * kSlabs, kStageBytes = kStepRows * kSlabRowBytes * kSlabs;
  static constexpr int kKeyStages = kStageBytes == 32768 ? 3 : 5, kValueStages = kStageBytes == 32768 ? 2 : 4;

  struct Control {
    uint64_t k_full[kKeyStages], k_empty[kKeyStages];
    uint64_t v_full[kValueStages], v_empty[kValueStages], v_landed[kValueStages];
    uint64_t q_full, q_empty;
    uint64_t item_full[kItemSlots], item_empty[kItemSlots];
    uint64_t parts_full[kPartBatches], parts_empty[kPartBatches];
    uint64_t next_full[2], next_empty[2];
    uint32_t next_item[2];
    alignas(16) ItemSlot item[kItemSlots];
    alignas(16) StepSlot step[2 * kKeyStages];  // by Ring::slot
    alignas(16) Part part[kPartBatches][kPartsPerBatch];
  };
  static constexpr int kQ = 0, kK = kQ + kUnitsPerCta * kUnitBytes, kV = kK + kKeyStages * kStageBytes,
                       kControl = kV + kValueStages * kStageBytes, kBytes = kControl + static_cast<int>(sizeof(Control));
  static_assert(kBytes <= 232448);
};

/// A place in a ring of stages and the parity of its phase.
template <int kStages>
struct Ring {
  uint32_t stage = 0, phase = 0;
  /// Of twice as many as there are stages.
  __device__ __forceinline__ uint32_t slot() const { return stage + phase * kStages; }
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ uint32_t low_bits(int count) { return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1; }

}  // namespace slidetile::cuda
