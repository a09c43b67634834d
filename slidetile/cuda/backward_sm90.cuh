// Attention backward on Hopper (sm_90a): keys stay in shared memory, queries stream past them. docs/kernels_sm90_backward.md explains it.
//
// Cost of a step, 64 queries x 128 keys at head_dim 128: five products of 64 x 128 x 128, 10.5 MFLOP, 2,560 clocks of the tensor cores.
// Shared memory: operands 236 KiB, q and dout in 32 KiB, dS 16 KiB, dq 32 KiB in and 32 KiB out, 2,780 clocks. Second-level cache: 32 KiB
// read, 32 KiB added to. Measured 3,500 clocks, at the card's power limit.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "slidetile/cuda/backward_lowering.h"
#include "slidetile/cuda/backward_sm90.h"
#include "slidetile/cuda/barrier.cuh"
#include "slidetile/cuda/tensor_map.cuh"
#include "slidetile/cuda/tensor_map.h"
#include "slidetile/cuda/wgmma.cuh"

namespace slidetile::cuda {

constexpr int kBackwardThreads = 384, kConsumerThreads = 256, kGroupThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;

/// Where the tokens of a block lie in the sequence.
struct TokenGeometry {
  int32_t first = 0;             // token of the canvas's origin
  int32_t h = 0, w = 0;          // the canvas's
  int32_t box_h = 1, box_w = 1;  // of a block on the canvas

  __device__ __forceinline__ int32_t token(const Block& block, int32_t row) const {
    if ((block.flags & kBlockExtra) != 0) return block.w + row;
    const int32_t plane = box_h * box_w, in_plane = row % plane;
    return first + ((block.t + row / plane) * h + block.h + in_plane / box_w) * w + block.w + in_plane % box_w;
  }
  static __device__ __forceinline__ bool valid(const Block& block, int32_t row) { return (block.valid[row / 32] >> (row % 32) & 1) != 0; }
};

struct Strides {
  int64_t batch = 0, head = 0, token = 0;
};

struct TensorMaps {
  CUtensorMap canvas, extra;
  SheetSteps steps;
};

struct BackwardParams {
  TensorMaps q, dout, k, v;
  BackwardLowering tables;
  TokenGeometry query, key;
  const int32_t* head_class = nullptr;  // [plan_heads]
  const int32_t *query_lengths = nullptr, *key_lengths = nullptr;
  int32_t plan_heads = 0;                                                              // 1 serves any number
  int32_t heads = 0, sheets = 0;                                                       // sheets: batch x heads
  int32_t query_bytes = 0, key_bytes = 0, query_extra_bytes = 0, key_extra_bytes = 0;  // of a block, per 64 channels
  float scale = 0;
  // For the kernels before and after.
  const void *out = nullptr, *dout_data = nullptr;
  const float* lse = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  Strides out_strides, dout_strides, lse_strides, dq_strides, dk_strides, dv_strides;
  // Workspace.
  float* dq_sums = nullptr;    // [sheets][query blocks][2][head_dim / 16][128][4] as accumulators hold them
  float* lse_terms = nullptr;  // [sheets][query blocks][64] lse in base 2, +inf: a row that takes no part; deep: what S begins at
  float* delta = nullptr;      // [sheets][query blocks][64] sum of out * dout; deep: minus that
  float* partials = nullptr;   // [sheets][partials][dk, dv][2][head_dim / 8][128][4]
  int32_t* turn = nullptr;     // [sheets][query blocks] key blocks that have added to it
  int32_t* ticket = nullptr;   // next item
};

template <int kDim>
struct BackwardShared {
  static constexpr uint32_t kSlabs = kDim / 64;
  static constexpr uint32_t kQuerySlab = kBackwardQueryRows * kSlabRowBytes, kKeySlab = kBackwardKeyRows * kSlabRowBytes;
  static constexpr uint32_t kQueryTile = kSlabs * kQuerySlab, kKeyTile = kSlabs * kKeySlab;
  static constexpr uint32_t kScores = kKeySlab;  // dS^T: 128 keys x 64 queries
  static constexpr uint32_t kSums = kBackwardQueryRows * kDim * 4, kRowTerms = kBackwardQueryRows * 4;
  static constexpr uint32_t kK = 0, kV = kKeyTile, kQ = 2 * kKeyTile, kDout = kQ + 2 * kQueryTile, kDs = kDout + 2 * kQueryTile;
  static constexpr uint32_t kDq = kDs + 2 * kScores, kLse = kDq + 2 * kSums, kDelta = kLse + 2 * kRowTerms;
  static constexpr uint32_t kBarriers = kDelta + 2 * kRowTerms, kTicket = kBarriers + 128, kBytes = kTicket + 16;
};

/// Two packed 16-bit elements as floats.
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t packed) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
  } else {
    __half2 halves;
    memcpy(&halves, &packed, sizeof halves);
    return __half22float2(halves);
  }
}

