// The portable backward kernel: mma.sync and cp.async, every GPU since Ampere, every plan, the same bits every time.
//
// Two passes that add nothing up across blocks. Over the queries: a block holds rows of q and dout and walks the keys of its row of the
// plan: s = q k^T, dp = dout v^T, dq += ds k. Over the keys: it holds rows of k and v and walks the queries of its row of the transposed
// plan: s^T = k q^T, dp^T = v dout^T, dv += p^T dout, dk += ds^T q. Seven products for the five that are counted: the price of fixed order
// without waiting. Tensor cores and shared memory bind alike: a warp of 16 rows reads 2 KB for 8 products.
//
// With "own" for the rows that a block holds and "partner" for those it walks: A0 = q or k, A1 = dout or v; B0 = k or q, B1 = v or dout.
#pragma once

#include "slidetile/cuda/gather_sm80.cuh"
#include "slidetile/cuda/launch.cuh"
#include "slidetile/cuda/repair_sm80.cuh"
#include "slidetile/cuda/row_terms.cuh"

namespace slidetile::cuda {

enum class Gradient { kDq, kDkDv, kDk, kDv };  // what a launch computes; kDk and kDv apart where registers don't hold both

struct BackwardParams {
  PlanView plan;  // of the pass: the transposed plan where keys are own
  Rows own0, own1, partner0, partner1;
  Rows gradient0, gradient1;  // dq; dk and dv
  RowTerms terms;             // of queries
  const int32_t *own_lengths = nullptr, *partner_lengths = nullptr;
  Schedule schedule;
  int head_dim = 0;
  float scale = 1, scale_log2 = 1;
};

template <int kDim_, Gradient kGradient_, Path kPath>
struct BackwardShape {
  static constexpr int kDim = kDim_;
  static constexpr Gradient kGradient = kGradient_;
  static constexpr bool kIsPlain = kPath == Path::kPlain;
  static constexpr int kRows = kWarps * 16, kPartners = kDim > 128 ? 32 : 64;
  static constexpr bool kQueriesOwn = kGradient == Gradient::kDq;
  static constexpr bool kNeedsDp = kGradient != Gradient::kDv;
  static constexpr bool kOwnInRegisters = kQueriesOwn && kDim <= 128;
  static constexpr uint32_t kOwnBytes = kRows * kDim * 2, kPartnerBytes = kPartners * kDim * 2;

  static constexpr int kListBlocks = kIsPlain ? 2 : 1;  // blocks that the walk gives at a time
  using Copier = RowCopier<kDim>;
  using Partners = std::conditional_t<kIsPlain, PlainRows<kPartners, Copier::kGroups>, BlockRows<kPartners>>;
  using Walk = PartnerWalk<Partners, kListBlocks>;
  static constexpr bool kWalkInShared = kDim <= 128;  // larger ones have no room
  static constexpr bool kTwoWays = kDim <= 128;       // code of its own for blocks without masks; larger ones have no registers

  struct Lists {
    Partners partners[2 * kListBlocks];
    const char *partner0, *partner1;
    const float *lse_from, *delta_from;
    float lse_log2[kPartners], delta[kPartners];  // of partners that are queries
    int32_t own_token[kRows];
    int blocks;
    Item item;
    Walk walk[kWalkInShared ? Walk::kPartners : 1];
  };
  static constexpr int kSharedBytes = 2 * kOwnBytes + 2 * kPartnerBytes + sizeof(Lists);
  static_assert(kSharedBytes <= kSharedEverywhere);
};

/// s (16 x kPartners) = own rows times partner rows.
template <typename T, int kDim, int kPartners>
__device__ __forceinline__ void multiply(float (&s)[kPartners / 8][4], const uint32_t (*held)[4], const BlockAddress& own,
                                         const BlockAddress& partner) {
#pragma unroll
  for (int n = 0; n < kPartners / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4], b[4];
    if (held != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held[step][i];
    } else {
      load_matrices(a, own.step(step));
    }
#pragma unroll
    for (int pair = 0; pair < kPartners / 16; ++pair) {
      load_matrices(b, partner.step(step) + pair * 16 * kDim * 2);
      mma<T>(s[2 * pair], a, b[0], b[1]);
      mma<T>(s[2 * pair + 1], a, b[2], b[3]);
    }
  }
}

