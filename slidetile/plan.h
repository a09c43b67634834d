// Which key tiles every query tile reads: the only thing that planners and kernels share.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "slidetile/grid.h"
#include "slidetile/tensor.h"

namespace slidetile {

/// Tokens off the canvas (text, audio, conditioning) around the canvas's tokens in the sequence. Every query sees them and
/// they see everything.
struct ExtraTokens {
  int64_t before = 0, after = 0;
  friend bool operator==(const ExtraTokens&, const ExtraTokens&) = default;
};

/// How one sequence of tokens is cut into tiles. The sequence is [before | canvas in raster order | after].
/// Tiles 0 to grid.tile_count() - 1 are the grid's; then come the extra tokens, in runs of consecutive ones, as tiles like any other.
/// A tiling without a canvas (grid.tokens() == 0) may list tokens in any order.
struct Tiling {
  Grid grid;
  ExtraTokens extra;
  std::vector<int32_t> tile_begin;  // [tiles + 1] first slot of each tile in tile order
  std::vector<int32_t> token;       // [tokens] slot in tile order -> position in the sequence

  int32_t tiles() const noexcept { return static_cast<int32_t>(tile_begin.size()) - 1; }
  int64_t tokens() const noexcept { return static_cast<int64_t>(token.size()); }
  int32_t tile_size(int32_t tile) const noexcept { return tile_begin[tile + 1] - tile_begin[tile]; }
  friend bool operator==(const Tiling&, const Tiling&) = default;
};

/// Tiling of a grid with extra tokens around it. Extra tokens are cut into tiles of as many tokens as a whole tile of the grid
/// has, at least 64. Throws on negative counts and on 2^31 tokens or more.
Tiling make_tiling(const Grid& grid, ExtraTokens extra = {});

/// For every (head class, query tile) a row: the ascending list of key tiles that it reads, each whole or with a token mask.
/// Heads of one class share their rows, and query tiles with equal lists share a row: a dense plan is one row.
struct Plan {
  Tiling query, key;
  std::vector<int32_t> head_class;   // [heads]; one element serves any number of heads
  std::vector<int32_t> row_of;       // [classes * query tiles] -> row
  std::vector<int64_t> row_begin;    // [rows + 1] -> first entry
  std::vector<int32_t> key_tile;     // [entries], ascending within a row
  std::vector<int32_t> mask_of;      // [entries] -> mask, -1: every pair is visible; empty: all are -1
  std::vector<int64_t> mask_begin;   // [masks + 1] -> first word
  std::vector<uint64_t> mask_words;  // a mask is [query tokens of the tile][ceil(key tokens of the tile / 64)], bit k % 64 of word k / 64;
                                     // bits past the tile's key tokens are 0

