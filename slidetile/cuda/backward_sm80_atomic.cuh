// The portable backward kernel's faster mode: one pass, dq added up by atomics, so that its last bits differ from run to run.
//
// A block of eight warps holds 128 rows of k and v and walks the queries of its row of the transposed plan, 64 at a time:
//   s^T = k q^T, dp^T = v dout^T   (a warp: 32 keys x 32 queries)      p^T, ds^T to shared memory
//   dv += p^T dout, dk += ds^T q   (a warp: 32 keys x half of head_dim)
//   dq += ds k                     (a warp: 32 queries x a quarter of head_dim, to f32 sums in the workspace)
// A warp takes the weights that it made itself from its registers, before the barrier; only the other half comes from shared memory.
// Five products, 72 KB of shared memory read or written a warp and step for 5.2 MFLOP-pairs a block: shared memory binds before the tensor
// cores do. Atomics: 32 KB of f32 a step. q and dout have two stages each: 175 KB with k, v, p and ds, so one block a multiprocessor, and
// only where a block may have that much (compute capability 9.0 and 10.0).
#pragma once

#include "slidetile/cuda/backward_sm80.cuh"

namespace slidetile::cuda {

inline constexpr int kAtomicThreads = 256;

struct AtomicParams {
  BackwardParams keys;  // the pass over keys
  float* dq = nullptr;  // [batch][heads][tokens][kDim] sums, zero at first
};

template <int kDim_, Path kPath>
struct AtomicShape {
  static constexpr int kDim = kDim_, kKeys = 128, kQueries = 64;
  static constexpr bool kIsPlain = kPath == Path::kPlain;
  static constexpr int kListBlocks = 2, kLists = 2 * kListBlocks;  // blocks that the walk gives at a time, and are kept
  using Copier = RowCopier<kDim, kAtomicThreads>;
  using Queries = std::conditional_t<kIsPlain, PlainRows<kQueries, Copier::kGroups>, BlockRows<kQueries>>;
  using Walk = PartnerWalk<Queries, kListBlocks>;
  static constexpr uint32_t kOwnBytes = kKeys * kDim * 2, kPartnerBytes = kQueries * kDim * 2, kWeightBytes = kKeys * kQueries * 2;
  static constexpr uint32_t kStageBytes = 2 * kPartnerBytes;  // q, dout

  struct Lists {
    Queries queries[kLists];
    float lse_log2[2][kQueries], delta[2][kQueries];
    int32_t own_token[kKeys], own_loaded[kKeys];  // loaded: -1 past the length, where k may hold NaN, which ds = 0 does not silence in dq
    const char *q, *dout;                         // of the head, as the rest
    const float *lse_from, *delta_from;
    float* dq;
    int blocks, whole;  // whole: every own row is loaded
    Item item;
    Walk walk[Walk::kPartners];
  };
  static constexpr int kSharedBytes = 2 * kOwnBytes + 2 * kStageBytes + 2 * kWeightBytes + sizeof(Lists);
};

/// Adds four neighbours in global memory.
__device__ __forceinline__ void add_quad(float* to, float x, float y, float z, float w) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
#else
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 1), "f"(y) : "memory");
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 2), "f"(z) : "memory");
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 3), "f"(w) : "memory");
#endif
}

/// c (32 x 32) = own rows times partner rows.
template <typename T, int kDim>
__device__ __forceinline__ void multiply_square(float (&c)[2][4][4], const BlockAddress& own, const BlockAddress& partner) {
  constexpr uint32_t kSixteenRows = 16 * kDim * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < 4; ++n) c[i][n][0] = c[i][n][1] = c[i][n][2] = c[i][n][3] = 0;
  }
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[2][4], b[4];
    load_matrices(a[0], own.step(step));
    load_matrices(a[1], own.step(step) + kSixteenRows);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      load_matrices(b, partner.step(step) + pair * kSixteenRows);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma<T>(c[i][2 * pair], a[i], b[0], b[1]);
        mma<T>(c[i][2 * pair + 1], a[i], b[2], b[3]);
      }
    }
  }
}

