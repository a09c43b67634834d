// What the backward kernels need of each query row: lse in base 2, and delta = dout . out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "slidetile/cuda/gather_sm80.cuh"
#include "slidetile/cuda/launch.cuh"

namespace slidetile::cuda {

/// [batch][heads][tokens] each, in the workspace. A row that sees no key, or is past its length, has lse = +inf: its weights are then 0.
struct RowTerms {
  float *lse_log2 = nullptr, *delta = nullptr;
  int64_t tokens = 0;

  static int64_t bytes(const TensorView& q) { return 2 * q.batch() * q.heads() * q.tokens() * static_cast<int64_t>(sizeof(float)); }
  static RowTerms in(void* workspace, const TensorView& q) {
    auto* first = static_cast<float*>(workspace);
    return {first, first + q.batch() * q.heads() * q.tokens(), q.tokens()};
  }
};

struct RowTermsParams {
  Rows out, dout, lse;
  RowTerms terms;
  TilingView query;
  const int32_t* query_lengths = nullptr;
  int heads = 0, head_dim = 0;
  int64_t rows = 0;
};

__device__ __forceinline__ float as_float(float x) { return x; }
__device__ __forceinline__ float as_float(Bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float as_float(F16 x) { return __half2float(x); }

/// A warp a row. Reads out and dout once: memory bound.
template <typename T>
__global__ void __launch_bounds__(256) compute_row_terms(const __grid_constant__ RowTermsParams params) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= params.rows) return;
  const int64_t tokens = params.terms.tokens, token = row % tokens, in_heads = row / tokens;
  const int lane = threadIdx.x % 32, h = static_cast<int>(in_heads % params.heads), b = static_cast<int>(in_heads / params.heads);
  const bool used = token < length_in_use(params.query_lengths, b, params.query);
  float delta = 0;
  if (used) {
    const char *out = params.out.of(b, h) + token * params.out.token, *dout = params.dout.of(b, h) + token * params.dout.token;
    if (sizeof(T) == 2 && params.out.vectors && params.dout.vectors) {
      if (lane * 8 < params.head_dim) {
        const uint4 o = reinterpret_cast<const uint4*>(out)[lane], g = reinterpret_cast<const uint4*>(dout)[lane];
        const T *o_at = reinterpret_cast<const T*>(&o), *g_at = reinterpret_cast<const T*>(&g);
#pragma unroll
        for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) delta += as_float(o_at[i]) * as_float(g_at[i]);
      }
    } else {
      for (int d = lane; d < params.head_dim; d += 32) {
        delta += as_float(reinterpret_cast<const T*>(out)[d]) * as_float(reinterpret_cast<const T*>(dout)[d]);
      }
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) delta += __shfl_xor_sync(~0u, delta, step);
  if (lane != 0) return;
  constexpr float kLog2e = 1.4426950408889634f;
  const float lse = used ? *reinterpret_cast<const float*>(params.lse.of(b, h) + token * params.lse.token) : -__builtin_inff();
  params.terms.lse_log2[row] = lse == -__builtin_inff() ? __builtin_inff() : lse * kLog2e;
  params.terms.delta[row] = delta;
}

template <typename T>
void launch_row_terms(const BackwardArgs& args) {
  const int64_t rows = args.q.batch() * args.q.heads() * args.q.tokens();
  launch<compute_row_terms<T>>(
      {.name = "row terms", .grid = dim3(static_cast<unsigned>((rows + 7) / 8)), .block = dim3(256), .stream = args.stream},
      RowTermsParams{.out = rows_of(args.out),
                     .dout = rows_of(args.dout),
                     .lse = rows_of(args.lse),
                     .terms = RowTerms::in(args.workspace, args.q),
                     .query = args.plan.query,
                     .query_lengths = args.query_lengths,
                     .heads = static_cast<int>(args.q.heads()),
                     .head_dim = static_cast<int>(args.q.head_dim()),
                     .rows = rows});
}

}  // namespace slidetile::cuda
