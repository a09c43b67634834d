#include "slidetile/window_product.h"

#include <map>
#include <numeric>

namespace slidetile {
namespace {

/// Which tokens of a key tile the tokens of a query tile see along an axis.
struct Pattern {
  int32_t key_size;
  std::vector<AxisKeys>
      seen;  // [query tokens], counted from the key tile's first token; in lowest terms, so that equal patterns compare equal
  friend auto operator<=>(const Pattern&, const Pattern&) = default;

  bool any() const {
    return std::any_of(seen.begin(), seen.end(), [](const AxisKeys& keys) { return keys.last > keys.first; });
  }
  bool all() const {
    return std::all_of(seen.begin(), seen.end(), [&](const AxisKeys& keys) { return keys == AxisKeys{0, key_size, 1}; });
  }
};

/// The part of `keys` inside a tile.
AxisKeys clip(const AxisKeys& keys, int32_t origin, int32_t size) {
  int32_t first = keys.first;
  if (first < origin) first += (origin - first + keys.step - 1) / keys.step * keys.step;
  const int32_t end = std::min(keys.last, origin + size);
  if (first >= end) return {};
  const int32_t last = first + (end - 1 - first) / keys.step * keys.step;
  return {first - origin, last + 1 - origin, first == last ? 1 : keys.step};
}

/// One axis: for each of its query tiles, the key tiles seen and the pattern within each.
class Axis {
 public:
  struct Entry {
    int32_t key_tile, pattern;
    friend auto operator<=>(const Entry&, const Entry&) = default;
  };

  Axis(const AxisRule& rule, int32_t tile_extent) {
    const auto extent = static_cast<int32_t>(rule.size());
    std::map<Pattern, int32_t> known_patterns;
    std::map<std::vector<Entry>, int32_t> known_rows;
    for (int32_t query_tile = 0; query_tile <= (extent - 1) / tile_extent; ++query_tile) {
      const int32_t origin = query_tile * tile_extent;
      const std::span<const AxisKeys> queries(rule.data() + origin, static_cast<size_t>(std::min(tile_extent, extent - origin)));
      int32_t low = extent, high = 0;
      for (const AxisKeys& keys : queries) {
        if (keys.first >= keys.last) continue;
        low = std::min(low, keys.first);
        high = std::max(high, keys.last);
      }
      std::vector<Entry> row;
      for (int32_t tile = low / tile_extent; high > 0 && tile <= (high - 1) / tile_extent; ++tile) {
        Pattern pattern{std::min(tile_extent, extent - tile * tile_extent), {}};
        for (const AxisKeys& keys : queries) pattern.seen.push_back(clip(keys, tile * tile_extent, pattern.key_size));
        if (!pattern.any()) continue;
        const auto [at, is_new] = known_patterns.try_emplace(pattern, static_cast<int32_t>(patterns.size()));
        if (is_new) patterns.push_back(std::move(pattern));
        row.push_back({tile, at->second});
      }
      const auto [at, is_new] = known_rows.try_emplace(row, static_cast<int32_t>(rows.size()));
      if (is_new) rows.push_back(std::move(row));
      row_of.push_back(at->second);
    }
    for (const Pattern& pattern : patterns) all_seen.push_back(pattern.all());
  }

  std::vector<int32_t> row_of;  // [tiles] -> row
  std::vector<std::vector<Entry>> rows;
  std::vector<Pattern> patterns;
  std::vector<bool> all_seen;  // [patterns] every pair is visible
};

/// Makes masks of tiles from a pattern along each axis.
class ProductMasks {
 public:
  ProductMasks(const std::array<Axis, 3>& axes, PlanBuilder& builder) : axes_(axes), builder_(builder) {}

  int32_t operator()(const std::array<int32_t, 3>& pattern) {
    if (axes_[0].all_seen[static_cast<size_t>(pattern[0])] && axes_[1].all_seen[static_cast<size_t>(pattern[1])] &&
        axes_[2].all_seen[static_cast<size_t>(pattern[2])]) {
      return -1;
    }
    const auto [at, is_new] = made_.try_emplace(pattern);
    if (is_new) at->second = make(pattern);
    return at->second;
  }