/// sum (16 x kDim) += weights (16 x kPartners, packed) times partner rows.
template <typename T, int kDim, int kPartners>
__device__ __forceinline__ void accumulate(float (&sum)[kDim / 8][4], const uint32_t (&weights)[kPartners / 16][4],
                                           const BlockAddress& partner) {
#pragma unroll
  for (int pair = 0; pair < kPartners / 16; ++pair) {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t b[4];
      load_matrices_transposed(b, partner.step(step) + pair * 16 * kDim * 2);
      mma<T>(sum[2 * step], weights[pair], b[0], b[1]);
      mma<T>(sum[2 * step + 1], weights[pair], b[2], b[3]);
    }
  }
}

/// The warp's 16 rows of `sum`, times `factor` (0 for rows past the length), to `to` by way of its rows of an own buffer.
template <typename T, int kDim>
__device__ __forceinline__ void store_gradient(float (&sum)[kDim / 8][4], const float (&factor)[2], uint32_t buffer) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + half * 8 + lane / 4;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const bool zero = factor[half] == 0;  // not a product: a row past the length may hold NaN
      const uint32_t packed = zero ? 0 : pack<T>(sum[n][2 * half] * factor[half], sum[n][2 * half + 1] * factor[half]);
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(buffer + Swizzled<kDim>::offset(row, n) + lane % 4 * 4), "r"(packed) : "memory");
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(kThreads, 2) backward_sm80(const __grid_constant__ BackwardParams params) {
  constexpr int kDim = Shape::kDim, kPartners = Shape::kPartners, kSteps = kDim / 16;
  constexpr int kListBlocks = Shape::kListBlocks, kLists = 2 * kListBlocks;
  constexpr Gradient kGradient = Shape::kGradient;
  using Partners = typename Shape::Partners;
  constexpr bool kQueriesOwn = Shape::kQueriesOwn;
  extern __shared__ __align__(128) char shared[];
  const uint32_t a0_at = shared_address(shared), a1_at = a0_at + Shape::kOwnBytes, b0_at = a1_at + Shape::kOwnBytes,
                 b1_at = b0_at + Shape::kPartnerBytes;
  auto& lists = *reinterpret_cast<typename Shape::Lists*>(shared + 2 * Shape::kOwnBytes + 2 * Shape::kPartnerBytes);
  const PlanView& plan = params.plan;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const Item first_item = params.schedule.item<Shape::kRows>(blockIdx.x, plan.query);
  if (first_item.count <= 0) return;
  if (threadIdx.x == 0) {
    lists.item = first_item;
    lists.partner0 = params.partner0.of(first_item.batch, first_item.head);
    lists.partner1 = params.partner1.of(first_item.batch, first_item.head);
    const int64_t row = (static_cast<int64_t>(first_item.batch) * params.schedule.heads + first_item.head) * params.terms.tokens;
    lists.lse_from = params.terms.lse_log2 + row;
    lists.delta_from = params.terms.delta + row;
  }
  const volatile Item& item = lists.item;
  typename Shape::Walk held_walk;
  typename Shape::Walk& walk = Shape::kWalkInShared ? lists.walk[threadIdx.x % Shape::Walk::kPartners] : held_walk;
  walk.start(plan, first_item, length_in_use(params.partner_lengths, first_item.batch, plan.key));
  walk.fetch(plan);
  if (threadIdx.x < Shape::kRows) {
    const int r = threadIdx.x;
    lists.own_token[r] = r < first_item.count ? plan.query.token[plan.query.tile_begin[first_item.tile] + first_item.first + r] : -1;
  }
  walk.publish(plan, &lists.partners[0]);
  walk.fetch(plan);
  lists.blocks = partner_blocks<kPartners>(plan, first_item);
  __syncthreads();

  // Loads of a block of partners, B0 with lse and delta where the partners are queries.
  const auto load_partner = [&](uint32_t to, const Rows& from, const char* base, const Partners& rows) {
    if constexpr (Shape::kIsPlain) {
      Shape::Copier::copy(to, base, static_cast<int>(from.token), rows);
    } else {
      gather<kPartners, kDim>(to, from, base, rows.token, params.head_dim);
    }
  };
  const auto load_partner0 = [&](const Partners& rows) {
    if (!kQueriesOwn && threadIdx.x < 2 * kPartners) {
      const int r = threadIdx.x % kPartners, token = max(rows.token[Partners::slot(r)], 0);
      if (threadIdx.x < kPartners) {
        copy_word_async(shared_address(&lists.lse_log2[r]), lists.lse_from + token);
      } else {
        copy_word_async(shared_address(&lists.delta[r]), lists.delta_from + token);
      }
    }
    load_partner(b0_at, params.partner0, lists.partner0, rows);
  };
  const auto load_partner1 = [&](const Partners& rows) {
    load_partner(b1_at, params.partner1, lists.partner1, rows);
  };
  gather<Shape::kRows, kDim>(a0_at, params.own0, params.own0.of(item.batch, item.head), lists.own_token, params.head_dim);
  gather<Shape::kRows, kDim>(a1_at, params.own1, params.own1.of(item.batch, item.head), lists.own_token, params.head_dim);

  const BlockAddress a0 = rows_first<kDim>(a0_at, warp * 16, lane), a1 = rows_first<kDim>(a1_at, warp * 16, lane);
  const BlockAddress b0 = columns_first<kDim>(b0_at, 0, lane), b1 = columns_first<kDim>(b1_at, 0, lane);
  const BlockAddress b0_rows = rows_first<kDim>(b0_at, 0, lane), b1_rows = rows_first<kDim>(b1_at, 0, lane);

  float lse_log2[2] = {0, 0}, delta[2] = {0, 0};  // of own rows that are queries
  if constexpr (kQueriesOwn) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = lists.own_token[warp * 16 + half * 8 + lane / 4];
      const int64_t at = (static_cast<int64_t>(item.batch) * params.schedule.heads + item.head) * params.terms.tokens + max(token, 0);
      lse_log2[half] = token < 0 ? __builtin_inff() : params.terms.lse_log2[at];
      delta[half] = params.terms.delta[at];
    }
  }

  constexpr int kHeldSteps = Shape::kOwnInRegisters ? kSteps : 1;
  uint32_t held0[kHeldSteps][4], held1[kHeldSteps][4];
  if constexpr (Shape::kOwnInRegisters) {
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      load_matrices(held0[step], a0.step(step));
      load_matrices(held1[step], a1.step(step));
    }
  }
  if constexpr (kQueriesOwn) {
    load_partner1(lists.partners[0]);
    load_partner0(lists.partners[0]);
  } else {
    load_partner0(lists.partners[0]);
    load_partner1(lists.partners[0]);
  }

  constexpr bool kFirst = kGradient != Gradient::kDv, kSecond = kGradient == Gradient::kDkDv || kGradient == Gradient::kDv;
  float sum0[kFirst ? kDim / 8 : 1][4], sum1[kSecond ? kDim / 8 : 1][4];
