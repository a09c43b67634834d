// The portable forward kernel: mma.sync and cp.async, every GPU since Ampere, every plan.
//
// One block of two or four warps computes kRows query rows of one tile of one head, over blocks of 64 keys gathered in raster order by the
// plan's token lists. Cost a block of keys: reads 64 rows of k and v (from L2: neighbouring tiles share most of their keys), 4 * kRows * 64
// * head_dim FLOPs, kRows * 64 exponentials. The tensor cores bind, then shared memory: a warp of 32 rows reads 3 KB for 16 products of q
// k^T.
//
// A step: wait for k; start v; s = q k^T; wait for v; start the next k; softmax; out += p v. One buffer each for k and v, so that two
// blocks of four warps fit a multiprocessor and fill each other's waits. What is left between the products binds: the walk of the plan
// and the copies take few instructions where rows are aligned and the plan has no token masks (Path::kPlain).
#pragma once

#include "slidetile/cuda/gather_sm80.cuh"
#include "slidetile/cuda/launch.cuh"
#include "slidetile/cuda/repair_sm80.cuh"

namespace slidetile::cuda {

inline constexpr int kBlockKeys = 64;

struct ForwardParams {
  PlanView plan;
  Rows q, k, v, out, lse;
  const int32_t *query_lengths = nullptr, *key_lengths = nullptr;
  Schedule schedule;
  int head_dim = 0;
  float scale_log2 = 1;  // |scale| log2(e)
  bool negate_q = false;
};

/// Rows of a block of threads is kWarps * kWarpRows; kDim is head_dim or more.
template <int kDim_, int kWarpRows_, int kWarps_, Path kPath>
struct ForwardShape {
  static constexpr int kDim = kDim_, kWarpRows = kWarpRows_, kWarps = kWarps_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kStrips = kWarpRows / 16;  // m16 tiles of a warp
  static constexpr bool kQInRegisters = kStrips * kDim <= 128;
  static constexpr int kBlocksPerMultiprocessor = 8 / kWarps;
  static constexpr uint32_t kQBytes = kRows * kDim * 2, kKeyBytes = kBlockKeys * kDim * 2;

  static constexpr bool kWalkInShared = kDim <= 128;  // larger ones have no room, and registers enough

  static constexpr bool kIsPlain = kPath == Path::kPlain;
  static constexpr int kListBlocks = kIsPlain && kThreads >= 2 * kBlockKeys ? 2 : 1;  // blocks that the walk gives at a time
  using Copier = RowCopier<kDim, kThreads>;
  using Keys = std::conditional_t<kIsPlain, PlainRows<kBlockKeys, Copier::kGroups>, BlockRows<kBlockKeys>>;
  using Walk = PartnerWalk<Keys, kListBlocks>;

