#include "bench/cpu_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slidetile::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A loop runs `rounds` rounds of kSteps multiply-adds on every one of its independent accumulators, more of them than latency times units
// on any processor, and returns the operations it did. What it computes is kept alive, and stays finite.
using Loop = double (*)(int64_t rounds);
constexpr int kSteps = 8;

[[gnu::noinline]] void keep(const void* result) { __asm__ volatile("" : : "r"(result) : "memory"); }

using Float4 = float __attribute__((vector_size(16)));

double loop_portable(int64_t rounds) {
  constexpr int kAccumulators = 12;
  Float4 acc[kAccumulators], a = {0.5f, 0.5f, 0.5f, 0.5f}, b = {0.25f, 0.25f, 0.25f, 0.25f};
  for (Float4& x : acc) x = b;
  __asm__ volatile("" : : "r"(&a), "r"(&b) : "memory");
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < kAccumulators; ++i) acc[i] = acc[i] * a + b;
    }
  }
  keep(acc);
  return static_cast<double>(rounds) * kSteps * kAccumulators * 4 * 2;
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) double loop_avx2(int64_t rounds) {
  constexpr int kAccumulators = 12;
  __m256 acc[kAccumulators];
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (__m256& x : acc) x = b;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
    }
  }
  keep(acc);
  return static_cast<double>(rounds) * kSteps * kAccumulators * 8 * 2;
}

__attribute__((target("avx512f"))) double loop_avx512(int64_t rounds) {
  constexpr int kAccumulators = 24;
  __m512 acc[kAccumulators];
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (__m512& x : acc) x = b;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
      for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
    }
  }
  keep(acc);
  return static_cast<double>(rounds) * kSteps * kAccumulators * 16 * 2;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) double loop_avx512bf16(int64_t rounds) {
  constexpr int kAccumulators = 24;
  __m512 acc[kAccumulators];
  const auto a = (__m512bh)_mm512_set1_epi32(0x3c003c00), b = (__m512bh)_mm512_set1_epi32(0x3c003c00);  // 2^-7
  for (__m512& x : acc) x = _mm512_setzero_ps();
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
      for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
    }
  }
  keep(acc);
  return static_cast<double>(rounds) * kSteps * kAccumulators * 32 * 2;
}

Loop loop_of(std::string_view kernel) {
  if (kernel == "cpu.avx512bf16") return loop_avx512bf16;
  if (kernel == "cpu.avx512") return loop_avx512;
  if (kernel == "cpu.avx2") return loop_avx2;
  return loop_portable;
}

#else

Loop loop_of(std::string_view) { return loop_portable; }

#endif

}  // namespace

double multiply_add_peak(std::string_view kernel, Executor& executor, double seconds) {
  constexpr int64_t kRounds = 20000;
  const Loop loop = loop_of(kernel);
  // Every worker counts what it did until the time is over; the best slice of time counts, so that a moment lost to another process does
  // not lower what the kernels are measured against.
  constexpr int kSlices = 5;
  double best = 0;
  for (int slice = 0; slice < kSlices; ++slice) {
    std::vector<double> rate(static_cast<size_t>(executor.workers()));
    executor.run(executor.workers(), [&](int64_t index, int) {
      const auto start = Clock::now();
      double done = 0, elapsed = 0;
      while (elapsed < seconds / kSlices) {
        done += loop(kRounds);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rate[static_cast<size_t>(index)] = done / elapsed;
    });
    double total = 0;
    for (const double r : rate) total += r;
    best = std::max(best, total);
  }
  return best;
}

}  // namespace slidetile::bench
