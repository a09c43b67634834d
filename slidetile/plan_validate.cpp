// What makes a plan consistent. Kernels index by what a plan holds without looking twice, so this is where a broken one ends.
#include <algorithm>

#include "slidetile/error.h"
#include "slidetile/plan.h"

namespace slidetile {
namespace {

template <typename T>
bool ascends(const std::vector<T>& begin, int64_t last) {
  return !begin.empty() && begin.front() == 0 && begin.back() == last && std::is_sorted(begin.begin(), begin.end());
}

void check_tiling(const Tiling& tiling, const char* side) {
  require(ascends(tiling.tile_begin, tiling.tokens()), "plan: the ", side, " tiles must ascend from slot 0 to ", tiling.tokens());
  for (int32_t tile = 0; tile < tiling.tiles(); ++tile) require(tiling.tile_size(tile) > 0, "plan: ", side, " tile ", tile, " is empty");
  std::vector<bool> seen(tiling.token.size());
  for (const int32_t token : tiling.token) {
    require(token >= 0 && token < tiling.tokens() && !seen[static_cast<size_t>(token)], "plan: ", side, " token ", token,
            " is out of range or listed twice (", tiling.tokens(), " tokens)");
    seen[static_cast<size_t>(token)] = true;
  }
  require(tiling.grid.tokens() == 0 || tiling == make_tiling(tiling.grid, tiling.extra), "plan: the ", side,
          " tiles are not those of canvas ", tiling.grid.canvas(), " with tile ", tiling.grid.tile(), ", ", tiling.extra.before,
          " tokens before and ", tiling.extra.after, " after it");
}

void check_rows(const Plan& plan) {
  require(ascends(plan.row_begin, plan.entries()), "plan: row_begin must ascend from 0 to ", plan.entries());
  require(plan.mask_of.empty() || plan.mask_of.size() == plan.key_tile.size(), "plan: ", plan.mask_of.size(), " masks for ", plan.entries(),
          " entries");
  const int32_t key_tiles = plan.key.tiles(), masks = plan.masks();
  for (int32_t row = 0; row < plan.rows(); ++row) {
    int32_t before = -1;
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      const int32_t tile = plan.key_tile[static_cast<size_t>(entry)];
      require(tile > before && tile < key_tiles, "plan: row ", row, " lists key tile ", tile, " after ", before,
              ", expected ascending below ", key_tiles);
      require(plan.mask(entry) >= -1 && plan.mask(entry) < masks, "plan: mask ", plan.mask(entry), " of ", masks);
      before = tile;
    }
  }
}

void check_mask(const Plan& plan, int32_t mask, int32_t query_size, int32_t key_size) {
  const int64_t first = plan.mask_begin[static_cast<size_t>(mask)], last = plan.mask_begin[static_cast<size_t>(mask) + 1];
  const int64_t row_words = (key_size + 63) / 64, expected = query_size * row_words;
  require(last - first == expected, "plan: mask ", mask, " has ", last - first, " words, its tiles of ", query_size, " and ", key_size,
          " tokens need ", expected);
  if (key_size % 64 == 0) return;
  for (int64_t word = first + row_words - 1; word < last; word += row_words) {
    require(plan.mask_words[static_cast<size_t>(word)] >> (key_size % 64) == 0, "plan: mask ", mask, " has bits past the ", key_size,
            " tokens of its key tile");
  }
}

void check_masks(const Plan& plan) {
  const auto words = static_cast<int64_t>(plan.mask_words.size());
  require(plan.mask_begin.empty() ? words == 0 : ascends(plan.mask_begin, words), "plan: mask_begin must ascend from 0 to ", words);
  if (plan.mask_of.empty()) return;
  // Rows and masks are shared: each is looked at again only with other extents.
  std::vector<int32_t> row_checked_with(static_cast<size_t>(plan.rows()), -1);
  std::vector<std::pair<int32_t, int32_t>> mask_checked_with(static_cast<size_t>(plan.masks()), {-1, -1});
  for (size_t i = 0; i < plan.row_of.size(); ++i) {
    const int32_t row = plan.row_of[i], size = plan.query.tile_size(static_cast<int32_t>(i % static_cast<size_t>(plan.query.tiles())));
    if (std::exchange(row_checked_with[static_cast<size_t>(row)], size) == size) continue;
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      if (plan.mask(entry) < 0) continue;
      const std::pair extents{size, plan.key.tile_size(plan.key_tile[static_cast<size_t>(entry)])};
      if (std::exchange(mask_checked_with[static_cast<size_t>(plan.mask(entry))], extents) == extents) continue;
      check_mask(plan, plan.mask(entry), extents.first, extents.second);
    }
  }
}

}  // namespace

void validate(const Plan& plan) {
  check_tiling(plan.query, "query");
  check_tiling(plan.key, "key");
  const int32_t query_tiles = plan.query.tiles();
  require(!plan.head_class.empty(), "plan: it has no heads");
  require(query_tiles > 0 && plan.row_of.size() % static_cast<size_t>(query_tiles) == 0, "plan: row_of has ", plan.row_of.size(),
          " elements, expected a multiple of ", query_tiles, " query tiles");
  for (const int32_t c : plan.head_class) require(c >= 0 && c < plan.classes(), "plan: head class ", c, " of ", plan.classes());
  check_rows(plan);
  for (const int32_t row : plan.row_of) require(row >= 0 && row < plan.rows(), "plan: row ", row, " of ", plan.rows());
  check_masks(plan);
}

}  // namespace slidetile
