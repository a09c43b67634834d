// After a portable kernel ran a plan with token masks: rows that came out NaN or infinite are computed again, pair by pair.
//
// The kernels multiply values of pairs that a mask hides by 0, so a NaN there reaches every row of the block; no other pair of a row can
// bring one that is not its own. Where all numbers are finite this reads a result once: memory bound, under a hundredth of what made it.
#pragma once

#include "slidetile/cuda/gather_sm80.cuh"
#include "slidetile/cuda/launch.cuh"
#include "slidetile/cuda/row_terms.cuh"

namespace slidetile::cuda {

inline constexpr int kLaneElements = 8;  // of a row of up to 256, one in 32 each

template <typename T>
__device__ __forceinline__ bool all_finite(const Rows& rows, const char* row, int head_dim) {
  constexpr uint32_t kExponent = std::is_same_v<T, Bf16> ? 0x7f80 : 0x7c00;
  const int lane = threadIdx.x % 32;
  bool finite = true;
  const auto look = [&](uint32_t bits) {
    finite &= (bits & kExponent) != kExponent;
  };
  if (rows.vectors) {
    if (lane * 8 < head_dim) {
      const uint4 value = reinterpret_cast<const uint4*>(row)[lane];
      for (const uint32_t word : {value.x, value.y, value.z, value.w}) {
        look(word);
        look(word >> 16);
      }
    }
  } else {
    for (int d = lane; d < head_dim; d += 32) look(reinterpret_cast<const uint16_t*>(row)[d]);
  }
  return __all_sync(~0u, finite) != 0;
}

/// A row of head_dim elements over the lanes of a warp.
struct LaneRow {
  float at[kLaneElements] = {};

  template <typename T>
  static __device__ __forceinline__ LaneRow load(const char* row, int head_dim) {
    LaneRow result;
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      const int d = static_cast<int>(threadIdx.x) % 32 + 32 * i;
      if (d < head_dim) result.at[i] = as_float(reinterpret_cast<const T*>(row)[d]);
    }
    return result;
  }
  template <typename T>
  __device__ __forceinline__ void store(char* row, int head_dim, float factor) const {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      const int d = static_cast<int>(threadIdx.x) % 32 + 32 * i;
      if (d < head_dim) reinterpret_cast<uint16_t*>(row)[d] = static_cast<uint16_t>(pack<T>(at[i] * factor, 0));
    }
  }
  __device__ __forceinline__ float dot(const LaneRow& other) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) sum += at[i] * other.at[i];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }
  __device__ __forceinline__ void add(float factor, const LaneRow& other) {
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) at[i] += factor * other.at[i];
  }
};

/// A warp's row, in tile order, of one head of one batch item.
struct OwnRow {
  int batch, head, token;
  int64_t in_tiles;  // its place in the tiling's order

  static __device__ __forceinline__ OwnRow of(int64_t index, int heads, const TilingView& tiling) {
    const int64_t in_heads = index / tiling.tokens;
    OwnRow own;
    own.in_tiles = index % tiling.tokens;
    own.head = static_cast<int>(in_heads % heads);
    own.batch = static_cast<int>(in_heads / heads);
    own.token = tiling.token[own.in_tiles];
    return own;
  }
  /// Calls visit(token) for each partner that the row sees. Called by all lanes.
  template <typename Visit>
  __device__ __forceinline__ void each_partner(const PlanView& plan, int partner_length, const Visit& visit) const {
    int tile = 0;
    for (int above = plan.query.tiles; above - tile > 1;) {
      const int middle = (tile + above) / 2;
      (plan.query.tile_begin[middle] <= in_tiles ? tile : above) = middle;
    }
    const int64_t within = in_tiles - plan.query.tile_begin[tile];
    const int row = plan.row_of[static_cast<int64_t>(plan.head_class[plan.heads == 1 ? 0 : head]) * plan.query.tiles + tile];
    for (int64_t entry = plan.row_begin[row]; entry < plan.row_begin[row + 1]; ++entry) {
      const int first = plan.key.tile_begin[plan.key_tile[entry]], size = plan.key.tile_begin[plan.key_tile[entry] + 1] - first;
      const int mask = plan.mask_of[entry], words = (size + 63) / 64;
      const uint64_t* visible = mask < 0 ? nullptr : plan.mask_words + plan.mask_begin[mask] + within * words;
      for (int r = 0; r < size; ++r) {
        if (visible != nullptr && (visible[r / 64] >> (r % 64) & 1) == 0) continue;
        const int partner = plan.key.token[first + r];
        if (partner < partner_length) visit(partner);
      }
    }
  }
};

