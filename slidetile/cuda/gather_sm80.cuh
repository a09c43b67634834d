// How the portable kernels read a plan: which tokens a block of rows holds, which pairs are visible, and rows from and to memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "slidetile/cuda/async_copy.cuh"
#include "slidetile/cuda/mma.cuh"
#include "slidetile/kernel.h"

namespace slidetile::cuda {

inline constexpr int kThreads = 128, kWarps = 4;
inline constexpr int kSharedEverywhere = 99 * 1024;  // bytes that a block can have on every device since Ampere

/// kPlain: no token masks, aligned rows, head_dim is kDim.
enum class Path { kAny, kPlain };

/// A tensor in bytes. `vectors`: every row starts at a multiple of 16 bytes and head_dim is a multiple of 8 elements.
struct Rows {
  char* data = nullptr;
  int64_t batch = 0, head = 0, token = 0;
  bool vectors = false;

  __device__ __forceinline__ char* of(int b, int h) const { return data + b * batch + h * head; }
};

/// Whether RowCopier can address the rows: from one to the next in 32 bits.
inline bool copies_plainly(const Rows& rows, int64_t head_dim, int64_t columns) {
  return rows.vectors && head_dim == columns && rows.token >= 0 && rows.token <= INT32_MAX;
}

inline Rows rows_of(const TensorView& view) {
  const int64_t size = size_of(view.dtype);
  const auto aligned = [&](size_t axis) {
    return view.shape[axis] <= 1 || view.strides[axis] * size % 16 == 0;
  };
  return {static_cast<char*>(view.data), view.strides[0] * size, view.strides[1] * size, view.strides[2] * size,
          reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && aligned(0) && aligned(1) && aligned(2) && view.shape[3] * size % 16 == 0};
}

/// One block of work: rows first to first + count - 1 of a tile, of one head of one batch item.
struct Item {
  int batch, head, tile, first, count;
};

/// Items in order: extra tokens' tiles, which read everything, start first so that they do not trail; then head by head, whose keys then
/// stay in cache.
struct Schedule {
  int heads = 0, tiles = 0, grid_tiles = 0, blocks = 0;  // blocks of the largest tile
  int64_t extra_items = 0, items = 0;

  template <int kRows>
  static Schedule make(const TilingView& tiling, int64_t batch, int64_t heads) {
    Schedule s;
    s.heads = static_cast<int>(heads);
    s.tiles = tiling.tiles;
    s.grid_tiles = static_cast<int>(tiling.grid_tiles.volume());
    s.blocks = (tiling.largest_tile + kRows - 1) / kRows;
    s.extra_items = batch * heads * (s.tiles - s.grid_tiles) * s.blocks;
    s.items = batch * heads * s.tiles * s.blocks;
    return s;
  }

  template <int kRows>
  __device__ __forceinline__ Item item(uint32_t index, const TilingView& tiling) const {
    const bool extra = index < extra_items;
    const uint32_t rest = extra ? index : static_cast<uint32_t>(index - extra_items);
    const uint32_t block = rest % blocks, in_tiles = rest / blocks, count = extra ? tiles - grid_tiles : grid_tiles;
    const uint32_t in_heads = in_tiles / count;
    Item item;
    item.tile = static_cast<int>(in_tiles % count + (extra ? grid_tiles : 0));
    item.head = static_cast<int>(in_heads % heads);
    item.batch = static_cast<int>(in_heads / heads);
    item.first = static_cast<int>(block) * kRows;
    item.count = min(kRows, tiling.tile_begin[item.tile + 1] - tiling.tile_begin[item.tile] - item.first);
    return item;
  }
};

/// Tokens of a batch item that are in use. The host can't check lengths that lie on the device: one out of range counts as the nearest in
/// it.
__device__ __forceinline__ int length_in_use(const int32_t* lengths, int batch, const TilingView& tiling) {
  const int tokens = static_cast<int>(tiling.tokens), after = static_cast<int>(tiling.extra.after);
  return lengths == nullptr ? tokens : min(max(lengths[batch], tokens - after), tokens);
}

/// What is known of a block of kPartners rows on the other side (keys, for a block of queries), in shared memory.
template <int kPartners>
struct BlockRows {
  static constexpr int kRows = kPartners;
  static __device__ __forceinline__ int slot(int row) { return row; }

