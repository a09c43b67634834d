// Forward attention over a plan on Hopper: the kernel. See docs/kernels_sm90.md for why it is built this way.
//
// Cost model, for a step of 192 query rows x 128 keys of head_dim 128 on one multiprocessor: 12.6 MFLOP, 3072 clocks of the tensor cores;
// 24576 exponentials, 1536 clocks; 64 KB of K and V from L2, half of it for a cluster of two. So the tensor cores bound it, once three
// warpgroups take turns so that one's exponentials hide under the others' products; in steady state the card's power cap does, and then
// what counts is bytes moved.
//
// Roles. Warpgroup 0 produces, a warp each: the planner turns items of work into lists of blocks, two loaders copy K and V, one copies Q.
// Warpgroups 1 to 3 consume: 64 query rows each, a softmax over steps of keys. Everything goes through mbarriers:
//   planner --parts--> K loader, V loader     the blocks of the item, in batches
//   K loader --K, step--> consumers           which rows of the step each warpgroup sees
//   V loader --V--> consumers
//   planner --item--> Q loader --Q, item--> consumers
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

// ---- Shared memory ----

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

// Volatile, so that no register holds them in between.
__device__ __forceinline__ uint32_t lane_number() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
__device__ __forceinline__ uint32_t lanes_below() {
  uint32_t mask;
  asm volatile("mov.u32 %0, %%lanemask_lt;" : "=r"(mask));
  return mask;
}

// ---- Producers ----

template <int kDim, int kStepRows, int kCluster>
struct ForwardProducer {
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  static constexpr uint32_t kAllLanes = ~0u;
  static constexpr int kUnits = kCluster * kUnitsPerCta;

  const HopperForwardParams& p;
  Control& control;
  uint32_t base, rank, lane;

  static __device__ __forceinline__ uint32_t address(const void* pointer) { return shared_address(pointer); }

  // ---- The planner: a warp ----

  struct Output {
    uint32_t batch = 0, fill = 0;
  };

  __device__ __forceinline__ void publish(Output& out) {
    barrier_arrive(address(&control.parts_full[out.batch % kPartBatches]));
    ++out.batch;
    out.fill = 0;
    barrier_wait_idle(address(&control.parts_empty[out.batch % kPartBatches]), (out.batch / kPartBatches & 1) ^ 1);
  }

  /// Appends the parts of the lanes that have one.
  __device__ __forceinline__ void emit(Output& out, const Part& part, bool present) {
    const uint32_t mask = __ballot_sync(kAllLanes, present), count = __popc(mask), at = out.fill + __popc(mask & lanes_below());
    if (present && at < kPartsPerBatch) control.part[out.batch % kPartBatches][at] = part;
    const uint32_t end = out.fill + count;
    out.fill = end;
    if (end >= kPartsPerBatch) {
      publish(out);
      if (present && at >= kPartsPerBatch) control.part[out.batch % kPartBatches][at - kPartsPerBatch] = part;
      out.fill = end - kPartsPerBatch;
    }
  }

  /// Ends the list at a whole step, and the batch.
  __device__ __forceinline__ void emit_mark(Output& out, uint32_t mark) {
    const uint32_t parts = kStepRows / p.lowering.key.slot_rows, end = (out.fill + parts - 1) / parts * parts;
    if (lane >= out.fill && lane < end) control.part[out.batch % kPartBatches][lane].flags = 0;
    if (end == kPartsPerBatch) publish(out);
    if (lane == 0) control.part[out.batch % kPartBatches][end % kPartsPerBatch].flags = mark;
    publish(out);
  }

  /// The blocks of up to 32 tiles, one a lane, each with the warpgroups that see it.
  __device__ __forceinline__ void emit_tiles(Output& out, int32_t tile, uint32_t members, int32_t tiles, int32_t key_length) {
    const int32_t per_tile = p.lowering.key.per_tile, slot_rows = p.lowering.key.slot_rows, all = tiles * per_tile;
    for (int32_t first = 0; first < all; first += 32) {
      const int32_t at = first + static_cast<int32_t>(lane), from = at / per_tile;
      const int32_t its_tile = __shfl_sync(kAllLanes, tile, from & 31);
      const uint32_t its_members = __shfl_sync(kAllLanes, members, from & 31);
      Part part{};
      if (at < all) part = p.lowering.key_blocks[its_tile * per_tile + at % per_tile];
      bool present = part.flags != 0;
      if (part.flags & kBlockExtra) {
        const int32_t room = key_length - part.w;
        present = room > 0;
        if (room < slot_rows) {
          part.flags = (part.flags & ~kBlockFull) | kBlockForeign;
#pragma unroll
          for (int word = 0; word < 4; ++word) part.valid[word] &= low_bits(room - 32 * word);
        }
      }
      part.flags |= (its_members >> (rank * kUnitsPerCta) & 7) << kPartMembers;
      emit(out, part, present);
    }
  }

