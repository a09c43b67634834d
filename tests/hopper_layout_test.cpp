// Descriptors and swizzle of wgmma operands against where the copy engine puts the elements of a tile. Host only.
#include <doctest/doctest.h>

#include <cstdint>
#include <set>

#include "slidetile/cuda/wgmma_descriptor.h"

namespace slidetile::cuda {
namespace {

constexpr uint32_t kElementBytes = 2;

// Address of element (row, channel) of a tile of `rows` rows at `base`, loaded as slabs of 64 channels.
uint32_t placed(uint32_t base, uint32_t rows, uint32_t row, uint32_t channel) {
  const uint32_t slab = channel / kSlabChannels, column = channel % kSlabChannels;
  return swizzle_128(base + slab * rows * kSlabRowBytes + row * kSlabRowBytes + column * kElementBytes);
}

struct Fields {
  uint32_t start, leading, stride, swizzle;
};

Fields fields(uint64_t descriptor) {
  return {static_cast<uint32_t>(descriptor & 0x3FFF) << 4, static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4,
          static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4, static_cast<uint32_t>(descriptor >> 62)};
}

// Address that wgmma reads for row m and summed index k of an operand whose summed axis is contiguous.
uint32_t read_along_sum(uint64_t descriptor, uint32_t m, uint32_t k) {
  const Fields f = fields(descriptor);
  return swizzle_128(f.start + m / 8 * f.stride + m % 8 * kSlabRowBytes + k * kElementBytes);
}

// The same where the other axis, n, is contiguous.
uint32_t read_across_sum(uint64_t descriptor, uint32_t n, uint32_t k) {
  const Fields f = fields(descriptor);
  return swizzle_128(f.start + n / kSlabChannels * f.leading + k / 8 * f.stride + k % 8 * kSlabRowBytes +
                     n % kSlabChannels * kElementBytes);
}

TEST_CASE("slices of channels read what the copy engine placed") {
  for (const uint32_t rows : {64u, 128u}) {
    for (const uint32_t channels : {64u, 128u}) {
      const uint32_t base = 3 * 1024 * 16;
      for (uint32_t slice = 0; slice < channels / 16; ++slice) {
        const uint64_t descriptor = advanced(operand_descriptor(base, 16), channel_slice(slice, rows));
        CHECK(fields(descriptor).swizzle == 1);
        for (uint32_t row = 0; row < rows; ++row) {
          for (uint32_t k = 0; k < 16; ++k) REQUIRE(read_along_sum(descriptor, row, k) == placed(base, rows, row, 16 * slice + k));
        }
      }
    }
  }
}

TEST_CASE("slices of rows read what the copy engine placed") {
  for (const uint32_t rows : {64u, 128u}) {
    for (const uint32_t channels : {64u, 128u}) {
      const uint32_t base = 144 * 1024;
      for (uint32_t slice = 0; slice < rows / 16; ++slice) {
        const uint64_t descriptor = advanced(operand_descriptor(base, rows * kSlabRowBytes), row_slice(slice));
        for (uint32_t channel = 0; channel < channels; ++channel) {
          for (uint32_t k = 0; k < 16; ++k) REQUIRE(read_across_sum(descriptor, channel, k) == placed(base, rows, 16 * slice + k, channel));
        }
      }
    }
  }
}

TEST_CASE("the rank that a cluster's addresses carry stays out of descriptors") {
  CHECK(operand_descriptor(0x01000400, 16384) == operand_descriptor(0x400, 16384));
  CHECK(fields(operand_descriptor(0x01038000, 16384)).start == 0x38000);
  CHECK(fields(operand_descriptor(0x01038000, 16384)).leading == 16384);
}

TEST_CASE("the swizzle permutes a row's units without touching its neighbours") {
  for (uint32_t row = 0; row < 8; ++row) {
    std::set<uint32_t> units;
    for (uint32_t unit = 0; unit < 8; ++unit) units.insert(swizzle_128(row * 128 + unit * 16));
    CHECK(units.size() == 8);
    CHECK(*units.begin() == row * 128);
    CHECK(*units.rbegin() == row * 128 + 112);
  }
}

}  // namespace
}  // namespace slidetile::cuda
