// Operations from plans to plans: transpose and union. Both work per distinct row: a dense plan of any size costs one row.
#include <algorithm>
#include <array>
#include <map>

#include "slidetile/error.h"
#include "slidetile/plan.h"

namespace slidetile {
namespace {

struct Listed {
  int32_t row, mask;
  friend auto operator<=>(const Listed&, const Listed&) = default;
};

std::span<const uint64_t> words_of(const Plan& plan, int32_t mask) {
  const auto first = static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask)]);
  const auto last = static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask) + 1]);
  return {plan.mask_words.data() + first, last - first};
}

/// Transposes masks, each pair of extents once.
class MaskTransposer {
 public:
  MaskTransposer(const Plan& plan, PlanBuilder& builder) : plan_(plan), builder_(builder) {}

  int32_t operator()(int32_t mask, int32_t query_size, int32_t key_size) {
    if (mask < 0) return -1;
    const auto [at, is_new] = made_.try_emplace({mask, query_size, key_size});
    if (!is_new) return at->second;
    const int64_t key_words = (key_size + 63) / 64, query_words = (query_size + 63) / 64;
    const std::span<const uint64_t> from = words_of(plan_, mask);
    std::vector<uint64_t> words(static_cast<size_t>(key_size * query_words));
    for (int64_t q = 0; q < query_size; ++q) {
      for (int64_t k = 0; k < key_size; ++k) {
        const uint64_t bit = from[static_cast<size_t>(q * key_words + k / 64)] >> (k % 64) & 1;
        words[static_cast<size_t>(k * query_words + q / 64)] |= bit << (q % 64);
      }
    }
    return at->second = builder_.add_mask(key_size, query_size, words);
  }

 private:
  const Plan& plan_;
  PlanBuilder& builder_;
  std::map<std::array<int32_t, 3>, int32_t> made_;  // mask, query tokens, key tokens -> mask of the new plan
};

constexpr int32_t kAbsent = -2;  // a plan's row does not list the key tile

/// Unites rows of two plans.
class RowUniter {
 public:
  RowUniter(const Plan& a, const Plan& b, PlanBuilder& builder) : a_(a), b_(b), builder_(builder) {}

  void add(int32_t row_a, int32_t row_b, int32_t query_size) {
    const auto [at, is_new] = row_made_.try_emplace({row_a, row_b, query_size});
    if (is_new) {
      at->second = merge(row_a, row_b, query_size);
    } else {
      builder_.repeat_row(at->second);
    }
  }

 private:
  int32_t merge(int32_t row_a, int32_t row_b, int32_t query_size) {
    std::vector<int32_t> tiles, masks;
    int64_t i = a_.row_first(row_a), j = b_.row_first(row_b);
    const int64_t last_i = a_.row_last(row_a), last_j = b_.row_last(row_b);
    while (i < last_i || j < last_j) {
      const int32_t tile_a = i < last_i ? a_.key_tile[static_cast<size_t>(i)] : a_.key.tiles();
      const int32_t tile_b = j < last_j ? b_.key_tile[static_cast<size_t>(j)] : b_.key.tiles();
      const int32_t tile = std::min(tile_a, tile_b);
      const int32_t mask_a = tile_a == tile ? a_.mask(i++) : kAbsent, mask_b = tile_b == tile ? b_.mask(j++) : kAbsent;
      tiles.push_back(tile);
      masks.push_back(unite(mask_a, mask_b, {query_size, a_.key.tile_size(tile)}));
    }
    return builder_.add_row(tiles, masks);
  }

  int32_t unite(int32_t mask_a, int32_t mask_b, std::pair<int32_t, int32_t> extents) {
    if (mask_a == -1 || mask_b == -1) return -1;
    const auto [at, is_new] = mask_made_.try_emplace({mask_a, mask_b, extents.first, extents.second});
    if (!is_new) return at->second;
    std::vector<uint64_t> words(static_cast<size_t>(extents.first) * static_cast<size_t>((extents.second + 63) / 64));
    const auto add = [&](const Plan& plan, int32_t mask) {
      if (mask == kAbsent) return;
      const std::span<const uint64_t> more = words_of(plan, mask);
      for (size_t word = 0; word < words.size(); ++word) words[word] |= more[word];
    };
    add(a_, mask_a);
    add(b_, mask_b);
    return at->second = builder_.add_mask(extents.first, extents.second, words);
  }