  int32_t token[kPartners];   // -1: no token, or one past the length
  int64_t mask[kPartners];    // first word of the mask of the row's entry, -1: all visible
  int32_t within[kPartners];  // place in its tile
  int32_t tile_size[kPartners];
  uint32_t valid[kPartners / 32];  // rows with a token
  uint32_t plain[kPartners / 32];  // and without a mask
};

/// The same of a plan without token masks. Rows r, r + kGroups, ... stand side by side, so that the thread which copies them reads their
/// tokens at once.
template <int kPartners, int kGroups>
struct PlainRows {
  static constexpr int kRows = kPartners;
  static __device__ __forceinline__ int slot(int row) { return row % kGroups * (kPartners / kGroups) + row / kGroups; }

  alignas(16) int32_t token[kPartners];
  alignas(8) uint32_t valid[kPartners / 32];
};

/// Thread r of the first kBlocks * Block::kRows follows rows r, r + kBlocks * Block::kRows, ... of the concatenated tiles of a row of the
/// plan: kBlocks blocks at a time. Its state may live in shared memory where registers are scarce.
template <typename Block, int kBlocks = 1>
class PartnerWalk {
 public:
  static constexpr int kPartners = Block::kRows * kBlocks;
  static constexpr bool kMasks = requires(Block b) { b.mask; };

  __device__ __forceinline__ void start(const PlanView& plan, const Item& item, int length) {
    if (threadIdx.x >= kPartners) return;
    length_ = length;
    const int c = plan.head_class[plan.heads == 1 ? 0 : item.head];
    const int row = plan.row_of[static_cast<int64_t>(c) * plan.query.tiles + item.tile];
    entry_ = plan.row_begin[row];
    last_ = plan.row_begin[row + 1];
    offset_ = static_cast<int>(threadIdx.x) - kPartners;
    next_first_ = next_size_ = 0;
    peek(plan, entry_);
    enter();
    peek(plan, entry_ + 1);
  }

  /// Moves to the next block and starts to read what publish() writes.
  __device__ __forceinline__ void fetch(const PlanView& plan) {
    if (threadIdx.x >= kPartners) return;
    offset_ += kPartners;
    while (entry_ < last_ && offset_ >= size_) {
      offset_ -= size_;
      ++entry_;
      enter();
      peek(plan, entry_ + 1);
    }
    token_ = entry_ < last_ ? plan.key.token[first_ + offset_] : -1;
  }

  /// Writes kBlocks blocks. Called by all threads; needs a barrier after it.
  __device__ __forceinline__ void publish(const PlanView& plan, Block* blocks) const {
    if (threadIdx.x >= kPartners) return;
    Block& rows = blocks[threadIdx.x / Block::kRows];
    const int r = threadIdx.x % Block::kRows, token = token_ < length_ ? token_ : -1;
    rows.token[Block::slot(r)] = token;
    const uint32_t valid = __ballot_sync(~0u, token >= 0);
    if (r % 32 == 0) rows.valid[r / 32] = valid;
    if constexpr (kMasks) {
      int mask = -1;
      if (plan.mask_of != nullptr) {
        const bool inside = entry_ < last_;
        if (inside) mask = plan.mask_of[entry_];
        rows.mask[r] = mask < 0 ? -1 : plan.mask_begin[mask];
        rows.within[r] = inside ? offset_ : 0;
        rows.tile_size[r] = inside ? size_ : kPartners;
      }
      const uint32_t masked = __ballot_sync(~0u, mask >= 0);
      if (r % 32 == 0) rows.plain[r / 32] = valid & ~masked;
    }
  }

 private:
  __device__ __forceinline__ void peek(const PlanView& plan, int64_t entry) {
    if (entry >= last_) return;
    const int tile = plan.key_tile[entry];
    next_first_ = plan.key.tile_begin[tile];
    next_size_ = plan.key.tile_begin[tile + 1] - next_first_;
  }
  __device__ __forceinline__ void enter() {
    first_ = next_first_;
    size_ = next_size_;
  }

