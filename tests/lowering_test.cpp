// Lowering of plans for Hopper: every token of a tile in one block, every query block in one item, every item once in the order.
#include "slidetile/cuda/lowering.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "slidetile/window.h"

namespace slidetile::cuda {
namespace {

// Token of a row of a block, -1 off the canvas.
int64_t token_of(const Tiling& tiling, const BlockShape& shape, const Block& block, int32_t row) {
  if (block.flags & kBlockExtra) return block.w + row < tiling.tokens() ? block.w + row : -1;
  const Dim3 box = shape.box, canvas = tiling.grid.canvas();
  if (row >= shape.box_rows) return -1;
  const Dim3 at{block.t + row / (box.h * box.w), block.h + row / box.w % box.h, block.w + row % box.w};
  if (at.t >= canvas.t || at.h >= canvas.h || at.w >= canvas.w) return -1;
  return tiling.extra.before + tiling.grid.token_index(at);
}

bool valid(const Block& block, int32_t row) { return (block.valid[row / 32] >> (row % 32) & 1) != 0; }

void check_blocks(const Tiling& tiling, SlotLimits limits) {
  const BlockTable table = make_block_table(tiling, limits);
  const BlockShape& shape = table.shape;
  REQUIRE(shape.slot_rows <= limits.largest);
  REQUIRE(shape.slot_rows >= limits.smallest);
  REQUIRE(shape.box_rows == shape.box.volume());
  REQUIRE(shape.box_rows <= shape.slot_rows);
  REQUIRE(table.blocks.size() == static_cast<size_t>(tiling.tiles() * shape.per_tile));
  for (int32_t tile = 0; tile < tiling.tiles(); ++tile) {
    std::vector<int32_t> tokens;
    bool absent = false;
    for (int32_t i = 0; i < shape.per_tile; ++i) {
      const Block& block = table.blocks[static_cast<size_t>(tile * shape.per_tile + i)];
      if (block.flags == 0) {
        absent = true;
        continue;
      }
      REQUIRE_FALSE(absent);  // absent ones are last
      int32_t count = 0;
      bool foreign = false;
      for (int32_t row = 0; row < shape.slot_rows; ++row) {
        const int64_t token = token_of(tiling, shape, block, row);
        if (valid(block, row)) {
          REQUIRE(token >= 0);
          tokens.push_back(static_cast<int32_t>(token));
          ++count;
        } else {
          foreign = foreign || token >= 0;
        }
      }
      CHECK(((block.flags & kBlockFull) != 0) == (count == shape.slot_rows));
      CHECK(((block.flags & kBlockForeign) != 0) == foreign);
    }
    std::sort(tokens.begin(), tokens.end());
    std::vector<int32_t> expected(tiling.token.begin() + tiling.tile_begin[static_cast<size_t>(tile)],
                                  tiling.token.begin() + tiling.tile_begin[static_cast<size_t>(tile) + 1]);
    std::sort(expected.begin(), expected.end());
    REQUIRE(tokens == expected);
  }
}

void check_order(const Plan& plan) {
  const LoweringImage image = lower(plan);
  const ForwardLowering lowering = relocated(image, image.bytes.data()).forward;
  REQUIRE(lowering.why_not == nullptr);
  const int32_t per_item = lowering.cluster * kUnitsPerCta;
  std::map<int32_t, int32_t> seen;
  for (int32_t i = 0; i < lowering.items * per_item; ++i) {
    if (lowering.item_units[i] >= 0) ++seen[lowering.item_units[i]];
  }
  int32_t units = 0;
  for (int32_t i = 0; i < plan.query.tiles() * lowering.query.per_tile; ++i) {
    if (lowering.query_blocks[i].flags == 0) continue;
    ++units;
    REQUIRE(seen[i] == 1);
  }
  CHECK(static_cast<int32_t>(seen.size()) == units);

  // Every (head, item) once; a plan for any number of heads lists none.
  std::map<std::pair<int32_t, int32_t>, int32_t> work;
  for (int32_t g = 0; g < lowering.groups; ++g) {
    const WorkGroup& group = lowering.group[g];
    for (int32_t i = group.first_item; i < group.first_item + group.items; ++i) {
      if (group.heads == 0) ++work[{0, lowering.item_order[i]}];
      for (int32_t h = group.first_head; h < group.first_head + group.heads; ++h) ++work[{lowering.head_order[h], lowering.item_order[i]}];
    }
  }
  CHECK(static_cast<int32_t>(work.size()) == plan.heads() * lowering.items);
  CHECK(std::all_of(work.begin(), work.end(), [](const auto& entry) { return entry.second == 1; }));
}

TEST_CASE("the default tile becomes full blocks of 128 rows and units of 64, a cluster each") {
  const Grid grid({30, 48, 80}, kDefaultTile);
  const Window window[] = {{3, 3, 3}};
  const Plan plan = sliding_tile_plan(grid, window);
  const ForwardLowering lowering = lower(plan).lowering.forward;
  CHECK(lowering.key.box == Dim3{2, 8, 8});
  CHECK(lowering.key.slot_rows == 128);
  CHECK(lowering.query.box == Dim3{1, 8, 8});
  CHECK(lowering.cluster == 2);
  CHECK(lowering.step_rows == 128);
  CHECK(lowering.items == grid.tile_count());
  CHECK(lowering.groups == 1);
}

TEST_CASE("small tiles are steps of their own, but a dense plan shares its steps") {
  const Grid grid({8, 16, 16}, {4, 4, 4});
  const Window window[] = {{1, 3, 3}};
  CHECK(lower(sliding_tile_plan(grid, window)).lowering.forward.step_rows == 64);
  CHECK(lower(sliding_tile_plan(grid, window)).lowering.forward.cluster == 1);
  CHECK(lower(full_plan(grid)).lowering.forward.step_rows == 128);
}

TEST_CASE("rows that read everything come first") {
  const Grid grid({6, 48, 80}, kDefaultTile);
  const Window window[] = {{1, 1, 1}};
  const Plan plan = sliding_tile_plan(grid, window, {0, 256});
  const LoweringImage image = lower(plan);
  const ForwardLowering lowering = relocated(image, image.bytes.data()).forward;
  const int32_t unit = lowering.item_units[lowering.item_order[0] * lowering.cluster * kUnitsPerCta];
  CHECK(unit / lowering.query.per_tile >= grid.tile_count());
}

TEST_CASE("random tilings: blocks hold the tiles' tokens, items the blocks, the order the items") {
  std::mt19937 random(20261124);
  const auto pick = [&](int32_t a, int32_t b) {
    return std::uniform_int_distribution<int32_t>(a, b)(random);
  };
  for (int32_t trial = 0; trial < 150; ++trial) {
    const Dim3 canvas{pick(1, 11), pick(1, 19), pick(1, 23)};
    const Dim3 tile{pick(1, std::min(canvas.t, 8)), pick(1, std::min(canvas.h, 9)), pick(1, std::min(canvas.w, 16))};
    const ExtraTokens extra{pick(0, 1) * pick(0, 70), pick(0, 1) * pick(0, 300)};
    const Grid grid(canvas, tile);
    CAPTURE(canvas);
    CAPTURE(tile);
    const Tiling tiling = make_tiling(grid, extra);
    REQUIRE(blocks_why_not(tiling) == nullptr);
    check_blocks(tiling, {128, 8});
    check_blocks(tiling, {64, 8});
    check_blocks(tiling, {64, 64});
    std::vector<Window> windows(static_cast<size_t>(pick(1, 4)));
    for (Window& window : windows) window = {pick(1, 3), pick(1, 3), pick(1, 3)};
    check_order(pick(0, 4) == 0 ? full_plan(grid, extra) : sliding_tile_plan(grid, windows, extra));
  }
}

TEST_CASE("tiles that are no boxes are refused") {
  Tiling tiling;
  tiling.tile_begin = {0, 3};
  tiling.token = {0, 2, 1};
  CHECK(blocks_why_not(tiling) != nullptr);
  tiling.token = {0, 1, 2};
  CHECK(blocks_why_not(tiling) == nullptr);
}

}  // namespace
}  // namespace slidetile::cuda
