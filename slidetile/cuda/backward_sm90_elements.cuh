// Packed elements, exponentials, products and stores of accumulators that the Hopper backward needs beside wgmma.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "slidetile/cuda/wgmma.cuh"

namespace slidetile::cuda {

/// Two packed 16-bit elements as floats.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t packed) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
  } else {
    __half2 halves;
    memcpy(&halves, &packed, sizeof halves);
    return __half22float2(halves);
  }
}

/// Products of two packed elements and two floats, packed. bf16 rounds the floats first, which costs half as many instructions; in f16
/// they might overflow where their products don't.
template <typename T>
__device__ __forceinline__ uint32_t multiply_packed(uint32_t packed, float low, float high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(packed), "r"(pack<T>(low, high)));
    return product;
  } else {
    const float2 factors = unpack<T>(packed);
    return pack<T>(factors.x * low, factors.y * high);
  }
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// d (+)= A B for 64 x 32 x 16, both operands in shared memory with the other axis contiguous.
template <typename T>
__device__ __forceinline__ void wgmma_shared_32(float (&d)[16], uint64_t a, uint64_t b, int accumulate) {
#define SLIDETILE_WGMMA_32(type)                                                                                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                     \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, 1, 1;\n}"                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), \
                 "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                                            \
               : "l"(a), "l"(b), "r"(accumulate))
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    SLIDETILE_WGMMA_32("bf16");
  } else {
    SLIDETILE_WGMMA_32("f16");
  }
#undef SLIDETILE_WGMMA_32
}

/// Writes an accumulator's rows, scaled: `low` is where row 16 (t / 32) + (t % 32) / 4 starts, `high` where the one 8 further does; null:
/// not wanted. Quads exchange their pairs so that each thread stores 16 bytes.
template <typename T, int kCount>
__device__ __forceinline__ void store_rows(const float (&sums)[kCount], float scale, T* low, T* high) {
  const uint32_t lane = threadIdx.x % 4;
#pragma unroll
  for (int group = 0; group < kCount / 16; ++group) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 16 * group + 4 * j + 2 * half;
        v[j] = pack<T>(sums[at] * scale, sums[at + 1] * scale);
      }
      uint32_t first = __shfl_xor_sync(~0u, (lane & 1) != 0 ? v[0] : v[1], 1),
               second = __shfl_xor_sync(~0u, (lane & 1) != 0 ? v[2] : v[3], 1);
      if ((lane & 1) != 0) {
        v[0] = first, v[2] = second;
      } else {
        v[1] = first, v[3] = second;
      }
      first = __shfl_xor_sync(~0u, (lane & 2) != 0 ? v[0] : v[2], 2), second = __shfl_xor_sync(~0u, (lane & 2) != 0 ? v[1] : v[3], 2);
      if ((lane & 2) != 0) {
        v[0] = first, v[1] = second;
      } else {
        v[2] = first, v[3] = second;
      }
      T* const row = half == 0 ? low : high;
      if (row != nullptr) *reinterpret_cast<uint4*>(row + 32 * group + 8 * lane) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

/// Begins an accumulator of 64 x 64 with the same 64 values in every row.
__device__ __forceinline__ void begin_at(float (&sums)[32], const unsigned char* values) {
  const auto* pair = reinterpret_cast<const float2*>(values) + threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 value = pair[4 * j];
    sums[4 * j] = sums[4 * j + 2] = value.x;
    sums[4 * j + 1] = sums[4 * j + 3] = value.y;
  }
}

/// The same value, but the compiler can't know it: what is made from it is not kept in registers from before.
__device__ __forceinline__ uint32_t opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// operand_descriptor of what lies `bytes` after an operand that starts at 16 * `start`.
__device__ __forceinline__ uint64_t descriptor_at(uint32_t start, uint32_t bytes, uint32_t slab_bytes) {
  constexpr uint32_t kHigh = static_cast<uint32_t>(operand_descriptor(0, 0) >> 32);
  uint64_t descriptor;
  asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(start + (bytes >> 4 | slab_bytes >> 4 << 16)), "r"(kHigh));
  return descriptor;
}

}  // namespace slidetile::cuda