  int64_t entry_, last_;
  int offset_, first_, size_, next_first_, next_size_, token_, length_;
};

/// Blocks of kPartners rows that the walk will give.
template <int kPartners>
__device__ __forceinline__ int partner_blocks(const PlanView& plan, const Item& item) {
  const int c = plan.head_class[plan.heads == 1 ? 0 : item.head];
  const int row = plan.row_of[static_cast<int64_t>(c) * plan.query.tiles + item.tile];
  const int64_t first = plan.row_begin[row], last = plan.row_begin[row + 1];
  int64_t sum = 0;
  for (int64_t entry = first + threadIdx.x % 32; entry < last; entry += 32) {
    const int tile = plan.key_tile[entry];
    sum += plan.key.tile_begin[tile + 1] - plan.key.tile_begin[tile];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return static_cast<int>((sum + kPartners - 1) / kPartners);
}

__device__ __forceinline__ bool all_plain(const BlockRows<64>& rows) { return (rows.plain[0] & rows.plain[1]) == ~0u; }
__device__ __forceinline__ bool all_plain(const BlockRows<32>& rows) { return rows.plain[0] == ~0u; }
template <int kGroups>
__device__ __forceinline__ bool all_plain(const PlainRows<64, kGroups>& rows) {
  const uint2 valid = *reinterpret_cast<const uint2*>(rows.valid);
  return (valid.x & valid.y) == ~0u;
}

/// Bit r: row r of the block is visible to row `own` of the item's tile.
template <int kPartners, int kGroups>
__device__ __forceinline__ uint64_t visible_partners(const PlanView&, const PlainRows<kPartners, kGroups>& rows, int) {
  return uint64_t{rows.valid[kPartners / 32 - 1]} << 32 | rows.valid[0];
}
template <int kPartners>
__device__ __forceinline__ uint64_t visible_partners(const PlanView& plan, const BlockRows<kPartners>& rows, int own) {
  constexpr int kHigh = kPartners / 32 - 1;
  const uint64_t valid = (kHigh > 0 ? uint64_t{rows.valid[kHigh]} << 32 : 0) | rows.valid[0];
  const uint64_t plain = (kHigh > 0 ? uint64_t{rows.plain[kHigh]} << 32 : 0) | rows.plain[0];
  if (valid == plain) return valid;
  uint64_t visible = 0;
  for (int r = 0; r < kPartners;) {
    const int within = rows.within[r], size = rows.tile_size[r], run = min(size - within, kPartners - r);
    uint64_t bits = ~uint64_t{0};
    if (rows.mask[r] >= 0) {
      const int words = (size + 63) / 64;
      const uint64_t* from = plan.mask_words + rows.mask[r] + static_cast<int64_t>(own) * words + within / 64;
      bits = from[0] >> (within % 64);
      if (within % 64 != 0 && within / 64 + 1 < words) bits |= from[1] << (64 - within % 64);
    }
    if (run < 64) bits &= (uint64_t{1} << run) - 1;
    visible |= bits << r;
    r += run;
  }
  return visible & valid;
}

/// 8 elements of a row of head_dim from `d` on, whatever the alignment; zeros past head_dim.
__device__ __forceinline__ uint4 load_chunk(const char* row, int d, int head_dim) {
  uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (d + i < head_dim) words[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row)[d + i]) << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Rows `token[0..kRows)` of a tensor into a Swizzled<kColumns> array; zeros where token is -1 and past head_dim. One group of copies is
/// under way after it (and committed).
template <int kRows, int kColumns, int kOfThreads = kThreads>
__device__ __forceinline__ void gather(uint32_t to, const Rows& rows, const char* base, const int32_t* token, int head_dim) {
  constexpr int kChunks = kColumns / 8, kStep = kOfThreads / kChunks;
  const int chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
  if (rows.vectors) {
    const bool in_row = chunk * 8 < head_dim;
    const char* from = base + (in_row ? chunk * 16 : 0);
#pragma unroll 4
    for (int i = 0; i < kRows / kStep; ++i) {
      const int row = first + i * kStep, t = token[row];
      copy_async(to + Swizzled<kColumns>::offset(row, chunk), from + max(t, 0) * rows.token, t >= 0 && in_row ? 16 : 0);
    }
  } else {
    for (int i = 0; i < kRows / kStep; ++i) {
      const int row = first + i * kStep, t = token[row];
      const uint4 value = t < 0 ? make_uint4(0, 0, 0, 0) : load_chunk(base + t * rows.token, chunk * 8, head_dim);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + Swizzled<kColumns>::offset(row, chunk)), "r"(value.x),
                   "r"(value.y), "r"(value.z), "r"(value.w)
                   : "memory");
    }
  }
  commit_copies();
}

