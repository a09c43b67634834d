// Attention backward on Hopper (sm_90a): keys stay in shared memory, queries stream past them. docs/kernels_sm90_backward.md explains it.
//
// Cost of a step, 64 queries x 128 keys at head_dim 128: five products of 64 x 128 x 128, 10.5 MFLOP, 2,560 clocks of the tensor cores.
// Shared memory: operands 236 KiB, q and dout in 32 KiB, dS 16 KiB, dq 32 KiB in and 32 KiB out, 2,780 clocks. Second-level cache: 32 KiB
// read, 32 KiB added to. Measured 3,500 clocks, at the card's power limit.
#pragma once

#include <cstdint>

#include "slidetile/cuda/backward_sm90_dq.cuh"
#include "slidetile/cuda/backward_sm90_elements.cuh"
#include "slidetile/cuda/backward_sm90_feed.cuh"
#include "slidetile/cuda/backward_sm90_params.cuh"
#include "slidetile/cuda/barrier.cuh"
#include "slidetile/cuda/tensor_map.cuh"
#include "slidetile/cuda/wgmma.cuh"

namespace slidetile::cuda {

/// kInTurn: key blocks add to a query block's dq in the order of work, so that equal inputs give equal bits.
template <typename T, int kDim, bool kInTurn>
__global__ void __launch_bounds__(kBackwardThreads, 1) backward_sm90(const __grid_constant__ BackwardParams p) {
  using Shared = BackwardShared<kDim>;
  constexpr bool kIsDeep = kDeep<kDim, kInTurn>;
  constexpr int kSlicesHeld = kIsDeep ? 0 : kDim == 128 ? 5 : 4;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared);
  auto* const ticket_word = reinterpret_cast<volatile int32_t*>(shared + Shared::kTicket);
  const int group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  if (threadIdx.x == 0) {
    barrier_init(base + Shared::kKvFull, 1);
    barrier_init(base + Shared::kKvEmpty, 5);
    barrier_init(base + Shared::kQBrought, 1);
    barrier_init(base + Shared::kDoutBrought, 1);
    for (uint32_t stage = 0; stage < 2; ++stage) {
      barrier_init(base + Shared::kQFull + 8 * stage, 1);
      barrier_init(base + Shared::kQEmpty + 8 * stage, 2);
      barrier_init(base + Shared::kDoutFull + 8 * stage, 1);
      barrier_init(base + Shared::kDoutEmpty + 8 * stage, kIsDeep ? 8 : 2);
      barrier_init(base + Shared::kDqEmpty + 8 * stage, 1);
    }
    barrier_init_fence();
  }
  // Rows that no box brings must be numbers: products multiply them by zeros.
  if (p.query_bytes < static_cast<int32_t>(Shared::kQuerySlab)) {
    for (uint32_t i = threadIdx.x; i < 4 * Shared::kQueryTile / 16; i += kBackwardThreads)
      reinterpret_cast<uint4*>(shared + Shared::kQ)[i] = make_uint4(0, 0, 0, 0);
    fence_async_shared();
  }
  __syncthreads();
  const int32_t total = p.sheets * p.tables.items;