  __device__ __forceinline__ void plan_item(Output& out, int32_t row, int32_t key_length) {
    const bool has_row = row >= 0;
    const uint32_t same = __match_any_sync(kAllLanes, row) & low_bits(kUnits);
    const bool leads = has_row && lane == static_cast<uint32_t>(__ffs(static_cast<int>(same)) - 1);
    const int32_t* next = p.key_tile;
    int32_t left = 0;
    if (leads) {
      const int64_t first = p.row_begin[row];
      next += first;
      left = static_cast<int32_t>(p.row_begin[row + 1] - first);
    }
    const uint32_t leaders = __ballot_sync(kAllLanes, leads);
    if (leaders == 0) return;
    if ((leaders & (leaders - 1)) == 0) {  // one list for all
      const int leader = __ffs(static_cast<int>(leaders)) - 1;
      left = __shfl_sync(kAllLanes, left, leader);
      const uint32_t members = __shfl_sync(kAllLanes, same, leader);
      next = reinterpret_cast<const int32_t*>(__shfl_sync(kAllLanes, reinterpret_cast<uint64_t>(next), leader));
      for (; left > 0; left -= 32, next += 32) {
        const int32_t tile = static_cast<int32_t>(lane) < left ? next[lane] : 0;
        emit_tiles(out, tile, members, min(left, 32), key_length);
      }
      return;
    }
    // The union of the lists, ascending. A lane holds the head of its list and the tile after it.
    constexpr int32_t kNone = 0x7FFFFFFF;
    int32_t head = left > 0 ? next[0] : kNone, after = left > 1 ? next[1] : kNone;
    for (;;) {
      int32_t tile = 0, tiles = 0;
      uint32_t members = 0;
      for (; tiles < 32; ++tiles) {
        const int32_t least = __reduce_min_sync(kAllLanes, head);
        if (least == kNone) break;
        const uint32_t who = __reduce_or_sync(kAllLanes, head == least ? same : 0u);
        if (head == least) {
          head = after;
          ++next;
          --left;
          after = left > 1 ? next[1] : kNone;
        }
        if (static_cast<int32_t>(lane) == tiles) {
          tile = least;
          members = who;
        }
      }
      if (tiles == 0) return;
      emit_tiles(out, tile, members, tiles, key_length);
      if (tiles < 32) return;
    }
  }

  __device__ __forceinline__ int32_t take_item() {
    const int32_t index = atomicAdd(p.counter, 1);
    if (!p.only_overflowed) return index;
    return index < *p.overflows ? p.overflowed[index] : p.total_items;
  }

  __device__ __forceinline__ int32_t next_index(uint32_t turn) {
    if constexpr (kCluster == 1) {
      int32_t index = 0;
      if (lane == 0) index = take_item();
      return __shfl_sync(kAllLanes, index, 0);
    } else {
      // CTA 0 takes the item and tells CTA 1.
      const uint32_t slot = turn & 1, phase = turn / 2 & 1;
      int32_t index = 0;
      if (rank == 0) {
        if (lane == 0) index = take_item();
        barrier_wait(address(&control.next_empty[slot]), phase ^ 1);
        if (lane == 0) {
          store_async(cluster_address(address(&control.next_item[slot]), 1), static_cast<uint32_t>(index),
                      cluster_address(address(&control.next_full[slot]), 1));
        }
        return __shfl_sync(kAllLanes, index, 0);
      }
      if (lane == 0) barrier_arrive_expect(address(&control.next_full[slot]), 4);
      barrier_wait(address(&control.next_full[slot]), phase);
      index = static_cast<int32_t>(*const_cast<volatile uint32_t*>(&control.next_item[slot]));
      __syncwarp();
      if (lane == 0) barrier_arrive_cluster(cluster_address(address(&control.next_empty[slot]), 0));
      return index;
    }
  }

  __device__ __forceinline__ void plan() {
    Output out;
    for (uint32_t turn = 0;; ++turn) {
      int32_t index = next_index(turn);
      ItemSlot& slot = control.item[turn % kItemSlots];
      barrier_wait_idle(address(&control.item_empty[turn % kItemSlots]), (turn / kItemSlots & 1) ^ 1);
      if (lane == 0) slot.index = index;
      const bool last = index >= p.total_items;
      int32_t row = -1, key_length = 0;
      if (last) {
        if (lane == 0) slot.head = -1;
      } else {
        WorkGroup group = p.lowering.group[0];
        int32_t heads = group.heads == 0 ? p.heads : group.heads;
        for (int g = 0; index >= p.batch * heads * group.items;) {
          index -= p.batch * heads * group.items;
          group = p.lowering.group[++g];
          heads = group.heads == 0 ? p.heads : group.heads;
        }
        const int32_t item = p.lowering.item_order[group.first_item + index % group.items];
        index /= group.items;
        const int32_t head = group.heads == 0 ? index % heads : p.lowering.head_order[group.first_head + index % heads];
        const int32_t batch = index / heads;
        const int32_t unit = lane < kUnits ? p.lowering.item_units[item * kUnits + static_cast<int32_t>(lane)] : -1;
        if (unit >= 0) row = p.row_of[p.head_class[p.plan_heads == 1 ? 0 : head] * p.query_tiles + unit / p.lowering.query.per_tile];
        key_length = p.key_tokens;
        if (p.key_lengths != nullptr) key_length = min(max(p.key_lengths[batch], p.key_always), p.key_tokens);
        if (lane / kUnitsPerCta == rank) {
          Block block{};
          if (unit >= 0) block = p.lowering.query_blocks[unit];
          slot.unit[lane_number() - rank * kUnitsPerCta] = block;
        }
        if (lane == 0) {
          int32_t query_length = p.query_tokens;
          if (p.query_lengths != nullptr) query_length = min(max(p.query_lengths[batch], p.query_always), p.query_tokens);
          slot.head = head;
          slot.batch = batch;
          slot.query_length = query_length;
        }
      }
      barrier_arrive(address(&control.item_full[turn % kItemSlots]));
      if (last) break;
      plan_item(out, row, key_length);
      emit_mark(out, kPartItemEnd);
    }
    const uint32_t batch = out.batch % kPartBatches;
    if (lane == 0) control.part[batch][0].flags = kPartLast;
    barrier_arrive(address(&control.parts_full[batch]));
  }

