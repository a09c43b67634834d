// Launches the Hopper backward kernels of one element type; included once for each.
#pragma once

#include "slidetile/cuda/backward_sm90.cuh"
#include "slidetile/cuda/backward_sm90.h"
#include "slidetile/cuda/backward_sm90_around.cuh"
#include "slidetile/cuda/launch.cuh"
#include "slidetile/error.h"

namespace slidetile::cuda {

template <typename T, int kDim, bool kInTurn>
void launch_backward_as(const BackwardParams& params, const BackwardLaunch& how) {
  const auto query_blocks = dim3(static_cast<unsigned>(params.sheets) * static_cast<unsigned>(params.tables.query_blocks));
  launch<backward_sm90_rows<T, kDim, kInTurn>>(
      {.name = "backward_sm90_rows", .grid = query_blocks, .block = dim3(128), .shared_bytes = 0, .stream = how.stream}, params);
  launch<backward_sm90<T, kDim, kInTurn>>({.name = "backward_sm90",
                                           .grid = dim3(static_cast<unsigned>(how.ctas)),
                                           .block = dim3(kBackwardThreads),
                                           .shared_bytes = BackwardShared<kDim>::kBytes,
                                           .stream = how.stream,
                                           .together = kInTurn},  // CTAs wait for each other

                                          params);
  launch<backward_sm90_dq<T, kDim>>(
      {.name = "backward_sm90_dq", .grid = query_blocks, .block = dim3(256), .shared_bytes = 0, .stream = how.stream}, params);
  if (params.tables.splits == 0) return;
  const auto splits = dim3(static_cast<unsigned>(params.sheets) * static_cast<unsigned>(params.tables.splits));
  launch<backward_sm90_partials<T, kDim>>(
      {.name = "backward_sm90_partials", .grid = splits, .block = dim3(256), .shared_bytes = 0, .stream = how.stream}, params);
}

template <typename T, int kDim>
void launch_backward_of(const BackwardParams& params, const BackwardLaunch& how) {
  if (how.order == DqOrder::kInTurn) return launch_backward_as<T, kDim, true>(params, how);
  return launch_backward_as<T, kDim, false>(params, how);
}

template <typename T>
void launch_backward(const BackwardParams& params, const BackwardLaunch& how) {
  if (how.head_dim == 128) return launch_backward_of<T, 128>(params, how);
  if (how.head_dim == 64) return launch_backward_of<T, 64>(params, how);
  fail(ErrorCode::kUnsupported, "backward_sm90: head_dim is ", how.head_dim, ", expected 64 or 128");
}

}  // namespace slidetile::cuda
