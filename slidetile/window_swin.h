// Swin's windows (arXiv 2103.14030; in 3-D, arXiv 2106.13230): the canvas is cut into windows, and a token sees its own window.
#pragma once

#include "slidetile/plan.h"

namespace slidetile {

/// In tokens. A shift moves the cuts by that many tokens towards the end of an axis, as every second layer of Swin does by half a window.
/// Swin rolls the canvas for that and masks what the roll brings together; here nothing wraps around, so the first and the last window of a
/// shifted axis are smaller. An axis that one window covers is not shifted.
struct SwinWindow {
  Dim3 window;
  Dim3 shift{0, 0, 0};
  friend bool operator==(const SwinWindow&, const SwinWindow&) = default;
};

/// The plan for any number of heads. A window may be larger than the canvas. Throws unless 0 <= shift < window on every axis.
Plan swin_plan(const Grid& grid, const SwinWindow& window, ExtraTokens extra = {});

}  // namespace slidetile
