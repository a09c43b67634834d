// Primitives of AVX-512 on vectors of 16 floats, included inside an unnamed namespace by the units that use it.

using Float = __m512;
using Flags = __mmask16;
constexpr int kLanes = 16;

inline Float zero() { return _mm512_setzero_ps(); }
inline Float load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Float value) { _mm512_storeu_ps(to, value); }
inline Float broadcast(float value) { return _mm512_set1_ps(value); }
inline Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
inline Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
inline Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
inline Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
inline Float select(uint32_t bits, Float a, Float b) { return _mm512_mask_mov_ps(b, static_cast<__mmask16>(bits), a); }
inline float reduce_max(Float a) { return _mm512_reduce_max_ps(a); }
inline float reduce_add(Float a) { return _mm512_reduce_add_ps(a); }

inline Flags no_flags() { return 0; }
inline Flags above(Flags flags, Float a, Float b) { return static_cast<Flags>(flags | _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)); }
inline bool any(Flags flags) { return flags != 0; }

// 2^x = 2^floor(x) * 2^(x - floor(x)), right at -inf (0), NaN and beyond the exponent's range without further instructions. Splitting x by
// additions instead, as the other sets do, leaves the multiply-add pipes more room but is slower on Zen 4: it is instructions that count.
inline Float fraction(Float x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

// Relative error 2.6e-6. Degree 3 (7.5e-5) is below bf16's rounding too, but shows in the sums, and so in lse.
inline Float exp2_degree4(Float x) {
  const Float f = fraction(x);
  Float p = fma(broadcast(0.01353416792f), f, broadcast(0.05201146061f));
  p = fma(p, f, broadcast(0.2414427569f));
  p = fma(p, f, broadcast(0.6930038345f));
  p = fma(p, f, broadcast(1.000002593f));
  return _mm512_scalef_ps(p, x);
}

// Relative error 7.5e-8.
inline Float exp2_degree5(Float x) {
  const Float f = fraction(x);
  Float p = fma(broadcast(0.001877576676f), f, broadcast(0.008989340088f));
  p = fma(p, f, broadcast(0.05582631806f));
  p = fma(p, f, broadcast(0.240153617f));
  p = fma(p, f, broadcast(0.6931530732f));
  p = fma(p, f, broadcast(0.9999999251f));
  return _mm512_scalef_ps(p, x);
}

inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Now 128-bit lane m of r[4 i + j] holds column 4 m + j of rows 4 i to 4 i + 3.
#pragma GCC unroll 8
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), low_odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88), high_odd = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(low_even, high_even, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(low_even, high_even, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// 16 elements of the caller's memory.
inline Float load_storage(const void* from, Storage storage) {
  switch (storage) {
    case Storage::kF32: return _mm512_loadu_ps(from);
    case Storage::kBf16: {
      const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(from));
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    case Storage::kF16: return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
  return zero();
}

inline void store_storage(void* to, Storage storage, Float value) {
  switch (storage) {
    case Storage::kF32: _mm512_storeu_ps(to, value); break;
    case Storage::kBf16: {
      const __m512i bits = _mm512_castps_si512(value);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
      rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
      _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
      break;
    }
    case Storage::kF16:
      _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      break;
  }
}
