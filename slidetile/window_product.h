// Plans of windows that are a product of one rule per axis: what the sliding tile, NATTEN and Swin planners share. Not installed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "slidetile/plan.h"

namespace slidetile {

/// Tokens that a query sees along an axis: first, first + step, ... below last.
struct AxisKeys {
  int32_t first = 0, last = 0, step = 1;
  friend auto operator<=>(const AxisKeys&, const AxisKeys&) = default;
};

/// What each token of an axis sees along it: [extent of the axis].
using AxisRule = std::vector<AxisKeys>;

/// A query sees the keys that it sees along every axis: t, h, w.
using ProductWindow = std::array<AxisRule, 3>;

/// The plan of one window for each head class. No pair of tokens is looked at: visibility is worked out for pairs of tiles along each axis,
/// rows once for each combination of the axes' rows, and masks once for each combination of the axes' patterns.
Plan product_plan(const Grid& grid, ExtraTokens extra, std::span<const ProductWindow> classes, std::vector<int32_t> head_class);

/// Heads with equal windows are one class.
template <typename Window>
struct WindowClasses {
  std::vector<Window> windows;      // [classes]
  std::vector<int32_t> head_class;  // [heads]

  explicit WindowClasses(std::span<const Window> of_heads) {
    for (const Window& window : of_heads) {
      const auto known = std::find(windows.begin(), windows.end(), window);
      head_class.push_back(static_cast<int32_t>(known - windows.begin()));
      if (known == windows.end()) windows.push_back(window);
    }
  }
};

/// A row under construction; masks as in Plan::mask_of.
struct RowList {
  std::vector<int32_t> tiles, masks;

  void clear() noexcept {
    tiles.clear();
    masks.clear();
  }
  void add(int32_t tile, int32_t mask) {
    tiles.push_back(tile);
    masks.push_back(mask);
  }
};

/// Appends the tiles of extra tokens to the row of a canvas tile.
void see_extra_tiles(RowList& row, const Tiling& tiling);

/// Adds the rows of the extra tokens, which see everything.
void add_extra_rows(PlanBuilder& builder, const Tiling& tiling);

}  // namespace slidetile