  const Plan &a_, &b_;
  PlanBuilder& builder_;
  std::map<std::array<int32_t, 3>, int32_t> row_made_;   // row of a, row of b, query tokens -> row
  std::map<std::array<int32_t, 4>, int32_t> mask_made_;  // mask of a, mask of b, query tokens, key tokens -> mask
};

}  // namespace

Plan transpose(const Plan& plan) {
  const int32_t query_tiles = plan.query.tiles(), key_tiles = plan.key.tiles();
  PlanBuilder builder(plan.key, plan.query);
  MaskTransposer transposed_mask(plan, builder);
  for (int32_t c = 0; c < plan.classes(); ++c) {
    std::vector<std::vector<int32_t>> tiles_of(static_cast<size_t>(plan.rows()));
    for (int32_t tile = 0; tile < query_tiles; ++tile) {
      tiles_of[static_cast<size_t>(plan.row_of[static_cast<size_t>(int64_t{c} * query_tiles + tile)])].push_back(tile);
    }
    std::vector<std::vector<Listed>> listed(static_cast<size_t>(key_tiles));  // in which rows, with which masks
    for (int32_t row = 0; row < plan.rows(); ++row) {
      if (tiles_of[static_cast<size_t>(row)].empty()) continue;
      for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
        listed[static_cast<size_t>(plan.key_tile[static_cast<size_t>(entry)])].push_back({row, plan.mask(entry)});
      }
    }
    std::map<std::pair<int32_t, std::vector<Listed>>, int32_t> row_made;  // key tiles that the same rows list share a new row
    for (int32_t key = 0; key < key_tiles; ++key) {
      std::vector<Listed>& list = listed[static_cast<size_t>(key)];
      const int32_t key_size = plan.key.tile_size(key);
      const bool masked = std::any_of(list.begin(), list.end(), [](const Listed& item) { return item.mask >= 0; });
      const auto [at, is_new] = row_made.try_emplace({masked ? key_size : 0, std::move(list)});
      if (!is_new) {
        builder.repeat_row(at->second);
        continue;
      }
      std::vector<std::pair<int32_t, int32_t>> entries;  // query tile, mask
      for (const auto [row, mask] : at->first.second) {
        for (const int32_t tile : tiles_of[static_cast<size_t>(row)]) {
          entries.emplace_back(tile, transposed_mask(mask, plan.query.tile_size(tile), key_size));
        }
      }
      std::sort(entries.begin(), entries.end());
      std::vector<int32_t> tiles, masks;
      for (const auto& [tile, mask] : entries) {
        tiles.push_back(tile);
        masks.push_back(mask);
      }
      at->second = builder.add_row(tiles, masks);
    }
  }
  return builder.finish(plan.head_class);
}

Plan plan_union(const Plan& a, const Plan& b) {
  require(a.query == b.query && a.key == b.key, "plan union: the plans' tiles differ (canvas ", a.query.grid.canvas(), " with tile ",
          a.query.grid.tile(), " and ", a.query.tokens(), " tokens, canvas ", b.query.grid.canvas(), " with tile ", b.query.grid.tile(),
          " and ", b.query.tokens(), " tokens)");
  require(a.heads() == b.heads() || a.heads() == 1 || b.heads() == 1, "plan union: the plans have ", a.heads(), " and ", b.heads(),
          " heads, expected as many, or one plan for any number");
  PlanBuilder builder(a.query, a.key);
  RowUniter rows(a, b, builder);
  std::map<std::pair<int32_t, int32_t>, int32_t> classes;
  std::vector<int32_t> head_class;
  for (int32_t head = 0; head < std::max(a.heads(), b.heads()); ++head) {
    const auto [at, is_new] = classes.try_emplace({a.class_of(head), b.class_of(head)}, static_cast<int32_t>(classes.size()));
    head_class.push_back(at->second);
    if (!is_new) continue;
    for (int32_t tile = 0; tile < a.query.tiles(); ++tile) rows.add(a.row(head, tile), b.row(head, tile), a.query.tile_size(tile));
  }
  return builder.finish(std::move(head_class));
}

}  // namespace slidetile
