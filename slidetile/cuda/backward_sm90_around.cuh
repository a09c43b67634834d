// Kernels before and after the Hopper backward: row terms; dq from its sums; dk and dv of key blocks that were cut up.
#pragma once

#include <cmath>
#include <cstdint>

#include "slidetile/cuda/backward_sm90_elements.cuh"
#include "slidetile/cuda/backward_sm90_params.cuh"

namespace slidetile::cuda {

/// Before: row terms, of lse and of the sum of out * dout, nobody's turn yet; clears dq's sums unless the first to add stores.
/// Reads out and dout once; bound by memory.
template <typename T, int kDim, bool kInTurn>
__global__ void __launch_bounds__(128) backward_sm90_rows(const __grid_constant__ BackwardParams p) {
  const int64_t at = blockIdx.x;
  const auto sheet = static_cast<int32_t>(at / p.tables.query_blocks), b = static_cast<int32_t>(at % p.tables.query_blocks);
  if (at == 0 && threadIdx.x == 0) *p.ticket = 0;
  const Block& block = p.tables.query_block[b];
  if (block.flags == 0) return;
  const int32_t batch = sheet / p.heads, head = sheet % p.heads;
  constexpr int kLanes = kDim / 8, kRows = 128 / kLanes;
  const int lane = threadIdx.x % kLanes;
  const auto* out = static_cast<const T*>(p.out) + batch * p.out_strides.batch + head * p.out_strides.head;
  const auto* dout = static_cast<const T*>(p.dout_data) + batch * p.dout_strides.batch + head * p.dout_strides.head;
#pragma unroll
  for (int r = threadIdx.x / kLanes; r < kBackwardQueryRows; r += kRows) {
    const int32_t token = p.query.token(block, r);
    bool alive = TokenGeometry::valid(block, r) && !(p.query_lengths != nullptr && token >= p.query_lengths[batch]);
    float sum = 0, lse = 0;
    if (alive) {
      const uint4 a = *reinterpret_cast<const uint4*>(out + token * p.out_strides.token + lane * 8);
      const uint4 c = *reinterpret_cast<const uint4*>(dout + token * p.dout_strides.token + lane * 8);
      const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<T>(left[i]), y = unpack<T>(right[i]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
      }
      lse = p.lse[batch * p.lse_strides.batch + head * p.lse_strides.head + token * p.lse_strides.token];
      alive = lse != -INFINITY;
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (lane == 0) {
      // Deep, what S and dP begin at; else what is taken from them.
      constexpr bool kIsDeep = kDeep<kDim, kInTurn>;
      const float of_scores = kIsDeep ? (alive ? -lse / p.scale : copysignf(kNoRow, -p.scale)) : alive ? lse * kLog2E : INFINITY;
      p.lse_terms[at * kBackwardQueryRows + r] = of_scores;
      p.delta[at * kBackwardQueryRows + r] = !alive ? 0 : kIsDeep ? -sum : sum;
    }
  }
  if constexpr (kInTurn) {
    if (threadIdx.x == 0) p.turn[at] = 0;
  } else {
    auto* const sums = reinterpret_cast<float4*>(p.dq_sums + at * (kBackwardQueryRows * kDim));
#pragma unroll
    for (int i = 0; i < kBackwardQueryRows * kDim / 512; ++i) sums[i * 128 + threadIdx.x] = make_float4(0, 0, 0, 0);
  }
}

/// After: dq from its sums. Reads 4 bytes and writes 2 an element; bound by memory.
template <typename T, int kDim>
__global__ void __launch_bounds__(256) backward_sm90_dq(const __grid_constant__ BackwardParams p) {
  const int64_t at = blockIdx.x;
  const auto sheet = static_cast<int32_t>(at / p.tables.query_blocks), b = static_cast<int32_t>(at % p.tables.query_blocks);
  const Block& block = p.tables.query_block[b];
  if (block.flags == 0) return;
  const int32_t batch = sheet / p.heads, head = sheet % p.heads, half = threadIdx.x / 128, thread = threadIdx.x % 128;
  const bool any = p.tables.contributions[class_of(p, head) * p.tables.query_blocks + b] > 0;
  const auto* sums = reinterpret_cast<const float4*>(p.dq_sums + at * (kBackwardQueryRows * kDim)) + half * (kDim / 16) * 128 + thread;
  float dq[kDim / 4];
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
    const float4 x = any ? sums[j * 128] : make_float4(0, 0, 0, 0);
    dq[4 * j] = x.x, dq[4 * j + 1] = x.y, dq[4 * j + 2] = x.z, dq[4 * j + 3] = x.w;
  }
  const auto row_of = [&](int r) {
    if (!TokenGeometry::valid(block, r)) return static_cast<T*>(nullptr);
    return static_cast<T*>(p.dq) + batch * p.dq_strides.batch + head * p.dq_strides.head + p.query.token(block, r) * p.dq_strides.token +
           half * (kDim / 2);
  };
  const int row = 16 * (thread / 32) + thread % 32 / 4;
  store_rows<T>(dq, p.scale, row_of(row), row_of(row + 8));
}

/// After, where rows were cut up: dk and dv of a key block from its partial sums, in order.
template <typename T, int kDim>
__global__ void __launch_bounds__(256) backward_sm90_partials(const __grid_constant__ BackwardParams p) {
  const int32_t sheet = blockIdx.x / p.tables.splits, batch = sheet / p.heads, head = sheet % p.heads;
  const BackwardSplit split = p.tables.split[class_of(p, head) * p.tables.splits + blockIdx.x % p.tables.splits];
  if (split.partials == 0) return;
  const Block& block = p.tables.key_block[split.key_block];
  constexpr int64_t kPartial = int64_t{kBackwardKeyRows} * kDim;
  const int half = threadIdx.x / 128, thread = threadIdx.x % 128, row = 64 * half + 16 * (thread / 32) + thread % 32 / 4;
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    float sums[kDim / 2] = {};
    const auto* from = reinterpret_cast<const float4*>(
                           p.partials + ((static_cast<int64_t>(sheet) * p.tables.partials + split.first_partial) * 2 + which) * kPartial) +
                       half * (kDim / 8) * 128 + thread;
#pragma unroll 1
    for (int32_t i = 0; i < split.partials; ++i, from += 2 * kPartial / 4) {
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float4 x = from[j * 128];
        sums[4 * j] += x.x, sums[4 * j + 1] += x.y, sums[4 * j + 2] += x.z, sums[4 * j + 3] += x.w;
      }
    }
    const Strides& strides = which == 0 ? p.dk_strides : p.dv_strides;
    const auto row_of = [&](int r) {
      if (!TokenGeometry::valid(block, r)) return static_cast<T*>(nullptr);
      return static_cast<T*>(which == 0 ? p.dk : p.dv) + batch * strides.batch + head * strides.head +
             p.key.token(block, r) * strides.token;
    };
    store_rows<T>(sums, which == 0 ? p.scale : 1, row_of(row), row_of(row + 8));
  }
}

}  // namespace slidetile::cuda
