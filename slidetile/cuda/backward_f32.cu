// Backward in f32, for every plan and head_dim: the two passes of backward_sm80.cuh in plain FMA, one buffer for k, v (or q, dout) in turn.
#include "slidetile/cuda/f32.cuh"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/refusals.h"
#include "slidetile/cuda/row_terms.cuh"

namespace slidetile::cuda {
namespace {

enum class Own { kQueries, kKeys };

struct BackwardF32Params {
  PlanView plan;  // of the pass: the transposed plan where keys are own
  Rows own0, own1, partner0, partner1, gradient0, gradient1;
  RowTerms terms;
  const int32_t *own_lengths = nullptr, *partner_lengths = nullptr;
  Schedule schedule;
  int head_dim = 0;
  float scale = 1;
};

template <Own kOwn>
__global__ void __launch_bounds__(kThreads) backward_f32(const __grid_constant__ BackwardF32Params params) {
  extern __shared__ __align__(16) char shared[];
  auto& lists = *reinterpret_cast<F32Lists*>(shared);
  const PlanView& plan = params.plan;
  const int head_dim = params.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *own0 = reinterpret_cast<float*>(shared + sizeof(F32Lists)), *own1 = own0 + kF32Rows * f32_stride(head_dim),
        *buffer = own1 + kF32Rows * f32_stride(head_dim);
  const Item item = params.schedule.item<kF32Rows>(blockIdx.x, plan.query);
  if (item.count <= 0) return;
  PartnerWalk<BlockRows<kF32Partners>> walk;
  walk.start(plan, item, length_in_use(params.partner_lengths, item.batch, plan.key));
  if (threadIdx.x < kF32Rows) {
    const int r = threadIdx.x;
    lists.own_token[r] = r < item.count ? plan.query.token[plan.query.tile_begin[item.tile] + item.first + r] : -1;
  }
  const int blocks = partner_blocks<kF32Partners>(plan, item);
  __syncthreads();
  load_rows(own0, kF32Rows, params.own0, params.own0.of(item.batch, item.head), lists.own_token, head_dim);
  load_rows(own1, kF32Rows, params.own1, params.own1.of(item.batch, item.head), lists.own_token, head_dim);
  const int64_t terms_at = (static_cast<int64_t>(item.batch) * params.schedule.heads + item.head) * params.terms.tokens;
  constexpr float kLog2e = 1.4426950408889634f;

  float sum0[kF32WarpRows][kF32LaneColumns] = {}, sum1[kF32WarpRows][kF32LaneColumns] = {};
  const auto load = [&](const Rows& rows) {
    __syncthreads();
    load_rows(buffer, kF32Partners, rows, rows.of(item.batch, item.head), lists.partners.token, head_dim);
    __syncthreads();
  };
  for (int block = 0; block < blocks; ++block) {
    __syncthreads();
    walk.fetch(plan);
    walk.publish(plan, &lists.partners);
    load(params.partner0);
    float p[kF32WarpRows][2], ds[kF32WarpRows][2];
    multiply_rows(p, own0, buffer, head_dim);
    load(params.partner1);
    multiply_rows(ds, own1, buffer, head_dim);
#pragma unroll
    for (int r = 0; r < kF32WarpRows; ++r) {
      const int row = warp * kF32WarpRows + r;
      const uint64_t visible = visible_partners(plan, lists.partners, item.first + min(row, item.count - 1));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = max(kOwn == Own::kQueries ? lists.own_token[row] : lists.partners.token[lane + 32 * half], 0);
        const float lse = params.terms.lse_log2[terms_at + query], delta = params.terms.delta[terms_at + query];
        const bool seen = visible >> (lane + 32 * half) & 1;
        p[r][half] = seen ? exp2f(fmaf(p[r][half], params.scale * kLog2e, -lse)) : 0;
        ds[r][half] = seen ? p[r][half] * (ds[r][half] - delta) : 0;
      }
    }
    if constexpr (kOwn == Own::kKeys) accumulate_rows(sum1, p, buffer, head_dim);
    load(params.partner0);
    accumulate_rows(sum0, ds, buffer, head_dim);
  }
  const int own_length = length_in_use(params.own_lengths, item.batch, plan.query);
#pragma unroll
  for (int r = 0; r < kF32WarpRows; ++r) {
    const int token = lists.own_token[warp * kF32WarpRows + r];
    if (token < 0) continue;
    for (float& value : sum0[r]) value = token >= own_length ? 0 : value * params.scale;
    store_row(params.gradient0, params.gradient0.of(item.batch, item.head), token, sum0[r], head_dim);
    if constexpr (kOwn == Own::kKeys) {
      for (float& value : sum1[r]) value = token >= own_length ? 0 : value;
      store_row(params.gradient1, params.gradient1.of(item.batch, item.head), token, sum1[r], head_dim);
    }
  }
}

const char* why_not(const BackwardArgs& args) noexcept {
  if (args.q.dtype != DType::kF32) return "bf16 and f16: cuda.sm80 takes them";
  const char* reason = refusal(args.plan, args.q);
  return reason != nullptr ? reason : refusal(args.transposed, args.q);
}

template <Own kOwn>
void launch_pass(BackwardF32Params params, int64_t batch, void* stream) {
  params.schedule = Schedule::make<kF32Rows>(params.plan.query, batch, params.schedule.heads);
  launch<backward_f32<kOwn>>({.name = "cuda.f32 backward",
                              .grid = dim3(static_cast<unsigned>(params.schedule.items)),
                              .block = dim3(kThreads),
                              .shared_bytes = f32_shared_bytes(params.head_dim, 2),
                              .stream = stream},
                             params);
}

void run(const BackwardArgs& args) {
  const CurrentDevice current(args.q.device.index);
  const Rows q = rows_of(args.q), k = rows_of(args.k), v = rows_of(args.v), dout = rows_of(args.dout);
  BackwardF32Params pass{.plan = args.plan,
                         .own0 = q,
                         .own1 = dout,
                         .partner0 = k,
                         .partner1 = v,
                         .gradient0 = rows_of(args.dq),
                         .terms = RowTerms::in(args.workspace, args.q),
                         .own_lengths = args.query_lengths,
                         .partner_lengths = args.key_lengths,
                         .schedule = {.heads = static_cast<int>(args.q.heads())},
                         .head_dim = static_cast<int>(args.q.head_dim()),
                         .scale = args.scale};
  launch_row_terms<float>(args);
  launch_pass<Own::kQueries>(pass, args.q.batch(), args.stream);
  pass.plan = args.transposed;
  pass.own0 = k;
  pass.own1 = v;
  pass.partner0 = q;
  pass.partner1 = dout;
  pass.gradient0 = rows_of(args.dk);
  pass.gradient1 = rows_of(args.dv);
  pass.own_lengths = args.key_lengths;
  pass.partner_lengths = args.query_lengths;
  launch_pass<Own::kKeys>(pass, args.q.batch(), args.stream);
}

}  // namespace

const BackwardKernel kBackwardF32 = {"cuda.f32", []() noexcept { return unavailable(Needs::kAmpere); }, why_not, run,
                                     [](const BackwardArgs& args) noexcept {
                                       return RowTerms::bytes(args.q);
                                     }};

}  // namespace slidetile::cuda
