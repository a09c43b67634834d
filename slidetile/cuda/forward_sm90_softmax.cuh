// Forward attention on Hopper: the two ways to keep a row's softmax, FirstStepSoftmax for bf16, which looks at the scores of one step, and
// LazySoftmax for f16 and for the items that overflow the first.
#pragma once

#include "slidetile/cuda/forward_sm90_layout.cuh"
#include "slidetile/cuda/quad.cuh"

namespace slidetile::cuda {

/// The larger of a row's scores in this thread.
template <int kScores>
__device__ __forceinline__ float row_maximum(const float (&s)[kScores], int row) {
  float m = fmaxf(s[2 * row], s[2 * row + 1]);
#pragma unroll
  for (int i = 4; i < kScores; i += 4) m = fmaxf(m, fmaxf(s[i + 2 * row], s[i + 2 * row + 1]));
  return m;
}

/// The softmax of the two rows of a thread with the maximum of the first step as its reference, whatever comes later: sums and the
/// exponentials in bf16 have the range of f32, which spares a look at every score. A row whose later scores are so much larger that its
/// sum nears the end of that range has overflowed, and its item is computed again by LazySoftmax.
template <int kSums>
struct FirstStepSoftmax {
  static constexpr float kHeadroom = 40;         // log2: exponentials of the first step are at most 2^-40
  static constexpr float kLargestSum = 0x1p60f;  // leaves 2^67 for values
  float minus_reference[2] = {0, 0}, sum[2] = {0, 0};
  bool first = true;

  template <int kScores>
  __device__ __forceinline__ void prepare(const float (&s)[kScores], float (&)[kSums], const HopperForwardParams& p) {
    if (first) [[unlikely]] {
#pragma unroll
      for (int row = 0; row < 2; ++row) minus_reference[row] = -quad_max(row_maximum(s, row)) * p.scale_log2 - kHeadroom;
      first = false;
    }
  }
  static __device__ __forceinline__ bool overflowed(float row_sum) { return !(row_sum <= kLargestSum); }
};

/// The softmax of the two rows of a thread, with a maximum that is raised only when a score exceeds it by 8 in log2: the exponentials then
/// stay below 256, and the sums are exact in the end whatever the reference is.
template <int kSums>
struct LazySoftmax {
  float minus_reference[2] = {0, 0};  // log2 units; 0 while a row has seen no key
  float limit[2];                     // of raw scores: above it the reference is raised
  float sum[2] = {0, 0};
  bool integers = false;  // every limit of the warp is positive or zero, so that integer comparison serves

  __device__ __forceinline__ LazySoftmax() { limit[0] = limit[1] = -INFINITY; }

  template <int kScores>
  __device__ __forceinline__ void raise(const float (&s)[kScores], float (&o)[kSums], const HopperForwardParams& p) {
    bool positive = true;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float m = quad_max(row_maximum(s, row));
      if (m > limit[row]) {
        const float reference = m * p.scale_log2;
        const float factor = limit[row] == -INFINITY ? 0.0f : exp2_fast(-minus_reference[row] - reference);
        minus_reference[row] = -reference;
        limit[row] = m + p.slack;
        sum[row] *= factor;
#pragma unroll
        for (int i = 2 * row; i < kSums; i += 4) {
          o[i] *= factor;
          o[i + 1] *= factor;
        }
      }
      positive = positive && limit[row] >= 0;
    }
    integers = __all_sync(~0u, positive);
  }

  template <int kScores>
  static __device__ __forceinline__ int row_maximum_bits(const float (&s)[kScores], int row) {
    int m[2];  // two chains: half the latency
#pragma unroll
    for (int i = 0; i < 8; i += 4) m[i / 4] = max(__float_as_int(s[i + 2 * row]), __float_as_int(s[i + 2 * row + 1]));
#pragma unroll
    for (int i = 8; i < kScores; i += 4) {
      m[i / 4 % 2] = __vimax3_s32(m[i / 4 % 2], __float_as_int(s[i + 2 * row]), __float_as_int(s[i + 2 * row + 1]));
    }
    return max(m[0], m[1]);
  }

  static __device__ __forceinline__ bool overflowed(float) { return false; }

  template <int kScores>
  __device__ __forceinline__ void prepare(const float (&s)[kScores], float (&o)[kSums], const HopperForwardParams& p) {
    bool exceeds;
    if (integers) [[likely]] {
      exceeds = (row_maximum_bits(s, 0) > __float_as_int(limit[0])) | (row_maximum_bits(s, 1) > __float_as_int(limit[1]));
    } else {
      exceeds = (row_maximum(s, 0) > limit[0]) | (row_maximum(s, 1) > limit[1]);
    }
    if (__any_sync(~0u, exceeds)) [[unlikely]]
      raise(s, o, p);
  }
};

}  // namespace slidetile::cuda
