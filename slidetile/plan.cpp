// Tilings, views of plans, and the builder that shares equal rows and masks.
#include "slidetile/plan.h"

#include <algorithm>
#include <limits>

#include "slidetile/error.h"

namespace slidetile {
namespace {

constexpr int64_t kSmallestExtraTile = 64;

void append_tile(Tiling& tiling, int64_t first, int64_t count) {
  for (int64_t token = first; token < first + count; ++token) tiling.token.push_back(static_cast<int32_t>(token));
  tiling.tile_begin.push_back(static_cast<int32_t>(tiling.token.size()));
}

void append_extra_tiles(Tiling& tiling, int64_t first, int64_t count) {
  const int64_t chunk = std::max(tiling.grid.tile().volume(), kSmallestExtraTile);
  for (int64_t done = 0; done < count; done += chunk) append_tile(tiling, first + done, std::min(chunk, count - done));
}

template <typename T>
uint64_t hash_of(uint64_t seed, std::span<const T> values) noexcept {
  uint64_t hash = seed ^ 0x9e3779b97f4a7c15u;
  for (const T value : values) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

TilingView view_of(const Tiling& tiling) {
  TilingView view{.canvas = tiling.grid.canvas(),
                  .tile = tiling.grid.tile(),
                  .grid_tiles = tiling.grid.tiles(),
                  .extra = tiling.extra,
                  .tiles = tiling.tiles(),
                  .tokens = tiling.tokens(),
                  .largest_tile = 0,
                  .tile_begin = tiling.tile_begin.data(),
                  .token = tiling.token.data()};
  for (int32_t tile = 0; tile < view.tiles; ++tile) view.largest_tile = std::max(view.largest_tile, tiling.tile_size(tile));
  return view;
}

}  // namespace

Tiling make_tiling(const Grid& grid, ExtraTokens extra) {
  require(extra.before >= 0 && extra.after >= 0, "tiling: extra tokens before ", extra.before, " and after ", extra.after,
          " must not be negative");
  const int64_t limit = std::numeric_limits<int32_t>::max() - grid.tokens();
  require(extra.before <= limit && extra.after <= limit - extra.before, "tiling: canvas ", grid.canvas(), " with ", extra.before,
          " tokens before and ", extra.after, " after it has 2^31 tokens or more");
  Tiling tiling{.grid = grid, .extra = extra, .tile_begin = {0}, .token = {}};
  tiling.token.reserve(static_cast<size_t>(grid.tokens() + extra.before + extra.after));
  for (int32_t tile = 0; tile < grid.tile_count(); ++tile) {
    const auto [origin, extent] = grid.box(tile);
    for (int32_t t = origin.t; t < origin.t + extent.t; ++t) {
      for (int32_t h = origin.h; h < origin.h + extent.h; ++h) {
        const int64_t first = extra.before + grid.token_index({t, h, origin.w});
        for (int32_t w = 0; w < extent.w; ++w) tiling.token.push_back(static_cast<int32_t>(first + w));
      }
    }
    tiling.tile_begin.push_back(static_cast<int32_t>(tiling.token.size()));
  }
  append_extra_tiles(tiling, 0, extra.before);
  append_extra_tiles(tiling, extra.before + grid.tokens(), extra.after);
  return tiling;
}

PlanView view_of(const Plan& plan) {
  PlanView view{.device = {},
                .query = view_of(plan.query),
                .key = view_of(plan.key),
                .heads = plan.heads(),
                .classes = plan.classes(),
                .rows = plan.rows(),
                .masks = plan.masks(),
                .entries = plan.entries(),
                .longest_row = 0,
                .head_class = plan.head_class.data(),
                .row_of = plan.row_of.data(),
                .row_begin = plan.row_begin.data(),
                .key_tile = plan.key_tile.data(),
                .mask_of = plan.mask_of.empty() ? nullptr : plan.mask_of.data(),
                .mask_begin = plan.mask_begin.data(),
                .mask_words = plan.mask_words.data(),
                .lowering = nullptr};
  for (int32_t row = 0; row < plan.rows(); ++row) {
    view.longest_row = std::max(view.longest_row, plan.row_last(row) - plan.row_first(row));
  }
  return view;
}

PlanBuilder::PlanBuilder(Tiling query, Tiling key) {
  plan_.query = std::move(query);
  plan_.key = std::move(key);
  plan_.row_begin = {0};
  plan_.mask_begin = {0};
}

int32_t PlanBuilder::add_mask(int32_t query_size, int32_t key_size, std::span<const uint64_t> words) {
  const auto row_words = static_cast<size_t>((key_size + 63) / 64);
  require(query_size > 0 && key_size > 0 && words.size() == static_cast<size_t>(query_size) * row_words, "plan: a mask of ", query_size,
          " x ", key_size, " tokens has ", words.size(), " words, expected ", static_cast<size_t>(std::max(query_size, 0)) * row_words);
  const uint64_t last = key_size % 64 == 0 ? ~uint64_t{0} : (uint64_t{1} << (key_size % 64)) - 1;
  bool all = true;
  for (size_t i = 0; i < words.size() && all; ++i) all = words[i] == ((i + 1) % row_words == 0 ? last : ~uint64_t{0});
  if (all) return -1;
  any_mask_ = true;
  const std::pair extents{query_size, key_size};
  const uint64_t hash = hash_of(static_cast<uint64_t>(query_size) << 32 | static_cast<uint64_t>(key_size), words);
  for (auto [it, end] = mask_with_hash_.equal_range(hash); it != end; ++it) {
    const auto known = static_cast<size_t>(it->second);
    if (mask_extents_[known] == extents && std::equal(words.begin(), words.end(), plan_.mask_words.begin() + plan_.mask_begin[known])) {
      return it->second;
    }
  }
  const auto mask = static_cast<int32_t>(mask_extents_.size());
  mask_extents_.push_back(extents);
  plan_.mask_words.insert(plan_.mask_words.end(), words.begin(), words.end());
  plan_.mask_begin.push_back(static_cast<int64_t>(plan_.mask_words.size()));
  mask_with_hash_.emplace(hash, mask);
  return mask;
}

int32_t PlanBuilder::add_row(std::span<const int32_t> key_tiles, std::span<const int32_t> mask_of) {
  require(mask_of.empty() || mask_of.size() == key_tiles.size(), "plan: a row of ", key_tiles.size(), " key tiles has ", mask_of.size(),
          " masks");
  if (std::all_of(mask_of.begin(), mask_of.end(), [](int32_t mask) { return mask == -1; })) mask_of = {};
  const uint64_t hash = hash_of(hash_of(key_tiles.size(), key_tiles), mask_of);
  for (auto [it, end] = row_with_hash_.equal_range(hash); it != end; ++it) {
    const auto first = static_cast<size_t>(plan_.row_first(it->second)), last = static_cast<size_t>(plan_.row_last(it->second));
    bool same = last - first == key_tiles.size();
    for (size_t i = 0; i < key_tiles.size() && same; ++i) {
      same = plan_.key_tile[first + i] == key_tiles[i] && plan_.mask_of[first + i] == (mask_of.empty() ? -1 : mask_of[i]);
    }
    if (same) {
      plan_.row_of.push_back(it->second);
      return it->second;
    }
  }
  const int32_t row = plan_.rows();
  row_with_hash_.emplace(hash, row);
  plan_.row_of.push_back(row);
  plan_.key_tile.insert(plan_.key_tile.end(), key_tiles.begin(), key_tiles.end());
  if (mask_of.empty()) {
    plan_.mask_of.insert(plan_.mask_of.end(), key_tiles.size(), -1);
  } else {
    plan_.mask_of.insert(plan_.mask_of.end(), mask_of.begin(), mask_of.end());
  }
  plan_.row_begin.push_back(plan_.entries());
  return row;
}

void PlanBuilder::repeat_row(int32_t row) {
  require(row >= 0 && row < plan_.rows(), "plan: row ", row, " was not made before (", plan_.rows(), " rows)");
  plan_.row_of.push_back(row);
}

Plan PlanBuilder::finish(std::vector<int32_t> head_class) {
  plan_.head_class = std::move(head_class);
  if (!any_mask_) plan_.mask_of.clear();
  validate(plan_);
  return std::move(plan_);
}

}  // namespace slidetile