/// A warp a row of out.
template <typename T, typename Params>
__global__ void __launch_bounds__(256, 1) repair_forward(const __grid_constant__ Params params, int64_t rows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (index >= rows) return;
  const PlanView& plan = params.plan;
  const OwnRow own = OwnRow::of(index, params.schedule.heads, plan.query);
  char* out = params.out.of(own.batch, own.head) + own.token * params.out.token;
  if (all_finite<T>(params.out, out, params.head_dim)) return;

  const LaneRow q = LaneRow::load<T>(params.q.of(own.batch, own.head) + own.token * params.q.token, params.head_dim);
  const float scale = params.negate_q ? -params.scale_log2 : params.scale_log2;
  float maximum = -1e30f, total = 0;
  LaneRow sum;
  own.each_partner(plan, length_in_use(params.key_lengths, own.batch, plan.key), [&](int token) {
    const float s = scale * q.dot(LaneRow::load<T>(params.k.of(own.batch, own.head) + token * params.k.token, params.head_dim));
    if (s > maximum) {
      const float factor = exp2_fast(maximum - s);
      maximum = s;
      total *= factor;
      for (float& x : sum.at) x *= factor;
    }
    const float p = exp2_fast(s - maximum);
    total += p;
    sum.add(p, LaneRow::load<T>(params.v.of(own.batch, own.head) + token * params.v.token, params.head_dim));
  });
  sum.store<T>(out, params.head_dim, total == 0 ? 0 : 1 / total);
  if (params.lse.data != nullptr && threadIdx.x % 32 == 0) {
    constexpr float kLn2 = 0.6931471805599453f;
    *reinterpret_cast<float*>(params.lse.of(own.batch, own.head) + own.token * params.lse.token) =
        total == 0 ? -__builtin_inff() : kLn2 * (maximum + log2f(total));
  }
}

/// A warp a row of dq, or of dk and dv, as the pass has it.
template <typename T, typename Params>
__global__ void __launch_bounds__(256, 1) repair_backward(const __grid_constant__ Params params, int64_t rows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (index >= rows) return;
  const PlanView& plan = params.plan;
  const bool queries_own = params.gradient1.data == nullptr;
  const OwnRow own = OwnRow::of(index, params.schedule.heads, plan.query);
  const auto row_of = [&](const Rows& tensor, int token) {
    return tensor.of(own.batch, own.head) + token * tensor.token;
  };
  char *to0 = row_of(params.gradient0, own.token), *to1 = queries_own ? nullptr : row_of(params.gradient1, own.token);
  if (all_finite<T>(params.gradient0, to0, params.head_dim) && (queries_own || all_finite<T>(params.gradient1, to1, params.head_dim))) {
    return;
  }
  const LaneRow a0 = LaneRow::load<T>(row_of(params.own0, own.token), params.head_dim);
  const LaneRow a1 = LaneRow::load<T>(row_of(params.own1, own.token), params.head_dim);
  const int64_t terms = (static_cast<int64_t>(own.batch) * params.schedule.heads + own.head) * params.terms.tokens;
  LaneRow sum0, sum1;
  own.each_partner(plan, length_in_use(params.partner_lengths, own.batch, plan.key), [&](int token) {
    const LaneRow b0 = LaneRow::load<T>(row_of(params.partner0, token), params.head_dim);
    const LaneRow b1 = LaneRow::load<T>(row_of(params.partner1, token), params.head_dim);
    const int64_t query = terms + (queries_own ? own.token : token);
    const float p = exp2_fast(params.scale_log2 * a0.dot(b0) - params.terms.lse_log2[query]);
    sum0.add(p * (a1.dot(b1) - params.terms.delta[query]), b0);
    sum1.add(p, b1);
  });
  sum0.store<T>(to0, params.head_dim, params.scale);
  if (!queries_own) sum1.store<T>(to1, params.head_dim, 1);
}

template <auto kKernel, typename Params>
void launch_repair(const Params& params, int64_t batch, void* stream) {
  const int64_t rows = batch * params.schedule.heads * params.plan.query.tokens;
  launch<kKernel>({.name = "cuda.sm80 repair", .grid = dim3(static_cast<unsigned>((rows + 7) / 8)), .block = dim3(256), .stream = stream},
                  params, rows);
}

}  // namespace slidetile::cuda
