// CLEAR's circular windows (arXiv 2412.16112), a ball in video.
#pragma once

#include "slidetile/plan.h"

namespace slidetile {

/// The plan, for any number of heads, where a query sees the tokens nearer than `radius`: dt^2 + dy^2 + dx^2 < radius^2. At borders the
/// window shrinks. Throws unless radius is positive.
Plan clear_plan(const Grid& grid, int32_t radius, ExtraTokens extra = {});

}  // namespace slidetile
