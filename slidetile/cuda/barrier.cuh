// Barriers in shared memory, clusters, named barriers and fences of Hopper, as thin wrappers over PTX.
#pragma once

#include <cstdint>

#include "slidetile/cuda/shared_address.cuh"

namespace slidetile::cuda {

// An mbarrier is 8 bytes of shared memory, given by its address. It counts arrivals and bytes in flight; a phase ends when both are
// done, and phases alternate between parities 0 and 1. A fresh barrier is in phase 0: waiting for parity 1 passes at once.

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// After the inits, before the barriers' first use by copies or by other CTAs of the cluster (which needs a cluster_sync too).
__device__ __forceinline__ void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives at a barrier of any CTA of the cluster, at an address from cluster_address. Without .release.cluster, which costs a full memory
/// barrier: it orders nothing but what this thread has already waited for.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives and adds `bytes` that copies will deliver in this phase.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done != 0;
}

/// Returns once the phase of this parity has ended.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#ifdef SLIDETILE_BOUNDED_WAITS
  for (uint32_t polls = 0; !barrier_test(barrier, parity); ++polls) {
    if (polls > 4'000'000u) __trap();
  }
#else
  while (!barrier_test(barrier, parity)) {
  }
#endif
}

/// The same for a wait that is long and in no hurry: the thread sleeps in hardware, or for a while between polls, instead of taking issue
/// slots and power from those that work.
__device__ __forceinline__ void barrier_wait_idle(uint32_t barrier, uint32_t parity) {
  constexpr uint32_t kLongestSleep = 1'000'000;  // ns
  [[maybe_unused]] uint32_t polls = 0;
  for (;;) {
    uint32_t done;
    asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2, %3;\nselp.u32 %0, 1, 0, done;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity), "r"(kLongestSleep)
                 : "memory");
    if (done != 0) return;
#ifdef SLIDETILE_BOUNDED_WAITS
    if (++polls > 4'000'000u) __trap();
#endif
    __nanosleep(200);
  }
}

/// Address, valid in the whole cluster, of what lies at `address` in the shared memory of CTA `rank`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Writes a word to the shared memory of a CTA of the cluster and counts its 4 bytes at a barrier there.
__device__ __forceinline__ void store_async(uint32_t cluster_target, uint32_t value, uint32_t cluster_barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(cluster_target), "r"(value),
               "r"(cluster_barrier)
               : "memory");
}

/// Named barrier of `threads` threads; ids 1 to 15 (0 is __syncthreads).
__device__ __forceinline__ void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Makes this thread's ordinary writes to shared memory visible to wgmma and to the copy engine; a barrier must follow.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Registers per thread of this warpgroup from here on; all its warps call it.
template <int kCount>
__device__ __forceinline__ void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace slidetile::cuda