/// sum (32 keys x kColumns) += weights (32 keys x 32 queries) times rows of 32 queries; weight(step, fragments) gives 16 queries' weights.
template <typename T, int kDim, int kColumns, typename Weight>
__device__ __forceinline__ void accumulate_keys(float (&sum)[2][kColumns / 8][4], const Weight& weight, const BlockAddress& rows) {
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t a[2][4], b[4];
    weight(step, a);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      load_matrices_transposed(b, rows.step(n) + step * 16 * kDim * 2);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma<T>(sum[i][2 * n], a[i], b[0], b[1]);
        mma<T>(sum[i][2 * n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(kAtomicThreads, 1) backward_sm80_atomic(const __grid_constant__ AtomicParams params_) {
  constexpr int kDim = Shape::kDim, kQueries = Shape::kQueries, kKeys = Shape::kKeys, kLists = Shape::kLists;
  using Queries = typename Shape::Queries;
  extern __shared__ __align__(128) char shared[];
  const uint32_t k_at = shared_address(shared), v_at = k_at + Shape::kOwnBytes, stages_at = v_at + Shape::kOwnBytes,
                 p_at = stages_at + 2 * Shape::kStageBytes, ds_at = p_at + Shape::kWeightBytes;
  auto& lists = *reinterpret_cast<typename Shape::Lists*>(shared + 2 * Shape::kOwnBytes + 2 * Shape::kStageBytes + 2 * Shape::kWeightBytes);
  const BackwardParams& params = params_.keys;
  const PlanView& plan = params.plan;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, key_strip = warp / 2, other = warp % 2;

  const Item first_item = params.schedule.item<kKeys>(blockIdx.x, plan.query);
  if (first_item.count <= 0) return;
  if (threadIdx.x == 0) {
    lists.item = first_item;
    lists.q = params.partner0.of(first_item.batch, first_item.head);
    lists.dout = params.partner1.of(first_item.batch, first_item.head);
    const int64_t row = (static_cast<int64_t>(first_item.batch) * params.schedule.heads + first_item.head) * params.terms.tokens;
    lists.lse_from = params.terms.lse_log2 + row;
    lists.delta_from = params.terms.delta + row;
    lists.dq = params_.dq + row * kDim;
  }
  const volatile Item& item = lists.item;
  typename Shape::Walk& walk = lists.walk[threadIdx.x % Shape::Walk::kPartners];
  walk.start(plan, first_item, length_in_use(params.partner_lengths, first_item.batch, plan.key));
  walk.fetch(plan);
  const int own_length = length_in_use(params.own_lengths, first_item.batch, plan.query);
  bool loaded = true;
  if (threadIdx.x < kKeys) {
    const int r = threadIdx.x;
    const int token = r < first_item.count ? plan.query.token[plan.query.tile_begin[first_item.tile] + first_item.first + r] : -1;
    lists.own_token[r] = token;
    loaded = token >= 0 && token < own_length;
    lists.own_loaded[r] = loaded ? token : -1;
  }
  walk.publish(plan, &lists.queries[0]);
  walk.fetch(plan);
  lists.blocks = partner_blocks<kQueries>(plan, first_item);
  const int whole = __syncthreads_and(loaded);
  if (threadIdx.x == 0) lists.whole = whole;  // read after the loop's first barrier

  const auto load_stage = [&](int stage, const Queries& rows) {
    if (threadIdx.x < 2 * kQueries) {
      const int r = threadIdx.x % kQueries, token = max(rows.token[Queries::slot(r)], 0);
      if (threadIdx.x < kQueries) {
        copy_word_async(shared_address(&lists.lse_log2[stage][r]), lists.lse_from + token);
      } else {
        copy_word_async(shared_address(&lists.delta[stage][r]), lists.delta_from + token);
      }
    }
    const uint32_t to = stages_at + stage * Shape::kStageBytes;
    if constexpr (Shape::kIsPlain) {
      Shape::Copier::copy(to, lists.q, static_cast<int>(params.partner0.token), rows);
      Shape::Copier::copy(to + Shape::kPartnerBytes, lists.dout, static_cast<int>(params.partner1.token), rows);
    } else {
      gather<kQueries, kDim, kAtomicThreads>(to, params.partner0, lists.q, rows.token, params.head_dim);
      gather<kQueries, kDim, kAtomicThreads>(to + Shape::kPartnerBytes, params.partner1, lists.dout, rows.token, params.head_dim);
    }
  };
  gather<kKeys, kDim, kAtomicThreads>(k_at, params.own0, params.own0.of(item.batch, item.head), lists.own_loaded, params.head_dim);
  gather<kKeys, kDim, kAtomicThreads>(v_at, params.own1, params.own1.of(item.batch, item.head), lists.own_loaded, params.head_dim);
  load_stage(0, lists.queries[0]);

  constexpr int kHalf = kDim / 2, kQuarter = kDim / 4;
  const auto shifted = [](BlockAddress address, uint32_t columns) {
    address.lane ^= columns * 2;
    return address;
  };
  const BlockAddress own = rows_first<kDim>(k_at, key_strip * 32, lane);
  const BlockAddress weights = shifted(rows_first<kQueries>(p_at, key_strip * 32, lane), (1 - other) * 32);
  const BlockAddress slopes = shifted(columns_first<kQueries>(ds_at, 0, lane), other * 32);
  const BlockAddress k_rows = shifted(rows_first<kDim>(k_at, 0, lane), key_strip * kQuarter);
  const int g = lane / 4;
  const uint32_t write_row = p_at + (key_strip * 32 + g) * kQueries * 2 + lane % 4 * 4, write_lane = ((other * 4) ^ g) << 4;

  float dk[2][kHalf / 8][4], dv[2][kHalf / 8][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[i][n][e] = dv[i][n][e] = 0;
    }
  }

  for (int block = 0; block < lists.blocks; ++block) {
    const int stage = block % 2;
    const Queries& queries = lists.queries[block % kLists];
    wait_copies<0>();
    __syncthreads();  // the stage is there, and everybody is done with the step before
    if (block + 1 < lists.blocks) load_stage(1 - stage, lists.queries[(block + 1) % kLists]);
    if (block % Shape::kListBlocks == 0) {
      walk.publish(plan, &lists.queries[(block + Shape::kListBlocks) % kLists]);
      walk.fetch(plan);
    }
    const uint32_t q_at = stages_at + stage * Shape::kStageBytes;
    const BlockAddress q_columns = columns_first<kDim>(q_at, other * 32, lane);
    float s[2][4][4], dp[2][4][4];
    multiply_square<T, kDim>(s, own, q_columns);
    multiply_square<T, kDim>(dp, {own.row + Shape::kOwnBytes, own.lane}, {q_columns.row + Shape::kPartnerBytes, q_columns.lane});

    uint32_t p_packed[2][2][4], ds_packed[2][2][4];
    const auto weigh = [&](const auto& visible) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int column = other * 32 + n * 8 + lane % 4 * 2;
        const float2 lse = *reinterpret_cast<const float2*>(&lists.lse_log2[stage][column]);
        const float2 delta = *reinterpret_cast<const float2*>(&lists.delta[stage][column]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float p0 = exp2_fast(fmaf(s[i][n][2 * half], params.scale_log2, -lse.x));
            float p1 = exp2_fast(fmaf(s[i][n][2 * half + 1], params.scale_log2, -lse.y));
            float ds0 = p0 * (dp[i][n][2 * half] - delta.x), ds1 = p1 * (dp[i][n][2 * half + 1] - delta.y);
            const uint32_t seen = visible(i, half) >> (n * 8);
            if ((seen & 1) == 0) p0 = ds0 = 0;
            if ((seen & 2) == 0) p1 = ds1 = 0;
            const uint32_t to = write_row + (write_lane ^ (n << 4)) + (i * 16 + half * 8) * kQueries * 2;
            uint32_t& p = p_packed[i][n / 2][n % 2 * 2 + half];
            uint32_t& ds = ds_packed[i][n / 2][n % 2 * 2 + half];
            p = pack<T>(p0, p1);
            ds = pack<T>(ds0, ds1);
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(p) : "memory");
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + Shape::kWeightBytes), "r"(ds) : "memory");
          }
        }
      }
    };
    // Rows of k that are not there are zeros, but their p = 2^-lse may be infinite, and dq would take NaN from them.
    if (all_plain(queries) && lists.whole != 0) {
      weigh([](int, int) { return ~0u; });
    } else {
      uint64_t mine = 0;
      if (lists.own_loaded[key_strip * 32 + lane] >= 0) {
        mine = visible_partners(plan, queries, item.first + key_strip * 32 + lane) >> (other * 32);
      }
      weigh([&](int i, int half) { return __shfl_sync(~0u, static_cast<uint32_t>(mine), i * 16 + half * 8 + g) >> (lane % 4 * 2); });
    }

    // The queries whose weights this warp holds, while others still write theirs.
    const BlockAddress q_rows = shifted(rows_first<kDim>(q_at, 0, lane), other * kHalf);
    const auto held = [](const uint32_t(&packed)[2][2][4]) {
      return [&packed](int step, uint32_t(&a)[2][4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) a[i][e] = packed[i][step][e];
        }
      };
    };
    const auto stored = [](BlockAddress from) {
      return [from](int step, uint32_t(&a)[2][4]) {
        load_matrices(a[0], from.step(step));
        load_matrices(a[1], from.step(step) + 16 * kQueries * 2);
      };
    };
    const uint32_t own_rows = other * 32 * kDim * 2, other_rows = (1 - other) * 32 * kDim * 2;
    accumulate_keys<T, kDim, kHalf>(dv, held(p_packed), {q_rows.row + Shape::kPartnerBytes + own_rows, q_rows.lane});
    accumulate_keys<T, kDim, kHalf>(dk, held(ds_packed), {q_rows.row + own_rows, q_rows.lane});
    __syncthreads();  // p and ds are there
    accumulate_keys<T, kDim, kHalf>(dv, stored(weights), {q_rows.row + Shape::kPartnerBytes + other_rows, q_rows.lane});
    accumulate_keys<T, kDim, kHalf>(dk, stored({weights.row + Shape::kWeightBytes, weights.lane}), {q_rows.row + other_rows, q_rows.lane});

    int64_t dq_at[2][2];  // read now: a wait for them later would be one for nothing else
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = queries.token[Queries::slot(other * 32 + i * 16 + half * 8 + g)];
        dq_at[i][half] = token < 0 ? -1 : static_cast<int64_t>(token) * kDim + key_strip * kQuarter + lane % 4 * 4;
      }
    }
    float* const dq_to = lists.dq;
    float dq[2][kQuarter / 8][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < kQuarter / 8; ++n) dq[i][n][0] = dq[i][n][1] = dq[i][n][2] = dq[i][n][3] = 0;
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t a[2][4], b[4];
      load_matrices_transposed(a[0], slopes.step(0) + step * 16 * kQueries * 2);
      load_matrices_transposed(a[1], slopes.step(1) + step * 16 * kQueries * 2);
