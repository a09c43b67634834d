// What a plan costs, counted: pairs of tiles, FLOPs, memory, and how the Hopper kernel would cut it.
#pragma once

#include <cstdint>
#include <optional>

#include "slidetile/device_plan.h"
#include "slidetile/plan.h"

/// Pairs of tiles by how much of them is visible.
struct TilePairs {
  double full = 0, mixed = 0, all = 0;  // numbers of pairs
};

/// Blocks of so many query and key slots.
struct Blocks {
  int64_t query = 0, key = 0;
  slidetile::BlockCounts counts;
};

/// Fractions are of all pairs.
struct PlanReport {
  int64_t heads = 1;  // that the FLOPs are of
  double density = 0, flops = 0, backward_flops = 0, dense_flops = 0;
  double touched = 0;        // pairs of tokens in the tiles that rows list, as a fraction of all
  TilePairs canvas, centre;  // all query tiles and heads; the row of the tile at the canvas's centre, over heads
  double keys_mean = 0;      // key tiles of a canvas tile's row
  int64_t keys_least = 0, keys_most = 0;
  int64_t bytes = 0;
  std::optional<Blocks> blocks;  // where the caller asks for them
  slidetile::DeviceBlocks on_hopper;
  double hopper_waste = 0;  // pairs that it multiplies, as a multiple of the visible ones
};

/// heads = 0: the plan's own.
PlanReport report_on(const slidetile::Plan& plan, int64_t heads, int64_t head_dim);
