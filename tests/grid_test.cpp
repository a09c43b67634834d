// Grids: coordinates and boxes against counting, and what is no extent.
#include "slidetile/grid.h"

#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {
namespace {

TEST_CASE("tokens and tiles go to coordinates and back, and boxes cover each token once") {
  for (const auto& extents : {std::pair<Dim3, Dim3>{{1, 1, 1}, {1, 1, 1}},
                              {{7, 5, 3}, {2, 2, 2}},
                              {{6, 16, 8}, {6, 8, 8}},
                              {{1, 13, 11}, {1, 4, 11}},
                              {{3, 1, 17}, {3, 1, 16}},
                              {{5, 5, 5}, {1, 1, 1}}}) {
    const Dim3 canvas = extents.first, tile = extents.second;
    CAPTURE(canvas);
    CAPTURE(tile);
    const Grid grid(canvas, tile);
    int64_t token = 0;
    for (int32_t t = 0; t < canvas.t; ++t) {
      for (int32_t h = 0; h < canvas.h; ++h) {
        for (int32_t w = 0; w < canvas.w; ++w, ++token) {
          CHECK(grid.token_index({t, h, w}) == token);
          CHECK(grid.token_coordinate(token) == Dim3{t, h, w});
        }
      }
    }
    CHECK(grid.tokens() == token);
    std::vector<int> covered(static_cast<size_t>(token));
    for (int32_t index = 0; index < grid.tile_count(); ++index) {
      const Dim3 at = grid.tile_coordinate(index);
      CHECK(grid.tile_index(at) == index);
      const auto [origin, extent] = grid.box(index);
      CHECK(origin == Dim3{at.t * tile.t, at.h * tile.h, at.w * tile.w});
      for (int32_t t = 0; t < extent.t; ++t) {
        for (int32_t h = 0; h < extent.h; ++h) {
          for (int32_t w = 0; w < extent.w; ++w)
            ++covered[static_cast<size_t>(grid.token_index({origin.t + t, origin.h + h, origin.w + w}))];
        }
      }
    }
    CHECK(covered == std::vector<int>(static_cast<size_t>(token), 1));
  }
}

TEST_CASE("a grid refuses extents that make none") {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  CHECK_THROWS_AS(Grid({0, 1, 1}, {1, 1, 1}), Error);
  CHECK_THROWS_AS(Grid({1, -1, 1}, {1, 1, 1}), Error);
  CHECK_THROWS_AS(Grid({1, 1, 1}, {1, 1, 0}), Error);
  CHECK_THROWS_AS(Grid({1, 1, 1}, {1, -1, 1}), Error);
  CHECK_THROWS_AS(Grid({4, 4, 4}, {4, 4, 5}), Error);
  CHECK_THROWS_AS(Grid({kMost, kMost, kMost}, {1, 1, 1}), Error);
  CHECK_THROWS_AS(Grid({1, 65536, 32768}, {1, 1, 1}), Error);
  CHECK_THROWS_AS(Grid({2, 1, 1 << 30}, {1, 1, 1}), Error);
  CHECK_NOTHROW(Grid({1, 1, kMost}, {1, 1, 1}));
  CHECK_NOTHROW(Grid({1, 65535, 32768}, {1, 1, 1}));
  try {
    Grid({4, 4, 4}, {6, 8, 8});
    FAIL("expected an error");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) == "grid: tile 6x8x8 is larger than canvas 4x4x4");
  }
}

TEST_CASE("extents are read as TxHxW, HxW or W, and nothing else") {
  CHECK(dim3_from_string("30x48x80") == Dim3{30, 48, 80});
  CHECK(dim3_from_string("48x80") == Dim3{1, 48, 80});
  CHECK(dim3_from_string("80") == Dim3{1, 1, 80});
  CHECK(dim3_from_string("2147483647") == Dim3{1, 1, 2147483647});
  CHECK(dim3_from_string(to_string(Dim3{3, 5, 7})) == Dim3{3, 5, 7});
  for (const char* text : {"",        "x",      "3x",  "x3",  "3xx3", "1x2x3x", "1x2x3x4", "0",   "0x1x1",      "1x0",
                           "-1",      "1x-2x3", "+1",  " 1",  "1 ",   "1X2",    "1,2,3",   "1.5", "2147483648", "99999999999999999999",
                           "3x3x3\n", "a",      "1xa", "0x10"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(dim3_from_string(text), Error);
  }
  CHECK_THROWS_AS(dim3_from_string(std::string("1\0", 2)), Error);
}

}  // namespace
}  // namespace slidetile