  struct Lists {
    Keys keys[2 * kListBlocks];
    int32_t query_token[kRows];
    int blocks;
    Item item;          // read again where it is needed: registers are scarce
    const char *k, *v;  // of the head
    Walk walk[kWalkInShared ? Walk::kPartners : 1];
  };
  static constexpr int kSharedBytes = kQBytes + 2 * kKeyBytes + sizeof(Lists);
  static_assert(kSharedBytes <= kSharedEverywhere);
};

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kNoKeyYet = -1e30f;  // a reference maximum below every logit, and finite: 2^(-inf - it) is 0
inline constexpr float kLazyStep = 8;       // log2: the reference maximum moves only when it is off by more

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerMultiprocessor)
    forward_sm80(const __grid_constant__ ForwardParams params) {
  constexpr int kDim = Shape::kDim, kWarpRows = Shape::kWarpRows, kThreads = Shape::kThreads;
  using Keys = typename Shape::Keys;
  using Walk = typename Shape::Walk;
  constexpr bool kIsPlain = Shape::kIsPlain;
  constexpr int kListBlocks = Shape::kListBlocks, kLists = 2 * kListBlocks;
  constexpr int kStrips = Shape::kStrips, kSteps = kDim / 16, kKeyPairs = kBlockKeys / 16;
  extern __shared__ __align__(128) char shared[];
  auto& lists = *reinterpret_cast<typename Shape::Lists*>(shared + Shape::kQBytes + 2 * Shape::kKeyBytes);
  const uint32_t q_at = shared_address(shared), k_at = q_at + Shape::kQBytes, v_at = k_at + Shape::kKeyBytes;
  const PlanView& plan = params.plan;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const Item first_item = params.schedule.item<Shape::kRows>(blockIdx.x, plan.query);
  if (first_item.count <= 0) return;
  if (threadIdx.x == 0) lists.item = first_item;
  const volatile Item& item = lists.item;
  Walk held_walk;
  Walk& walk = Shape::kWalkInShared ? lists.walk[threadIdx.x % Walk::kPartners] : held_walk;
  if (kIsPlain && threadIdx.x == 0) {
    lists.k = params.k.of(first_item.batch, first_item.head);
    lists.v = params.v.of(first_item.batch, first_item.head);
  }
  walk.start(plan, first_item, length_in_use(params.key_lengths, first_item.batch, plan.key));
  walk.fetch(plan);
  for (int r = threadIdx.x; r < Shape::kRows; r += kThreads) {
    lists.query_token[r] = r < first_item.count ? plan.query.token[plan.query.tile_begin[first_item.tile] + first_item.first + r] : -1;
  }
  walk.publish(plan, &lists.keys[0]);
  walk.fetch(plan);
  lists.blocks = partner_blocks<kBlockKeys>(plan, first_item);
  __syncthreads();
  gather<Shape::kRows, kDim, kThreads>(q_at, params.q, params.q.of(item.batch, item.head), lists.query_token, params.head_dim);
  const auto load_keys = [&](uint32_t to, const Rows& rows, const char* plain_from, const Keys& keys) {
    if constexpr (kIsPlain) {
      Shape::Copier::copy(to, plain_from, static_cast<int>(rows.token), keys);
    } else {
      gather<kBlockKeys, kDim, kThreads>(to, rows, rows.of(item.batch, item.head), keys.token, params.head_dim);
    }
  };
  load_keys(k_at, params.k, lists.k, lists.keys[0]);

  const BlockAddress q_block = rows_first<kDim>(q_at, warp * kWarpRows, lane);
  const BlockAddress k_block = columns_first<kDim>(k_at, 0, lane), v_block = rows_first<kDim>(v_at, 0, lane);
  constexpr uint32_t kSixteenRows = 16 * kDim * 2;

  float out[kStrips][kDim / 8][4], maximum[kStrips][2], sum[kStrips][2];
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) out[i][n][0] = out[i][n][1] = out[i][n][2] = out[i][n][3] = 0;
    maximum[i][0] = maximum[i][1] = kNoKeyYet;
    sum[i][0] = sum[i][1] = 0;
  }

  wait_copies<1>();
  __syncthreads();
  if (params.negate_q) {  // so that the kernel's scale is positive and the largest product has the largest logit
    auto* words = reinterpret_cast<uint32_t*>(shared);
    for (int i = threadIdx.x; i < static_cast<int>(Shape::kQBytes / 4); i += kThreads) words[i] ^= 0x80008000u;
    __syncthreads();
  }
  constexpr int kHeldSteps = Shape::kQInRegisters ? kSteps : 1;
  uint32_t q_held[kHeldSteps][kStrips][4];
  if constexpr (Shape::kQInRegisters) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < kStrips; ++i) load_matrices(q_held[step][i], q_block.step(step) + i * kSixteenRows);
    }
  }

  for (int block = 0; block < lists.blocks; ++block) {
    const Keys& keys = lists.keys[block % kLists];
    wait_copies<0>();
    __syncthreads();  // k is there, and everybody is done with the v before
    load_keys(v_at, params.v, lists.v, keys);
    const bool walks = kListBlocks == 1 || block % kListBlocks == 0;
    if (walks) walk.publish(plan, &lists.keys[(block + kListBlocks) % kLists]);

    float s[kStrips][kBlockKeys / 8][4];
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
#pragma unroll
      for (int n = 0; n < kBlockKeys / 8; ++n) s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (!Shape::kQInRegisters) {
#pragma unroll
        for (int i = 0; i < kStrips; ++i) load_matrices(q_held[0][i], q_block.step(step) + i * kSixteenRows);
      }
#pragma unroll
      for (int pair = 0; pair < kKeyPairs; ++pair) {
        uint32_t b[4];
        load_matrices(b, k_block.step(step) + pair * kSixteenRows);
#pragma unroll
        for (int i = 0; i < kStrips; ++i) {
          const auto& a = q_held[Shape::kQInRegisters ? step : 0][i];
          mma<T>(s[i][2 * pair], a, b[0], b[1]);
          mma<T>(s[i][2 * pair + 1], a, b[2], b[3]);
        }
      }
    }

    float largest[kStrips][2];
    const auto find_largest = [&] {
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float m = fmaxf(s[i][0][2 * half], s[i][0][2 * half + 1]);
#pragma unroll
          for (int n = 1; n < kBlockKeys / 8; ++n) m = fmaxf(m, fmaxf(s[i][n][2 * half], s[i][n][2 * half + 1]));
          largest[i][half] = m * params.scale_log2;
        }
      }
    };
    find_largest();
    if (!all_plain(keys)) {
      const int own = min(warp * kWarpRows + lane % kWarpRows, item.count - 1);
      const uint64_t mine = visible_partners(plan, keys, item.first + own);
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint64_t visible = __shfl_sync(~0u, mine, i * 16 + half * 8 + lane / 4) >> (lane % 4 * 2);
#pragma unroll
          for (int n = 0; n < kBlockKeys / 8; ++n) {
            if ((visible >> (n * 8) & 1) == 0) s[i][n][2 * half] = -kInfinity;
            if ((visible >> (n * 8) & 2) == 0) s[i][n][2 * half + 1] = -kInfinity;
          }
        }
      }
      find_largest();
    }

    wait_copies<0>();
    __syncthreads();  // v is there, the next block's list too, and everybody is done with k
    if (block + 1 < lists.blocks) {
      load_keys(k_at, params.k, lists.k, lists.keys[(block + 1) % kLists]);
      if (walks) walk.fetch(plan);
    }

    // Lazy exact maximum: what is subtracted stays until a row's maximum exceeds it by 2^kLazyStep; p and sum remain in range meanwhile.
    bool grew = false;
