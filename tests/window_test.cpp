// The mask oracle: every planner against a predicate over pairs of tokens, by brute force; and what the paper's Table 1 says of them.
#include "slidetile/window.h"

#include <doctest/doctest.h>

#include <array>
#include <chrono>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <tuple>

#include "slidetile/error.h"
#include "slidetile/window_clear.h"
#include "slidetile/window_natten.h"
#include "slidetile/window_swin.h"

namespace slidetile {
namespace {

using Axes = std::array<int32_t, 3>;
/// May the canvas token at q see the one at k, in this head?
using Predicate = std::function<bool(const Axes& q, const Axes& k, int64_t head)>;

int draw(std::mt19937& random, int first, int last) { return std::uniform_int_distribution(first, last)(random); }

Dim3 draw_up_to(std::mt19937& random, const Dim3& most) {
  return {draw(random, 1, most.t), draw(random, 1, most.h), draw(random, 1, most.w)};
}

/// Canvases of primes, single tokens, powers of two and anything between, with a tile that seldom divides them.
Grid draw_grid(std::mt19937& random) {
  constexpr int kExtents[] = {1, 1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 16};
  const auto extent = [&] {
    return kExtents[draw(random, 0, 11)];
  };
  Dim3 canvas{extent(), extent(), extent()};
  while (canvas.volume() > 700) canvas = {extent(), extent(), extent()};
  return Grid(canvas, draw_up_to(random, canvas));
}

ExtraTokens draw_extra(std::mt19937& random) {
  if (draw(random, 0, 1) == 0) return {};
  return {draw(random, 0, 2) == 0 ? 0 : draw(random, 1, 90), draw(random, 0, 2) == 0 ? 0 : draw(random, 1, 90)};
}

std::vector<bool> visible_by_plan(const Plan& plan, int64_t head) {
  std::vector<bool> visible(static_cast<size_t>(plan.query.tokens() * plan.key.tokens()));
  for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
    const int32_t row = plan.row(head, tile);
    for (int32_t q = 0; q < plan.query.tile_size(tile); ++q) {
      const int64_t query = plan.query.token[static_cast<size_t>(plan.query.tile_begin[static_cast<size_t>(tile)] + q)];
      for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
        const int32_t key_tile = plan.key_tile[static_cast<size_t>(entry)], size = plan.key.tile_size(key_tile), mask = plan.mask(entry);
        for (int32_t k = 0; k < size; ++k) {
          const int64_t key = plan.key.token[static_cast<size_t>(plan.key.tile_begin[static_cast<size_t>(key_tile)] + k)];
          const auto word =
              mask < 0 ? 0 : static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask)] + q * ((size + 63) / 64) + k / 64);
          if (mask < 0 || (plan.mask_words[word] >> (k % 64) & 1) != 0)
            visible[static_cast<size_t>(query * plan.key.tokens() + key)] = true;
        }
      }
    }
  }
  return visible;
}

/// Compares a plan with its predicate on every pair of tokens; extra tokens see and are seen by all.
void check_oracle(const Plan& plan, const Predicate& sees, int64_t heads) {
  const Grid& grid = plan.query.grid;
  const int64_t before = plan.query.extra.before, tokens = plan.query.tokens();
  int64_t pairs = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const std::vector<bool> visible = visible_by_plan(plan, head);
    int64_t wrong = 0;
    for (int64_t q = 0; q < tokens; ++q) {
      for (int64_t k = 0; k < tokens; ++k) {
        const int64_t canvas_q = q - before, canvas_k = k - before;
        const bool extra = canvas_q < 0 || canvas_q >= grid.tokens() || canvas_k < 0 || canvas_k >= grid.tokens();
        const bool expected = extra || sees(grid.token_coordinate(canvas_q).axes(), grid.token_coordinate(canvas_k).axes(), head);
        pairs += expected;
        wrong += expected != visible[static_cast<size_t>(q * tokens + k)];
      }
    }
    CHECK(wrong == 0);
  }
  CHECK(visible_pairs(plan, heads) == pairs);
  for (int32_t mask = 0; mask < plan.masks(); ++mask) {  // a tile that no pair sees is not listed
    uint64_t any = 0;
    for (int64_t word = plan.mask_begin[static_cast<size_t>(mask)]; word < plan.mask_begin[static_cast<size_t>(mask) + 1]; ++word) {
      any |= plan.mask_words[static_cast<size_t>(word)];
    }
    CHECK(any != 0);
  }
}

