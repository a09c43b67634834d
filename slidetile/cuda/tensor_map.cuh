// Copies of a tensor map's boxes into shared memory. Device side of tensor_map.h.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace slidetile::cuda {

/// Where a box lies: see tensor_map.h.
struct BoxOrigin {
  int32_t channel, w, h, t, sheet;
};

/// Starts the copy of a box to shared memory; its bytes are counted at the barrier. One thread calls it.
__device__ __forceinline__ void copy_box(uint32_t target, const CUtensorMap* map, uint32_t barrier, const BoxOrigin& box) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(
          target),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(box.channel), "r"(box.w), "r"(box.h), "r"(box.t), "r"(box.sheet)
      : "memory");
}

/// The same to the CTAs of the cluster in `ctas` (a bit each), at the same addresses and barriers in each.
__device__ __forceinline__ void copy_box_multicast(uint32_t target, const CUtensorMap* map, uint32_t barrier, const BoxOrigin& box,
                                                   uint16_t ctas) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5, %6, "
      "%7}], "
      "[%2], %8;" ::"r"(target),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(barrier), "r"(box.channel), "r"(box.w), "r"(box.h), "r"(box.t), "r"(box.sheet), "h"(ctas)
      : "memory");
}

}  // namespace slidetile::cuda