#pragma unroll
    for (int i = 0; i < kStrips; ++i) grew |= largest[i][0] > maximum[i][0] + kLazyStep || largest[i][1] > maximum[i][1] + kLazyStep;
    if (__any_sync(~0u, grew)) {
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float m = fmaxf(maximum[i][half], quad_max(largest[i][half]));
          const float factor = exp2_fast(maximum[i][half] - m);
          maximum[i][half] = m;
          sum[i][half] *= factor;
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) {
            out[i][n][2 * half] *= factor;
            out[i][n][2 * half + 1] *= factor;
          }
        }
      }
    }
    uint32_t p[kStrips][kKeyPairs][4];
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float m = maximum[i][half];
#pragma unroll
        for (int n = 0; n < kBlockKeys / 8; ++n) {
          const float p0 = exp2_fast(fmaf(s[i][n][2 * half], params.scale_log2, -m));
          const float p1 = exp2_fast(fmaf(s[i][n][2 * half + 1], params.scale_log2, -m));
          sum[i][half] += p0 + p1;
          p[i][n / 2][n % 2 * 2 + half] = pack<T>(p0, p1);
        }
      }
    }
#pragma unroll
    for (int pair = 0; pair < kKeyPairs; ++pair) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t b[4];
        load_matrices_transposed(b, v_block.step(step) + pair * kSixteenRows);
