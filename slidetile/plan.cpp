#include "slidetile/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

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

void PlanBuilder::add_row(std::span<const int32_t> key_tiles, std::span<const int32_t> mask_of) {
  require(mask_of.empty() || mask_of.size() == key_tiles.size(), "plan: a row of ", key_tiles.size(), " key tiles has ", mask_of.size(),
          " masks");
  const uint64_t hash = hash_of(hash_of(key_tiles.size(), key_tiles), mask_of);
  for (auto [it, end] = row_with_hash_.equal_range(hash); it != end; ++it) {
    const auto first = static_cast<size_t>(plan_.row_first(it->second)), last = static_cast<size_t>(plan_.row_last(it->second));
    bool same = last - first == key_tiles.size();
    for (size_t i = 0; i < key_tiles.size() && same; ++i) {
      same = plan_.key_tile[first + i] == key_tiles[i] && plan_.mask_of[first + i] == (mask_of.empty() ? -1 : mask_of[i]);
    }
    if (same) {
      plan_.row_of.push_back(it->second);
      return;
    }
  }
  row_with_hash_.emplace(hash, plan_.rows());
  plan_.row_of.push_back(plan_.rows());
  plan_.key_tile.insert(plan_.key_tile.end(), key_tiles.begin(), key_tiles.end());
  if (mask_of.empty()) {
    plan_.mask_of.insert(plan_.mask_of.end(), key_tiles.size(), -1);
  } else {
    plan_.mask_of.insert(plan_.mask_of.end(), mask_of.begin(), mask_of.end());
  }
  plan_.row_begin.push_back(plan_.entries());
}

Plan PlanBuilder::finish(std::vector<int32_t> head_class) {
  plan_.head_class = std::move(head_class);
  if (!any_mask_) plan_.mask_of.clear();
  validate(plan_);
  return std::move(plan_);
}

namespace {

void validate(const Tiling& tiling, const char* side) {
  require(!tiling.tile_begin.empty() && tiling.tile_begin.front() == 0 && tiling.tile_begin.back() == tiling.tokens(), "plan: the ", side,
          " tiles must cover slots 0 to ", tiling.tokens());
  require(std::is_sorted(tiling.tile_begin.begin(), tiling.tile_begin.end()), "plan: the ", side, " tiles must be ascending");
  std::vector<bool> seen(tiling.token.size());
  for (const int32_t token : tiling.token) {
    require(token >= 0 && token < tiling.tokens() && !seen[static_cast<size_t>(token)], "plan: ", side, " token ", token,
            " is out of range or listed twice (", tiling.tokens(), " tokens)");
    seen[static_cast<size_t>(token)] = true;
  }
}

}  // namespace