  if (group == 0) {
    registers_decrease<24>();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp == 0) {
      if (elect_one()) {
        const QueryStages to{base + Shared::kQ, base + Shared::kLse, base + Shared::kQFull, base + Shared::kQEmpty,
                             base + Shared::kQBrought};
        QueryFeeder<T, kDim, kInTurn> queries{p, p.q, p.lse_terms, to};
#pragma unroll 1
        for (uint32_t round = 0;; ++round) {
          barrier_wait(base + Shared::kKvEmpty, (round & 1) ^ 1);
          const int32_t ticket = atomicAdd(p.ticket, 1);
          *ticket_word = ticket < total ? ticket : -1;
          if (ticket >= total) {
            barrier_arrive(base + Shared::kKvFull);
            break;
          }
          const BackwardWork work = work_of(p, ticket);
          if (work.item.key_block < 0) {
            barrier_arrive(base + Shared::kKvFull);
            continue;
          }
          const Block block = p.tables.key_block[work.item.key_block];
          const int32_t bytes = (block.flags & kBlockExtra) != 0 ? p.key_extra_bytes : p.key_bytes;
          barrier_arrive_expect(base + Shared::kKvFull, 2 * bytes * (kDim / 64));
          copy_block<T, kDim>(base + Shared::kK, Shared::kKeySlab, p.k, base + Shared::kKvFull, block, work);
          copy_block<T, kDim>(base + Shared::kV, Shared::kKeySlab, p.v, base + Shared::kKvFull, block, work);
          queries.feed(work);
        }
      }
    } else if (warp != 2) {
      add_dq<T, kDim, kInTurn>(p, shared, warp == 1 ? 0 : 1);
    } else {
      if (elect_one()) {
        const QueryStages to{base + Shared::kDout, base + Shared::kDelta, base + Shared::kDoutFull, base + Shared::kDoutEmpty,
                             base + Shared::kDoutBrought};
        QueryFeeder<T, kDim, kInTurn> queries{p, p.dout, p.delta, to};
#pragma unroll 1
        for (uint32_t round = 0;; ++round) {
          barrier_wait(base + Shared::kKvFull, round & 1);
          const int32_t ticket = *ticket_word;
          if (ticket < 0) break;
          const BackwardWork work = work_of(p, ticket);
          barrier_arrive(base + Shared::kKvEmpty);
          queries.feed(work);
        }
      }
    }
    return;
  }

  // Consumers: 64 keys each, transposed products, so that dK and dV take P and dS from registers.
  registers_increase<240>();
  const int half = group - 1, thread = threadIdx.x % kGroupThreads, lane = thread % 32;
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  // Of an accumulator, and 8 further.
  const auto first_row = [&] {
    return 64 * half + 16 * warp + static_cast<int>(opaque(static_cast<uint32_t>(lane)) / 4);
  };
  const float scale_log2 = p.scale * kLog2E;
  uint32_t step = 0;
#pragma unroll 1
  for (uint32_t round = 0;; ++round) {
    barrier_wait(base + Shared::kKvFull, round & 1);
    const int32_t ticket = *ticket_word;
    if (ticket < 0) break;
    int32_t steps;
    bool low_valid = true, high_valid = true, whole;
    {
      const BackwardWork work = work_of(p, ticket);
      steps = work.item.steps;
      if (work.item.key_block < 0) {
        named_sync(kConsumers, kConsumerThreads);  // all have read the ticket
        if (thread == 0) barrier_arrive(base + Shared::kKvEmpty);
        continue;
      }
      const Block& key_block = p.tables.key_block[work.item.key_block];
      whole = (key_block.flags & kBlockFull) != 0;
      const bool may_end = p.key_lengths != nullptr && (key_block.flags & kBlockExtra) != 0;
      const int32_t length = may_end ? p.key_lengths[work.batch] : 0;
      if (may_end && key_block.w + kBackwardKeyRows > length) whole = false;
      if (!whole) {
        const auto in_use = [&](int r) {
          return TokenGeometry::valid(key_block, r) && !(may_end && key_block.w + r >= length);
        };
        const int row = first_row();
        low_valid = in_use(row);
        high_valid = in_use(row + 8);
        // Keys that are not there may be anything, and dq multiplies them by zeros.
        if (thread < 64 * (kDim / 64) && !in_use(64 * half + thread % 64)) {
          auto* const line =
              reinterpret_cast<uint4*>(shared + Shared::kK + thread / 64 * Shared::kKeySlab + (64 * half + thread % 64) * 128);
#pragma unroll
          for (int i = 0; i < 8; ++i) line[i] = make_uint4(0, 0, 0, 0);
        }
        fence_async_shared();
        named_sync(kConsumers, kConsumerThreads);
      }
    }
    float dk[kDim / 2], dv[kDim / 2], s[32], dp[32], dq[kDim / 4];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) dk[i] = dv[i] = 0;
    // Descriptors are made anew at each use, by one addition: kept, they take the registers that the sums need.
    const auto operand = [&](uint32_t start) {
      return opaque(((base + start) & 0x3FFFF) >> 4);
    };
    // Part of K stays in registers, as many slices as fit: shared memory has to be read less.
    const uint32_t own = opaque(static_cast<uint32_t>(16 * warp + lane % 16 + 64 * half)),
                   column = opaque(static_cast<uint32_t>(lane / 16));
    uint32_t keys_held[kSlicesHeld == 0 ? 1 : kSlicesHeld][4];