#pragma unroll
  for (auto& part : sum0) part[0] = part[1] = part[2] = part[3] = 0;
#pragma unroll
  for (auto& part : sum1) part[0] = part[1] = part[2] = part[3] = 0;

  for (int block = 0; block < lists.blocks; ++block) {
    const Partners& partners = lists.partners[block % kLists];
    float s[kPartners / 8][4], dp[kPartners / 8][4];
    wait_copies<1>();
    __syncthreads();  // the first of the two partner arrays is there
    const bool walks = kListBlocks == 1 || block % kListBlocks == 0;
    if (walks) walk.publish(plan, &lists.partners[(block + kListBlocks) % kLists]);
    const uint32_t(*from0)[4] = Shape::kOwnInRegisters ? held0 : nullptr;
    const uint32_t(*from1)[4] = Shape::kOwnInRegisters ? held1 : nullptr;
    if constexpr (kQueriesOwn) {
      multiply<T, kDim, kPartners>(dp, from1, a1, b1);
      wait_copies<0>();
      __syncthreads();  // B0 is there, the next list too, and everybody is done with B1
      if (block + 1 < lists.blocks) load_partner1(lists.partners[(block + 1) % kLists]);
      multiply<T, kDim, kPartners>(s, from0, a0, b0);
    } else {
      multiply<T, kDim, kPartners>(s, from0, a0, b0);
      wait_copies<0>();
      __syncthreads();  // B1 is there, and the next list
      if constexpr (Shape::kNeedsDp) multiply<T, kDim, kPartners>(dp, from1, a1, b1);
    }

    uint32_t p_packed[kPartners / 16][4], ds_packed[kPartners / 16][4];
    const auto weigh = [&](const auto& visible) {
#pragma unroll
      for (int n = 0; n < kPartners / 8; ++n) {
        [[maybe_unused]] float2 column_lse{}, column_delta{};
        if constexpr (!kQueriesOwn) {
          column_lse = *reinterpret_cast<const float2*>(&lists.lse_log2[n * 8 + lane % 4 * 2]);
          if constexpr (Shape::kNeedsDp) column_delta = *reinterpret_cast<const float2*>(&lists.delta[n * 8 + lane % 4 * 2]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float p[2], ds[2];
          const uint32_t seen = visible(half, n);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float lse = kQueriesOwn ? lse_log2[half] : i == 0 ? column_lse.x : column_lse.y;
            p[i] = exp2_fast(fmaf(s[n][2 * half + i], params.scale_log2, -lse));
            if constexpr (Shape::kNeedsDp) {
              const float row_delta = kQueriesOwn ? delta[half] : i == 0 ? column_delta.x : column_delta.y;
              ds[i] = p[i] * (dp[n][2 * half + i] - row_delta);
            }
            if ((seen & (1 << i)) == 0) p[i] = ds[i] = 0;
          }
          if constexpr (kSecond) p_packed[n / 2][n % 2 * 2 + half] = pack<T>(p[0], p[1]);
          if constexpr (kFirst) ds_packed[n / 2][n % 2 * 2 + half] = pack<T>(ds[0], ds[1]);
        }
      }
    };
    if (walks) walk.fetch(plan);
    const bool plain = all_plain(partners);
    if (Shape::kTwoWays && plain) {
      weigh([](int, int) { return ~0u; });
    } else {
      using Bits = std::conditional_t<kPartners == 32, uint32_t, uint64_t>;
      Bits low = ~Bits{0}, high = ~Bits{0};
      if (!plain) {
        const auto mine = static_cast<Bits>(visible_partners(plan, partners, item.first + min(warp * 16 + lane % 16, item.count - 1)));
        low = __shfl_sync(~0u, mine, lane / 4) >> (lane % 4 * 2);
        high = __shfl_sync(~0u, mine, lane / 4 + 8) >> (lane % 4 * 2);
      }
      weigh([&](int half, int n) { return static_cast<uint32_t>((half == 0 ? low : high) >> (n * 8)); });
    }

    if constexpr (kFirst) accumulate<T, kDim, kPartners>(sum0, ds_packed, b0_rows);
    __syncthreads();  // everybody is done with B0, lse and delta
    if (block + 1 < lists.blocks) {
      load_partner0(lists.partners[(block + 1) % kLists]);
    } else {
      commit_copies();
    }
    if constexpr (!kQueriesOwn) {
      if constexpr (kSecond) accumulate<T, kDim, kPartners>(sum1, p_packed, b1_rows);
      __syncthreads();  // and with B1
      if (block + 1 < lists.blocks) load_partner1(lists.partners[(block + 1) % kLists]);
    }
  }

  wait_copies<0>();
  __syncthreads();
  float factor0[2], factor1[2];
  const int own_length = length_in_use(params.own_lengths, item.batch, plan.query);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool past = lists.own_token[warp * 16 + half * 8 + lane / 4] >= own_length;
    factor0[half] = past ? 0 : params.scale;
    factor1[half] = past ? 0 : 1;
  }
  if constexpr (kFirst) store_gradient<T, kDim>(sum0, factor0, a0_at);
  if constexpr (kSecond) store_gradient<T, kDim>(sum1, factor1, a1_at);
  __syncwarp();
  if constexpr (kFirst)
    scatter<16, kDim>(a0_at, params.gradient0, params.gradient0.of(item.batch, item.head), lists.own_token, params.head_dim);
  if constexpr (kSecond)
    scatter<16, kDim>(a1_at, params.gradient1, params.gradient1.of(item.batch, item.head), lists.own_token, params.head_dim);
}

