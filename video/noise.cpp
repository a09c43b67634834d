#include "video/noise.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

namespace slidetile::video {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) noexcept {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{0xd2511f53} * counter[0], b = uint64_t{0xcd9e8d57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9e3779b9, key[1] + 0xbb67ae85};
  }
  return counter;
}

void fill_normal(std::span<float> values, uint64_t seed) noexcept {
  const std::array<uint32_t, 2> key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (size_t i = 0; i < values.size(); i += 4) {
    const uint64_t block = i / 4;
    const std::array<uint32_t, 4> bits = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0}, key);
    float normal[4];  // Box and Muller: a pair of uniform numbers makes a pair of normal ones
    for (size_t pair = 0; pair < 2; ++pair) {
      const double radius = std::sqrt(-2 * std::log((bits[2 * pair] + 0.5) * 0x1p-32)),
                   angle = 2 * std::numbers::pi * bits[2 * pair + 1] * 0x1p-32;
      normal[2 * pair] = static_cast<float>(radius * std::cos(angle));
      normal[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
    std::copy_n(normal, std::min<size_t>(4, values.size() - i), values.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

}  // namespace slidetile::video