  // ---- The loaders: a warp each ----

  /// Reads parts in the planner's order.
  struct Input {
    uint32_t batch = 0, at = 0;
  };

  __device__ __forceinline__ void wait_parts(const Input& in) {
    barrier_wait(address(&control.parts_full[in.batch % kPartBatches]), in.batch / kPartBatches & 1);
  }
  __device__ __forceinline__ void leave_batch(Input& in) {
    __syncwarp();
    if (lane == 0) barrier_arrive(address(&control.parts_empty[in.batch % kPartBatches]));
    ++in.batch;
    in.at = 0;
  }

  /// Bytes that the lanes' parts bring, to both CTAs of a cluster alike.
  __device__ __forceinline__ uint32_t bytes_of(uint32_t flags) const {
    uint32_t rows = 0;
    if (flags & kBlockPresent) rows = (flags & kBlockExtra) ? p.lowering.key.slot_rows : p.lowering.key.box_rows;
    return __reduce_add_sync(kAllLanes, rows * (kSlabRowBytes * Layout::kSlabs));
  }

  __device__ __forceinline__ void copy_part(const Part& part, const CUtensorMap* maps, uint32_t target, uint32_t barrier, int32_t sheet,
                                            uint32_t step) {
    const CUtensorMap* map = &maps[part.flags & kBlockExtra ? 1 : 0];
#pragma unroll
    for (int slab = 0; slab < Layout::kSlabs; ++slab) {
      const BoxOrigin box{slab * 64, part.w, part.h, part.t, sheet};
      const uint32_t to = target + slab * (kStepRows * kSlabRowBytes);
      if constexpr (kCluster == 1) {
        copy_box(to, map, barrier, box);
      } else {
        // The CTAs take turns, by slab or else by step, and send to both.
        if (((Layout::kSlabs == 2 ? slab : lane + step) & 1) == rank) copy_box_multicast(to, map, barrier, box, 3);
      }
    }
  }

  /// Which rows of the step each warpgroup sees.
  __device__ __forceinline__ void describe_step(StepSlot& step, const Part* parts, uint32_t flags, uint32_t count) {
    uint32_t summary = 0;
#pragma unroll
    for (int unit = 0; unit < kUnitsPerCta; ++unit) {
      const bool member = (flags >> (kPartMembers + unit) & 1) != 0;
      const uint32_t some = __ballot_sync(kAllLanes, member), whole = __ballot_sync(kAllLanes, member && (flags & kBlockFull));
      if (some != 0) summary |= 1u << unit;
      if (some != 0 && whole != low_bits(static_cast<int>(count))) summary |= 1u << (kStepPartial + unit);
    }
    if (summary >> kStepPartial != 0 && lane < kUnitsPerCta * (kStepRows / 32)) {
      const uint32_t unit = lane / (kStepRows / 32), word = lane % (kStepRows / 32), slot = p.lowering.key.slot_rows;
      uint32_t visible = 0;
      for (uint32_t row = word * 32; row < word * 32 + 32; row += min(slot, 32u)) {
        const Part& part = parts[row / slot];
        if (part.flags >> (kPartMembers + unit) & 1) {
          visible |= (part.valid[row % slot / 32] & low_bits(static_cast<int>(slot))) << (row % 32);
        }
      }
      step.visible[unit][word] = visible;
    }
    if (lane == 0) step.flags = summary;
    __syncwarp();
  }