#pragma unroll
      for (int n = 0; n < kQuarter / 16; ++n) {
        load_matrices_transposed(b, k_rows.step(n) + step * 16 * kDim * 2);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma<T>(dq[i][2 * n], a[i], b[0], b[1]);
          mma<T>(dq[i][2 * n + 1], a[i], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (dq_at[i][half] < 0) continue;
        float* to = dq_to + dq_at[i][half];
#pragma unroll
        for (int n = 0; n < kQuarter / 16; ++n) {
          add_quad(to + n * 16, dq[i][2 * n][2 * half], dq[i][2 * n][2 * half + 1], dq[i][2 * n + 1][2 * half],
                   dq[i][2 * n + 1][2 * half + 1]);
        }
      }
    }
  }

  wait_copies<0>();
  __syncthreads();  // k and v may go
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = key_strip * 32 + i * 16 + half * 8 + g;
      const bool past = lists.own_loaded[row] < 0;
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const uint32_t at = Swizzled<kDim>::offset(row, other * (kHalf / 8) + n) + lane % 4 * 4;
        const uint32_t dk_packed = past ? 0 : pack<T>(dk[i][n][2 * half] * params.scale, dk[i][n][2 * half + 1] * params.scale);
        const uint32_t dv_packed = past ? 0 : pack<T>(dv[i][n][2 * half], dv[i][n][2 * half + 1]);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(k_at + at), "r"(dk_packed) : "memory");
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(v_at + at), "r"(dv_packed) : "memory");
      }
    }
  }
  __syncthreads();
  scatter<16, kDim>(k_at, params.gradient0, params.gradient0.of(item.batch, item.head), lists.own_token, params.head_dim);
  scatter<16, kDim>(v_at, params.gradient1, params.gradient1.of(item.batch, item.head), lists.own_token, params.head_dim);
}

