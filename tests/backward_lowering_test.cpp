// Lowering of transposed plans for the Hopper backward: every pair of blocks once, turns that are complete, and no order of events in
// which all wait for each other.
#include "slidetile/cuda/backward_lowering.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "slidetile/window.h"

namespace slidetile::cuda {
namespace {

struct Lowered {
  BackwardLoweringImage image;
  BackwardLowering tables;
  explicit Lowered(const Plan& transposed, int32_t slots)
      : image(lower_backward(transposed, slots)), tables(relocated(image, image.bytes.data())) {}
};

int32_t present(const Block* blocks, const BlockShape& shape, int32_t tile) {
  int32_t count = 0;
  while (count < shape.per_tile && blocks[tile * shape.per_tile + count].flags != 0) ++count;
  return count;
}

void check_class(const Plan& plan, const BackwardLowering& t, int32_t c) {
  std::map<std::pair<int32_t, int32_t>, int32_t> pairs;
  std::map<int32_t, std::set<int32_t>> ranks;
  std::map<int32_t, std::vector<int32_t>> partials;
  std::map<int32_t, int32_t> items_of;
  for (int32_t i = 0; i < t.items; ++i) {
    const BackwardItem& item = t.item[c * t.items + i];
    if (item.key_block < 0) continue;
    ++items_of[item.key_block];
    if (item.partial >= 0) partials[item.key_block].push_back(item.partial);
    int32_t steps = 0;
    std::set<int32_t> in_turn, as_it_comes;
    for (int32_t v = item.first_visit; v < item.first_visit + item.visits; ++v) {
      const BackwardVisit& visit = t.visit_in_turn[v];
      const int32_t tile = visit.first_block / t.query.per_tile;
      REQUIRE(visit.first_block % t.query.per_tile == 0);
      REQUIRE(visit.blocks == present(t.query_block, t.query, tile));
      ++pairs[{item.key_block, tile}];
      REQUIRE(ranks[tile].insert(visit.rank).second);
      steps += visit.blocks;
      in_turn.insert(visit.first_block);
      as_it_comes.insert(t.visit[v].first_block);
      CHECK(t.visit[v].blocks == present(t.query_block, t.query, t.visit[v].first_block / t.query.per_tile));
    }
    CHECK(in_turn == as_it_comes);
    CHECK(item.steps == steps);
  }
  size_t expected = 0;
  for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
    const int32_t row = plan.row_of[static_cast<size_t>(c * plan.query.tiles() + tile)];
    for (int32_t b = 0; b < present(t.key_block, t.key, tile); ++b) {
      const int32_t key_block = tile * t.key.per_tile + b;
      CHECK(items_of[key_block] == std::max<int32_t>(1, static_cast<int32_t>(partials[key_block].size())));
      for (int64_t e = plan.row_first(row); e < plan.row_last(row); ++e, ++expected) {
        const bool once = pairs[{key_block, plan.key_tile[static_cast<size_t>(e)]}] == 1;
        REQUIRE(once);
      }
    }
  }
  CHECK(pairs.size() == expected);
  for (int32_t tile = 0; tile < plan.key.tiles(); ++tile) {
    const auto count = static_cast<int32_t>(ranks[tile].size());
    CHECK(t.contributions[c * t.query_blocks + tile * t.query.per_tile] == count);
    if (count > 0) CHECK(*ranks[tile].rbegin() == count - 1);
  }
  for (int32_t s = 0; s < t.splits; ++s) {
    const BackwardSplit& split = t.split[c * t.splits + s];
    if (split.partials == 0) continue;
    std::vector<int32_t> given = partials[split.key_block];
    std::sort(given.begin(), given.end());
    REQUIRE(static_cast<int32_t>(given.size()) == split.partials);
    for (int32_t i = 0; i < split.partials; ++i) CHECK(given[static_cast<size_t>(i)] == split.first_partial + i);
    partials.erase(split.key_block);
  }
  for (const auto& [key_block, left] : partials) CHECK(left.empty());
}

// Plays `heads` heads on workers that take items in order and visit query tiles when it is their turn, in random order of events.
bool finishes(const BackwardLowering& t, int32_t workers, int32_t heads, std::mt19937& random) {
  struct Worker {
    int32_t head = -1, visit = 0, end = 0;
  };
  std::vector<Worker> all(static_cast<size_t>(workers));
  std::map<std::pair<int32_t, int32_t>, int32_t> turn;
  int32_t next = 0, idle = 0;
  std::vector<size_t> order(all.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (bool stuck = false;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    idle = 0;
    for (const size_t i : order) {
      if (!stuck && random() % 3 == 0) continue;  // this one is slow
      Worker& worker = all[i];
      if (worker.visit == worker.end) {
        if (next == heads * t.items) {
          ++idle;
          continue;
        }
        const BackwardItem& item = t.item[next % t.items];
        worker = {next / t.items, item.first_visit, item.first_visit + item.visits};
        ++next;
        progress = true;
        continue;
      }
      const BackwardVisit& visit = t.visit_in_turn[worker.visit];
      int32_t& now = turn[{worker.head, visit.first_block}];
      if (now != visit.rank) continue;
      ++now;
      ++worker.visit;
      progress = true;
    }
    if (idle == workers) return true;
    if (stuck && !progress) return false;
    stuck = !progress;
  }
}

}  // namespace

TEST_CASE("the default problem: 128 keys and 64 queries a block, nothing cut up") {
  const Grid grid({30, 48, 80}, kDefaultTile);
  const Window window[] = {{3, 3, 3}};
  const Plan plan = transpose(sliding_tile_plan(grid, window));
  const Lowered lowered(plan, 132);
  REQUIRE(lowered.tables.why_not == nullptr);
  CHECK(lowered.tables.items == 900);
  CHECK(lowered.tables.query_blocks == 1800);
  CHECK(lowered.tables.partials == 0);
  CHECK(lowered.tables.item[0].steps == 240);  // the longest row of the first slab
  CHECK(lowered.tables.item[899].steps == 48);
  check_class(plan, lowered.tables, 0);
  std::mt19937 random(1);
  CHECK(finishes(lowered.tables, 132, 3, random));
}

TEST_CASE("query blocks that bring foreign rows, or share slots with larger ones, are marked") {
  const auto marked = [](Dim3 canvas, Dim3 tile, ExtraTokens extra) {
    const Window window[] = {{1, 1, 1}};
    const Lowered lowered(transpose(sliding_tile_plan(Grid(canvas, tile), window, extra)), 8);
    int32_t count = 0;
    for (int32_t i = 0; i < lowered.tables.query_blocks; ++i) count += (lowered.tables.query_block[i].flags & kBlockClear) != 0;
    return count;
  };
  CHECK(marked({30, 48, 80}, kDefaultTile, {}) == 0);
  CHECK(marked({33, 45, 80}, kDefaultTile, {0, 256}) == 0);  // borders clip, and the last run ends with the tensor
  CHECK(marked({10, 5, 5}, {5, 5, 5}, {}) == 1);             // the first tile's last block brings a plane of the second tile
  CHECK(marked({2, 16, 16}, {2, 8, 8}, {70, 0}) == 1);       // 6 tokens, and 58 of the canvas
  CHECK(marked({1, 5, 7}, {1, 5, 7}, {0, 64}) == 1);         // 35 rows in a slot that text fills
}

TEST_CASE("rows that everything reads are cut up") {
  const Grid grid({12, 32, 48}, kDefaultTile);
  const Window window[] = {{1, 1, 3}};
  const Plan plan = transpose(sliding_tile_plan(grid, window, {0, 256}));
  const Lowered lowered(plan, 132);
  CHECK(lowered.tables.partials > 0);
  check_class(plan, lowered.tables, 0);
}

TEST_CASE("random plans: all pairs, all turns, and always an end") {
  std::mt19937 random(20261124);
  const auto pick = [&](int32_t a, int32_t b) {
    return std::uniform_int_distribution<int32_t>(a, b)(random);
  };
  for (int32_t trial = 0; trial < 60; ++trial) {
    const Dim3 canvas{pick(1, 9), pick(1, 17), pick(1, 21)};
    const Dim3 tile{pick(1, std::min(canvas.t, 6)), pick(3, 9), pick(3, 9)};
    const Grid grid(canvas, {tile.t, std::min(tile.h, canvas.h), std::min(tile.w, canvas.w)});
    std::vector<Window> windows;
    for (int32_t i = 0; i < 2; ++i) windows.push_back({pick(1, 4), pick(1, 4), pick(1, 4)});
    const ExtraTokens extra{pick(0, 1) * pick(0, 40), pick(0, 1) * pick(0, 200)};
    const Plan plan = transpose(trial % 5 == 0 ? full_plan(grid, extra) : sliding_tile_plan(grid, windows, extra));
    const int32_t slots = pick(1, 40);
    const Lowered lowered(plan, slots);
    REQUIRE(lowered.tables.why_not == nullptr);
    for (int32_t c = 0; c < plan.classes(); ++c) check_class(plan, lowered.tables, c);
    CHECK(finishes(lowered.tables, slots, 3, random));
    CHECK(finishes(lowered.tables, slots + pick(1, 20), 2, random));
  }
}

TEST_CASE("a plan with token masks is refused") {
  PlanBuilder builder(make_tiling(Grid({1, 4, 4}, {1, 4, 4})), make_tiling(Grid({1, 4, 4}, {1, 4, 4})));
  std::vector<uint64_t> words(16, 1);
  const int32_t mask[] = {builder.add_mask(16, 16, words)};
  const int32_t tile[] = {0};
  builder.add_row(tile, mask);
  CHECK(lower_backward(transpose(builder.finish({0})), 132).lowering.why_not != nullptr);
}

}  // namespace slidetile::cuda