#pragma unroll
    for (int i = 0; i < kSlicesHeld; ++i) {
      const auto k = static_cast<uint32_t>(i);
      const uint32_t from =
          base + Shared::kK + k / 4 * Shared::kKeySlab + own * kSlabRowBytes + (((2 * (k % 4) + column) ^ (own % 8)) << 4);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(keys_held[k][0]), "=r"(keys_held[k][1]), "=r"(keys_held[k][2]), "=r"(keys_held[k][3])
                   : "r"(from)
                   : "memory");
    }
    const auto multiply_queries = [&](uint32_t stage) {
      const uint32_t left = operand(Shared::kK + half * 8192), right = operand(Shared::kQ + stage * Shared::kQueryTile);
      if constexpr (kIsDeep) begin_at(s, shared + Shared::kLse + stage * Shared::kRowTerms);
      wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < kDim / 16; ++k) {
        const uint64_t b = descriptor_at(right, channel_slice(k, kBackwardQueryRows), 0);
        if (static_cast<int>(k) < kSlicesHeld) {
          wgmma_registers<T, 64>(s, keys_held[static_cast<int>(k) < kSlicesHeld ? k : 0], b, kIsDeep || k != 0);
        } else {
          wgmma_shared<T, 64>(s, descriptor_at(left, channel_slice(k, kBackwardKeyRows), 0), b, kIsDeep || k != 0);
        }
      }
      wgmma_commit();
    };
    const auto multiply_dout = [&](uint32_t stage) {
      const uint32_t left = operand(Shared::kV + half * 8192), right = operand(Shared::kDout + stage * Shared::kQueryTile);
      if constexpr (kIsDeep) begin_at(dp, shared + Shared::kDelta + stage * Shared::kRowTerms);
      wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < kDim / 16; ++k) {
        wgmma_shared<T, 64>(dp, descriptor_at(left, channel_slice(k, kBackwardKeyRows), 0),
                            descriptor_at(right, channel_slice(k, kBackwardQueryRows), 0), kIsDeep || k != 0);
      }
      wgmma_commit();
    };
    const auto add_product = [&](float(&sums)[kDim / 2], const uint32_t(&weights)[4][4], uint32_t queries) {
      const uint32_t right = operand(queries);
      wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k)
        wgmma_registers<T, kDim, 1>(sums, weights[k], descriptor_at(right, row_slice(k), Shared::kQuerySlab), 1);
      wgmma_commit();
    };
    const auto multiply_dq = [&](uint32_t stage) {
      const uint32_t left = operand(Shared::kDs + stage * Shared::kScores);
      const uint32_t right = operand(Shared::kK + half * (kDim == 128 ? Shared::kKeySlab : 64));
      wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < 8; ++k) {
        const uint64_t a = descriptor_at(left, row_slice(k), 0), b = descriptor_at(right, row_slice(k), 0);
        if constexpr (kDim == 128) {
          wgmma_shared<T, 64, 1, 1>(dq, a, b, k != 0);
        } else {
          wgmma_shared_32<T>(dq, a, b, k != 0);
        }
      }
      wgmma_commit();
    };
    const auto clear_rows = [&](uint32_t(&pairs)[4][4]) {
      asm volatile("" ::: "memory");  // keeps it a branch: rarely taken
#pragma unroll
      for (int j = 0; j < 16; ++j)
        if (!(j % 2 == 0 ? low_valid : high_valid)) pairs[j / 4][j % 4] = 0;
    };
    const auto hand_over_dq = [&](uint32_t at) {
      const uint32_t stage = at & 1;
      barrier_wait(base + Shared::kDqEmpty + 8 * stage, ((at >> 1) & 1) ^ 1);
      float4* const target = reinterpret_cast<float4*>(shared + Shared::kDq + stage * Shared::kSums) + half * (kDim / 16) * 128 + thread;
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) target[j * 128] = make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
      fence_async_shared();
      named_arrive(kSumsReady + stage, kConsumerThreads + 32);
    };

    const auto make_weights = [&](uint32_t(&weights)[4][4], uint32_t stage) {
      [[maybe_unused]] const auto* lse = reinterpret_cast<const float2*>(shared + Shared::kLse + stage * Shared::kRowTerms) + lane % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if constexpr (kIsDeep) {
          weights[j / 2][j % 2 * 2] = pack<T>(exp2_fast(s[4 * j] * scale_log2), exp2_fast(s[4 * j + 1] * scale_log2));
          weights[j / 2][j % 2 * 2 + 1] = pack<T>(exp2_fast(s[4 * j + 2] * scale_log2), exp2_fast(s[4 * j + 3] * scale_log2));
        } else {
          const float2 l = lse[4 * j];
          weights[j / 2][j % 2 * 2] = pack<T>(exp2_fast(fmaf(s[4 * j], scale_log2, -l.x)), exp2_fast(fmaf(s[4 * j + 1], scale_log2, -l.y)));
          weights[j / 2][j % 2 * 2 + 1] =
              pack<T>(exp2_fast(fmaf(s[4 * j + 2], scale_log2, -l.x)), exp2_fast(fmaf(s[4 * j + 3], scale_log2, -l.y)));
        }
      }
      if (!whole) clear_rows(weights);
    };
    // Of P there is only the packed form: in floats it would not fit beside dP.
    const auto make_scores = [&](uint32_t(&scores)[4][4], const uint32_t(&weights)[4][4], uint32_t stage) {
      [[maybe_unused]] const auto* delta = reinterpret_cast<const float2*>(shared + Shared::kDelta + stage * Shared::kRowTerms) + lane % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const uint32_t low = weights[j / 2][j % 2 * 2], high = weights[j / 2][j % 2 * 2 + 1];
        if constexpr (kIsDeep) {
          scores[j / 2][j % 2 * 2] = multiply_packed<T>(low, dp[4 * j], dp[4 * j + 1]);
          scores[j / 2][j % 2 * 2 + 1] = multiply_packed<T>(high, dp[4 * j + 2], dp[4 * j + 3]);
        } else {
          const float2 d = delta[4 * j];
          scores[j / 2][j % 2 * 2] = multiply_packed<T>(low, dp[4 * j] - d.x, dp[4 * j + 1] - d.y);
          scores[j / 2][j % 2 * 2 + 1] = multiply_packed<T>(high, dp[4 * j + 2] - d.x, dp[4 * j + 3] - d.y);
        }
      }
      if (!whole) clear_rows(scores);
    };
    // dS^T to shared memory, for the dq of both halves. What was there two steps ago has been read: each has heard from the other since.
    const auto store_scores = [&](const uint32_t(&scores)[4][4], uint32_t stage) {
      const uint32_t line = lane % 16, target = base + Shared::kDs + stage * Shared::kScores + (64 * half + 16 * warp + line) * 128;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        asm volatile(
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(target + (((2 * k + lane / 16) ^ (line % 8)) << 4)),
            "r"(scores[k][0]), "r"(scores[k][1]), "r"(scores[k][2]), "r"(scores[k][3])
            : "memory");
      }
      fence_async_shared();
    };
    const auto q_tile = [](uint32_t stage) {
      return Shared::kQ + stage * Shared::kQueryTile;
    };
    const auto dout_tile = [](uint32_t stage) {
      return Shared::kDout + stage * Shared::kQueryTile;
    };

    if (steps > 0) barrier_wait(base + Shared::kQFull + 8 * (step & 1), (step >> 1) & 1);
    multiply_queries(step & 1);
    if constexpr (kIsDeep) {
      const auto tell = [&](uint32_t stage) {
        named_arrive(kScoresReady + half * 2 + static_cast<int>(stage), kConsumerThreads);
      };
      const auto hear = [&](uint32_t stage) {
        named_sync(kScoresReady + (half ^ 1) * 2 + static_cast<int>(stage), kConsumerThreads);
      };
      uint32_t weights[4][4];
      wgmma_wait<0>();
      pin(s);
      make_weights(weights, step & 1);
#pragma unroll 1
      for (int32_t i = 0; i < steps; ++i, ++step) {
        const uint32_t stage = step & 1, parity = (step >> 1) & 1;
        if (i > 0) hear(stage ^ 1);
        multiply_dq(stage ^ 1);  // of the step before; in the first one of whatever is there, and not used
        barrier_wait(base + Shared::kDoutFull + 8 * stage, parity);
        multiply_dout(stage);
        add_product(dv, weights, dout_tile(stage));
        wgmma_wait<2>();  // dq
        pin(dq);
        if (i > 0) hand_over_dq(step - 1);
        // After the last step of whatever is there, and not used.
        if (i + 1 < steps) barrier_wait(base + Shared::kQFull + 8 * (stage ^ 1), ((step + 1) >> 1) & 1);
        multiply_queries(stage ^ 1);
        wgmma_wait<2>();  // dP
        pin(dp);
        uint32_t scores[4][4];
        make_scores(scores, weights, stage);
        add_product(dk, scores, q_tile(stage));
        store_scores(scores, stage);
        tell(stage);
        wgmma_wait<1>();  // dV, S
        pin(dv);
        pin(s);
        if (lane == 0) barrier_arrive(base + Shared::kDoutEmpty + 8 * stage);
        make_weights(weights, stage ^ 1);
        wgmma_wait<0>();  // dK
        pin(dk);
        if (thread == 0) barrier_arrive(base + Shared::kQEmpty + 8 * stage);
      }
      if (steps > 0) hear((step & 1) ^ 1);
      multiply_dq((step & 1) ^ 1);
      wgmma_wait<0>();
      pin(dq);
      if (steps > 0) hand_over_dq(step - 1);
    } else {
#pragma unroll 1
      for (int32_t i = 0; i < steps; ++i, ++step) {
        const uint32_t stage = step & 1, parity = (step >> 1) & 1;
        barrier_wait(base + Shared::kDoutFull + 8 * stage, parity);
        wgmma_wait<0>();  // S
        pin(s);
        multiply_dout(stage);
        uint32_t weights[4][4];
        make_weights(weights, stage);  // while the tensor cores make dP
        add_product(dv, weights, dout_tile(stage));
        wgmma_wait<1>();  // dP
        pin(dp);
        uint32_t scores[4][4];
        make_scores(scores, weights, stage);  // while they make dV
        add_product(dk, scores, q_tile(stage));
        store_scores(scores, stage);
        named_sync(kConsumers, kConsumerThreads);
        multiply_dq(stage);
        wgmma_wait<1>();  // dV and dK
        pin(dv);
        pin(dk);
        if (thread == 0) {
          barrier_arrive(base + Shared::kDoutEmpty + 8 * stage);
          barrier_arrive(base + Shared::kQEmpty + 8 * stage);
        }
        // The next step's S, under what remains of dq; after the last step of whatever is there, and not used.
        if (i + 1 < steps) barrier_wait(base + Shared::kQFull + 8 * (stage ^ 1), ((step + 1) >> 1) & 1);
        multiply_queries(stage ^ 1);
        wgmma_wait<1>();  // dq
        pin(dq);
        hand_over_dq(step);
      }
    }
    wgmma_wait<0>();
    // Made anew: kept through the loop, it takes registers that the sums need.
    const BackwardWork work = work_of(p, *ticket_word);
    const Block& key_block = p.tables.key_block[work.item.key_block];
    named_sync(kConsumers, kConsumerThreads);
    if (thread == 0) barrier_arrive(base + Shared::kKvEmpty);
    pin(dk);
    pin(dv);
    if (work.item.partial >= 0) {
      constexpr int64_t kPartial = int64_t{kBackwardKeyRows} * kDim;
      auto* const target = reinterpret_cast<float4*>(
                               p.partials + (static_cast<int64_t>(work.sheet) * p.tables.partials + work.item.partial) * 2 * kPartial) +
                           half * (kDim / 8) * 128 + thread;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        target[j * 128] = make_float4(dk[4 * j], dk[4 * j + 1], dk[4 * j + 2], dk[4 * j + 3]);
        target[j * 128 + kPartial / 4] = make_float4(dv[4 * j], dv[4 * j + 1], dv[4 * j + 2], dv[4 * j + 3]);
      }
    } else {
      const auto row_of = [&](void* tensor, const Strides& strides, int r) {
        if (!TokenGeometry::valid(key_block, r)) return static_cast<T*>(nullptr);
        return static_cast<T*>(tensor) + work.batch * strides.batch + work.head * strides.head + p.key.token(key_block, r) * strides.token;
      };
      const int row = first_row();
      store_rows<T>(dk, p.scale, row_of(p.dk, p.dk_strides, row), row_of(p.dk, p.dk_strides, row + 8));
      store_rows<T>(dv, 1, row_of(p.dv, p.dv_strides, row), row_of(p.dv, p.dv_strides, row + 8));
    }
  }
}

}  // namespace slidetile::cuda
