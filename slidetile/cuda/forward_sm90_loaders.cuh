// Forward attention on Hopper: the loaders, a warp each, which copy the blocks of the planner's lists into the stages of K and V, and
// the queries of each item.
#pragma once

#include "slidetile/cuda/forward_sm90_planner.cuh"

namespace slidetile::cuda {

/// The producer warpgroup: the planner and the loaders. One object, so that the compiler sees one set of addresses; as two it computes the
/// loaders' twice.
template <int kDim, int kStepRows, int kCluster>
struct ForwardProducer : ForwardPlanner<kDim, kStepRows, kCluster> {
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  using Base = ForwardPlanner<kDim, kStepRows, kCluster>;
  using Base::address;
  using Base::base;
  using Base::control;
  using Base::kAllLanes;
  using Base::lane;
  using Base::p;
  using Base::rank;

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

}  // namespace slidetile::cuda
