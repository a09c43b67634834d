// Forward attention over a plan on Hopper: the kernel. See docs/kernels_sm90.md for why it is built this way.
//
// Cost model, for a step of 192 query rows x 128 keys of head_dim 128 on one multiprocessor: 12.6 MFLOP, 3072 clocks of the tensor cores;
// 24576 exponentials, 1536 clocks; 64 KB of K and V from L2, half of it for a cluster of two. So the tensor cores bound it, once three
// warpgroups take turns so that one's exponentials hide under the others' products; in steady state the card's power cap does, and then
// what counts is bytes moved.
//
// Roles. Warpgroup 0 produces, a warp each: the planner (forward_sm90_planner.cuh) turns items of work into lists of blocks; two loaders
// (forward_sm90_loaders.cuh) copy K and V, one copies Q. Warpgroups 1 to 3 consume (forward_sm90_consumer.cuh): 64 query rows each, a
// softmax over steps of keys (forward_sm90_softmax.cuh), then out and lse (forward_sm90_epilogue.cuh). Everything goes through mbarriers,
// which lie with the stages in shared memory (forward_sm90_layout.cuh):
//   planner --parts--> K loader, V loader     the blocks of the item, in batches
//   K loader --K, step--> consumers           which rows of the step each warpgroup sees
//   V loader --V--> consumers
//   planner --item--> Q loader --Q, item--> consumers
#pragma once

#include "slidetile/cuda/forward_sm90_consumer.cuh"
#include "slidetile/cuda/forward_sm90_layout.cuh"
#include "slidetile/cuda/forward_sm90_loaders.cuh"
#include "slidetile/cuda/forward_sm90_planner.cuh"

namespace slidetile::cuda {

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
    ForwardProducer<kDim, kStepRows, kCluster> producer{{p, control, base, rank, threadIdx.x % 32}};
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
