// AVX-512 with BF16: VDPBF16PS multiplies 32 pairs of bf16 and adds them in f32. The other storage types use the f32 kernels of AVX-512.
#include <immintrin.h>

#include "slidetile/cpu/backward_engine.h"
#include "slidetile/cpu/engine.h"

namespace slidetile::cpu {
namespace {

#include "slidetile/cpu/avx512_float.inl"
#include "slidetile/cpu/rows.inl"

constexpr int kRows = 6, kVectors = 4, kMaskRows = 4;
constexpr bool kFused = true;
constexpr int kPair = 2;
using Operand = __m512i;

inline Float exp2(Float x) { return exp2_degree4(x); }

inline Operand load_operand(const uint32_t* from) { return _mm512_loadu_si512(from); }
inline void store_operand(uint32_t* to, Operand value) { _mm512_storeu_si512(to, value); }
inline Operand broadcast_operand(const uint32_t* from) { return _mm512_set1_epi32(static_cast<int>(*from)); }
inline Float dot(Float acc, Operand a, Operand b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

template <int kN>
inline void store_weights(uint32_t* to, const Float (&weights)[kN]) {
#pragma GCC unroll 8
  for (int n = 0; n + 1 < kN; n += 2) _mm512_storeu_si512(to + n * kLanes / 2, (__m512i)_mm512_cvtne2ps_pbh(weights[n + 1], weights[n]));
  if constexpr (kN % 2 == 1) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + kN / 2 * kLanes), (__m256i)_mm512_cvtneps_pbh(weights[kN - 1]));
  }
}

// Two rows as words of a pair each.
template <int kR, int kN>
inline void store_pairs(uint32_t* to, int64_t stride, const Float (&rows)[kR][kN]) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                              23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
#pragma GCC unroll 4
  for (int r = 0; r + 1 < kR; r += 2) {
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      const auto halves = (__m512i)_mm512_cvtne2ps_pbh(rows[r + 1][n], rows[r][n]);
      store_operand(to + r / 2 * stride + n * kLanes, _mm512_permutexvar_epi16(interleave, halves));
    }
  }
}

inline Float load_pair(const uint32_t* words, int row) {
  const __m512i both = load_operand(words);
  return _mm512_castsi512_ps(row == 0 ? _mm512_slli_epi32(both, 16) : _mm512_and_si512(both, _mm512_set1_epi32(-0x10000)));
}

inline float value_at(const uint32_t* word, int key) {
  const uint32_t bits = *word >> (16 * key) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline float weight_at(const uint32_t* weights, int key) { return value_at(weights + key / 2, key % 2); }

inline void scale_weights(uint32_t* weights, int words, float factor) {
  const Float by = broadcast(factor);
  for (int i = 0; i < words; i += kLanes / 2) {  // keys come in whole vectors
    char* at = reinterpret_cast<char*>(weights + i);
    store_storage(at, Storage::kBf16, mul(load_storage(at, Storage::kBf16), by));
  }
}

void stage_row(uint32_t* to, const char* from, Storage, int64_t head_dim) {
  constexpr int64_t kWhole = 2 * kLanes;
  int64_t d = 0;
  for (; d + kWhole <= head_dim; d += kWhole) store_operand(to + d / 2, _mm512_loadu_si512(from + d * 2));
  if (d < head_dim) {
    alignas(64) char whole[64] = {};
    copy_bytes(whole, from + d * 2, (head_dim - d) * 2);
    store_operand(to + d / 2, _mm512_load_si512(whole));
  }
}

inline bool is_unsafe(const uint32_t* staged, int64_t words) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 found = 0;
  for (int64_t i = 0; i < words; i += kLanes) {
    found |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(load_operand(staged + i), exponent), exponent);
  }
  return found != 0;
}

inline void pack_values(uint32_t* to, const uint32_t* staged, int64_t stride, int64_t column) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(staged + column / 2));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(staged + stride + column / 2));
  store_operand(to, _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16)));
}

#include "slidetile/cpu/body.inl"
#include "slidetile/cpu/body_backward.inl"

const Engine kEngine = {kLanes, kPair, pack_scratch_bytes, attend_scratch_bytes, pack, attend};

}  // namespace

const EngineSet kAvx512Bf16Set = {&kAvx512Engine, &kEngine, &kAvx512Engine};
const BackwardSet kAvx512Bf16Backward = {&kAvx512BackwardEngine, &kBackwardEngine, &kAvx512BackwardEngine};

}  // namespace slidetile::cpu
