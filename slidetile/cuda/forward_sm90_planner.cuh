// Forward attention on Hopper: the planner, a warp that takes items of work and turns each into a list of blocks for the loaders.
#pragma once

#include "slidetile/cuda/forward_sm90_layout.cuh"

namespace slidetile::cuda {

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

template <int kDim, int kStepRows, int kCluster>
struct ForwardPlanner {
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  static constexpr uint32_t kAllLanes = ~0u;
  static constexpr int kUnits = kCluster * kUnitsPerCta;

  const HopperForwardParams& p;
  Control& control;
  uint32_t base, rank, lane;

  static __device__ __forceinline__ uint32_t address(const void* pointer) { return shared_address(pointer); }

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
};

}  // namespace slidetile::cuda
