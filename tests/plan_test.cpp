// Plans: sharing, validation, transpose, union, and what is counted over them, against pair-by-pair brute force.
#include "slidetile/plan.h"

#include <doctest/doctest.h>

#include <functional>
#include <random>
#include <string>

#include "slidetile/error.h"
#include "slidetile/window.h"
#include "slidetile/window_clear.h"
#include "slidetile/window_natten.h"

namespace slidetile {
namespace {

int draw(std::mt19937& random, int first, int last) { return std::uniform_int_distribution(first, last)(random); }

/// Tiles without a canvas: random sizes, tokens in any order.
Tiling draw_tiling(std::mt19937& random) {
  if (draw(random, 0, 2) == 0) {
    const Dim3 canvas{draw(random, 1, 5), draw(random, 1, 7), draw(random, 1, 7)};
    return make_tiling(Grid(canvas, {draw(random, 1, canvas.t), draw(random, 1, canvas.h), draw(random, 1, canvas.w)}),
                       {draw(random, 0, 70), draw(random, 0, 70)});
  }
  Tiling tiling{.grid = {}, .extra = {}, .tile_begin = {0}, .token = {}};
  for (int tile = draw(random, 1, 6); tile > 0; --tile)
    tiling.tile_begin.push_back(tiling.tile_begin.back() + draw(random, 1, draw(random, 0, 1) ? 3 : 130));
  for (int32_t token = 0; token < tiling.tile_begin.back(); ++token) tiling.token.push_back(token);
  std::shuffle(tiling.token.begin(), tiling.token.end(), random);
  return tiling;
}

struct Tilings {
  Tiling query, key;
};

/// Random lists and masks over the tilings; rows without keys, shared rows.
Plan draw_plan(std::mt19937& random, const Tilings& tilings, int32_t heads) {
  PlanBuilder builder(tilings.query, tilings.key);
  const int classes = draw(random, 1, 2);
  for (int c = 0; c < classes; ++c) {
    const int keep = draw(random, 0, 4);
    for (int32_t query = 0; query < tilings.query.tiles(); ++query) {
      std::vector<int32_t> tiles, masks;
      for (int32_t key = 0; key < tilings.key.tiles(); ++key) {
        if (draw(random, 0, 3) >= keep) continue;
        const int32_t query_size = tilings.query.tile_size(query), key_size = tilings.key.tile_size(key), row_words = (key_size + 63) / 64;
        std::vector<uint64_t> words(static_cast<size_t>(query_size * row_words));
        const int kind = draw(random, 0, 2);
        for (int32_t q = 0; q < query_size; ++q) {
          for (int32_t k = 0; k < key_size; ++k) {
            const uint64_t bit = kind == 0 ? 1 : kind == 1 ? k <= q : draw(random, 0, 1);
            words[static_cast<size_t>(q * row_words + k / 64)] |= bit << (k % 64);
          }
        }
        tiles.push_back(key);
        masks.push_back(kind == 0 ? -1 : builder.add_mask(query_size, key_size, words));
      }
      const int32_t row = builder.add_row(tiles, masks);
      if (query + 1 < tilings.query.tiles() && tilings.query.tile_size(query) == tilings.query.tile_size(query + 1) &&
          draw(random, 0, 3) == 0) {
        builder.repeat_row(row);
        ++query;
      }
    }
  }
  std::vector<int32_t> head_class;
  for (int32_t head = 0; head < heads; ++head) head_class.push_back(draw(random, 0, classes - 1));
  return builder.finish(std::move(head_class));
}

/// [query slot][key slot] in tile order.
using Matrix = std::vector<std::vector<char>>;

Matrix matrix_of(const Plan& plan, int64_t head) {
  Matrix matrix(static_cast<size_t>(plan.query.tokens()), std::vector<char>(static_cast<size_t>(plan.key.tokens())));
  for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
    const int32_t row = plan.row(head, tile), first = plan.query.tile_begin[static_cast<size_t>(tile)];
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      const int32_t key = plan.key_tile[static_cast<size_t>(entry)], size = plan.key.tile_size(key), mask = plan.mask(entry);
      for (int32_t q = 0; q < plan.query.tile_size(tile); ++q) {
        for (int32_t k = 0; k < size; ++k) {
          const auto word =
              mask < 0 ? 0 : static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask)] + q * ((size + 63) / 64) + k / 64);
          matrix[static_cast<size_t>(first + q)][static_cast<size_t>(plan.key.tile_begin[static_cast<size_t>(key)] + k)] =
              mask < 0 || (plan.mask_words[word] >> (k % 64) & 1) != 0;
        }
      }
    }
  }
  return matrix;
}