/// Products of two packed elements and two floats, packed. bf16 rounds the floats first, which costs half as many instructions; in f16
/// they might overflow where their products don't.
template <typename T>
__device__ __forceinline__ uint32_t multiply_packed(uint32_t packed, float low, float high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(packed), "r"(pack<T>(low, high)));
    return product;
  } else {
    const float2 factors = unpack<T>(packed);
    return pack<T>(factors.x * low, factors.y * high);
  }
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// d (+)= A B for 64 x 32 x 16, both operands in shared memory with the other axis contiguous.
template <typename T>
__device__ __forceinline__ void wgmma_shared_32(float (&d)[16], uint64_t a, uint64_t b, int accumulate) {
#define SLIDETILE_WGMMA_32(type)                                                                                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\nwgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                     \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, 1, 1;\n}"                    \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), \
                 "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])                                            \
               : "l"(a), "l"(b), "r"(accumulate))
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    SLIDETILE_WGMMA_32("bf16");
  } else {
    SLIDETILE_WGMMA_32("f16");
  }
#undef SLIDETILE_WGMMA_32
}

// Copies between shared and global memory without a tensor map. One thread calls them; sizes and addresses are multiples of 16 bytes.
__device__ __forceinline__ void bulk_load(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target), "l"(source),
               "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void bulk_store(float* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bulk_add(float* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until shared memory has been read, or until all has been done.
__device__ __forceinline__ void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

/// True in one thread of a converged warp; the copies of a branch on it need no loop over threads.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

/// Waits until `turn` key blocks have added to a query block.
__device__ __forceinline__ void wait_for_turn(const int32_t* word, int32_t turn) {
  const auto seen = [word] {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
  };
#ifdef SLIDETILE_BOUNDED_WAITS
  for (uint32_t polls = 0; seen() != turn; ++polls) {
    if (polls > 40'000'000u) __trap();
  }
#else
  while (seen() != turn) {
  }
#endif
}
__device__ __forceinline__ void pass_turn(int32_t* word, int32_t turn) {
  asm volatile("fence.proxy.async.global;\nst.release.gpu.global.s32 [%0], %1;" ::"l"(word), "r"(turn) : "memory");
}

/// Writes an accumulator's rows, scaled: `low` is where row 16 (t / 32) + (t % 32) / 4 starts, `high` where the one 8 further does; null:
/// not wanted. Quads exchange their pairs so that each thread stores 16 bytes.
template <typename T, int kCount>
__device__ __forceinline__ void store_rows(const float (&sums)[kCount], float scale, T* low, T* high) {
  const uint32_t lane = threadIdx.x % 4;
#pragma unroll
  for (int group = 0; group < kCount / 16; ++group) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 16 * group + 4 * j + 2 * half;
        v[j] = pack<T>(sums[at] * scale, sums[at + 1] * scale);
      }
      uint32_t first = __shfl_xor_sync(~0u, (lane & 1) != 0 ? v[0] : v[1], 1),
               second = __shfl_xor_sync(~0u, (lane & 1) != 0 ? v[2] : v[3], 1);
      if ((lane & 1) != 0) {
        v[0] = first, v[2] = second;
      } else {
        v[1] = first, v[3] = second;
      }
      first = __shfl_xor_sync(~0u, (lane & 2) != 0 ? v[0] : v[2], 2), second = __shfl_xor_sync(~0u, (lane & 2) != 0 ? v[1] : v[3], 2);
      if ((lane & 2) != 0) {
        v[0] = first, v[1] = second;
      } else {
        v[2] = first, v[3] = second;
      }
      T* const row = half == 0 ? low : high;
      if (row != nullptr) *reinterpret_cast<uint4*>(row + 32 * group + 8 * lane) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

