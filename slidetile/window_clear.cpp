#include "slidetile/window_clear.h"

#include <algorithm>
#include <map>

#include "slidetile/error.h"
#include "slidetile/window_product.h"

namespace slidetile {
namespace {

int64_t square(int64_t value) { return value * value; }

/// Squares of the least and the largest distance between tokens of [0, query) and [offset, offset + key) along an axis.
struct AxisDistance {
  int64_t least, largest;

  AxisDistance(int32_t offset, int32_t query, int32_t key)
      : least(square(std::max({offset - (query - 1), -(offset + key - 1), 0}))),
        largest(square(std::max(offset + key - 1, query - 1 - offset))) {}
};

/// Where a key tile lies, seen from a query tile: what a mask depends on.
struct Neighbour {
  std::array<int32_t, 3> offset, query, key;  // of the key tile's origin, in tokens; extents
  friend auto operator<=>(const Neighbour&, const Neighbour&) = default;
};

constexpr int32_t kUnseen = -2;

/// Masks of pairs of tiles, each made once for each way in which the two lie.
class BallMasks {
 public:
  BallMasks(int32_t radius, PlanBuilder& builder) : radius_(radius), builder_(builder) {}

  /// The number of the mask, -1: every pair is visible, kUnseen: none.
  int32_t operator()(const Neighbour& tiles) {
    int64_t least = 0, largest = 0;
    for (size_t axis = 0; axis < 3; ++axis) {
      const AxisDistance distance(tiles.offset[axis], tiles.query[axis], tiles.key[axis]);
      least += distance.least;
      largest += distance.largest;
    }
    if (least >= square(radius_)) return kUnseen;
    if (largest < square(radius_)) return -1;
    const auto [at, is_new] = made_.try_emplace(tiles);
    if (is_new) at->second = make(tiles);
    return at->second;
  }

 private:
  int32_t make(const Neighbour& tiles) {
    const auto [offset, query, key] = tiles;
    const int32_t query_size = query[0] * query[1] * query[2], key_size = key[0] * key[1] * key[2], row_words = (key_size + 63) / 64;
    words_.assign(static_cast<size_t>(query_size) * static_cast<size_t>(row_words), 0);
    for (int32_t q = 0; q < query_size; ++q) {
      uint64_t* row = words_.data() + static_cast<size_t>(q) * static_cast<size_t>(row_words);
      const int32_t qt = q / (query[1] * query[2]), qh = q / query[2] % query[1], qw = q % query[2];
      for (int32_t kt = 0; kt < key[0]; ++kt) {
        for (int32_t kh = 0; kh < key[1]; ++kh) {
          const int64_t plane = square(offset[0] + kt - qt) + square(offset[1] + kh - qh);
          for (int32_t kw = 0; kw < key[2]; ++kw) {
            if (plane + square(offset[2] + kw - qw) >= square(radius_)) continue;
            const int32_t k = (kt * key[1] + kh) * key[2] + kw;
            row[k / 64] |= uint64_t{1} << (k % 64);
          }
        }
      }
    }
    return builder_.add_mask(query_size, key_size, words_);
  }

  int32_t radius_;
  PlanBuilder& builder_;
  std::map<Neighbour, int32_t> made_;
  std::vector<uint64_t> words_;
};

}  // namespace

Plan clear_plan(const Grid& grid, int32_t radius, ExtraTokens extra) {
  require(radius > 0, "clear plan: radius ", radius, " must be positive");
  const Tiling tiling = make_tiling(grid, extra);
  PlanBuilder builder(tiling, tiling);
  BallMasks masks(radius, builder);
  const std::array<int32_t, 3> canvas = grid.canvas().axes(), tile_extent = grid.tile().axes();
  RowList row;
  for (int32_t tile = 0; tile < grid.tile_count(); ++tile) {
    const Box box = grid.box(tile);
    const std::array<int32_t, 3> origin = box.origin.axes(), extent = box.extent.axes();
    std::array<int32_t, 3> first{}, last{};  // tiles that the ball around any of the tile's tokens reaches
    for (size_t axis = 0; axis < 3; ++axis) {
      const int64_t low = int64_t{origin[axis]} - radius + 1, high = int64_t{origin[axis]} + extent[axis] + radius - 2;
      first[axis] = static_cast<int32_t>(std::max<int64_t>(low, 0) / tile_extent[axis]);
      last[axis] = static_cast<int32_t>(std::min<int64_t>(high, canvas[axis] - 1) / tile_extent[axis]);
    }
    row.clear();
    for (int32_t t = first[0]; t <= last[0]; ++t) {
      for (int32_t h = first[1]; h <= last[1]; ++h) {
        for (int32_t w = first[2]; w <= last[2]; ++w) {
          const int32_t key_tile = grid.tile_index({t, h, w});
          const Box key = grid.box(key_tile);
          const std::array<int32_t, 3> key_origin = key.origin.axes();
          const int32_t mask =
              masks({{key_origin[0] - origin[0], key_origin[1] - origin[1], key_origin[2] - origin[2]}, extent, key.extent.axes()});
          if (mask != kUnseen) row.add(key_tile, mask);
        }
      }
    }
    see_extra_tiles(row, tiling);
    builder.add_row(row.tiles, row.masks);
  }
  add_extra_rows(builder, tiling);
  return builder.finish({0});
}

}  // namespace slidetile