std::string describe(const Grid& grid, const ExtraTokens& extra) {
  return "canvas " + to_string(grid.canvas()) + " tile " + to_string(grid.tile()) + " extra " + std::to_string(extra.before) + " " +
         std::to_string(extra.after);
}

/// Share of the key tiles that the centre tile's row reads whole and with a mask.
struct RowShares {
  double dense, mixed;
};

RowShares centre_row(const Plan& plan) {
  const Dim3 n = plan.query.grid.tiles();
  const int32_t row = plan.row(0, plan.query.grid.tile_index({n.t / 2, n.h / 2, n.w / 2}));
  int64_t masked = 0;
  for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) masked += plan.mask(entry) >= 0;
  const auto tiles = static_cast<double>(plan.key.tiles()), mixed = static_cast<double>(masked);
  return {(static_cast<double>(plan.row_last(row) - plan.row_first(row)) - mixed) / tiles, mixed / tiles};
}

NattenWindow draw_natten(std::mt19937& random, const Dim3& canvas) {
  NattenWindow window{.window = draw_up_to(random, canvas)};
  const auto most_dilation = [&](int32_t extent, int32_t size) {
    return draw(random, 1, std::max(1, extent / size));
  };
  window.stride = draw_up_to(random, window.window);
  window.dilation = {most_dilation(canvas.t, window.window.t), most_dilation(canvas.h, window.window.h),
                     most_dilation(canvas.w, window.window.w)};
  for (bool& causal : window.causal) causal = draw(random, 0, 3) == 0;
  return window;
}

/// NATTEN's rule along one axis, by counting: the group's keys are sorted by how NATTEN places its window.
bool natten_sees(int32_t q, int32_t k, int32_t extent, int32_t window, int32_t stride, int32_t dilation, bool causal) {
  if (q % dilation != k % dilation) return false;
  int32_t length = 0;  // tokens of this residue
  for (int32_t i = q % dilation; i < extent; i += dilation) ++length;
  const int32_t i = q / dilation, j = k / dilation, left = window / 2, right = window - 1 - left;
  if (causal) {
    int32_t leader = i;
    while (leader + 1 < length && (leader + 1) / stride == i / stride) ++leader;  // the last query of the group
    return j <= i && j > leader - window;
  }
  const int32_t leader = std::min(i - i % stride + stride / 2, length - 1);
  if (leader - left < 0) return j < window;
  if (leader + right >= length) return j >= length - window;
  return leader - left <= j && j <= leader + right;
}

TEST_CASE("the sliding tile planner agrees with its definition on every pair") {
  std::mt19937 random(1);
  for (int round = 0; round < 150; ++round) {
    const Grid grid = draw_grid(random);
    const ExtraTokens extra = draw_extra(random);
    std::vector<Window> windows;
    for (int head = draw(random, 1, 3); head > 0; --head) windows.push_back(draw_up_to(random, {6, 6, 6}));  // also beyond the canvas
    CAPTURE(describe(grid, extra));
    const Plan plan = sliding_tile_plan(grid, windows, extra);
    const Axes tile = grid.tile().axes(), tiles = grid.tiles().axes();
    const auto sees = [&](const Axes& q, const Axes& k, int64_t head) {
      bool all = true;
      for (size_t a = 0; a < 3; ++a) {
        const int32_t window = std::min(windows[static_cast<size_t>(head)].axes()[a], tiles[a]);
        const int32_t first = std::clamp(q[a] / tile[a] - window / 2, 0, tiles[a] - window);
        all = all && first <= k[a] / tile[a] && k[a] / tile[a] < first + window;
      }
      return all;
    };
    check_oracle(plan, sees, plan.heads());
    CHECK(plan.masks() == 0);
  }
}