  __device__ __forceinline__ void load_keys() {
    Input in;
    Ring<Layout::kKeyStages> ring;
    uint32_t step = 0, turn = 0;
    const uint32_t count = kStepRows / p.lowering.key.slot_rows;
    for (;; ++turn) {
      wait_parts(in);
      const ItemSlot& item = control.item[turn % kItemSlots];
      if (control.part[in.batch % kPartBatches][0].flags & kPartLast) break;
      const int32_t sheet = item.batch * p.k_steps.batch_step + item.head * p.k_steps.head_step;
      for (;; ++step) {
        const Part* parts = &control.part[in.batch % kPartBatches][in.at];
        const uint32_t flags = lane < count ? parts[lane].flags : 0;
        const bool ends = (__shfl_sync(kAllLanes, flags, 0) & kPartItemEnd) != 0;
        StepSlot& description = control.step[ring.slot()];
        const uint32_t full = address(&control.k_full[ring.stage]);
        barrier_wait(address(&control.k_empty[ring.stage]), ring.phase ^ 1);
        if (ends) {
          if (lane == 0) {
            description.flags = kStepEnd;
            barrier_arrive(full);
          }
          __syncwarp();
        } else {
          describe_step(description, parts, flags, count);
          const uint32_t bytes = bytes_of(flags);
          if (lane == 0) barrier_arrive_expect(full, bytes);
          __syncwarp();
          if (flags & kBlockPresent) {
            copy_part(parts[lane], p.k,
                      base + Layout::kK + ring.stage * Layout::kStageBytes + lane * p.lowering.key.slot_rows * kSlabRowBytes, full, sheet,
                      step);
          }
        }
        ring.advance();
        in.at += count;
        if (ends || in.at == kPartsPerBatch) {
          leave_batch(in);
          if (ends) break;
          wait_parts(in);
        }
      }
      ++step;
    }
  }

  /// Rows of other tiles, and of tokens not in use, become zeros: 0 * NaN would reach the sums.
  __device__ __forceinline__ void clear_foreign_rows(const Part* parts, uint32_t target) {
    const uint32_t slot = p.lowering.key.slot_rows;
    for (uint32_t row = lane; row < kStepRows; row += 32) {
      const Part& part = parts[row / slot];
      const uint32_t in_part = row % slot;
      if (!(part.flags & kBlockForeign) || (part.valid[in_part / 32] >> (in_part % 32) & 1)) continue;
#pragma unroll
      for (int slab = 0; slab < Layout::kSlabs; ++slab) {
        const uint32_t at = target + slab * (kStepRows * kSlabRowBytes) + row * kSlabRowBytes;
        for (int unit = 0; unit < 8; ++unit) {
          asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at + unit * 16), "r"(0) : "memory");
        }
      }
    }
    fence_async_shared();
    __syncwarp();
  }

  __device__ __forceinline__ void load_values() {
    Input in;
    Ring<Layout::kValueStages> ring;
    uint32_t step = 0, turn = 0, landed_phase = 0;
    const uint32_t count = kStepRows / p.lowering.key.slot_rows;
    for (;; ++turn) {
      wait_parts(in);
      const ItemSlot& item = control.item[turn % kItemSlots];
      if (control.part[in.batch % kPartBatches][0].flags & kPartLast) break;
      const int32_t sheet = item.batch * p.v_steps.batch_step + item.head * p.v_steps.head_step;
      for (;;) {
        const Part* parts = &control.part[in.batch % kPartBatches][in.at];
        const uint32_t flags = lane < count ? parts[lane].flags : 0;
        const bool ends = (__shfl_sync(kAllLanes, flags, 0) & kPartItemEnd) != 0;
        if (!ends) {
          const bool foreign = __any_sync(kAllLanes, flags & kBlockForeign);
          const uint32_t full = address(&control.v_full[ring.stage]), landed = address(&control.v_landed[ring.stage]);
          const uint32_t target = base + Layout::kV + ring.stage * Layout::kStageBytes, barrier = foreign ? landed : full;
          barrier_wait(address(&control.v_empty[ring.stage]), ring.phase ^ 1);
          const uint32_t bytes = bytes_of(flags);
          if (lane == 0) barrier_arrive_expect(barrier, bytes);
          __syncwarp();
          if (flags & kBlockPresent) {
            copy_part(parts[lane], p.v, target + lane * p.lowering.key.slot_rows * kSlabRowBytes, barrier, sheet, step);
          }
          if (foreign) {
            barrier_wait(landed, landed_phase >> ring.stage & 1);
            landed_phase ^= 1u << ring.stage;
            clear_foreign_rows(parts, target);
            if (lane == 0) barrier_arrive(full);
          }
          ring.advance();
          ++step;
        }
        in.at += count;
        if (ends || in.at == kPartsPerBatch) {
          leave_batch(in);
          if (ends) break;
          wait_parts(in);
        }
      }
    }
  }

  __device__ __forceinline__ void load_queries() {
    for (uint32_t turn = 0;; ++turn) {
      barrier_wait_idle(address(&control.item_full[turn % kItemSlots]), turn / kItemSlots & 1);
      barrier_wait_idle(address(&control.q_empty), (turn & 1) ^ 1);
      const ItemSlot& item = control.item[turn % kItemSlots];
      const uint32_t full = address(&control.q_full);
      if (item.head < 0) {
        if (lane == 0) barrier_arrive(full);
        break;
      }
      Block unit{};
      if (lane < kUnitsPerCta) unit = item.unit[lane];
      uint32_t rows = 0;
      if (unit.flags != 0) rows = (unit.flags & kBlockExtra) ? kUnitRows : p.lowering.query.box_rows;
      const uint32_t bytes = __reduce_add_sync(kAllLanes, rows * (kSlabRowBytes * Layout::kSlabs));
      if (lane == 0) barrier_arrive_expect(full, bytes);
      __syncwarp();
      if (unit.flags != 0) {
        const int32_t sheet = item.batch * p.q_steps.batch_step + item.head * p.q_steps.head_step;
#pragma unroll
        for (int slab = 0; slab < Layout::kSlabs; ++slab) {
          copy_box(base + Layout::kQ + lane * Layout::kUnitBytes + slab * (kUnitRows * kSlabRowBytes),
                   &p.q[unit.flags & kBlockExtra ? 1 : 0], full, {slab * 64, unit.w, unit.h, unit.t, sheet});
        }
      }
    }
  }
};

