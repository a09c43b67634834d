// Any processor: vectors of 4 floats in the compiler's own notation (SSE2 on x86-64, NEON on 64-bit Arm).
#include "slidetile/cpu/backward_engine.h"
#include "slidetile/cpu/engine.h"

namespace slidetile {
// From tensor.h, which this unit does not include: nothing of the standard library may be emitted here.
float f16_to_f32(uint16_t bits) noexcept;
uint16_t f32_to_f16(float value) noexcept;
uint16_t f32_to_bf16(float value) noexcept;
}  // namespace slidetile

namespace slidetile::cpu {
namespace {

using Float = float __attribute__((vector_size(16)));
using Int = int32_t __attribute__((vector_size(16)));
using Flags = Int;
constexpr int kLanes = 4;

inline Float zero() { return Float{}; }
inline Float broadcast(float value) { return Float{value, value, value, value}; }
inline Float load(const float* from) {
  Float value;
  __builtin_memcpy(&value, from, 16);
  return value;
}
inline void store(float* to, Float value) { __builtin_memcpy(to, &value, 16); }
inline Float fma(Float a, Float b, Float c) { return a * b + c; }  // fused where the target can: -ffp-contract=fast
inline Float add(Float a, Float b) { return a + b; }
inline Float mul(Float a, Float b) { return a * b; }
inline Float max(Float a, Float b) { return a > b ? a : b; }

inline Float select(uint32_t bits, Float a, Float b) {
  const int32_t all = static_cast<int32_t>(bits);
  const Int lane = {1, 2, 4, 8};
  return (Int{all, all, all, all} & lane) == lane ? a : b;
}

inline float larger(float a, float b) { return a > b ? a : b; }
inline float reduce_max(Float a) { return larger(larger(a[0], a[1]), larger(a[2], a[3])); }
inline float reduce_add(Float a) { return (a[0] + a[1]) + (a[2] + a[3]); }

inline Flags no_flags() { return Int{}; }
inline Flags above(Flags flags, Float a, Float b) { return flags | (a > b); }
inline bool any(Flags flags) {
  uint64_t halves[2];
  __builtin_memcpy(halves, &flags, 16);
  return (halves[0] | halves[1]) != 0;
}

// As in avx2.cpp.
inline Float exp2(Float x) {
  const Float magic = broadcast(0x1.8p23f), least = broadcast(-127);
  x = least > x ? least : x;
  const Float n = x + magic;
  const Float f = x - (n - magic);
  Float p = fma(broadcast(0.0013264727f), f, broadcast(0.0096715126f));
  p = fma(p, f, broadcast(0.0555073374f));
  p = fma(p, f, broadcast(0.2402224208f));
  p = fma(p, f, broadcast(0.6931469776f));
  p = fma(p, f, broadcast(1));
  using Bits = uint32_t __attribute__((vector_size(16)));
  return reinterpret_cast<Float>(reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(n) << 23));
}

inline void transpose(Float (&r)[4]) {
  Float t[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) t[i] = Float{r[0][i], r[1][i], r[2][i], r[3][i]};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) r[i] = t[i];
}

inline Float load_storage(const void* from, Storage storage) {
  if (storage == Storage::kF32) return load(static_cast<const float*>(from));
  uint16_t bits[4];
  __builtin_memcpy(bits, from, 8);
  if (storage == Storage::kF16) return Float{f16_to_f32(bits[0]), f16_to_f32(bits[1]), f16_to_f32(bits[2]), f16_to_f32(bits[3])};
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) words[i] = static_cast<uint32_t>(bits[i]) << 16;
  Float value;
  __builtin_memcpy(&value, words, 16);
  return value;
}

inline void store_storage(void* to, Storage storage, Float value) {
  if (storage == Storage::kF32) return store(static_cast<float*>(to), value);
  uint16_t bits[4];
  for (int i = 0; i < 4; ++i) bits[i] = storage == Storage::kBf16 ? f32_to_bf16(value[i]) : f32_to_f16(value[i]);
  __builtin_memcpy(to, bits, 8);
}

#include "slidetile/cpu/float_words.inl"

constexpr int kRows = 4, kVectors = 2, kMaskRows = 4;
constexpr bool kFused = false;

#include "slidetile/cpu/body.inl"
#include "slidetile/cpu/body_backward.inl"

const Engine kEngine = {kLanes, kPair, pack_scratch_bytes, attend_scratch_bytes, pack, attend};

}  // namespace

const EngineSet kPortableSet = {&kEngine, &kEngine, &kEngine};
const BackwardSet kPortableBackward = {&kBackwardEngine, &kBackwardEngine, &kBackwardEngine};

}  // namespace slidetile::cpu