TEST_CASE("odd sliding tile windows are the paper's Algorithm 3, and every row has min(w, n) tiles an axis") {
  for (int32_t n = 1; n <= 9; ++n) {
    for (int32_t w = 1; w <= 11; ++w) {
      const Window window{1, 1, w};
      const Plan plan = sliding_tile_plan(Grid({1, 1, 4 * n}, {1, 1, 4}), {&window, 1});
      for (int32_t q = 0; q < n; ++q) {
        const int32_t row = plan.row(0, q);
        CHECK(plan.row_last(row) - plan.row_first(row) == std::min(w, n));
        if (w % 2 == 0 || w > n) continue;
        const int32_t half = w / 2, centre = std::clamp(q, half, n - 1 - half);
        std::vector<int32_t> expected;
        for (int32_t k = 0; k < n; ++k) {
          if (std::abs(k - centre) <= half) expected.push_back(k);
        }
        CHECK(std::vector(plan.key_tile.begin() + plan.row_first(row), plan.key_tile.begin() + plan.row_last(row)) == expected);
      }
    }
  }
}

TEST_CASE("the full planner shows every pair in one row") {
  std::mt19937 random(2);
  for (int round = 0; round < 20; ++round) {
    const Plan plan = full_plan(draw_grid(random), draw_extra(random));
    check_oracle(
        plan, [](const Axes&, const Axes&, int64_t) { return true; }, 1);
    CHECK(plan.rows() == 1);
    CHECK(density(plan) == 1);
  }
}

TEST_CASE("the NATTEN planner agrees with its definition on every pair") {
  std::mt19937 random(3);
  for (int round = 0; round < 250; ++round) {
    const Grid grid = draw_grid(random);
    const ExtraTokens extra = draw_extra(random);
    std::vector<NattenWindow> windows;
    for (int head = draw(random, 1, 2); head > 0; --head) windows.push_back(draw_natten(random, grid.canvas()));
    const NattenWindow& first = windows[0];
    CAPTURE(describe(grid, extra));
    CAPTURE(to_string(first.window) + " stride " + to_string(first.stride) + " dilation " + to_string(first.dilation));
    const Plan plan = natten_plan(grid, windows, extra);
    const auto sees = [&](const Axes& q, const Axes& k, int64_t head) {
      const NattenWindow& window = windows[static_cast<size_t>(head)];
      bool all = true;
      for (size_t a = 0; a < 3 && all; ++a) {
        all = natten_sees(q[a], k[a], grid.canvas().axes()[a], window.window.axes()[a], window.stride.axes()[a], window.dilation.axes()[a],
                          window.causal[a]);
      }
      return all;
    };
    check_oracle(plan, sees, plan.heads());
  }
}

TEST_CASE("a NATTEN query sees exactly its window, itself included, unless an axis is causal") {
  std::mt19937 random(4);
  for (int round = 0; round < 50; ++round) {
    const Grid grid = draw_grid(random);
    NattenWindow window = draw_natten(random, grid.canvas());
    window.causal = {};
    const Plan plan = natten_plan(grid, {&window, 1});
    const std::vector<bool> visible = visible_by_plan(plan, 0);
    for (int64_t q = 0; q < grid.tokens(); ++q) {
      const auto row = visible.begin() + q * grid.tokens();
      CHECK(std::count(row, row + grid.tokens(), true) == window.window.volume());
      if (window.stride == Dim3{1, 1, 1}) CHECK(row[q]);
    }
  }
}

TEST_CASE("a NATTEN window with the tile's stride is perfectly block sparse") {
  const NattenWindow window{.window = {6, 6, 6}, .stride = {2, 2, 2}};
  const Plan plan = natten_plan(Grid({12, 12, 12}, {2, 2, 2}), {&window, 1});
  CHECK(plan.masks() == 0);
  const Window sliding{3, 3, 3};  // an odd number of tiles around the query's own
  const Plan same = sliding_tile_plan(Grid({12, 12, 12}, {2, 2, 2}), {&sliding, 1});
  CHECK(plan.key_tile == same.key_tile);
  CHECK(plan.row_of == same.row_of);
}