// ---- Consumers ----

/// A value that is the same in all lanes, for the compiler to keep in a uniform register.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Four words of each of the four lanes of a quad: lane i gets the i-th of each.
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4], uint32_t quad_lane) {
  const bool odd = quad_lane & 1, high = quad_lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
    x[i] = odd ? other : x[i];
    x[i + 1] = odd ? x[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
    x[i] = high ? other : x[i];
    x[i + 2] = high ? x[i + 2] : other;
  }
}

/// The larger of a row's scores in this thread.
template <int kScores>
__device__ __forceinline__ float row_maximum(const float (&s)[kScores], int row) {
  float m = fmaxf(s[2 * row], s[2 * row + 1]);
#pragma unroll
  for (int i = 4; i < kScores; i += 4) m = fmaxf(m, fmaxf(s[i + 2 * row], s[i + 2 * row + 1]));
  return m;
}
/// The largest of four lanes, which share a row.
__device__ __forceinline__ float quad_maximum(float m) {
  m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
  return fmaxf(m, __shfl_xor_sync(~0u, m, 2));
}

/// The softmax of the two rows of a thread with the maximum of the first step as its reference, whatever comes later: sums and the
/// exponentials in bf16 have the range of f32, which spares a look at every score. A row whose later scores are so much larger that its
/// sum nears the end of that range has overflowed, and its item is computed again by LazySoftmax.
template <int kSums>
struct FirstStepSoftmax {
  static constexpr float kHeadroom = 40;         // log2: exponentials of the first step are at most 2^-40
  static constexpr float kLargestSum = 0x1p60f;  // leaves 2^67 for values
  float minus_reference[2] = {0, 0}, sum[2] = {0, 0};
  bool first = true;

  template <int kScores>
  __device__ __forceinline__ void prepare(const float (&s)[kScores], float (&)[kSums], const HopperForwardParams& p) {
    if (first) [[unlikely]] {
#pragma unroll
      for (int row = 0; row < 2; ++row) minus_reference[row] = -quad_maximum(row_maximum(s, row)) * p.scale_log2 - kHeadroom;
      first = false;
    }
  }
  static __device__ __forceinline__ bool overflowed(float row_sum) { return !(row_sum <= kLargestSum); }
};

/// The softmax of the two rows of a thread, with a maximum that is raised only when a score exceeds it by 8 in log2: the exponentials then
/// stay below 256, and the sums are exact in the end whatever the reference is.
template <int kSums>
struct LazySoftmax {
  float minus_reference[2] = {0, 0};  // log2 units; 0 while a row has seen no key
  float limit[2];                     // of raw scores: above it the reference is raised
  float sum[2] = {0, 0};
  bool integers = false;  // every limit of the warp is positive or zero, so that integer comparison serves

  __device__ __forceinline__ LazySoftmax() { limit[0] = limit[1] = -INFINITY; }

  template <int kScores>
  __device__ __forceinline__ void raise(const float (&s)[kScores], float (&o)[kSums], const HopperForwardParams& p) {
    bool positive = true;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float m = quad_maximum(row_maximum(s, row));
      if (m > limit[row]) {
        const float reference = m * p.scale_log2;
        const float factor = limit[row] == -INFINITY ? 0.0f : exp2_fast(-minus_reference[row] - reference);
        minus_reference[row] = -reference;
        limit[row] = m + p.slack;
        sum[row] *= factor;
#pragma unroll
        for (int i = 2 * row; i < kSums; i += 4) {
          o[i] *= factor;
          o[i + 1] *= factor;
        }
      }
      positive = positive && limit[row] >= 0;
    }
    integers = __all_sync(~0u, positive);
  }

  template <int kScores>
  static __device__ __forceinline__ int row_maximum_bits(const float (&s)[kScores], int row) {
    int m[2];  // two chains: half the latency
#pragma unroll
    for (int i = 0; i < 8; i += 4) m[i / 4] = max(__float_as_int(s[i + 2 * row]), __float_as_int(s[i + 2 * row + 1]));
#pragma unroll
    for (int i = 8; i < kScores; i += 4) {
      m[i / 4 % 2] = __vimax3_s32(m[i / 4 % 2], __float_as_int(s[i + 2 * row]), __float_as_int(s[i + 2 * row + 1]));
    }
    return max(m[0], m[1]);
  }

  static __device__ __forceinline__ bool overflowed(float) { return false; }

  template <int kScores>
  __device__ __forceinline__ void prepare(const float (&s)[kScores], float (&o)[kSums], const HopperForwardParams& p) {
    bool exceeds;
    if (integers) [[likely]] {
      exceeds = (row_maximum_bits(s, 0) > __float_as_int(limit[0])) | (row_maximum_bits(s, 1) > __float_as_int(limit[1]));
    } else {
      exceeds = (row_maximum(s, 0) > limit[0]) | (row_maximum(s, 1) > limit[1]);
    }
    if (__any_sync(~0u, exceeds)) [[unlikely]]
      raise(s, o, p);
  }
};