#pragma unroll
        for (int i = 0; i < kStrips; ++i) {
          mma<T>(out[i][2 * step], p[i][pair], b[0], b[1]);
          mma<T>(out[i][2 * step + 1], p[i][pair], b[2], b[3]);
        }
      }
    }
  }

  // A warp reads and writes only its own rows of the q buffer.
  const int query_length = length_in_use(params.query_lengths, item.batch, plan.query);
  wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kStrips; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[i][half]);
      const int row = warp * kWarpRows + i * 16 + half * 8 + lane / 4;
      const int token = lists.query_token[row];
      const bool empty = total == 0 || token >= query_length;
      const float inverse = empty ? 0 : 1 / total;
      if (params.lse.data != nullptr && lane % 4 == 0 && token >= 0) {
        constexpr float kLn2 = 0.6931471805599453f;
        const float lse = empty ? -kInfinity : kLn2 * (maximum[i][half] + log2f(total));
        *reinterpret_cast<float*>(params.lse.of(item.batch, item.head) + token * params.lse.token) = lse;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float low = empty ? 0 : out[i][n][2 * half] * inverse, high = empty ? 0 : out[i][n][2 * half + 1] * inverse;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(q_at + Swizzled<kDim>::offset(row, n) + lane % 4 * 4), "r"(pack<T>(low, high))
                     : "memory");
      }
    }
  }
  __syncwarp();
  scatter<kWarpRows, kDim>(q_at, params.out, params.out.of(item.batch, item.head), lists.query_token, params.head_dim);
}

template <typename T, typename Shape>
void launch_forward_sm80_as(ForwardParams& params, int64_t batch, void* stream) {
  params.schedule = Schedule::make<Shape::kRows>(params.plan.query, batch, params.schedule.heads);
  launch<forward_sm80<T, Shape>>({.name = "cuda.sm80 forward",
                                  .grid = dim3(static_cast<unsigned>(params.schedule.items)),
                                  .block = dim3(Shape::kThreads),
                                  .shared_bytes = Shape::kSharedBytes,
                                  .stream = stream},
                                 params);
}

template <typename T, int kDim, Path kPath>
void launch_forward_sm80_dim(ForwardParams& params, int64_t batch, void* stream) {
  // Four warps share the keys of 128 rows; two waste fewer rows of small tiles.
  const int tile = params.plan.query.largest_tile, wide = (tile + 127) / 128 * 128, narrow = (tile + 63) / 64 * 64;
  if (narrow * 4 <= wide * 3) {
    launch_forward_sm80_as<T, ForwardShape<kDim, 32, 2, kPath>>(params, batch, stream);
  } else {
    launch_forward_sm80_as<T, ForwardShape<kDim, 32, 4, kPath>>(params, batch, stream);
  }
}

/// Launches the kernel for params, with schedule.heads set, on the current device.
template <typename T>
void launch_forward_sm80(ForwardParams& params, int64_t batch, void* stream) {
  const int dim = params.head_dim <= 64 ? 64 : params.head_dim <= 128 ? 128 : 256;
  const bool masks = params.plan.mask_of != nullptr;
  const bool plain = !masks && copies_plainly(params.k, params.head_dim, dim) && copies_plainly(params.v, params.head_dim, dim);
  if (dim == 256) {
    launch_forward_sm80_as<T, ForwardShape<256, 16, 4, Path::kAny>>(params, batch, stream);
  } else if (dim == 128) {
    (plain ? launch_forward_sm80_dim<T, 128, Path::kPlain> : launch_forward_sm80_dim<T, 128, Path::kAny>)(params, batch, stream);
  } else {
    (plain ? launch_forward_sm80_dim<T, 64, Path::kPlain> : launch_forward_sm80_dim<T, 64, Path::kAny>)(params, batch, stream);
  }
  if (masks) launch_repair<repair_forward<T, ForwardParams>>(params, batch, stream);
}

extern template void launch_forward_sm80<Bf16>(ForwardParams&, int64_t, void*);  // forward_sm80_bf16.cu
extern template void launch_forward_sm80<F16>(ForwardParams&, int64_t, void*);   // forward_sm80_f16.cu

}  // namespace slidetile::cuda