BlockCounts count_by_hand(const Matrix& matrix, size_t query_block, size_t key_block) {
  BlockCounts counts;
  const size_t queries = matrix.size(), keys = matrix[0].size();
  for (size_t q = 0; q < queries; q += query_block) {
    for (size_t k = 0; k < keys; k += key_block) {
      bool any = false, all = true;
      for (size_t i = q; i < std::min(q + query_block, queries); ++i) {
        for (size_t j = k; j < std::min(k + key_block, keys); ++j) {
          any = any || matrix[i][j];
          all = all && matrix[i][j];
        }
      }
      ++(all ? counts.full : any ? counts.partial : counts.empty);
    }
  }
  return counts;
}

int64_t pairs_of(const Matrix& matrix) {
  int64_t pairs = 0;
  for (const auto& row : matrix) pairs += std::count(row.begin(), row.end(), 1);
  return pairs;
}

void check_ascending(const Plan& plan) {
  for (int32_t row = 0; row < plan.rows(); ++row) {
    for (int64_t entry = plan.row_first(row) + 1; entry < plan.row_last(row); ++entry) {
      CHECK(plan.key_tile[static_cast<size_t>(entry - 1)] < plan.key_tile[static_cast<size_t>(entry)]);
    }
  }
}

TEST_CASE("a tiling lists every token once, in tile order, with the extra tokens' tiles last") {
  const Tiling tiling = make_tiling(Grid({2, 3, 5}, {2, 2, 4}), {70, 3});
  CHECK(tiling.tokens() == 30 + 73);
  CHECK(tiling.tile_begin == std::vector<int32_t>{0, 16, 20, 28, 30, 94, 100, 103});
  CHECK(std::vector(tiling.token.begin(), tiling.token.begin() + 6) == std::vector<int32_t>{70, 71, 72, 73, 75, 76});
  CHECK(tiling.token[16] == 74);    // the partial tile beside the first
  CHECK(tiling.token[30] == 0);     // before the canvas
  CHECK(tiling.token[100] == 100);  // after it
  CHECK_THROWS_AS(make_tiling(Grid({1, 1, 1}, {1, 1, 1}), {-1, 0}), Error);
  CHECK_THROWS_AS(make_tiling(Grid({1, 1, 1}, {1, 1, 1}), {0, 2147483647}), Error);
  CHECK_THROWS_AS(make_tiling(Grid({1, 1, 1}, {1, 1, 1}), {INT64_MAX, INT64_MAX}), Error);
}

TEST_CASE("the builder shares equal rows and equal masks") {
  const Tiling tiling = make_tiling(Grid({1, 1, 12}, {1, 1, 4}));
  PlanBuilder builder(tiling, tiling);
  const std::vector<uint64_t> lower{1, 3, 7, 15}, all{15, 15, 15, 15}, other{15, 15, 15, 14};
  const int32_t mask = builder.add_mask(4, 4, lower);
  CHECK(mask == 0);
  CHECK(builder.add_mask(4, 4, lower) == mask);
  CHECK(builder.add_mask(4, 4, all) == -1);
  CHECK(builder.add_mask(4, 4, other) == 1);
  CHECK(builder.add_mask(4, 5, lower) == 2);  // equal words of other extents
  CHECK_THROWS_AS(builder.add_mask(4, 65, lower), Error);
  CHECK_THROWS_AS(builder.add_mask(0, 4, {}), Error);
  const std::vector<int32_t> tiles{0, 2}, masks{mask, -1}, none{-1, -1}, one{0};
  CHECK(builder.add_row(tiles, masks) == 0);
  CHECK(builder.add_row(tiles) == 1);
  CHECK(builder.add_row(tiles, none) == 1);  // the same row said in another way
  CHECK(builder.add_row(tiles, masks) == 0);
  builder.repeat_row(1);
  CHECK(builder.add_row({}) == 2);
  CHECK_THROWS_AS(builder.add_row(tiles, one), Error);
  CHECK_THROWS_AS(builder.repeat_row(3), Error);
  CHECK_THROWS_AS(builder.repeat_row(-1), Error);
  const Plan plan = builder.finish({0, 1, 1});
  CHECK(plan.rows() == 3);
  CHECK(plan.classes() == 2);
  CHECK(plan.row_of == std::vector<int32_t>{0, 1, 1, 0, 1, 2});
  CHECK(plan.masks() == 3);
  PlanBuilder few(tiling, tiling);
  few.add_row(tiles);
  CHECK_THROWS_AS(few.finish({0}), Error);  // two rows are missing
}