/// A descriptor in two words, joined where it is used: in one, the compiler computes its masks again for each use.
struct Descriptor {
  uint32_t low, high;

  __device__ __forceinline__ Descriptor(uint32_t low_word, uint32_t high_word) : low(low_word), high(high_word) {}
  __device__ __forceinline__ explicit Descriptor(uint64_t whole)
      : low(uniform(static_cast<uint32_t>(whole))), high(static_cast<uint32_t>(whole >> 32)) {}
  __device__ __forceinline__ uint64_t advanced(uint32_t bytes) const {
    uint64_t whole;
    asm volatile("mov.b64 %0, {%1, %2};" : "=l"(whole) : "r"(low + (bytes >> 4)), "r"(high));
    return whole;
  }
};

template <typename T, int kDim, int kStepRows, int kCluster, template <int> typename SoftmaxOf>
struct ForwardConsumer {
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  static constexpr int kScores = kStepRows / 2, kSums = kDim / 2;
  using Softmax = SoftmaxOf<kSums>;
  static constexpr int kParts = 4;  // of a step's second product, each in the shadow of the next part's exponentials

  const HopperForwardParams& p;
  const Control& control;
  uint32_t base, unit, thread;  // of the warpgroup, in it; base and unit are in uniform registers

  // Addresses in the loop are sums of base and constants: pointers would be converted again at each use.
  static constexpr uint32_t kKFull = Layout::kControl + offsetof(Control, k_full), kKEmpty = Layout::kControl + offsetof(Control, k_empty),
                            kVFull = Layout::kControl + offsetof(Control, v_full), kVEmpty = Layout::kControl + offsetof(Control, v_empty),
                            kQFull = Layout::kControl + offsetof(Control, q_full), kQEmpty = Layout::kControl + offsetof(Control, q_empty),
                            kItemEmpty = Layout::kControl + offsetof(Control, item_empty),
                            kStep = Layout::kControl + offsetof(Control, step);

  /// Tells the producers of every CTA of the cluster that this warpgroup is done with a stage.
  __device__ __forceinline__ void release(uint32_t barrier) const {
    if constexpr (kCluster == 1) {
      if (thread == 0) barrier_arrive(barrier);
    } else {
      if (thread < 2) barrier_arrive_cluster(cluster_address(barrier, thread));
    }
  }

  __device__ __forceinline__ void hide(float (&s)[kScores], uint32_t visible) const {
    const uint32_t column = 2 * (thread % 4);
#pragma unroll
    for (int word = 0; word < kStepRows / 32; ++word) {
      const uint32_t bits = load_shared(visible + 4 * word) >> column;
#pragma unroll
      for (int i = 0; i < 16; ++i) {  // columns 8 (i / 4) + column + i % 2 of the word, for both rows
        if (!(bits >> (8 * (i / 4) + i % 2) & 1)) s[16 * word + i] = -INFINITY;
      }
    }
  }

  /// Exponentials of a part of the scores, packed as the second product takes them.
  template <int kPart>
  __device__ __forceinline__ void exponentials(float (&s)[kScores], uint32_t (&packed)[kScores / 2], Softmax& softmax) const {
    constexpr int kCount = kScores / kParts, kFirst = kPart * kCount, kLag = 8;
#pragma unroll
    for (int i = 0; i < kCount + kLag; i += 2) {
      if (i < kCount) {
        const int at = kFirst + i, row = i / 2 % 2;
        s[at] = exp2_fast(fmaf(s[at], p.scale_log2, softmax.minus_reference[row]));
        s[at + 1] = exp2_fast(fmaf(s[at + 1], p.scale_log2, softmax.minus_reference[row]));
      }
      if (i >= kLag) {
        const int at = kFirst + i - kLag, row = i / 2 % 2;  // kLag is a multiple of 4
        softmax.sum[row] += s[at];
        softmax.sum[row] += s[at + 1];
        packed[at / 2] = pack<T>(s[at], s[at + 1]);
      }
    }
    pin(softmax.sum);
  }

