// Packed words of one float each: the primitives of the sets that multiply in f32, included after load_storage and store_storage.

#include "slidetile/cpu/rows.inl"

constexpr int kPair = 1;
using Operand = Float;

inline const float* floats(const uint32_t* words) { return reinterpret_cast<const float*>(words); }
inline float* floats(uint32_t* words) { return reinterpret_cast<float*>(words); }

inline Operand load_operand(const uint32_t* from) { return load(floats(from)); }
inline void store_operand(uint32_t* to, Operand value) { store(floats(to), value); }
inline Operand broadcast_operand(const uint32_t* from) { return broadcast(*floats(from)); }
inline Float dot(Float acc, Operand a, Operand b) { return fma(a, b, acc); }

template <int kN>
inline void store_weights(uint32_t* to, const Float (&weights)[kN]) {
#pragma GCC unroll 8
  for (int n = 0; n < kN; ++n) store(floats(to) + n * kLanes, weights[n]);
}

// For words of several rows, which here are the rows themselves.
template <int kR, int kN>
inline void store_pairs(uint32_t* to, int64_t stride, const Float (&rows)[kR][kN]) {
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) store_weights<kN>(to + r * stride, rows[r]);
}

inline Float load_pair(const uint32_t* words, int) { return load(floats(words)); }

inline void scale_weights(uint32_t* weights, int words, float factor) {
  for (int i = 0; i < words; ++i) floats(weights)[i] *= factor;
}

inline float weight_at(const uint32_t* weights, int key) { return floats(weights)[key]; }
inline float value_at(const uint32_t* word, int) { return *floats(word); }

// A row of head_dim elements as words, zeros up to the next multiple of kLanes.
void stage_row(uint32_t* to, const char* from, Storage storage, int64_t head_dim) {
  const int64_t bytes = storage_bytes(storage);
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store(floats(to) + d, load_storage(from + d * bytes, storage));
  if (d < head_dim) store(floats(to) + d, load_tail(from + d * bytes, storage, head_dim - d));
}

inline bool is_unsafe(const uint32_t* staged, int64_t words) {
  Float check = zero();
  for (int64_t i = 0; i < words; i += kLanes) check = fma(load(floats(staged) + i), zero(), check);
  return !(reduce_add(check) == 0);
}

inline void pack_values(uint32_t* to, const uint32_t* staged, int64_t, int64_t column) { store(floats(to), load(floats(staged) + column)); }
