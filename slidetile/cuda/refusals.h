// Why a problem is beyond the portable kernels, of f32 too.
#pragma once

#include "slidetile/cuda/device.h"
#include "slidetile/plan.h"
#include "slidetile/tensor.h"

namespace slidetile::cuda {

/// Null: it is not. A launch has fewer than 2^31 blocks of threads.
inline const char* refusal(const PlanView& plan, const TensorView& q) noexcept {
  constexpr int64_t kMostItems = (int64_t{1} << 31) - 1, kFewestRows = 16;
  const int64_t blocks = (plan.query.largest_tile + kFewestRows - 1) / kFewestRows;
  int64_t items = 0;
  if (__builtin_mul_overflow(q.batch(), q.heads(), &items) || __builtin_mul_overflow(items, blocks * plan.query.tiles, &items) ||
      items > kMostItems) {
    return "2^31 or more blocks of queries";
  }
  return unavailable_on(q.device.index, Needs::kAmpere);
}

}  // namespace slidetile::cuda