template <typename T, typename Shape>
void launch_backward_sm80_as(BackwardParams params, int64_t batch, void* stream) {
  params.schedule = Schedule::make<Shape::kRows>(params.plan.query, batch, params.schedule.heads);
  launch<backward_sm80<T, Shape>>({.name = "cuda.sm80 backward",
                                   .grid = dim3(static_cast<unsigned>(params.schedule.items)),
                                   .block = dim3(kThreads),
                                   .shared_bytes = Shape::kSharedBytes,
                                   .stream = stream},
                                  params);
}

/// The passes over queries and over keys, each with schedule.heads set.
struct BackwardPasses {
  BackwardParams queries, keys;
};

template <typename T, int kDim, Gradient kGradient>
void launch_backward_pass(const BackwardParams& params, int64_t batch, void* stream) {
  if constexpr (kDim <= 128) {
    const int dim = params.head_dim;
    if (params.plan.mask_of == nullptr && copies_plainly(params.partner0, dim, kDim) && copies_plainly(params.partner1, dim, kDim)) {
      return launch_backward_sm80_as<T, BackwardShape<kDim, kGradient, Path::kPlain>>(params, batch, stream);
    }
  }
  launch_backward_sm80_as<T, BackwardShape<kDim, kGradient, Path::kAny>>(params, batch, stream);
}