/// The same value, but the compiler can't know it: what is made from it is not kept in registers from before.
__device__ __forceinline__ uint32_t opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// operand_descriptor of what lies `bytes` after an operand that starts at 16 * `start`.
__device__ __forceinline__ uint64_t descriptor_at(uint32_t start, uint32_t bytes, uint32_t slab_bytes) {
  constexpr uint32_t kHigh = static_cast<uint32_t>(operand_descriptor(0, 0) >> 32);
  uint64_t descriptor;
  asm("mov.b64 %0, {%1, %2};" : "=l"(descriptor) : "r"(start + (bytes >> 4 | slab_bytes >> 4 << 16)), "r"(kHigh));
  return descriptor;
}

/// An item and whose it is.
struct BackwardWork {
  int32_t sheet, batch, head;
  BackwardItem item;
};

/// Lists of query tiles by the order in which key blocks add to dq.
template <bool kInTurn>
__device__ __forceinline__ const BackwardVisit* visits_of(const BackwardParams& p) {
  return kInTurn ? p.tables.visit_in_turn : p.tables.visit;
}

__device__ __forceinline__ int32_t class_of(const BackwardParams& p, int32_t head) { return p.head_class[p.plan_heads == 1 ? 0 : head]; }

// Sheets one after the other: the items at work at a time share most of their queries.
__device__ __forceinline__ BackwardWork work_of(const BackwardParams& p, int32_t ticket) {
  BackwardWork work;
  work.sheet = ticket / p.tables.items;
  work.batch = work.sheet / p.heads;
  work.head = work.sheet - work.batch * p.heads;
  work.item = p.tables.item[class_of(p, work.head) * p.tables.items + ticket - work.sheet * p.tables.items];
  return work;
}

template <typename T, int kDim>
__device__ __forceinline__ void copy_block(uint32_t target, uint32_t slab, const TensorMaps& maps, uint32_t barrier, const Block& block,
                                           const BackwardWork& work) {
  const CUtensorMap* map = (block.flags & kBlockExtra) != 0 ? &maps.extra : &maps.canvas;
  const int32_t sheet = work.batch * maps.steps.batch_step + work.head * maps.steps.head_step;
#pragma unroll
  for (int c = 0; c < kDim / 64; ++c) copy_box(target + c * slab, map, barrier, {c * 64, block.w, block.h, block.t, sheet});
}

/// Where the stages of q or of dout are, and their barriers: pairs but for the last.
struct QueryStages {
  uint32_t tile, terms, full, empty, brought;
};

/// Clears the rows of a query tile that are not the block's, or not among the first `in_use`. One thread calls it.
template <int kDim>
__device__ __forceinline__ void clear_query_rows(uint32_t tile, const Block& block, int32_t in_use) {
  uint64_t valid = block.valid[0] | uint64_t{block.valid[1]} << 32;
  if (in_use < kBackwardQueryRows) valid &= (uint64_t{1} << max(in_use, 0)) - 1;
#pragma unroll 1
  for (const uint32_t end = tile + BackwardShared<kDim>::kQuerySlab; tile < end; tile += kSlabRowBytes, valid >>= 1) {
    if ((valid & 1) != 0) continue;
#pragma unroll
    for (uint32_t at = 0; at < BackwardShared<kDim>::kQueryTile; at += BackwardShared<kDim>::kQuerySlab) {
#pragma unroll
      for (uint32_t i = 0; i < kSlabRowBytes; i += 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + at + i), "r"(0) : "memory");
    }
  }
}

/// Two orders in which a step's products are issued. Deep: dq a step late, issued with dP and dV; the next step's S under dV, its
/// exponentials under dK; the warpgroups tell each other of dS instead of meeting. It needs the registers of the slices of K, and sums of S
/// and dP that begin at minus their row terms. In turn it is slower, and at head_dim 64 it was never measured.
template <int kDim, bool kInTurn>
constexpr bool kDeep = kDim == 128 && !kInTurn;

/// What S begins at where a row takes no part, whatever the keys: P is 0.
constexpr float kNoRow = 1e30f;

