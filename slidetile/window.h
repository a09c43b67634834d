// Windows, and the planner that turns them into plans: sliding tile attention, and dense attention.
#pragma once

#include <span>

#include "slidetile/plan.h"

namespace slidetile {

/// Extent of a window in tiles along each axis.
using Window = Dim3;

/// Sliding tile attention (arXiv 2502.04507): along an axis of n tiles the query tile q reads exactly min(w, n) key tiles, those from
/// clamp(q - w / 2, 0, n - w) on: the window is shifted inward at borders, never shrunk. For odd w this is the paper's Algorithm 3; for
/// even w that reads w + 1 tiles, this w. `windows` holds one window for all heads, or one per head; each positive.
Plan sliding_tile_plan(const Grid& grid, std::span<const Window> windows, ExtraTokens extra = {});

/// Throws unless 1 <= window <= tiles of the grid on every axis: for callers to whom a larger window is a mistake.
void require_fits(const Window& window, const Grid& grid);

/// Dense attention over the canvas and the extra tokens, for any number of heads: one row.
Plan full_plan(const Grid& grid, ExtraTokens extra = {});

}  // namespace slidetile