TEST_CASE("a plan of all-visible tiles keeps no masks") {
  const Tiling tiling = make_tiling(Grid({1, 1, 8}, {1, 1, 4}));
  PlanBuilder builder(tiling, tiling);
  const std::vector<uint64_t> all{15, 15, 15, 15};
  const std::vector<int32_t> tiles{0, 1}, masks{builder.add_mask(4, 4, all), -1};
  builder.add_row(tiles, masks);
  builder.add_row(tiles, masks);
  const Plan plan = builder.finish({0});
  CHECK(plan.mask_of.empty());
  CHECK(plan.rows() == 1);
}

TEST_CASE("random plans: transpose, union and counts agree with brute force over pairs") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    const Tilings tilings{draw_tiling(random), draw_tiling(random)};
    const int32_t heads = draw(random, 1, 3);
    const Plan a = draw_plan(random, tilings, heads), b = draw_plan(random, tilings, draw(random, 0, 1) ? heads : 1);
    check_ascending(a);
    const Plan turned = transpose(a), back = transpose(turned), both = plan_union(a, b), same = plan_union(b, a);
    check_ascending(turned);
    check_ascending(both);
    validate(turned);
    CHECK(turned.heads() == a.heads());
    CHECK(both.heads() == heads);
    const auto query_block = static_cast<size_t>(draw(random, 1, 40)), key_block = static_cast<size_t>(draw(random, 1, 150));
    int64_t pairs = 0;
    BlockCounts counts;
    for (int64_t head = 0; head < heads; ++head) {
      const Matrix of_a = matrix_of(a, head), of_b = matrix_of(b, head), of_turned = matrix_of(turned, head),
                   of_both = matrix_of(both, head);
      CHECK(matrix_of(back, head) == of_a);
      CHECK(matrix_of(same, head) == of_both);
      int64_t wrong = 0;
      for (size_t q = 0; q < of_a.size(); ++q) {
        for (size_t k = 0; k < of_a[q].size(); ++k) wrong += (of_turned[k][q] != of_a[q][k]) + (of_both[q][k] != (of_a[q][k] | of_b[q][k]));
      }
      CHECK(wrong == 0);
      pairs += pairs_of(of_a);
      const BlockCounts more = count_by_hand(of_a, query_block, key_block);
      counts.full += more.full;
      counts.partial += more.partial;
      counts.empty += more.empty;
    }
    CHECK(visible_pairs(a, heads) == pairs);
    CHECK(visible_pairs(turned, heads) == pairs);
    CHECK(density(a) == doctest::Approx(static_cast<double>(pairs) / static_cast<double>(a.query.tokens() * a.key.tokens() * heads)));
    CHECK(forward_flops(a, heads, 64) == doctest::Approx(4.0 * 64 * static_cast<double>(pairs)));
    CHECK(backward_flops(a, heads, 64) == doctest::Approx(10.0 * 64 * static_cast<double>(pairs)));
    const BlockCounts counted = count_blocks(a, static_cast<int64_t>(query_block), static_cast<int64_t>(key_block));
    CHECK(counted.full == counts.full);
    CHECK(counted.partial == counts.partial);
    CHECK(counted.empty == counts.empty);
  }
}

