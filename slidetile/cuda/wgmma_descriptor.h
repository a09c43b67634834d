// Descriptors of wgmma operands in shared memory, and the swizzle they assume; also host code, for tests.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SLIDETILE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SLIDETILE_HOST_DEVICE inline
#endif

namespace slidetile::cuda {

inline constexpr uint32_t kSlabChannels = 64;  // 16-bit elements of a row of a slab: 128 bytes
inline constexpr uint32_t kSlabRowBytes = 128;

/// Where the copy engine and wgmma put the byte that would be at `address`, with 128-byte swizzle.
SLIDETILE_HOST_DEVICE constexpr uint32_t swizzle_128(uint32_t address) { return address ^ (((address >> 7) & 7) << 4); }

/// Descriptor of an operand with 128-byte swizzle at a shared memory address. `slab_bytes`: distance of the slabs, read only where the
/// contiguous axis is not the one that is summed over and has more than 64 elements; groups of eight rows are 1024 bytes apart.
/// Addresses in a cluster carry the CTA's rank in high bits, which must not reach the descriptor.
SLIDETILE_HOST_DEVICE constexpr uint64_t operand_descriptor(uint32_t address, uint32_t slab_bytes) {
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32, kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kEightRows | uint64_t{(slab_bytes >> 4) & 0x3FFF} << 16 | ((address & 0x3FFFF) >> 4);
}

/// The descriptor of what lies some bytes further on: only its low word changes, which the compiler would not see in a 64-bit sum.
SLIDETILE_HOST_DEVICE constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & 0xFFFFFFFF00000000u) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

/// Bytes from the start of a tile of `rows` rows to its slice k of 16 channels, where channels are summed over (K in Q K^T).
SLIDETILE_HOST_DEVICE constexpr uint32_t channel_slice(uint32_t k, uint32_t rows) { return k / 4 * rows * kSlabRowBytes + k % 4 * 32; }

/// Bytes to the slice k of 16 rows, where rows are summed over (V in P V).
SLIDETILE_HOST_DEVICE constexpr uint32_t row_slice(uint32_t k) { return k * 16 * kSlabRowBytes; }

}  // namespace slidetile::cuda
