// AVX-512 without bf16: 16 floats a vector.
#include <immintrin.h>

#include "slidetile/cpu/backward_engine.h"
#include "slidetile/cpu/engine.h"

namespace slidetile::cpu {
namespace {

#include "slidetile/cpu/avx512_float.inl"
#include "slidetile/cpu/float_words.inl"

constexpr int kRows = 6, kVectors = 4, kMaskRows = 4;
constexpr bool kFused = true;

inline Float exp2(Float x) { return exp2_degree5(x); }

// Sixteen floats of each row as a square: transposes as words.
inline void transpose(Float (&square)[kLanes]) {
  __m512i words[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) words[i] = _mm512_castps_si512(square[i]);
  transpose(words);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) square[i] = _mm512_castsi512_ps(words[i]);
}

#include "slidetile/cpu/body.inl"
#include "slidetile/cpu/body_backward.inl"

}  // namespace

const Engine kAvx512Engine = {kLanes, kPair, pack_scratch_bytes, attend_scratch_bytes, pack, attend};
const EngineSet kAvx512Set = {&kAvx512Engine, &kAvx512Engine, &kAvx512Engine};
const BackwardEngine kAvx512BackwardEngine = kBackwardEngine;
const BackwardSet kAvx512Backward = {&kAvx512BackwardEngine, &kAvx512BackwardEngine, &kAvx512BackwardEngine};

}  // namespace slidetile::cpu