TEST_CASE("one mask serves tiles of different extents only as each reads it") {
  // Both key tiles need one word a query; the mask's words are the same, their transposes are not.
  const Tiling query{.grid = {}, .extra = {}, .tile_begin = {0, 2}, .token = {0, 1}};
  const Tiling key{.grid = {}, .extra = {}, .tile_begin = {0, 2, 5}, .token = {0, 1, 2, 3, 4}};
  Plan plan{.query = query, .key = key};
  plan.head_class = {0};
  plan.row_of = {0};
  plan.row_begin = {0, 2};
  plan.key_tile = {0, 1};
  plan.mask_of = {0, 0};
  plan.mask_begin = {0, 2};
  plan.mask_words = {1, 3};
  validate(plan);
  CHECK(matrix_of(transpose(transpose(plan)), 0) == matrix_of(plan, 0));
}

TEST_CASE("counts of dense and large plans take work per distinct row") {
  const Plan dense = full_plan(Grid({64, 64, 64}, {2, 2, 2}));  // 32768 tiles, 10^9 pairs of tiles
  CHECK(dense.rows() == 1);
  CHECK(visible_pairs(dense, 1) == int64_t{262144} * 262144);
  CHECK(density(dense) == 1);
  const Plan turned = transpose(dense);
  CHECK(turned.rows() == 1);
  CHECK(plan_union(dense, turned).rows() == 1);
  const BlockCounts blocks = count_blocks(dense, 96, 128);
  CHECK(blocks.full == 2731 * 2048);
  CHECK(blocks.partial + blocks.empty == 0);
  const BlockCounts one = count_blocks(dense, INT64_MAX, INT64_MAX);
  CHECK(one.full == 1);
}

TEST_CASE("pairs of a plan for any number of heads are multiplied, and overflow is an error") {
  const Grid grid({1, 1, 8}, {1, 1, 4});
  const Window windows[] = {{1, 1, 1}, {1, 1, 2}};
  CHECK(visible_pairs(full_plan(grid), 5) == 320);
  CHECK(visible_pairs(sliding_tile_plan(grid, windows), 2) == 32 + 64);
  CHECK(density(sliding_tile_plan(grid, windows)) == 0.75);
  CHECK_THROWS_AS(visible_pairs(sliding_tile_plan(grid, windows), 3), Error);
  CHECK_THROWS_AS(visible_pairs(full_plan(grid), 0), Error);
  CHECK_THROWS_AS(visible_pairs(full_plan(grid), INT64_MAX), Error);
  CHECK_THROWS_AS(forward_flops(full_plan(grid), 1, 0), Error);
  CHECK_THROWS_AS(count_blocks(full_plan(grid), 0, 1), Error);
  CHECK_THROWS_AS(count_blocks(full_plan(grid), 1, -1), Error);
}

TEST_CASE("union refuses plans of different tiles or numbers of heads") {
  const Grid grid({1, 1, 8}, {1, 1, 4});
  const Window two[] = {{1, 1, 1}, {1, 1, 2}}, three[] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 1}};
  CHECK_THROWS_AS(plan_union(full_plan(grid), full_plan(Grid({1, 1, 8}, {1, 1, 2}))), Error);
  CHECK_THROWS_AS(plan_union(full_plan(grid), full_plan(grid, {1, 0})), Error);
  CHECK_THROWS_AS(plan_union(sliding_tile_plan(grid, two), sliding_tile_plan(grid, three)), Error);
  CHECK(density(plan_union(sliding_tile_plan(grid, two), full_plan(grid))) == 1);
}