  int32_t heads() const noexcept { return static_cast<int32_t>(head_class.size()); }
  int32_t rows() const noexcept { return static_cast<int32_t>(row_begin.size()) - 1; }
  int64_t entries() const noexcept { return static_cast<int64_t>(key_tile.size()); }
  int32_t masks() const noexcept { return mask_begin.empty() ? 0 : static_cast<int32_t>(mask_begin.size()) - 1; }
  int32_t classes() const noexcept { return query.tiles() > 0 ? static_cast<int32_t>(row_of.size()) / query.tiles() : 0; }
  int32_t class_of(int64_t head) const noexcept { return head_class.size() == 1 ? head_class[0] : head_class[static_cast<size_t>(head)]; }
  int32_t row(int64_t head, int32_t query_tile) const noexcept {
    return row_of[static_cast<size_t>(int64_t{class_of(head)} * query.tiles() + query_tile)];
  }
  /// Entries of a row: indices into key_tile and mask_of are first, first + 1, ... last - 1.
  int64_t row_first(int32_t row) const noexcept { return row_begin[static_cast<size_t>(row)]; }
  int64_t row_last(int32_t row) const noexcept { return row_begin[static_cast<size_t>(row) + 1]; }
  int32_t mask(int64_t entry) const noexcept { return mask_of.empty() ? -1 : mask_of[static_cast<size_t>(entry)]; }
};

/// Throws unless the plan is consistent: indices in range, lists ascending, masks of the right extents without bits past their key tile,
/// tilings with a canvas as make_tiling makes them.
void validate(const Plan& plan);

/// The plan of the same pairs seen from the keys: its rows list, for each key tile, the query tiles that read it.
Plan transpose(const Plan& plan);

/// The plan of the pairs visible in a or b. Both must have the same tilings; heads as in the one with more of them.
Plan plan_union(const Plan& a, const Plan& b);

/// Visible (query token, key token) pairs, summed over heads (of a plan for any number of heads: of `heads` heads).
int64_t visible_pairs(const Plan& plan, int64_t heads);

/// Visible pairs as a fraction of all pairs, averaged over the plan's heads. Sparsity is 1 - density.
double density(const Plan& plan);

/// Floating-point operations of attention: two products forward (4 x pairs x head_dim), five backward (10 x pairs x head_dim).
double forward_flops(const Plan& plan, int64_t heads, int64_t head_dim);
double backward_flops(const Plan& plan, int64_t heads, int64_t head_dim);

/// Blocks of `query_block` x `key_block` slots in tile order by how many of their pairs are visible, summed over the plan's heads.
struct BlockCounts {
  int64_t full = 0, partial = 0, empty = 0;
};
BlockCounts count_blocks(const Plan& plan, int64_t query_block, int64_t key_block);

/// A plan as kernels take it: pointers and extents, on the host or on a device.
struct TilingView {
  Dim3 canvas{0, 0, 0}, tile{1, 1, 1}, grid_tiles{0, 0, 0};  // canvas 0x0x0: tiles are no boxes
  ExtraTokens extra;
  int32_t tiles = 0;
  int64_t tokens = 0;
  int32_t largest_tile = 0;             // tokens
  const int32_t* tile_begin = nullptr;  // [tiles + 1]
  const int32_t* token = nullptr;       // [tokens]
};

struct PlanView {
  Device device;
  TilingView query, key;
  int32_t heads = 0;  // 1 serves any number
  int32_t classes = 0, rows = 0, masks = 0;
  int64_t entries = 0;
  int64_t longest_row = 0;              // entries
  const int32_t* head_class = nullptr;  // [heads]
  const int32_t* row_of = nullptr;      // [classes * query.tiles]
  const int64_t* row_begin = nullptr;   // [rows + 1]
  const int32_t* key_tile = nullptr;    // [entries]
  const int32_t* mask_of = nullptr;     // [entries] or null: all visible
  const int64_t* mask_begin = nullptr;  // [masks + 1]
  const uint64_t* mask_words = nullptr;
  const void* lowering = nullptr;  // what a device back end prepared when the plan was uploaded
};

/// View of a plan on the host; valid while the plan lives and is not changed.
PlanView view_of(const Plan& plan);

/// Builds a plan row by row and shares equal rows and equal masks.
class PlanBuilder {
 public:
  PlanBuilder(Tiling query, Tiling key);

  /// A mask for `query_size` x `key_size` tokens, all words given; returns its number (shared if an equal one exists),
  /// or -1 if every pair is visible.
  int32_t add_mask(int32_t query_size, int32_t key_size, std::span<const uint64_t> words);
  /// Appends the row of the next query tile of the current class and returns its number. mask_of may be empty: all visible.
  int32_t add_row(std::span<const int32_t> key_tiles, std::span<const int32_t> mask_of = {});
  /// Appends a row that add_row returned for an earlier query tile, at no cost for its length.
  void repeat_row(int32_t row);
  /// The finished plan; `head_class` says which class (in order of their rows) each head uses.
  Plan finish(std::vector<int32_t> head_class);

 private:
  Plan plan_;
  std::unordered_multimap<uint64_t, int32_t> row_with_hash_, mask_with_hash_;
  std::vector<std::pair<int32_t, int32_t>> mask_extents_;  // query and key tokens of each mask
  bool any_mask_ = false;
};

}  // namespace slidetile
