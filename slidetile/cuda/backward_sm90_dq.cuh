// The warps of the Hopper backward that add what the consumers leave of dq to its sums, in turn or as it comes.
#pragma once

#include <cstdint>

#include "slidetile/cuda/backward_sm90_feed.cuh"
#include "slidetile/cuda/backward_sm90_params.cuh"
#include "slidetile/cuda/barrier.cuh"

namespace slidetile::cuda {

/// Waits until `turn` key blocks have added to a query block.
__device__ __forceinline__ void wait_for_turn(const int32_t* word, int32_t turn) {
  const auto seen = [word] {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
  };
#ifdef SLIDETILE_BOUNDED_WAITS
  for (uint32_t polls = 0; seen() != turn; ++polls) {
    if (polls > 40'000'000u) __trap();
  }
#else
  while (seen() != turn) {
  }
#endif
}
__device__ __forceinline__ void pass_turn(int32_t* word, int32_t turn) {
  asm volatile("fence.proxy.async.global;\nst.release.gpu.global.s32 [%0], %1;" ::"l"(word), "r"(turn) : "memory");
}

/// What each of two warps does, every other step: adds what the consumers leave of dq to its sums. Handing on a turn takes most of a step.
template <typename T, int kDim, bool kInTurn>
__device__ __forceinline__ void add_dq(const BackwardParams& p, unsigned char* shared, uint32_t stage) {
  using Shared = BackwardShared<kDim>;
  const uint32_t base = shared_address(shared);
  auto* const ticket_word = reinterpret_cast<volatile int32_t*>(shared + Shared::kTicket);
  const bool leader = threadIdx.x % 32 == 0;
  uint32_t step = 0;
#pragma unroll 1
  for (uint32_t round = 0;; ++round) {
    barrier_wait(base + Shared::kKvFull, round & 1);
    const int32_t ticket = *ticket_word;
    if (ticket < 0) break;
    const BackwardWork work = work_of(p, ticket);
    __syncwarp();
    if (!kInTurn && leader) barrier_arrive(base + Shared::kKvEmpty);
#pragma unroll 1
    for (int32_t v = 0; v < work.item.visits; ++v) {
      const BackwardVisit visit = visits_of<kInTurn>(p)[work.item.first_visit + v];
#pragma unroll 1
      for (int32_t b = visit.first_block; b < visit.first_block + visit.blocks; ++b, ++step) {
        if ((step & 1) != stage) continue;
        const int64_t block = static_cast<int64_t>(work.sheet) * p.tables.query_blocks + b;
        named_sync(kSumsReady + stage, kConsumerThreads + 32);
        if (leader) {
          float* const target = p.dq_sums + block * (kBackwardQueryRows * kDim);
          const uint32_t source = base + Shared::kDq + stage * Shared::kSums;
          if constexpr (kInTurn) wait_for_turn(p.turn + block, visit.rank);
          if (kInTurn && visit.rank == 0) {
            bulk_store(target, source, Shared::kSums);
          } else {
            bulk_add(target, source, Shared::kSums);
          }
          bulk_commit();
          bulk_wait_read();
          barrier_arrive(base + Shared::kDqEmpty + 8 * stage);
          if constexpr (kInTurn) {
            bulk_wait();
            pass_turn(p.turn + block, visit.rank + 1);
          }
        }
        __syncwarp();
      }
    }
    // Nobody may wait for an item that waits in this CTA behind another: the next one is taken when all turns of this one are over.
    if (kInTurn && leader) barrier_arrive(base + Shared::kKvEmpty);
  }
  if (leader) bulk_wait();
}

}  // namespace slidetile::cuda