/// kInTurn: key blocks add to a query block's dq in the order of work, so that equal inputs give equal bits.
template <typename T, int kDim, bool kInTurn>
__global__ void __launch_bounds__(kBackwardThreads, 1) backward_sm90(const __grid_constant__ BackwardParams p) {
  using Shared = BackwardShared<kDim>;
  constexpr bool kIsDeep = kDeep<kDim, kInTurn>;
  constexpr int kSlicesHeld = kIsDeep ? 0 : kDim == 128 ? 5 : 4;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared), bars = base + Shared::kBarriers;
  // Pairs are two stages.
  const uint32_t kv_full = bars, kv_empty = bars + 8, q_full = bars + 16, q_empty = bars + 32, dout_full = bars + 48,
                 dout_empty = bars + 64;
  const uint32_t dq_empty = bars + 80, q_brought = bars + 96, dout_brought = bars + 104;  // the last two are the feeding warps' own
  constexpr int kConsumers = 1, kSumsReady = 2, kScoresReady = 4;  // named barriers; of the others one a stage, of the last a pair a group
  auto* const ticket_word = reinterpret_cast<volatile int32_t*>(shared + Shared::kTicket);
  const int group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  if (threadIdx.x == 0) {
    barrier_init(kv_full, 1);
    barrier_init(kv_empty, 5);
    barrier_init(q_brought, 1);
    barrier_init(dout_brought, 1);
    for (uint32_t stage = 0; stage < 2; ++stage) {
      barrier_init(q_full + 8 * stage, 1);
      barrier_init(q_empty + 8 * stage, 2);
      barrier_init(dout_full + 8 * stage, 1);
      barrier_init(dout_empty + 8 * stage, kIsDeep ? 8 : 2);
      barrier_init(dq_empty + 8 * stage, 1);
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
    uint32_t brought = 0;
    // The query blocks of an item, of q or of dout, each with its 64 row terms. Rows of other tiles and past the length may be anything,
    // and products multiply them by zeros: where a block brings such rows, they are cleared before the consumers are told.
    const auto feed = [&](const BackwardWork& work, uint32_t& step, const TensorMaps& maps, const float* terms, const QueryStages& to) {
#pragma unroll 1
      for (int32_t v = 0; v < work.item.visits; ++v) {
        const BackwardVisit visit = visits_of<kInTurn>(p)[work.item.first_visit + v];
#pragma unroll 1
        for (int32_t b = visit.first_block; b < visit.first_block + visit.blocks; ++b, ++step) {
          const uint32_t stage = step & 1;
          const Block& block = p.tables.query_block[b];
          const uint32_t target = to.tile + stage * Shared::kQueryTile, full = to.full + 8 * stage;
          const bool extra = (block.flags & kBlockExtra) != 0;
          const int32_t bytes = (extra ? p.query_extra_bytes : p.query_bytes) * (kDim / 64);
          const int32_t in_use = extra && p.query_lengths != nullptr ? p.query_lengths[work.batch] - block.w : kBackwardQueryRows;
          const bool clear = (block.flags & kBlockClear) != 0 || in_use < kBackwardQueryRows;
          barrier_wait(to.empty + 8 * stage, ((step >> 1) & 1) ^ 1);
          barrier_arrive_expect(clear ? to.brought : full, clear ? bytes : bytes + Shared::kRowTerms);
          copy_block<T, kDim>(target, Shared::kQuerySlab, maps, clear ? to.brought : full, block, work);
          if (clear) {
            barrier_wait(to.brought, brought & 1);
            ++brought;
            clear_query_rows<kDim>(target, block, in_use);
            fence_async_shared();
            barrier_arrive_expect(full, Shared::kRowTerms);
          }
          bulk_load(to.terms + stage * Shared::kRowTerms,
                    terms + (static_cast<int64_t>(work.sheet) * p.tables.query_blocks + b) * kBackwardQueryRows, Shared::kRowTerms, full);
        }
      }
    };
    if (warp == 0) {
      if (elect_one()) {
        uint32_t step = 0;
#pragma unroll 1
        for (uint32_t round = 0;; ++round) {
          barrier_wait(kv_empty, (round & 1) ^ 1);
          const int32_t ticket = atomicAdd(p.ticket, 1);
          *ticket_word = ticket < total ? ticket : -1;
          if (ticket >= total) {
            barrier_arrive(kv_full);
            break;
          }
          const BackwardWork work = work_of(p, ticket);
          if (work.item.key_block < 0) {
            barrier_arrive(kv_full);
            continue;
          }
          const Block block = p.tables.key_block[work.item.key_block];
          const int32_t bytes = (block.flags & kBlockExtra) != 0 ? p.key_extra_bytes : p.key_bytes;
          barrier_arrive_expect(kv_full, 2 * bytes * (kDim / 64));
          copy_block<T, kDim>(base + Shared::kK, Shared::kKeySlab, p.k, kv_full, block, work);
          copy_block<T, kDim>(base + Shared::kV, Shared::kKeySlab, p.v, kv_full, block, work);
          feed(work, step, p.q, p.lse_terms, {base + Shared::kQ, base + Shared::kLse, q_full, q_empty, q_brought});
        }
      }
    } else if (warp != 2) {
      // Two warps add what the consumers leave of dq to its sums, each every other step: handing on a turn takes most of a step.
      const uint32_t stage = warp == 1 ? 0 : 1;
      const bool leader = threadIdx.x % 32 == 0;
      uint32_t step = 0;
#pragma unroll 1
      for (uint32_t round = 0;; ++round) {
        barrier_wait(kv_full, round & 1);
        const int32_t ticket = *ticket_word;
        if (ticket < 0) break;
        const BackwardWork work = work_of(p, ticket);
        __syncwarp();
        if (!kInTurn && leader) barrier_arrive(kv_empty);
#pragma unroll 1
        for (int32_t v = 0; v < work.item.visits; ++v) {
          const BackwardVisit visit = visits_of<kInTurn>(p)[work.item.first_visit + v];
#pragma unroll 1
          for (int32_t b = visit.first_block; b < visit.first_block + visit.blocks; ++b, ++step) {
            if ((step & 1) != stage) continue;
            const int64_t block = static_cast<int64_t>(work.sheet) * p.tables.query_blocks + b;
            named_sync(kSumsReady + stage, kConsumerThreads + 32);
            if (leader) {
              float* const target = p.dq_sums + block * (kBackwardQueryRows * kDim);
              const uint32_t source = base + Shared::kDq + stage * Shared::kSums;
              if constexpr (kInTurn) wait_for_turn(p.turn + block, visit.rank);
              if (kInTurn && visit.rank == 0) {
                bulk_store(target, source, Shared::kSums);
              } else {
                bulk_add(target, source, Shared::kSums);
              }
              bulk_commit();
              bulk_wait_read();
              barrier_arrive(dq_empty + 8 * stage);
              if constexpr (kInTurn) {
                bulk_wait();
                pass_turn(p.turn + block, visit.rank + 1);
              }
            }
            __syncwarp();
          }
        }
        // Nobody may wait for an item that waits in this CTA behind another: the next one is taken when all turns of this one are over.
        if (kInTurn && leader) barrier_arrive(kv_empty);
      }
      if (leader) bulk_wait();
    } else if (warp == 2) {
      if (elect_one()) {
        uint32_t step = 0;
#pragma unroll 1
        for (uint32_t round = 0;; ++round) {
          barrier_wait(kv_full, round & 1);
          const int32_t ticket = *ticket_word;
          if (ticket < 0) break;
          const BackwardWork work = work_of(p, ticket);
          barrier_arrive(kv_empty);
          feed(work, step, p.dout, p.delta, {base + Shared::kDout, base + Shared::kDelta, dout_full, dout_empty, dout_brought});
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
    barrier_wait(kv_full, round & 1);
    const int32_t ticket = *ticket_word;
    if (ticket < 0) break;
    int32_t steps;
    bool low_valid = true, high_valid = true, whole;
    {
      const BackwardWork work = work_of(p, ticket);
      steps = work.item.steps;
      if (work.item.key_block < 0) {
        named_sync(kConsumers, kConsumerThreads);  // all have read the ticket
        if (thread == 0) barrier_arrive(kv_empty);
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
    const auto begin_at = [&](float(&sums)[32], uint32_t terms) {
      const auto* term = reinterpret_cast<const float2*>(shared + terms) + lane % 4;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 t = term[4 * j];
        sums[4 * j] = sums[4 * j + 2] = t.x;
        sums[4 * j + 1] = sums[4 * j + 3] = t.y;
      }
    };
    const auto multiply_queries = [&](uint32_t stage) {
      const uint32_t left = operand(Shared::kK + half * 8192), right = operand(Shared::kQ + stage * Shared::kQueryTile);
      if constexpr (kIsDeep) begin_at(s, Shared::kLse + stage * Shared::kRowTerms);
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
      if constexpr (kIsDeep) begin_at(dp, Shared::kDelta + stage * Shared::kRowTerms);
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
      barrier_wait(dq_empty + 8 * stage, ((at >> 1) & 1) ^ 1);
      float4* const target = reinterpret_cast<float4*>(shared + Shared::kDq + stage * Shared::kSums) + half * (kDim / 16) * 128 + thread;
#pragma unroll
      for (int j = 0; j < kDim / 16; ++j) target[j * 128] = make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
      fence_async_shared();
      named_arrive(kSumsReady + stage, kConsumerThreads + 32);
    };

    const auto make_weights = [&](uint32_t(&weights)[4][4], [[maybe_unused]] uint32_t stage) {
      const auto* lse = reinterpret_cast<const float2*>(shared + Shared::kLse + stage * Shared::kRowTerms) + lane % 4;
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
      const auto* delta = reinterpret_cast<const float2*>(shared + Shared::kDelta + stage * Shared::kRowTerms) + lane % 4;
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

    if (steps > 0) barrier_wait(q_full + 8 * (step & 1), (step >> 1) & 1);
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
        multiply_dq(stage ^ 1);  // of the step before; in the first step of whatever is there, and not used
        barrier_wait(dout_full + 8 * stage, parity);
        multiply_dout(stage);
        add_product(dv, weights, dout_tile(stage));
        wgmma_wait<2>();  // dq
        pin(dq);
        if (i > 0) hand_over_dq(step - 1);
        // After the last step of whatever is there, and not used.
        if (i + 1 < steps) barrier_wait(q_full + 8 * (stage ^ 1), ((step + 1) >> 1) & 1);
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
        if (lane == 0) barrier_arrive(dout_empty + 8 * stage);
        make_weights(weights, stage ^ 1);
        wgmma_wait<0>();  // dK
        pin(dk);
        if (thread == 0) barrier_arrive(q_empty + 8 * stage);
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
        barrier_wait(dout_full + 8 * stage, parity);
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
          barrier_arrive(dout_empty + 8 * stage);
          barrier_arrive(q_empty + 8 * stage);
        }
        // The next step's S, under what remains of dq; after the last step of whatever is there, and not used.
        if (i + 1 < steps) barrier_wait(q_full + 8 * (stage ^ 1), ((step + 1) >> 1) & 1);
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
    if (thread == 0) barrier_arrive(kv_empty);
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

/// Before: row terms, of lse and of the sum of out * dout, nobody's turn yet; clears dq's sums unless the first to add stores.
/// Reads out and dout once; bound by memory.
template <typename T, int kDim, bool kInTurn>
__global__ void __launch_bounds__(128) backward_sm90_rows(const __grid_constant__ BackwardParams p) {
  const int64_t at = blockIdx.x;
  const auto sheet = static_cast<int32_t>(at / p.tables.query_blocks), b = static_cast<int32_t>(at % p.tables.query_blocks);
  if (at == 0 && threadIdx.x == 0) *p.ticket = 0;
  const Block& block = p.tables.query_block[b];
  if (block.flags == 0) return;
  const int32_t batch = sheet / p.heads, head = sheet % p.heads;
  constexpr int kLanes = kDim / 8, kRows = 128 / kLanes;
  const int lane = threadIdx.x % kLanes;
  const auto* out = static_cast<const T*>(p.out) + batch * p.out_strides.batch + head * p.out_strides.head;
  const auto* dout = static_cast<const T*>(p.dout_data) + batch * p.dout_strides.batch + head * p.dout_strides.head;
#pragma unroll
  for (int r = threadIdx.x / kLanes; r < kBackwardQueryRows; r += kRows) {
    const int32_t token = p.query.token(block, r);
    bool alive = TokenGeometry::valid(block, r) && !(p.query_lengths != nullptr && token >= p.query_lengths[batch]);
    float sum = 0, lse = 0;
    if (alive) {
      const uint4 a = *reinterpret_cast<const uint4*>(out + token * p.out_strides.token + lane * 8);
      const uint4 c = *reinterpret_cast<const uint4*>(dout + token * p.dout_strides.token + lane * 8);
      const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<T>(left[i]), y = unpack<T>(right[i]);
        sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
      }
      lse = p.lse[batch * p.lse_strides.batch + head * p.lse_strides.head + token * p.lse_strides.token];
      alive = lse != -INFINITY;
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (lane == 0) {
      // Deep, what S and dP begin at; else what is taken from them.
      constexpr bool kIsDeep = kDeep<kDim, kInTurn>;
      const float of_scores = kIsDeep ? (alive ? -lse / p.scale : copysignf(kNoRow, -p.scale)) : alive ? lse * kLog2E : INFINITY;
      p.lse_terms[at * kBackwardQueryRows + r] = of_scores;
      p.delta[at * kBackwardQueryRows + r] = !alive ? 0 : kIsDeep ? -sum : sum;
    }
  }
  if constexpr (kInTurn) {
    if (threadIdx.x == 0) p.turn[at] = 0;
  } else {
    auto* const sums = reinterpret_cast<float4*>(p.dq_sums + at * (kBackwardQueryRows * kDim));
#pragma unroll
    for (int i = 0; i < kBackwardQueryRows * kDim / 512; ++i) sums[i * 128 + threadIdx.x] = make_float4(0, 0, 0, 0);
  }
}

/// After: dq from its sums. Reads 4 bytes and writes 2 an element; bound by memory.
template <typename T, int kDim>
__global__ void __launch_bounds__(256) backward_sm90_dq(const __grid_constant__ BackwardParams p) {
  const int64_t at = blockIdx.x;
  const auto sheet = static_cast<int32_t>(at / p.tables.query_blocks), b = static_cast<int32_t>(at % p.tables.query_blocks);
  const Block& block = p.tables.query_block[b];
  if (block.flags == 0) return;
  const int32_t batch = sheet / p.heads, head = sheet % p.heads, half = threadIdx.x / 128, thread = threadIdx.x % 128;
  const bool any = p.tables.contributions[class_of(p, head) * p.tables.query_blocks + b] > 0;
  const auto* sums = reinterpret_cast<const float4*>(p.dq_sums + at * (kBackwardQueryRows * kDim)) + half * (kDim / 16) * 128 + thread;
  float dq[kDim / 4];
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
    const float4 x = any ? sums[j * 128] : make_float4(0, 0, 0, 0);
    dq[4 * j] = x.x, dq[4 * j + 1] = x.y, dq[4 * j + 2] = x.z, dq[4 * j + 3] = x.w;
  }
  const auto row_of = [&](int r) {
    if (!TokenGeometry::valid(block, r)) return static_cast<T*>(nullptr);
    return static_cast<T*>(p.dq) + batch * p.dq_strides.batch + head * p.dq_strides.head + p.query.token(block, r) * p.dq_strides.token +
           half * (kDim / 2);
  };
  const int row = 16 * (thread / 32) + thread % 32 / 4;
  store_rows<T>(dq, p.scale, row_of(row), row_of(row + 8));
}

/// After, where rows were cut up: dk and dv of a key block from its partial sums, in order.
template <typename T, int kDim>
__global__ void __launch_bounds__(256) backward_sm90_partials(const __grid_constant__ BackwardParams p) {
  const int32_t sheet = blockIdx.x / p.tables.splits, batch = sheet / p.heads, head = sheet % p.heads;
  const BackwardSplit split = p.tables.split[class_of(p, head) * p.tables.splits + blockIdx.x % p.tables.splits];
  if (split.partials == 0) return;
  const Block& block = p.tables.key_block[split.key_block];
  constexpr int64_t kPartial = int64_t{kBackwardKeyRows} * kDim;
  const int half = threadIdx.x / 128, thread = threadIdx.x % 128, row = 64 * half + 16 * (thread / 32) + thread % 32 / 4;
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    float sums[kDim / 2] = {};
    const auto* from = reinterpret_cast<const float4*>(
                           p.partials + ((static_cast<int64_t>(sheet) * p.tables.partials + split.first_partial) * 2 + which) * kPartial) +
                       half * (kDim / 8) * 128 + thread;
#pragma unroll 1
    for (int32_t i = 0; i < split.partials; ++i, from += 2 * kPartial / 4) {
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float4 x = from[j * 128];
        sums[4 * j] += x.x, sums[4 * j + 1] += x.y, sums[4 * j + 2] += x.z, sums[4 * j + 3] += x.w;
      }
    }
    const Strides& strides = which == 0 ? p.dk_strides : p.dv_strides;
    const auto row_of = [&](int r) {
      if (!TokenGeometry::valid(block, r)) return static_cast<T*>(nullptr);
      return static_cast<T*>(which == 0 ? p.dk : p.dv) + batch * strides.batch + head * strides.head +
             p.key.token(block, r) * strides.token;
    };
    store_rows<T>(sums, which == 0 ? p.scale : 1, row_of(row), row_of(row + 8));
  }
}

}  // namespace slidetile::cuda