TEST_CASE("the CLEAR planner agrees with its definition on every pair") {
  std::mt19937 random(5);
  for (int round = 0; round < 150; ++round) {
    const Grid grid = draw_grid(random);
    const ExtraTokens extra = draw_extra(random);
    const int32_t radius = draw(random, 1, round % 10 == 0 ? 40 : 9);
    CAPTURE(describe(grid, extra));
    CAPTURE(radius);
    const auto sees = [&](const Axes& q, const Axes& k, int64_t) {
      const Axes d{q[0] - k[0], q[1] - k[1], q[2] - k[2]};
      return d[0] * d[0] + d[1] * d[1] + d[2] * d[2] < radius * radius;
    };
    check_oracle(clear_plan(grid, radius, extra), sees, 1);
  }
  CHECK(density(clear_plan(Grid({2, 3, 4}, {1, 2, 3}), std::numeric_limits<int32_t>::max())) == 1);
}

TEST_CASE("the Swin planner agrees with rolled windows and region masks on every pair") {
  std::mt19937 random(6);
  for (int round = 0; round < 150; ++round) {
    const Grid grid = draw_grid(random);
    const ExtraTokens extra = draw_extra(random);
    const Dim3 window = draw_up_to(random, {12, 12, 12});
    const Dim3 shift =
        round % 2 == 0 ? Dim3{0, 0, 0} : Dim3{draw(random, 0, window.t - 1), draw(random, 0, window.h - 1), draw(random, 0, window.w - 1)};
    CAPTURE(describe(grid, extra));
    CAPTURE(to_string(window) + " shift " + to_string(shift));
    // Swin's own way: pad to whole windows, roll by -shift, cut, and mask pairs from different sides of the seam.
    const auto window_and_side = [&](int32_t i, size_t a) {
      const int32_t size = window.axes()[a], extent = grid.canvas().axes()[a], padded = (extent + size - 1) / size * size;
      const int32_t rolled = size >= extent ? i : (i - shift.axes()[a] + padded) % padded;
      return std::pair(rolled / size, size < extent && rolled >= padded - shift.axes()[a]);
    };
    const auto sees = [&](const Axes& q, const Axes& k, int64_t) {
      bool all = true;
      for (size_t a = 0; a < 3; ++a) all = all && window_and_side(q[a], a) == window_and_side(k[a], a);
      return all;
    };
    check_oracle(swin_plan(grid, {window, shift}, extra), sees, 1);
  }
}

// Table 1 counts blocks of tile x tile of a tile that no border is near. The paper's formulas (48^3 canvas, 4^3 tile, window W) say so:
// (2 floor((W + 1) / 2T) - 1)^3 dense and (2 ceil((W - 1) / 2T) + 1)^3 touched tiles in each row. At borders NATTEN's shifted windows touch
// fewer tiles; over the whole canvas 5.27 % are touched, not 7.23 %. A sliding tile window has as many everywhere. The paper's 7.17 % is
// 124 / 1728 = 7.176 % cut off.
TEST_CASE("the paper's Table 1") {
  const Grid grid({48, 48, 48}, {4, 4, 4});
  const NattenWindow natten{.window = {11, 11, 11}};
  const Plan tiled_natten = natten_plan(grid, {&natten, 1});
  CHECK(centre_row(tiled_natten).dense == doctest::Approx(1.0 / 1728));    // 0.06 %
  CHECK(centre_row(tiled_natten).mixed == doctest::Approx(124.0 / 1728));  // 7.17 %
  const BlockCounts blocks = count_blocks(tiled_natten, 64, 64);
  CHECK(blocks.full == 14 * 14 * 14);                   // an axis: 2 + 10 x 1 + 2
  CHECK(blocks.full + blocks.partial == 54 * 54 * 54);  // an axis: 3 + 4 + 8 x 5 + 4 + 3
  CHECK(blocks.full + blocks.partial + blocks.empty == 1728 * 1728);

  for (const auto& [tokens, share] : {std::pair{12, 27.0 / 1728}, {20, 125.0 / 1728}}) {  // 1.56 %, 7.23 %
    const Window window{tokens / 4, tokens / 4, tokens / 4};
    const Plan plan = sliding_tile_plan(grid, {&window, 1});
    CHECK(centre_row(plan).dense == doctest::Approx(share));
    CHECK(centre_row(plan).mixed == 0);
    const BlockCounts counts = count_blocks(plan, 64, 64);
    CHECK(static_cast<double>(counts.full) / (1728.0 * 1728) == doctest::Approx(share));
    CHECK(counts.partial == 0);
  }
}

