// Tensor-core products of one warp (mma.sync m16n8k16), the loads that feed them (ldmatrix).
//
// Fragments, g = lane / 4, c = 2 * (lane % 4): A (16 x 16) holds rows g, g + 8 and columns c, c + 8, two elements a register;
// B (16 x 8) holds rows c, c + 8 of column g; C (16 x 8) holds [g][c], [g][c + 1], [g + 8][c], [g + 8][c + 1].
#pragma once

#include <cstdint>

#include "slidetile/cuda/pack.cuh"
#include "slidetile/cuda/quad.cuh"

namespace slidetile::cuda {

/// c += a * b with f32 accumulation.
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma<F16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Four 8 x 8 matrices of 16-bit elements; lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Rows of kColumns 16-bit elements in shared memory, 16-byte chunks exchanged so that eight rows of one column of chunks lie in
/// different banks: chunk c of row r is at c ^ (r % 8).
template <int kColumns>
struct Swizzled {
  static_assert(kColumns % 64 == 0);
  static constexpr int kChunks = kColumns / 8, kRowBytes = kColumns * 2;
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ (row & 7)) << 4));
  }
};

/// Where a lane reads its part of a 16 x 16 block of a Swizzled array; `step(i)` is the block's place along the columns, in 16s.
struct BlockAddress {
  uint32_t row, lane;
  __device__ __forceinline__ uint32_t step(int i) const { return row + (lane ^ static_cast<uint32_t>(i * 32)); }
};

/// For A row-major, and for B whose columns are rows in memory, transposed (V): matrices at rows 0, 8, 0, 8 and columns 0, 0, 8, 8.
template <int kColumns>
__device__ __forceinline__ BlockAddress rows_first(uint32_t base, int first_row, int lane) {
  const int row = first_row + (lane & 15);
  return {base + static_cast<uint32_t>(row * Swizzled<kColumns>::kRowBytes), static_cast<uint32_t>(((lane >> 4) ^ (lane & 7)) << 4)};
}

/// For B whose columns are rows in memory (K): matrices at rows 0, 0, 8, 8 and columns 0, 8, 0, 8.
template <int kColumns>
__device__ __forceinline__ BlockAddress columns_first(uint32_t base, int first_row, int lane) {
  const int row = first_row + (lane & 7) + ((lane >> 4) << 3);
  return {base + static_cast<uint32_t>(row * Swizzled<kColumns>::kRowBytes), static_cast<uint32_t>((((lane >> 3) & 1) ^ (lane & 7)) << 4)};
}

}  // namespace slidetile::cuda