  /// The product of a part of the weights with its values, added to o.
  template <int kPart>
  __device__ __forceinline__ void add_values(float (&o)[kSums], const uint32_t (&packed)[kScores / 2], Descriptor v) const {
    constexpr int kSlices = kStepRows / 16 / kParts;
    wgmma_fence();
#pragma unroll
    for (int k = kPart * kSlices; k < (kPart + 1) * kSlices; ++k) {
      wgmma_registers<T, kDim, 1>(o, &packed[4 * k], v.advanced(row_slice(k)), 1);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void store(const ItemSlot& item, float (&o)[kSums], Softmax& softmax) const {
    const Block& block = item.unit[unit];
    const uint32_t flags = block.flags;
    if (flags == 0) return;
    const int32_t box_w = p.lowering.query.box.w, box_h = p.lowering.query.box.h;
    const uint32_t quad_lane = thread % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = static_cast<int32_t>(thread / 32 * 16 + thread % 32 / 4 + 8 * half);
      float sum = softmax.sum[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      int32_t token = block.w + row;
      if (!(flags & kBlockExtra)) {
        const int32_t line = row / box_w;
        token = p.before + ((block.t + line / box_h) * p.canvas_h + block.h + line % box_h) * p.canvas_w + block.w + row % box_w;
      }
      const bool inside = (block.valid[row / 32] >> (row % 32) & 1) != 0, used = token < item.query_length && sum != 0;
      if (inside && used && Softmax::overflowed(sum)) {
        if (atomicExch(&p.has_overflowed[item.index], 1) == 0) p.overflowed[atomicAdd(p.overflows, 1)] = item.index;
      }
      const float factor = used ? 1 / sum : 0.0f;
      T* const line = static_cast<T*>(p.out) + item.batch * p.out_strides[0] + item.head * p.out_strides[1] + token * p.out_strides[2];
#pragma unroll
      for (int group = 0; group < kDim / 8; group += 4) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 4 * (group + i) + 2 * half;
          x[i] = used ? pack<T>(o[at] * factor, o[at + 1] * factor) : 0u;
        }
        transpose_quad(x, quad_lane);
        if (inside) *reinterpret_cast<uint4*>(line + 8 * (group + quad_lane)) = make_uint4(x[0], x[1], x[2], x[3]);
      }
      if (inside && p.lse != nullptr && quad_lane == 0) {
        constexpr float kLn2 = 0.693147180559945f;
        p.lse[item.batch * p.lse_strides[0] + item.head * p.lse_strides[1] + token * p.lse_strides[2]] =
            used ? (log2f(sum) - softmax.minus_reference[half]) * kLn2 : -INFINITY;
      }
    }
  }

  /// Always 0, since sums are not negative. The compiler doesn't know and adds up before what needs this; left alone, it puts additions off
  /// and runs out of registers.
  static __device__ __forceinline__ uint32_t negative(const float (&sum)[2]) { return (sum[0] < 0) | (sum[1] < 0) ? 1 : 0; }

  /// A step as its warpgroup finds it: where its keys are and which of them it sees.
  struct Step {
    uint32_t stage, slot, flags;
  };

  /// Waits for the keys of the step at the ring's place.
  __device__ __forceinline__ Step wait_step(const Ring<Layout::kKeyStages>& ring, const float (&sum)[2]) const {
    const uint32_t place = uniform(ring.stage | ring.phase << 4), stage = place & 15, phase = place >> 4;
    barrier_wait(base + kKFull + 8 * stage, phase ^ negative(sum));
    const uint32_t slot = base + kStep + (stage + phase * Layout::kKeyStages) * sizeof(StepSlot);
    return {stage, slot, load_shared(slot + offsetof(StepSlot, flags)) >> unit};
  }