// Table 2's sparsities on HunyuanVideo's canvas, 30x48x80 with tiles of 6x8x8: 91 and 58.33 % (STA), 89.69 % (NATTEN), 90.46 % (CLEAR).
// For Swin the paper prints 87.42 %; windows of 24x32x32 without a shift have 86.40 % by definition.
TEST_CASE("the paper's Table 2") {
  const Grid grid({30, 48, 80}, {6, 8, 8});
  const Window three{3, 3, 3}, five{5, 5, 5};
  CHECK(density(sliding_tile_plan(grid, {&three, 1})) == doctest::Approx(0.09));
  CHECK(1 - density(sliding_tile_plan(grid, {&five, 1})) == doctest::Approx(0.5833).epsilon(1e-4));
  const NattenWindow natten{.window = {19, 25, 25}};
  CHECK(1 - density(natten_plan(grid, {&natten, 1})) == doctest::Approx(0.8969).epsilon(1e-4));
  CHECK(1 - density(clear_plan(grid, 16)) == doctest::Approx(0.9046).epsilon(1e-3));
  CHECK(density(swin_plan(grid, {{24, 32, 32}})) == doctest::Approx(0.68 * 0.36 * 5 / 9));
}

TEST_CASE("planners refuse what they can't plan, and name it") {
  const Grid grid({4, 8, 8}, {2, 4, 4});
  const auto message = [](auto&& call) {
    try {
      call();
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string();
  };
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(message([&] { sliding_tile_plan(grid, {}); }), "no windows"));
  for (const Window window : {Window{0, 1, 1}, {1, -3, 1}, {1, 1, 0}}) {
    CHECK(has(message([&] { sliding_tile_plan(grid, {&window, 1}); }), to_string(window)));
    CHECK(has(message([&] { require_fits(window, grid); }), to_string(window)));
  }
  CHECK(has(message([&] { require_fits(Window{1, 3, 1}, grid); }), "1x1x1 to 2x2x2"));
  CHECK_NOTHROW(require_fits(Window{2, 2, 2}, grid));
  CHECK(has(message([&] { natten_plan(grid, {}); }), "no windows"));
  const auto natten = [&](const NattenWindow& window) {
    return message([&] { natten_plan(grid, {&window, 1}); });
  };
  CHECK(has(natten({.window = {5, 8, 8}}), "axis t window 5"));
  CHECK(has(natten({.window = {4, 0, 8}}), "axis h window 0"));
  CHECK(has(natten({.window = {4, 5, 8}, .dilation = {1, 2, 1}}), "axis h window 5 times dilation 2"));
  CHECK(has(natten({.window = {4, 5, 8}, .dilation = {1, 0, 1}}), "dilation 0"));
  CHECK(has(natten({.window = {4, 5, 8}, .dilation = {1, 2147483647, 1}}), "dilation 2147483647"));
  CHECK(has(natten({.window = {4, 5, 7}, .stride = {1, 1, 8}}), "axis w stride 8"));
  CHECK(has(natten({.window = {4, 5, 7}, .stride = {0, 1, 1}}), "axis t stride 0"));
  CHECK(natten({.window = {4, 4, 8}, .stride = {4, 4, 8}, .dilation = {1, 2, 1}}).empty());
  CHECK(has(message([&] { clear_plan(grid, 0); }), "radius 0"));
  CHECK(has(message([&] { swin_plan(grid, {{2, 2, 0}}); }), "window 0"));
  CHECK(has(message([&] { swin_plan(grid, {{2, 2, 4}, {0, 0, 4}}); }), "shift 4"));
  CHECK(has(message([&] { swin_plan(grid, {{2, 2, 4}, {0, -1, 0}}); }), "shift -1"));
  CHECK(has(message([&] { full_plan(grid, {-1, 0}); }), "before -1"));
}

}  // namespace
}  // namespace slidetile
