// Launches the Hopper forward kernels of one element type; included once for each.
#pragma once

#include <type_traits>

#include "slidetile/cuda/forward_sm90.cuh"
#include "slidetile/cuda/forward_sm90.h"
#include "slidetile/cuda/launch.cuh"
#include "slidetile/error.h"

namespace slidetile::cuda {

template <typename T, int kDim, int kStepRows, int kCluster>
void launch_forward_as(const HopperForwardParams& params, const ForwardLaunch& how) {
  const LaunchShape shape{.name = "forward_sm90",
                          .grid = dim3(static_cast<unsigned>(how.ctas)),
                          .block = dim3(kForwardThreads),
                          .shared_bytes = ForwardLayout<kDim, kStepRows>::kBytes,
                          .stream = how.stream,
                          .cluster = kCluster};
  HopperForwardParams last = params;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // f16 has not the range that it takes
    launch<forward_sm90<T, kDim, kStepRows, kCluster, FirstStepSoftmax>>(shape, params);
    last.only_overflowed = true;
    ++last.counter;
  }
  launch<forward_sm90<T, kDim, kStepRows, kCluster, LazySoftmax>>(shape, last);
}

template <typename T, int kDim>
void launch_forward_of(const HopperForwardParams& params, const ForwardLaunch& how) {
  if (how.step_rows == 128 && how.cluster == 2) return launch_forward_as<T, kDim, 128, 2>(params, how);
  if (how.step_rows == 128 && how.cluster == 1) return launch_forward_as<T, kDim, 128, 1>(params, how);
  if (how.step_rows == 64 && how.cluster == 1) return launch_forward_as<T, kDim, 64, 1>(params, how);
  fail(ErrorCode::kUnsupported, "forward_sm90: no kernel for steps of ", how.step_rows, " keys and clusters of ", how.cluster);
}

template <typename T>
void launch_forward(const HopperForwardParams& params, const ForwardLaunch& how) {
  if (how.head_dim == 128) return launch_forward_of<T, 128>(params, how);
  if (how.head_dim == 64) return launch_forward_of<T, 64>(params, how);
  fail(ErrorCode::kUnsupported, "forward_sm90: head_dim is ", how.head_dim, ", expected 64 or 128");
}

}  // namespace slidetile::cuda