TEST_CASE("validate refuses every kind of broken plan and says what is wrong") {
  const Grid grid({2, 4, 5}, {2, 2, 2});
  const NattenWindow window{.window = {1, 3, 3}};
  const Plan good = natten_plan(grid, {&window, 1}, {2, 3});
  REQUIRE(good.masks() > 0);
  const auto refused = [&](const char* part, const std::function<void(Plan&)>& breaks) {
    CAPTURE(part);
    Plan plan = good;
    breaks(plan);
    std::string message;
    try {
      validate(plan);
    } catch (const Error& error) {
      message = error.what();
      CHECK(error.code() == ErrorCode::kInvalidArgument);
    }
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  CHECK_NOTHROW(validate(good));
  refused("query tiles must ascend", [](Plan& plan) { plan.query.tile_begin.clear(); });
  refused("query tiles must ascend", [](Plan& plan) { plan.query.tile_begin.front() = 1; });
  refused("key tiles must ascend", [](Plan& plan) { plan.key.tile_begin.back() += 1; });
  refused("key tiles must ascend", [](Plan& plan) { std::swap(plan.key.tile_begin[1], plan.key.tile_begin[2]); });
  refused("key tile 1 is empty", [](Plan& plan) { plan.key.tile_begin[2] = plan.key.tile_begin[1]; });
  refused("query token 0 is out of range or listed twice", [](Plan& plan) { plan.query.token[0] = plan.query.token.back() = 0; });
  refused("token -1", [](Plan& plan) { plan.query.token[3] = -1; });
  refused("token 45", [](Plan& plan) { plan.key.token[3] = 45; });
  refused("key tiles are not those of canvas 2x4x5", [](Plan& plan) { std::swap(plan.key.token[0], plan.key.token[1]); });
  refused("query tiles are not those of canvas", [](Plan& plan) { plan.query.extra = {3, 2}; });
  refused("no heads", [](Plan& plan) { plan.head_class.clear(); });
  refused("multiple of", [](Plan& plan) { plan.row_of.pop_back(); });
  refused("head class 1 of 1", [](Plan& plan) { plan.head_class = {1}; });
  refused("head class -1", [](Plan& plan) { plan.head_class = {0, -1}; });
  refused("head class 0 of 0", [](Plan& plan) { plan.row_of.clear(); });
  refused("plan: row ", [](Plan& plan) { plan.row_of[2] = plan.rows(); });
  refused("plan: row -1", [](Plan& plan) { plan.row_of[2] = -1; });
  refused("row_begin must ascend", [](Plan& plan) { plan.row_begin.clear(); });
  refused("row_begin must ascend", [](Plan& plan) { plan.row_begin.front() = 1; });
  refused("row_begin must ascend", [](Plan& plan) { plan.row_begin.back() -= 1; });
  refused("row_begin must ascend", [](Plan& plan) { plan.row_begin[1] = plan.row_begin[2] + 1; });
  refused("expected ascending", [](Plan& plan) { plan.key_tile[1] = plan.key_tile[0]; });
  refused("expected ascending", [](Plan& plan) { plan.key_tile[0] = -1; });
  refused("expected ascending", [](Plan& plan) { plan.key_tile[static_cast<size_t>(plan.row_last(0)) - 1] = plan.key.tiles(); });
  refused("masks for", [](Plan& plan) { plan.mask_of.pop_back(); });
  refused("mask -2", [](Plan& plan) { plan.mask_of[0] = -2; });
  refused(" of ", [](Plan& plan) { plan.mask_of[0] = plan.masks(); });
  refused("mask_begin must ascend", [](Plan& plan) { plan.mask_begin.front() = 1; });
  refused("mask_begin must ascend", [](Plan& plan) { plan.mask_words.push_back(0); });
  refused("mask_begin must ascend", [](Plan& plan) { std::swap(plan.mask_begin[1], plan.mask_begin[2]); });
  refused("mask_begin must ascend", [](Plan& plan) {
    plan.mask_begin.clear();
    plan.mask_of.assign(plan.mask_of.size(), -1);
  });
  refused("words, its tiles of", [](Plan& plan) {
    plan.mask_words.push_back(0);
    plan.mask_begin.back() += 1;
  });
  refused("bits past the", [](Plan& plan) {
    for (uint64_t& word : plan.mask_words) word |= uint64_t{1} << 60;
  });
  refused("words, its tiles of", [](Plan& plan) {  // a masked row used by a tile of another size
    const int32_t last = plan.query.grid.tile_count() - 1;
    plan.row_of[static_cast<size_t>(last)] = plan.row_of[0];
  });
}

TEST_CASE("a view says what its plan holds") {
  const Grid grid({3, 4, 5}, {2, 2, 2});
  const Plan plan = clear_plan(grid, 3, {0, 70});
  const PlanView view = view_of(plan);
  CHECK(view.rows == plan.rows());
  CHECK(view.entries == plan.entries());
  CHECK(view.masks == plan.masks());
  CHECK(view.longest_row == plan.key.tiles());
  CHECK(view.query.largest_tile == 64);
  CHECK(view.query.canvas == grid.canvas());
  CHECK(view_of(full_plan(grid)).mask_of == nullptr);
}

}  // namespace
}  // namespace slidetile
