// Numbers of a normal distribution from a seed: the same on every machine, device and number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace slidetile::video {

/// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits for a counter and a
/// key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) noexcept;

/// Fills `values` with independent numbers of mean 0 and variance 1; value i depends on the seed and on i alone.
void fill_normal(std::span<float> values, uint64_t seed) noexcept;

}  // namespace slidetile::video