  __device__ __forceinline__ void multiply_keys(float (&s)[kScores], uint64_t q, uint32_t stage) const {
    const uint64_t k = operand_descriptor(base + Layout::kK + stage * Layout::kStageBytes, 16);
    wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < kDim / 16; ++slice) {
      wgmma_shared<T, kStepRows>(s, advanced(q, channel_slice(slice, kUnitRows)), advanced(k, channel_slice(slice, kStepRows)), slice != 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    release(base + kKEmpty + 8 * stage);
  }

  __device__ __forceinline__ void run() const {
    Ring<Layout::kKeyStages> k_ring;
    Ring<Layout::kValueStages> v_ring;
    const uint64_t q = operand_descriptor(base + Layout::kQ + unit * Layout::kUnitBytes, 16);
    const Descriptor values(operand_descriptor(base + Layout::kV, kStepRows * kSlabRowBytes));
    for (uint32_t turn = 0;; ++turn) {
      barrier_wait(base + kQFull, turn & 1);
      if (control.item[turn % kItemSlots].head < 0) break;
      float o[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) o[i] = 0;
      Softmax softmax;
      for (;;) {
        Step step = wait_step(k_ring, softmax.sum);
        if (!(step.flags & 1)) {  // nothing to see, or the end; the warps must not drift apart
          named_sync(1 + static_cast<int>(unit), 128);
          const bool ends = (step.flags & (kStepEnd >> unit)) != 0;
          if (ends && thread == 0) barrier_arrive(base + kQEmpty);
          release(base + kKEmpty + 8 * step.stage);
          k_ring.advance();
          if (ends) break;
          barrier_wait(base + kVFull + 8 * v_ring.stage, v_ring.phase);
          named_sync(1 + static_cast<int>(unit), 128);
          release(base + kVEmpty + 8 * v_ring.stage);
          v_ring.advance();
          continue;
        }
        float s[kScores];
        multiply_keys(s, q, step.stage);
        for (;;) {  // from scores to scores
          k_ring.advance();
          const uint32_t place = uniform(v_ring.stage | v_ring.phase << 4), v_stage = place & 15, v_phase = place >> 4;
          const uint32_t v_full = base + kVFull + 8 * v_stage;
          const bool v_here = barrier_test(v_full, v_phase);
          if (step.flags >> kStepPartial & 1) [[unlikely]]
            hide(s, step.slot + offsetof(StepSlot, visible) + unit * 16);
          softmax.prepare(s, o, p);

          uint32_t packed[kScores / 2];
          const Descriptor v{values.low + v_stage * (Layout::kStageBytes >> 4), values.high};
          exponentials<0>(s, packed, softmax);
          if (!v_here | (negative(softmax.sum) != 0)) barrier_wait(v_full, v_phase);
          add_values<0>(o, packed, v);
          exponentials<1>(s, packed, softmax);
          add_values<1>(o, packed, v);
          exponentials<2>(s, packed, softmax);
          add_values<2>(o, packed, v);
          exponentials<3>(s, packed, softmax);
          add_values<3>(o, packed, v);
          v_ring.advance();
          step = wait_step(k_ring, softmax.sum);  // while the products run
          wgmma_wait<0>();
          pin(o);
          release(base + kVEmpty + 8 * v_stage);
          if (!(step.flags & 1)) break;
          multiply_keys(s, q, step.stage);
        }
      }
      store(control.item[turn % kItemSlots], o, softmax);
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(base + kItemEmpty + 8 * (turn % kItemSlots));
    }
  }
};

template <typename T, int kDim, int kStepRows, int kCluster, template <int> typename SoftmaxOf>
__global__ void __launch_bounds__(kForwardThreads, 1) forward_sm90(const __grid_constant__ HopperForwardParams p) {
  if (p.only_overflowed && *p.overflows == 0) return;
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  extern __shared__ __align__(1024) uint8_t shared[];
  Control& control = *reinterpret_cast<Control*>(shared + Layout::kControl);
  const uint32_t base = shared_address(shared), rank = kCluster == 1 ? 0 : cluster_rank();
  const uint32_t warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);

  if (threadIdx.x == 0) {
    constexpr uint32_t kConsumers = kUnitsPerCta * kCluster;
    const auto init = [](uint64_t* barriers, int count, uint32_t arrivals) {
      for (int i = 0; i < count; ++i) barrier_init(shared_address(barriers + i), arrivals);
    };
    init(control.k_full, Layout::kKeyStages, 1);
    init(control.k_empty, Layout::kKeyStages, kConsumers);
    init(control.v_full, Layout::kValueStages, 1);
    init(control.v_empty, Layout::kValueStages, kConsumers);
    init(control.v_landed, Layout::kValueStages, 1);
    init(&control.q_full, 1, 1);
    init(&control.q_empty, 1, kUnitsPerCta);
    init(control.item_full, kItemSlots, 32);
    init(control.item_empty, kItemSlots, 4 * kUnitsPerCta);
    init(control.parts_full, kPartBatches, 32);
    init(control.parts_empty, kPartBatches, 2);
    init(control.next_full, 2, 1);
    init(control.next_empty, 2, 1);
    barrier_init_fence();
  }
  // Rows that no box fills must be numbers.
  for (uint32_t at = threadIdx.x * 16; at < Layout::kControl; at += kForwardThreads * 16) {
    if (at < Layout::kK || at >= Layout::kV) *reinterpret_cast<uint4*>(shared + at) = uint4{};
  }
  fence_async_shared();
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }

  if (warpgroup == 0) {
    registers_decrease<32>();
    ForwardProducer<kDim, kStepRows, kCluster> producer{p, control, base, rank, threadIdx.x % 32};
    switch (__shfl_sync(~0u, threadIdx.x / 32, 0)) {
      case 0: producer.plan(); break;
      case 1: producer.load_keys(); break;
      case 2: producer.load_values(); break;
      default: producer.load_queries(); break;
    }
  } else {
    registers_increase<160>();
    const ForwardConsumer<T, kDim, kStepRows, kCluster, SoftmaxOf> consumer{p, control, uniform(base), warpgroup - 1, threadIdx.x % 128};
    consumer.run();
  }
  if constexpr (kCluster > 1) cluster_sync();  // others may still arrive here
}

}  // namespace slidetile::cuda
