#include "bench/cases.h"

#include <algorithm>
#include <array>

#include "slidetile/error.h"
#include "slidetile/parallel.h"
#include "slidetile/window.h"
#include "slidetile/window_natten.h"

namespace slidetile::bench {
namespace {

constexpr Dim3 kHunyuan{30, 48, 80}, kCube{3, 3, 3};
constexpr ExtraTokens kNoText{}, kHunyuanText{0, 256};

// The windows that the mask search for HunyuanVideo gave the heads of its sparse steps, with how often it chose each, in 24.
struct SearchedWindow {
  Window window;
  int64_t heads;
};
constexpr std::array<SearchedWindow, 5> kSearched{{{{5, 3, 3}, 10}, {{1, 6, 10}, 7}, {{3, 3, 5}, 4}, {{5, 1, 10}, 2}, {{5, 6, 1}, 1}}};

// One of how many query tiles a quick run keeps: `every` on two threads, less on more, so that the threads' last items, which do not end
// together, stay a small part of what is timed.
int32_t quick_part(int32_t every) { return std::max(1, every * 2 / default_executor().workers()); }

Plan sliding(Dim3 canvas, Dim3 tile, Window window) { return sliding_tile_plan(Grid(canvas, tile), std::array{window}, kNoText); }

std::vector<Window> searched_windows(Extent extent) {
  std::vector<Window> windows;
  for (const SearchedWindow& searched : kSearched)
    windows.insert(windows.end(), extent == Extent::kFull ? searched.heads : 1, searched.window);
  return windows;
}

BenchCase sta(Extent extent) {
  const bool full = extent == Extent::kFull;
  return {.name = "sta",
          .title = "30x48x80, tile 6x8x8, window 3x3x3",
          .heads = full ? 2 : 1,
          .model_heads = 24,
          .plan = sliding(kHunyuan, kDefaultTile, kCube),
          .every = full ? 1 : quick_part(4),
          .dense_every = full ? 1 : quick_part(12)};
}

BenchCase sta_f32(Extent extent) {
  BenchCase c = sta(extent);
  c.name = "sta_f32";
  c.dtype = DType::kF32;
  c.dense_every = 0;
  return c;
}

BenchCase sta_backward(Extent extent) {
  BenchCase c = sta(extent);
  c.name = "sta_backward";
  c.title += ", gradients";
  c.pass = Pass::kBackward;
  c.heads = 1;
  c.dense_every = 0;
  return c;
}

BenchCase sta_backward_f32(Extent extent) {
  BenchCase c = sta_backward(extent);
  c.name = "sta_backward_f32";
  c.dtype = DType::kF32;
  return c;
}

BenchCase dense(Extent extent) {
  const Dim3 canvas = extent == Extent::kFull ? kHunyuan : Dim3{6, 48, 80};
  return {.name = "dense",
          .title = to_string(canvas) + ", tile 6x8x8, all keys",
          .model_heads = 24,
          .plan = full_plan(Grid(canvas, kDefaultTile))};
}

BenchCase wan(Extent extent) {
  return {.name = "wan",
          .title = "21x30x52 (divides by nothing), tile 6x8x8, window 3x3x3",
          .heads = extent == Extent::kFull ? 12 : 1,
          .model_heads = 12,
          .plan = sliding({21, 30, 52}, kDefaultTile, kCube)};
}

BenchCase hunyuan(Extent extent) {
  const std::vector<Window> windows = searched_windows(extent);
  return {.name = "hunyuan",
          .title = "33x45x80 and 256 text tokens, tile 6x8x8, the strategy's 5 windows",
          .heads = static_cast<int64_t>(windows.size()),
          .model_heads = 24,
          .plan = sliding_tile_plan(Grid({33, 45, 80}, kDefaultTile), windows, kHunyuanText),
          .every = extent == Extent::kFull ? 1 : quick_part(24)};
}

BenchCase head_dim_64(Extent) {
  return {.name = "head_dim_64",
          .title = "8x32x32, tile 4x4x4, window 3x3x3, head_dim 64",
          .heads = 24,
          .model_heads = 24,
          .head_dim = 64,
          .plan = sliding({8, 32, 32}, {4, 4, 4}, kCube),
          .every_kernel = true};
}

BenchCase natten(Extent extent) {
  const Grid grid({48, 48, 48}, {4, 4, 4});
  return {.name = "natten",
          .title = "48x48x48, tile 4x4x4, NATTEN 11x11x11 stride 1, visible pairs only",
          .heads = extent == Extent::kFull ? 4 : 1,
          .model_heads = 24,
          .plan = natten_plan(grid, std::array{NattenWindow{.window = {11, 11, 11}}})};
}

using Make = BenchCase (*)(Extent);
constexpr std::pair<const char*, Make> kCases[] = {
    {"sta", sta},       {"sta_f32", sta_f32},           {"dense", dense},
    {"wan", wan},       {"hunyuan", hunyuan},           {"head_dim_64", head_dim_64},
    {"natten", natten}, {"sta_backward", sta_backward}, {"sta_backward_f32", sta_backward_f32}};

}  // namespace

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : kCases) names.emplace_back(name);
  return names;
}

BenchCase make_case(const std::string& name, Extent extent) {
  std::string known;
  for (const auto& [known_name, make] : kCases) {
    if (name == known_name) return make(extent);
    known += (known.empty() ? "" : ", ") + std::string(known_name);
  }
  fail(ErrorCode::kInvalidArgument, "bench: no case is named '", name, "', expected one of ", known);
}

Plan part_of(const Plan& plan, int32_t every) {
  if (every == 1) return plan;
  Plan part = plan;
  const int32_t empty = part.rows(), tiles = part.query.tiles();
  part.row_begin.push_back(part.entries());
  for (size_t i = 0; i < part.row_of.size(); ++i) {
    const auto tile = static_cast<int32_t>(i % static_cast<size_t>(tiles));
    if (every == 0 || tile % every != std::min(every, tiles) / 2) part.row_of[i] = empty;
  }
  return part;
}

}  // namespace slidetile::bench
