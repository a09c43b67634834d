// The portable forward kernel's entry in the list: what it takes, and its parameters.
#include <cmath>
#include <limits>

#include "slidetile/cuda/forward_sm80.cuh"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/refusals.h"

namespace slidetile::cuda {
namespace {

const char* why_not(const ForwardArgs& args) noexcept {
  if (args.q.dtype == DType::kF32) return "f32: it multiplies bf16 and f16";
  return refusal(args.plan, args.q);
}

void run(const ForwardArgs& args) {
  const CurrentDevice current(args.q.device.index);
  constexpr double kLog2e = 1.4426950408889634;
  ForwardParams params{.plan = args.plan,
                       .q = rows_of(args.q),
                       .k = rows_of(args.k),
                       .v = rows_of(args.v),
                       .out = rows_of(args.out),
                       .lse = rows_of(args.lse),
                       .query_lengths = args.query_lengths,
                       .key_lengths = args.key_lengths,
                       .schedule = {.heads = static_cast<int>(args.q.heads())},
                       .head_dim = static_cast<int>(args.q.head_dim()),
                       .scale_log2 = static_cast<float>(std::fabs(args.scale * kLog2e)),
                       .negate_q = args.scale < 0};
  (args.q.dtype == DType::kBf16 ? launch_forward_sm80<Bf16> : launch_forward_sm80<F16>)(params, args.q.batch(), args.stream);
}

}  // namespace

const ForwardKernel kForwardSm80 = {"cuda.sm80", []() noexcept { return unavailable(Needs::kAmpere); }, why_not, run, nullptr};

}  // namespace slidetile::cuda
