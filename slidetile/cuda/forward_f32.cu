// Forward in f32, for every plan and head_dim: a block of 16 query rows walks the keys of its row of the plan, 64 at a time.
#include "slidetile/cuda/f32.cuh"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/refusals.h"

namespace slidetile::cuda {
namespace {

constexpr float kInfinity = __builtin_inff();

struct ForwardF32Params {
  PlanView plan;
  Rows q, k, v, out, lse;
  const int32_t *query_lengths = nullptr, *key_lengths = nullptr;
  Schedule schedule;
  int head_dim = 0;
  float scale = 1;
};

__global__ void __launch_bounds__(kThreads) forward_f32(const __grid_constant__ ForwardF32Params params) {
  extern __shared__ __align__(16) char shared[];
  auto& lists = *reinterpret_cast<F32Lists*>(shared);
  const PlanView& plan = params.plan;
  const int head_dim = params.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float *q = reinterpret_cast<float*>(shared + sizeof(F32Lists)), *buffer = q + kF32Rows * f32_stride(head_dim);
  const Item item = params.schedule.item<kF32Rows>(blockIdx.x, plan.query);
  if (item.count <= 0) return;
  PartnerWalk<BlockRows<kF32Partners>> walk;
  walk.start(plan, item, length_in_use(params.key_lengths, item.batch, plan.key));
  if (threadIdx.x < kF32Rows) {
    const int r = threadIdx.x;
    lists.own_token[r] = r < item.count ? plan.query.token[plan.query.tile_begin[item.tile] + item.first + r] : -1;
  }
  const int blocks = partner_blocks<kF32Partners>(plan, item);
  __syncthreads();
  load_rows(q, kF32Rows, params.q, params.q.of(item.batch, item.head), lists.own_token, head_dim);

  float sum[kF32WarpRows][kF32LaneColumns] = {}, maximum[kF32WarpRows], total[kF32WarpRows] = {};
  for (float& m : maximum) m = -kInfinity;
  for (int block = 0; block < blocks; ++block) {
    walk.fetch(plan);
    walk.publish(plan, &lists.partners);
    __syncthreads();
    load_rows(buffer, kF32Partners, params.k, params.k.of(item.batch, item.head), lists.partners.token, head_dim);
    __syncthreads();
    float p[kF32WarpRows][2];
    multiply_rows(p, q, buffer, head_dim);
#pragma unroll
    for (int r = 0; r < kF32WarpRows; ++r) {
      const uint64_t visible = visible_partners(plan, lists.partners, item.first + min(warp * kF32WarpRows + r, item.count - 1));
      p[r][0] = visible >> lane & 1 ? p[r][0] * params.scale : -kInfinity;
      p[r][1] = visible >> (lane + 32) & 1 ? p[r][1] * params.scale : -kInfinity;
      const float m = fmaxf(maximum[r], warp_max(fmaxf(p[r][0], p[r][1])));
      const float factor = m == -kInfinity ? 1 : expf(maximum[r] - m), base = m == -kInfinity ? 0 : m;
      maximum[r] = m;
      p[r][0] = expf(p[r][0] - base);
      p[r][1] = expf(p[r][1] - base);
      total[r] = total[r] * factor + p[r][0] + p[r][1];
#pragma unroll
      for (float& value : sum[r]) value *= factor;
    }
    __syncthreads();
    load_rows(buffer, kF32Partners, params.v, params.v.of(item.batch, item.head), lists.partners.token, head_dim);
    __syncthreads();
    accumulate_rows(sum, p, buffer, head_dim);
    __syncthreads();
  }
  const int query_length = length_in_use(params.query_lengths, item.batch, plan.query);
#pragma unroll
  for (int r = 0; r < kF32WarpRows; ++r) {
    const int token = lists.own_token[warp * kF32WarpRows + r];
    const float all = warp_sum(total[r]);
    if (token < 0) continue;
    const bool empty = all == 0 || token >= query_length;
    for (float& value : sum[r]) value = empty ? 0 : value / all;
    store_row(params.out, params.out.of(item.batch, item.head), token, sum[r], head_dim);
    if (params.lse.data != nullptr && lane == 0) {
      *reinterpret_cast<float*>(params.lse.of(item.batch, item.head) + token * params.lse.token) =
          empty ? -kInfinity : maximum[r] + logf(all);
    }
  }
}

const char* why_not(const ForwardArgs& args) noexcept {
  if (args.q.dtype != DType::kF32) return "bf16 and f16: cuda.sm80 takes them";
  return refusal(args.plan, args.q);
}

void run(const ForwardArgs& args) {
  const CurrentDevice current(args.q.device.index);
  const auto head_dim = static_cast<int>(args.q.head_dim());
  const ForwardF32Params params{.plan = args.plan,
                                .q = rows_of(args.q),
                                .k = rows_of(args.k),
                                .v = rows_of(args.v),
                                .out = rows_of(args.out),
                                .lse = rows_of(args.lse),
                                .query_lengths = args.query_lengths,
                                .key_lengths = args.key_lengths,
                                .schedule = Schedule::make<kF32Rows>(args.plan.query, args.q.batch(), args.q.heads()),
                                .head_dim = head_dim,
                                .scale = args.scale};
  launch<forward_f32>({.name = "cuda.f32 forward",
                       .grid = dim3(static_cast<unsigned>(params.schedule.items)),
                       .block = dim3(kThreads),
                       .shared_bytes = f32_shared_bytes(head_dim, 1),
                       .stream = args.stream},
                      params);
}

}  // namespace

const ForwardKernel kForwardF32 = {"cuda.f32", []() noexcept { return unavailable(Needs::kAmpere); }, why_not, run, nullptr};

}  // namespace slidetile::cuda