 private:
  int32_t make(const std::array<int32_t, 3>& pattern) {
    const Pattern& t = axes_[0].patterns[static_cast<size_t>(pattern[0])];
    const Pattern& h = axes_[1].patterns[static_cast<size_t>(pattern[1])];
    const Pattern& w = axes_[2].patterns[static_cast<size_t>(pattern[2])];
    const auto query_size = static_cast<int32_t>(t.seen.size() * h.seen.size() * w.seen.size());
    const int32_t key_size = t.key_size * h.key_size * w.key_size, row_words = (key_size + 63) / 64;
    words_.assign(static_cast<size_t>(query_size) * static_cast<size_t>(row_words), 0);
    uint64_t* row = words_.data();
    for (const AxisKeys& along_t : t.seen) {
      for (const AxisKeys& along_h : h.seen) {
        for (const AxisKeys& along_w : w.seen) {
          for (int32_t kt = along_t.first; kt < along_t.last; kt += along_t.step) {
            for (int32_t kh = along_h.first; kh < along_h.last; kh += along_h.step) {
              for (int32_t kw = along_w.first; kw < along_w.last; kw += along_w.step) {
                const int32_t key = (kt * h.key_size + kh) * w.key_size + kw;
                row[key / 64] |= uint64_t{1} << (key % 64);
              }
            }
          }
          row += row_words;
        }
      }
    }
    return builder_.add_mask(query_size, key_size, words_);
  }

  const std::array<Axis, 3>& axes_;
  PlanBuilder& builder_;
  std::map<std::array<int32_t, 3>, int32_t> made_;
  std::vector<uint64_t> words_;
};

void add_class(PlanBuilder& builder, const Tiling& tiling, const ProductWindow& window) {
  const Grid& grid = tiling.grid;
  const std::array<Axis, 3> axes{Axis(window[0], grid.tile().t), Axis(window[1], grid.tile().h), Axis(window[2], grid.tile().w)};
  ProductMasks masks(axes, builder);
  std::map<std::array<int32_t, 3>, int32_t> made;  // rows of the axes -> row of the plan
  RowList row;
  for (int32_t tile = 0; tile < grid.tile_count(); ++tile) {
    const std::array<int32_t, 3> at = grid.tile_coordinate(tile).axes();
    std::array<int32_t, 3> axis_row{};
    for (size_t axis = 0; axis < 3; ++axis) axis_row[axis] = axes[axis].row_of[static_cast<size_t>(at[axis])];
    const auto [known, is_new] = made.try_emplace(axis_row);
    if (!is_new) {
      builder.repeat_row(known->second);
      continue;
    }
    row.clear();
    for (const Axis::Entry& t : axes[0].rows[static_cast<size_t>(axis_row[0])]) {
      for (const Axis::Entry& h : axes[1].rows[static_cast<size_t>(axis_row[1])]) {
        for (const Axis::Entry& w : axes[2].rows[static_cast<size_t>(axis_row[2])]) {
          row.add(grid.tile_index({t.key_tile, h.key_tile, w.key_tile}), masks({t.pattern, h.pattern, w.pattern}));
        }
      }
    }
    see_extra_tiles(row, tiling);
    known->second = builder.add_row(row.tiles, row.masks);
  }
  add_extra_rows(builder, tiling);
}

}  // namespace

void see_extra_tiles(RowList& row, const Tiling& tiling) {
  for (int32_t tile = tiling.grid.tile_count(); tile < tiling.tiles(); ++tile) row.add(tile, -1);
}

void add_extra_rows(PlanBuilder& builder, const Tiling& tiling) {
  if (tiling.tiles() == tiling.grid.tile_count()) return;
  std::vector<int32_t> all(static_cast<size_t>(tiling.tiles()));
  std::iota(all.begin(), all.end(), 0);
  const int32_t row = builder.add_row(all);
  for (int32_t tile = tiling.grid.tile_count() + 1; tile < tiling.tiles(); ++tile) builder.repeat_row(row);
}

Plan product_plan(const Grid& grid, ExtraTokens extra, std::span<const ProductWindow> classes, std::vector<int32_t> head_class) {
  const Tiling tiling = make_tiling(grid, extra);
  PlanBuilder builder(tiling, tiling);
  for (const ProductWindow& window : classes) add_class(builder, tiling, window);
  return builder.finish(std::move(head_class));
}

}  // namespace slidetile
