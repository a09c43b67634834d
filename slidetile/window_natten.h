// Neighborhood attention: token windows as NATTEN defines them (arXiv 2504.16922), with stride, dilation and causal axes.
#pragma once

#include <array>
#include <span>

#include "slidetile/plan.h"

namespace slidetile {

/// Per axis, in tokens. Along an axis of L tokens a query i sees exactly `window` keys around its leader, shifted inward at borders:
///   leader = min(i / stride * stride + stride / 2, L - 1), first key = clamp(leader - window / 2, 0, L - window).
/// Stride: that many consecutive queries share a leader and thus a window; stride = window cuts the axis into blocks.
/// Dilation d: the axis falls into d interleaved axes of every d-th token, and a query sees only its own.
/// Causal: no key after the query; leader = min(i / stride * stride + stride - 1, L - 1), keys max(leader - window + 1, 0) to i.
struct NattenWindow {
  Dim3 window;
  Dim3 stride{1, 1, 1}, dilation{1, 1, 1};
  std::array<bool, 3> causal{};
  friend bool operator==(const NattenWindow&, const NattenWindow&) = default;
};

/// Throws unless, on every axis, 1 <= stride <= window and window * dilation <= the canvas. (NATTEN asks for window >= 2; 1 is what a
/// 2-D image needs on its axis t.)
void require_fits(const NattenWindow& window, const Grid& grid);

/// `windows` holds one window for all heads, or one per head; each as in require_fits.
Plan natten_plan(const Grid& grid, std::span<const NattenWindow> windows, ExtraTokens extra = {});

}  // namespace slidetile
