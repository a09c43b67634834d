// Copies of the Hopper backward, and the warps that bring q and dout.
#pragma once

#include <cstdint>

#include "slidetile/cuda/backward_sm90_params.cuh"
#include "slidetile/cuda/barrier.cuh"
#include "slidetile/cuda/tensor_map.cuh"

namespace slidetile::cuda {

// Copies between shared and global memory without a tensor map. One thread calls them; sizes and addresses are multiples of 16 bytes.
__device__ __forceinline__ void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target), "l"(source),
               "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void bulk_store(float* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bulk_add(float* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until shared memory has been read, or until all has been done.
__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// True in one thread of a converged warp; the copies of a branch on it need no loop over threads.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

template <typename T, int kDim>
__device__ __forceinline__ void copy_block(uint32_t target, uint32_t slab, const TensorMaps& maps, uint32_t barrier, const Block& block,
                                           const BackwardWork& work) {
  const CUtensorMap* map = (block.flags & kBlockExtra) != 0 ? &maps.extra : &maps.canvas;
  const int32_t sheet = work.batch * maps.steps.batch_step + work.head * maps.steps.head_step;
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) copy_box(target + c * slab, map, barrier, {c * 64, block.w, block.h, block.t, sheet});
}

/// Where the stages of q or of dout are, and their barriers: pairs but for the last.
struct QueryStages {
  uint32_t tile, terms, full, empty, brought;
};

/// Clears the rows of a query tile that are not the block's, or not among the first `in_use`. One thread calls it.
template <int kDim>
__device__ __forceinline__ void clear_query_rows(uint32_t tile, const Block& block, int32_t in_use) {
  uint64_t valid = block.valid[0] | uint64_t{block.valid[1]} << 32;
  if (in_use < kBackwardQueryRows) valid &= (uint64_t{1} << max(in_use, 0)) - 1;
#pragma unroll 1
  for (const uint32_t end = tile + BackwardShared<kDim>::kQuerySlab; tile < end; tile += kSlabRowBytes, valid >>= 1) {
    if ((valid & 1) != 0) continue;
#pragma unroll
    for (uint32_t at = 0; at < BackwardShared<kDim>::kQueryTile; at += BackwardShared<kDim>::kQuerySlab) {
#pragma unroll
      for (uint32_t i = 0; i < kSlabRowBytes; i += 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + at + i), "r"(0) : "memory");
    }
  }
}

/// Brings the query blocks of items, of q or of dout, each with its 64 row terms. Rows of other tiles and past the length may be anything,
/// and products multiply them by zeros: where a block brings such rows, they are cleared before the consumers are told.
template <typename T, int kDim, bool kInTurn>
struct QueryFeeder {
  const BackwardParams& p;
  const TensorMaps& maps;
  const float* terms;
  QueryStages to;
  uint32_t step = 0, brought = 0;

  __device__ __forceinline__ void feed(const BackwardWork& work) {
    using Shared = BackwardShared<kDim>;
#pragma unroll 1
    for (int32_t v = 0; v < work.item.visits; ++v) {
      const BackwardVisit visit = visits_of<kInTurn>(p)[work.item.first_visit + v];
#pragma unroll 1
      for (int32_t b = visit.first_block; b < visit.first_block + visit.blocks; ++b, ++step) {
        const uint32_t stage = step & 1;
        const Block& block = p.tables.query_block[b];
        const uint32_t target = to.tile + stage * Shared::kQueryTile, full = to.full + 8 * stage;
        const bool extra = (block.flags & kBlockExtra) != 0;
        const int32_t bytes = (extra ? p.query_extra_bytes : p.query_bytes) * (kDim / 64);
        const int32_t in_use = extra && p.query_lengths != nullptr ? p.query_lengths[work.batch] - block.w : kBackwardQueryRows;
        const bool clear = (block.flags & kBlockClear) != 0 || in_use < kBackwardQueryRows;
        barrier_wait(to.empty + 8 * stage, ((step >> 1) & 1) ^ 1);
        barrier_arrive_expect(clear ? to.brought : full, clear ? bytes : bytes + Shared::kRowTerms);
        copy_block<T, kDim>(target, Shared::kQuerySlab, maps, clear ? to.brought : full, block, work);
        if (clear) {
          barrier_wait(to.brought, brought & 1);
          ++brought;
          clear_query_rows<kDim>(target, block, in_use);
          fence_async_shared();
          barrier_arrive_expect(full, Shared::kRowTerms);
        }
        bulk_load(to.terms + stage * Shared::kRowTerms,
                  terms + (static_cast<int64_t>(work.sheet) * p.tables.query_blocks + b) * kBackwardQueryRows, Shared::kRowTerms, full);
      }
    }
  }
};

}  // namespace slidetile::cuda