template <typename T>
void launch_backward_sm80(const BackwardPasses& passes, int64_t batch, void* stream) {
  const int head_dim = passes.queries.head_dim;
  if (head_dim > 128) {
    launch_backward_pass<T, 256, Gradient::kDq>(passes.queries, batch, stream);
    launch_backward_pass<T, 256, Gradient::kDk>(passes.keys, batch, stream);
    launch_backward_pass<T, 256, Gradient::kDv>(passes.keys, batch, stream);
  } else if (head_dim > 64) {
    launch_backward_pass<T, 128, Gradient::kDq>(passes.queries, batch, stream);
    launch_backward_pass<T, 128, Gradient::kDkDv>(passes.keys, batch, stream);
  } else {
    launch_backward_pass<T, 64, Gradient::kDq>(passes.queries, batch, stream);
    launch_backward_pass<T, 64, Gradient::kDkDv>(passes.keys, batch, stream);
  }
}

/// After either kernel, where the plan has token masks.
template <typename T>
void launch_backward_repair(const BackwardPasses& passes, int64_t batch, void* stream) {
  launch_repair<repair_backward<T, BackwardParams>>(passes.queries, batch, stream);
  launch_repair<repair_backward<T, BackwardParams>>(passes.keys, batch, stream);
}

extern template void launch_backward_sm80<Bf16>(const BackwardPasses&, int64_t, void*);  // backward_sm80_bf16.cu
extern template void launch_backward_sm80<F16>(const BackwardPasses&, int64_t, void*);   // backward_sm80_f16.cu
extern template void launch_backward_repair<Bf16>(const BackwardPasses&, int64_t, void*);
extern template void launch_backward_repair<F16>(const BackwardPasses&, int64_t, void*);

}  // namespace slidetile::cuda