void validate(const Plan& plan) {
  validate(plan.query, "query");
  validate(plan.key, "key");
  const int32_t query_tiles = plan.query.tiles(), key_tiles = plan.key.tiles(), rows = plan.rows(), masks = plan.masks();
  require(!plan.head_class.empty(), "plan: it has no heads");
  require(query_tiles > 0 && plan.row_of.size() % static_cast<size_t>(query_tiles) == 0, "plan: row_of has ", plan.row_of.size(),
          " elements, expected a multiple of ", query_tiles, " query tiles");
  for (const int32_t c : plan.head_class) require(c >= 0 && c < plan.classes(), "plan: head class ", c, " of ", plan.classes());
  for (const int32_t row : plan.row_of) require(row >= 0 && row < rows, "plan: row ", row, " of ", rows);
  require(rows >= 0 && plan.row_begin.front() == 0 && plan.row_begin.back() == plan.entries() &&
              std::is_sorted(plan.row_begin.begin(), plan.row_begin.end()),
          "plan: row_begin must ascend from 0 to ", plan.entries());
  require(plan.mask_of.empty() || plan.mask_of.size() == plan.key_tile.size(), "plan: ", plan.mask_of.size(), " masks for ", plan.entries(),
          " entries");
  for (int32_t row = 0; row < rows; ++row) {
    int32_t before = -1;
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      const int32_t tile = plan.key_tile[static_cast<size_t>(entry)];
      require(tile > before && tile < key_tiles, "plan: row ", row, " lists key tile ", tile, " after ", before,
              ", expected ascending below ", key_tiles);
      require(plan.mask(entry) >= -1 && plan.mask(entry) < masks, "plan: mask ", plan.mask(entry), " of ", masks);
      before = tile;
    }
  }
  if (plan.mask_of.empty()) return;
  require(plan.mask_begin.front() == 0 && plan.mask_begin.back() == static_cast<int64_t>(plan.mask_words.size()) &&
              std::is_sorted(plan.mask_begin.begin(), plan.mask_begin.end()),
          "plan: mask_begin must ascend from 0 to ", plan.mask_words.size());
  std::vector<int32_t> checked_size(static_cast<size_t>(rows), -1);  // query tokens for which a row's masks were checked
  for (size_t i = 0; i < plan.row_of.size(); ++i) {
    const int32_t row = plan.row_of[i], size = plan.query.tile_size(static_cast<int32_t>(i % static_cast<size_t>(query_tiles)));
    int32_t& checked = checked_size[static_cast<size_t>(row)];
    if (checked == size) continue;
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      const int32_t mask = plan.mask(entry);
      if (mask < 0) continue;
      const int64_t words = plan.mask_begin[static_cast<size_t>(mask) + 1] - plan.mask_begin[static_cast<size_t>(mask)];
      const int64_t expected = int64_t{size} * ((plan.key.tile_size(plan.key_tile[static_cast<size_t>(entry)]) + 63) / 64);
      require(words == expected, "plan: mask ", mask, " has ", words, " words, its tiles need ", expected);
    }
    checked = size;
  }
}

Plan transpose(const Plan& plan) {
  const int32_t query_tiles = plan.query.tiles(), key_tiles = plan.key.tiles();
  PlanBuilder builder(plan.key, plan.query);
  std::vector<int32_t> transposed_mask(static_cast<size_t>(plan.masks()), -2);  // -2: not made yet
  const auto transpose_mask = [&](int32_t mask, int32_t query_size, int32_t key_size) {
    if (mask < 0) return int32_t{-1};
    int32_t& made = transposed_mask[static_cast<size_t>(mask)];
    if (made != -2) return made;
    const int64_t key_words = (key_size + 63) / 64, query_words = (query_size + 63) / 64;
    const uint64_t* from = plan.mask_words.data() + plan.mask_begin[static_cast<size_t>(mask)];
    std::vector<uint64_t> words(static_cast<size_t>(key_size * query_words));
    for (int64_t q = 0; q < query_size; ++q) {
      for (int64_t k = 0; k < key_size; ++k) {
        const uint64_t bit = from[q * key_words + k / 64] >> (k % 64) & 1;
        words[static_cast<size_t>(k * query_words + q / 64)] |= bit << (q % 64);
      }
    }
    return made = builder.add_mask(key_size, query_size, words);
  };
  for (int32_t c = 0; c < plan.classes(); ++c) {
    std::vector<std::vector<int32_t>> tiles(static_cast<size_t>(key_tiles)), masks(static_cast<size_t>(key_tiles));
    for (int32_t tile = 0; tile < query_tiles; ++tile) {
      const int32_t row = plan.row_of[static_cast<size_t>(int64_t{c} * query_tiles + tile)];
      for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
        const int32_t key = plan.key_tile[static_cast<size_t>(entry)];
        tiles[static_cast<size_t>(key)].push_back(tile);
        masks[static_cast<size_t>(key)].push_back(transpose_mask(plan.mask(entry), plan.query.tile_size(tile), plan.key.tile_size(key)));
      }
    }
    for (size_t key = 0; key < tiles.size(); ++key) builder.add_row(tiles[key], masks[key]);
  }
  return builder.finish(plan.head_class);
}

}  // namespace slidetile