struct RoundParams {
  const float* sums = nullptr;  // [batch][heads][tokens][columns]
  Rows dq;
  int64_t tokens = 0, rows = 0;
  int heads = 0, head_dim = 0, columns = 0;
  float scale = 1;
};

/// dq = scale * sums in the element type: a thread four elements. Memory bound.
template <typename T>
__global__ void __launch_bounds__(256) round_sums(const __grid_constant__ RoundParams params) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, in_row = params.columns / 4, row = index / in_row;
  const int d = static_cast<int>(index % in_row) * 4;
  if (row >= params.rows || d >= params.head_dim) return;
  // Of 16 columns, 8 i + 2 j + e stands at 4 j + 2 i + e: as the products leave them.
  const float* at = params.sums + row * params.columns + d / 16 * 16 + d % 8 * 2 + d % 16 / 8 * 2;
  const float2 low = *reinterpret_cast<const float2*>(at), high = *reinterpret_cast<const float2*>(at + 4);
  const float4 sum = make_float4(low.x, low.y, high.x, high.y);
  const int64_t in_heads = row / params.tokens;
  char* to = params.dq.of(static_cast<int>(in_heads / params.heads), static_cast<int>(in_heads % params.heads)) +
             row % params.tokens * params.dq.token;
  const uint32_t words[2] = {pack<T>(sum.x * params.scale, sum.y * params.scale), pack<T>(sum.z * params.scale, sum.w * params.scale)};
  if (params.dq.vectors) {
    *reinterpret_cast<uint2*>(to + d * 2) = make_uint2(words[0], words[1]);
  } else {
    for (int i = 0; i < 4; ++i) {
      if (d + i < params.head_dim) reinterpret_cast<uint16_t*>(to)[d + i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
}

template <typename T, typename Shape>
void launch_backward_sm80_atomic_as(AtomicParams params, const BackwardArgs& args) {
  constexpr int kDim = Shape::kDim;
  const int64_t rows = args.q.batch() * args.q.heads() * args.q.tokens();
  check(cudaMemsetAsync(params.dq, 0, static_cast<size_t>(rows * kDim) * sizeof(float), static_cast<cudaStream_t>(args.stream)),
        "cuda.sm80.atomic backward: cudaMemsetAsync");
  params.keys.schedule = Schedule::make<Shape::kKeys>(params.keys.plan.query, args.q.batch(), args.q.heads());
  launch<backward_sm80_atomic<T, Shape>>({.name = "cuda.sm80.atomic backward",
                                          .grid = dim3(static_cast<unsigned>(params.keys.schedule.items)),
                                          .block = dim3(kAtomicThreads),
                                          .shared_bytes = Shape::kSharedBytes,
                                          .stream = args.stream},
                                         params);
  launch<round_sums<T>>({.name = "cuda.sm80.atomic backward",
                         .grid = dim3(static_cast<unsigned>((rows * (kDim / 4) + 255) / 256)),
                         .block = dim3(256),
                         .stream = args.stream},
                        RoundParams{.sums = params.dq,
                                    .dq = rows_of(args.dq),
                                    .tokens = args.q.tokens(),
                                    .rows = rows,
                                    .heads = static_cast<int>(args.q.heads()),
                                    .head_dim = static_cast<int>(args.q.head_dim()),
                                    .columns = kDim,
                                    .scale = args.scale});
}

template <typename T>
void launch_backward_sm80_atomic(const AtomicParams& params, const BackwardArgs& args) {
  const int64_t dim = args.q.head_dim() > 64 ? 128 : 64;
  const bool plain = args.plan.mask_of == nullptr && copies_plainly(params.keys.partner0, args.q.head_dim(), dim) &&
                     copies_plainly(params.keys.partner1, args.q.head_dim(), dim);
  if (dim > 64) {
    plain ? launch_backward_sm80_atomic_as<T, AtomicShape<128, Path::kPlain>>(params, args)
          : launch_backward_sm80_atomic_as<T, AtomicShape<128, Path::kAny>>(params, args);
  } else {
    plain ? launch_backward_sm80_atomic_as<T, AtomicShape<64, Path::kPlain>>(params, args)
          : launch_backward_sm80_atomic_as<T, AtomicShape<64, Path::kAny>>(params, args);
  }
}

extern template void launch_backward_sm80_atomic<Bf16>(const AtomicParams&, const BackwardArgs&);  // backward_sm80_atomic_bf16.cu
extern template void launch_backward_sm80_atomic<F16>(const AtomicParams&, const BackwardArgs&);   // backward_sm80_atomic_f16.cu

}  // namespace slidetile::cuda
