// The portable backward kernels' entries in the list: what they take, their workspace and their parameters.
#include "slidetile/cuda/backward_sm80.cuh"
#include "slidetile/cuda/backward_sm80_atomic.cuh"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/refusals.h"

namespace slidetile::cuda {
namespace {

const char* why_not(const BackwardArgs& args) noexcept {
  if (args.q.dtype == DType::kF32) return "f32: it multiplies bf16 and f16";
  const char* reason = refusal(args.plan, args.q);
  return reason != nullptr ? reason : refusal(args.transposed, args.q);
}

BackwardPasses passes_of(const BackwardArgs& args) {
  constexpr double kLog2e = 1.4426950408889634;
  const Rows q = rows_of(args.q), k = rows_of(args.k), v = rows_of(args.v), dout = rows_of(args.dout);
  BackwardParams common{.terms = RowTerms::in(args.workspace, args.q),
                        .schedule = {.heads = static_cast<int>(args.q.heads())},
                        .head_dim = static_cast<int>(args.q.head_dim()),
                        .scale = args.scale,
                        .scale_log2 = static_cast<float>(args.scale * kLog2e)};
  BackwardPasses passes{.queries = common, .keys = common};
  passes.queries.plan = args.plan;
  passes.queries.own0 = q;
  passes.queries.own1 = dout;
  passes.queries.partner0 = k;
  passes.queries.partner1 = v;
  passes.queries.gradient0 = rows_of(args.dq);
  passes.queries.own_lengths = args.query_lengths;
  passes.queries.partner_lengths = args.key_lengths;
  passes.keys.plan = args.transposed;
  passes.keys.own0 = k;
  passes.keys.own1 = v;
  passes.keys.partner0 = q;
  passes.keys.partner1 = dout;
  passes.keys.gradient0 = rows_of(args.dk);
  passes.keys.gradient1 = rows_of(args.dv);
  passes.keys.own_lengths = args.key_lengths;
  passes.keys.partner_lengths = args.query_lengths;
  return passes;
}

void run(const BackwardArgs& args) {
  const CurrentDevice current(args.q.device.index);
  const BackwardPasses passes = passes_of(args);
  if (args.q.dtype == DType::kBf16) {
    launch_row_terms<Bf16>(args);
    launch_backward_sm80<Bf16>(passes, args.q.batch(), args.stream);
    if (args.plan.mask_of != nullptr) launch_backward_repair<Bf16>(passes, args.q.batch(), args.stream);
  } else {
    launch_row_terms<F16>(args);
    launch_backward_sm80<F16>(passes, args.q.batch(), args.stream);
    if (args.plan.mask_of != nullptr) launch_backward_repair<F16>(passes, args.q.batch(), args.stream);
  }
}

constexpr int64_t kAtomicHeadDim = 128;  // largest

int64_t padded(int64_t head_dim) { return head_dim > 64 ? kAtomicHeadDim : 64; }

// Row terms, then the sums of dq.
int64_t terms_bytes(const BackwardArgs& args) {
  constexpr int64_t kAlignment = 256;
  return (RowTerms::bytes(args.q) + kAlignment - 1) / kAlignment * kAlignment;
}

const char* why_not_atomic(const BackwardArgs& args) noexcept {
  if (const char* reason = why_not(args)) return reason;
  if (args.q.head_dim() > kAtomicHeadDim) return "head_dim above 128";
  const int needed = args.q.head_dim() > 64 ? AtomicShape<128, Path::kAny>::kSharedBytes : AtomicShape<64, Path::kAny>::kSharedBytes;
  return properties_of(args.q.device.index).shared_bytes < needed ? "needs up to 175 KB of shared memory a block" : nullptr;
}

void run_atomic(const BackwardArgs& args) {
  const CurrentDevice current(args.q.device.index);
  const BackwardPasses passes = passes_of(args);
  const AtomicParams params{passes.keys, reinterpret_cast<float*>(static_cast<char*>(args.workspace) + terms_bytes(args))};
  if (args.q.dtype == DType::kBf16) {
    launch_row_terms<Bf16>(args);
    launch_backward_sm80_atomic<Bf16>(params, args);
    if (args.plan.mask_of != nullptr) launch_backward_repair<Bf16>(passes, args.q.batch(), args.stream);
  } else {
    launch_row_terms<F16>(args);
    launch_backward_sm80_atomic<F16>(params, args);
    if (args.plan.mask_of != nullptr) launch_backward_repair<F16>(passes, args.q.batch(), args.stream);
  }
}

}  // namespace

const BackwardKernel kBackwardSm80 = {"cuda.sm80", []() noexcept { return unavailable(Needs::kAmpere); }, why_not, run,
                                      [](const BackwardArgs& args) noexcept {
                                        return RowTerms::bytes(args.q);
                                      }};

const BackwardKernel kBackwardSm80Atomic = {
    "cuda.sm80.atomic", []() noexcept { return unavailable(Needs::kAmpere); }, why_not_atomic, run_atomic,
    [](const BackwardArgs& args) noexcept {
      const int64_t rows = args.q.batch() * args.q.heads() * args.q.tokens();
      return terms_bytes(args) + rows * padded(args.q.head_dim()) * static_cast<int64_t>(sizeof(float));
    }};

}  // namespace slidetile::cuda
