// AVX2 with FMA and F16C: 8 floats a vector, 16 registers.
#include <immintrin.h>

#include "slidetile/cpu/backward_engine.h"
#include "slidetile/cpu/engine.h"

namespace slidetile::cpu {
namespace {

using Float = __m256;
using Flags = __m256;
constexpr int kLanes = 8;

inline Float zero() { return _mm256_setzero_ps(); }
inline Float load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Float value) { _mm256_storeu_ps(to, value); }
inline Float broadcast(float value) { return _mm256_set1_ps(value); }
inline Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
inline Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
inline Float max(Float a, Float b) { return _mm256_max_ps(a, b); }

inline Float select(uint32_t bits, Float a, Float b) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(chosen));
}

inline float reduce_max(Float a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline float reduce_add(Float a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

inline Flags no_flags() { return zero(); }
inline Flags above(Flags flags, Float a, Float b) { return _mm256_or_ps(flags, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline bool any(Flags flags) { return _mm256_movemask_ps(flags) != 0; }

// 2^x = 2^n * 2^(x - n), n the nearest integer, found by adding a number that leaves no room for fractions; 2^n is added to the exponent.
// At and below -127 that gives exactly 0 (the polynomial is exactly 1 at 0). Relative error 9.2e-8.
inline Float exp2(Float x) {
  const Float magic = broadcast(0x1.8p23f);
  x = _mm256_max_ps(broadcast(-127), x);  // in this order a NaN stays
  const Float n = add(x, magic);
  const Float f = _mm256_sub_ps(x, _mm256_sub_ps(n, magic));
  Float p = fma(broadcast(0.0013264727f), f, broadcast(0.0096715126f));
  p = fma(p, f, broadcast(0.0555073374f));
  p = fma(p, f, broadcast(0.2402224208f));
  p = fma(p, f, broadcast(0.6931469776f));
  p = fma(p, f, broadcast(1));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}

inline void transpose(Float (&r)[8]) {
  Float t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
    t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

inline Float load_storage(const void* from, Storage storage) {
  switch (storage) {
    case Storage::kF32: return load(static_cast<const float*>(from));
    case Storage::kBf16: {
      const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(from));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    case Storage::kF16: return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  return zero();
}

inline void store_storage(void* to, Storage storage, Float value) {
  switch (storage) {
    case Storage::kF32: store(static_cast<float*>(to), value); break;
    case Storage::kBf16: {
      const __m256i bits = _mm256_castps_si256(value);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
      const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
      rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
      _mm_storeu_si128(static_cast<__m128i*>(to), _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
      break;
    }
    case Storage::kF16:
      _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      break;
  }
}

#include "slidetile/cpu/float_words.inl"

constexpr int kRows = 6, kVectors = 2, kMaskRows = 4;
constexpr bool kFused = false;

#include "slidetile/cpu/body.inl"
#include "slidetile/cpu/body_backward.inl"

const Engine kEngine = {kLanes, kPair, pack_scratch_bytes, attend_scratch_bytes, pack, attend};

}  // namespace

const EngineSet kAvx2Set = {&kEngine, &kEngine, &kEngine};
const BackwardSet kAvx2Backward = {&kBackwardEngine, &kBackwardEngine, &kBackwardEngine};

}  // namespace slidetile::cpu