/// One instruction, where the compiler would widen the operands first.
__device__ __forceinline__ const char* row_address(const char* base, int token, int stride) {
  const char* address;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(address) : "r"(token), "r"(stride), "l"(base));
  return address;
}

/// Where a thread of kOfThreads copies its part of a block of PlainRows: the same 16 bytes of every kGroups-th row.
template <int kColumns, int kOfThreads = kThreads>
struct RowCopier {
  static constexpr int kChunks = kColumns / 8, kGroups = kOfThreads / kChunks;

  /// Rows of `rows` into a Swizzled<kColumns> array at `to`; `from` and `stride` in bytes. Begins copies and commits them as one group.
  template <int kPartners>
  static __device__ __forceinline__ void copy(uint32_t to, const char* from, int stride, const PlainRows<kPartners, kGroups>& rows) {
    constexpr int kOwn = kPartners / kGroups;
    const int chunk = threadIdx.x % kChunks, group = threadIdx.x / kChunks;
    const int32_t* tokens = rows.token + group * kOwn;
    from += chunk * 16;
    to += Swizzled<kColumns>::offset(group, chunk);
    if (all_plain(rows)) {
      alignas(16) int32_t token[kOwn];
      static_assert(kOwn == 2 || kOwn % 4 == 0);
      using Some = std::conditional_t<kOwn == 2, int2, int4>;
#pragma unroll
      for (int i = 0; i < kOwn * 4 / static_cast<int>(sizeof(Some)); ++i) {
        reinterpret_cast<Some*>(token)[i] = reinterpret_cast<const Some*>(tokens)[i];
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        copy_async(place(to, i), row_address(from, token[i], stride));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kOwn; ++i) {
        const int token = tokens[i];
        copy_async(place(to, i), row_address(from, max(token, 0), stride), token >= 0 ? 16 : 0);
      }
    }
    commit_copies();
  }

 private:
  // Of the i-th row of a thread whose first is at `to`, in an array at a multiple of 128.
  static __device__ __forceinline__ uint32_t place(uint32_t to, int i) {
    return (to ^ (i * kGroups % 8 << 4)) + i * kGroups * Swizzled<kColumns>::kRowBytes;
  }
};

/// Rows of one warp from a Swizzled<kColumns> array to a tensor; rows whose token is -1 are left out.
template <int kWarpRows, int kColumns>
__device__ __forceinline__ void scatter(uint32_t from, const Rows& rows, char* base, const int32_t* token, int head_dim) {
  constexpr int kChunks = kColumns / 8;
  const int lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * kWarpRows;
  for (int i = lane; i < kWarpRows * kChunks; i += 32) {
    const int row = first_row + i / kChunks, chunk = i % kChunks, t = token[row];
    if (t < 0 || chunk * 8 >= head_dim) continue;
    uint4 value;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(from + Swizzled<kColumns>::offset(row, chunk))
                 : "memory");
    char* to = base + t * rows.token + chunk * 16;
    if (rows.vectors) {
      *reinterpret_cast<uint4*>(to) = value;
    } else {
      const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
      for (int d = 0; d < 8; ++d) {
        if (chunk * 8 + d < head_dim) reinterpret_cast<uint16_t*>(to)[d] = static_cast<uint16_t>(words[d / 2] >> (d % 2 * 16));
      }
    }
  }
}

}  // namespace slidetile::cuda
