// Forward attention on Hopper: what becomes of a unit's sums: out, lse, and the note that a row overflowed.
#pragma once

#include "slidetile/cuda/forward_sm90_layout.cuh"
#include "slidetile/cuda/quad.cuh"

namespace slidetile::cuda {

/// Four words of each of the four lanes of a quad: lane i gets the i-th of each.
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4], uint32_t quad_lane) {
  const bool odd = quad_lane & 1, high = quad_lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
    x[i] = odd ? other : x[i];
    x[i + 1] = odd ? x[i + 1] : other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
    x[i] = high ? other : x[i];
    x[i + 2] = high ? x[i + 2] : other;
  }
}

/// Whose rows a thread holds.
struct OutputPlace {
  const ItemSlot& item;
  uint32_t unit, thread;  // the warpgroup, and the thread in it
};

/// Writes out and lse of a unit of 64 rows, and notes the item where a row overflowed.
template <typename T, int kDim, typename Softmax>
__device__ __forceinline__ void store_unit(const HopperForwardParams& p, const OutputPlace& place, float (&o)[kDim / 2], Softmax& softmax) {
  const ItemSlot& item = place.item;
  const Block& block = item.unit[place.unit];
  const uint32_t flags = block.flags;
  if (flags == 0) return;
  const int32_t box_w = p.lowering.query.box.w, box_h = p.lowering.query.box.h;
  const uint32_t quad_lane = place.thread % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = static_cast<int32_t>(place.thread / 32 * 16 + place.thread % 32 / 4 + 8 * half);
    const float sum = quad_sum(softmax.sum[half]);
    int32_t token = block.w + row;
    if (!(flags & kBlockExtra)) {
      const int32_t line = row / box_w;
      token = p.before + ((block.t + line / box_h) * p.canvas_h + block.h + line % box_h) * p.canvas_w + block.w + row % box_w;
    }
    const bool inside = (block.valid[row / 32] >> (row % 32) & 1) != 0, used = token < item.query_length && sum != 0;
    if (inside && used && Softmax::overflowed(sum)) {
      if (atomicExch(&p.has_overflowed[item.index], 1) == 0) p.overflowed[atomicAdd(p.overflows, 1)] = item.index;
    }
    const float factor = used ? 1 / sum : 0.0f;
    T* const line = static_cast<T*>(p.out) + item.batch * p.out_strides[0] + item.head * p.out_strides[1] + token * p.out_strides[2];
#pragma unroll
    for (int group = 0; group < kDim / 8; group += 4) {
      uint32_t x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (group + i) + 2 * half;
        x[i] = used ? pack<T>(o[at] * factor, o[at + 1] * factor) : 0u;
      }
      transpose_quad(x, quad_lane);
      if (inside) *reinterpret_cast<uint4*>(line + 8 * (group + quad_lane)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    if (inside && p.lse != nullptr && quad_lane == 0) {
      constexpr float kLn2 = 0.693147180559945f;
      p.lse[item.batch * p.lse_strides[0] + item.head * p.lse_strides[1] + token * p.lse_strides[2]] =
          used ? (log2f(sum) - softmax.minus_reference[half]) * kLn2 : -INFINITY;
    }
  }
}

}  // namespace slidetile::cuda
