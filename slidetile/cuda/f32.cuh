// What the f32 kernels share: 16 own rows a block of threads, four a warp; 64 partners at a time in one buffer of shared memory, of which a
// lane takes two. Plain FMA: these kernels are for exactness, not speed.
#pragma once

#include "slidetile/cuda/gather_sm80.cuh"
#include "slidetile/cuda/launch.cuh"

namespace slidetile::cuda {

inline constexpr int kF32Rows = 16, kF32WarpRows = kF32Rows / kWarps, kF32Partners = 64;
inline constexpr int kF32LaneColumns = 8;  // of 32 lanes: head_dim up to 256

struct F32Lists {
  BlockRows<kF32Partners> partners;
  int32_t own_token[kF32Rows];
};

/// Floats from one row of a buffer to the next: odd, so that equal columns of 32 rows lie in different banks.
__host__ __device__ inline int f32_stride(int head_dim) { return head_dim | 1; }

inline int f32_shared_bytes(int head_dim, int own_arrays) {
  return static_cast<int>(sizeof(F32Lists)) +
         (own_arrays * kF32Rows + kF32Partners) * f32_stride(head_dim) * static_cast<int>(sizeof(float));
}

/// Rows token[0..count) of a tensor into a buffer; zeros where token is -1. Needs a barrier after it.
__device__ __forceinline__ void load_rows(float* to, int count, const Rows& rows, const char* base, const int32_t* token, int head_dim) {
  const int stride = f32_stride(head_dim), lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < count; row += kWarps) {
    const int t = token[row];
    const auto* from = reinterpret_cast<const float*>(base + max(t, 0) * rows.token);
    for (int d = lane; d < head_dim; d += 32) to[row * stride + d] = t < 0 ? 0 : from[d];
  }
}

/// s[r][i] = own row r of the warp times partner lane + 32 i.
__device__ __forceinline__ void multiply_rows(float (&s)[kF32WarpRows][2], const float* own, const float* partners, int head_dim) {
  const int stride = f32_stride(head_dim), lane = threadIdx.x % 32;
  const float* mine = own + threadIdx.x / 32 * kF32WarpRows * stride;
#pragma unroll
  for (auto& row : s) row[0] = row[1] = 0;
  for (int d = 0; d < head_dim; ++d) {
    const float low = partners[lane * stride + d], high = partners[(lane + 32) * stride + d];
#pragma unroll
    for (int r = 0; r < kF32WarpRows; ++r) {
      s[r][0] = fmaf(mine[r * stride + d], low, s[r][0]);
      s[r][1] = fmaf(mine[r * stride + d], high, s[r][1]);
    }
  }
}

/// sum[r][i] += weights of row r times column lane + 32 i of the partners. A weight of 0 takes nothing: a mask may hide a NaN there.
__device__ __forceinline__ void accumulate_rows(float (&sum)[kF32WarpRows][kF32LaneColumns], const float (&weight)[kF32WarpRows][2],
                                                const float* partners, int head_dim) {
  const int stride = f32_stride(head_dim), lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll 2
    for (int j = 0; j < 32; ++j) {
      float w[kF32WarpRows];
#pragma unroll
      for (int r = 0; r < kF32WarpRows; ++r) w[r] = __shfl_sync(~0u, weight[r][half], j);
#pragma unroll
      for (int i = 0; i < kF32LaneColumns; ++i) {
        const int d = lane + 32 * i;
        const float value = d < head_dim ? partners[(half * 32 + j) * stride + d] : 0;
#pragma unroll
        for (int r = 0; r < kF32WarpRows; ++r) sum[r][i] = fmaf(w[r], w[r] == 0 ? 0 : value, sum[r][i]);
      }
    }
  }
}

/// One row of a warp's sums to memory.
__device__ __forceinline__ void store_row(const Rows& rows, char* base, int token, const float (&value)[kF32LaneColumns], int head_dim) {
  auto* to = reinterpret_cast<float*>(base + token * rows.token);
#pragma unroll
  for (int i = 0; i < kF32LaneColumns; ++i) {
    const int d = threadIdx.x % 32 + 32 * i;
    if (d < head_dim) to[d] = value[i];
  }
}

__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

}  // namespace slidetile::cuda
