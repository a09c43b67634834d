// The attention problems that every kernel is tested on, against reference/: a table of named ones and a source of random ones.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "slidetile/attention.h"
#include "slidetile/window.h"

namespace slidetile::test {

/// Sanitized and emulated builds are several times slower: they take every seventh problem.
#ifdef SLIDETILE_SLOW_BUILD
inline bool takes_part(uint64_t number) { return number % 7 == 0; }
#else
inline bool takes_part(uint64_t) { return true; }
#endif

enum class Pattern {
  kSlidingTile,
  kFull,
  kRandom,  // random lists and token masks, rows without keys
  kLists,   // random lists without masks
};

struct AttentionCase {
  std::string name;
  int64_t batch = 1, heads = 1, head_dim = 64;
  Dim3 canvas{4, 8, 8}, tile{2, 4, 4};
  std::vector<Window> windows{{3, 3, 3}};  // one for all heads, or one per head
  ExtraTokens extra;
  std::vector<int32_t> key_lengths;  // empty or [batch]
  Layout layout = Layout::kBhsd;
  Pattern pattern = Pattern::kSlidingTile;
  Dim3 key_canvas{0, 0, 0};  // other than 0x0x0: queries and keys differ (kRandom and kLists only)
  double logit_scale = 1;    // spread of q: large ones make the softmax one-hot
};

inline std::vector<AttentionCase> attention_cases() {
  const Window w3{3, 3, 3};
  return {
      {.name = "one_token", .head_dim = 8, .canvas = {1, 1, 1}, .tile = {1, 1, 1}, .windows = {{1, 1, 1}}},
      {.name = "one_tile", .head_dim = 64, .canvas = {4, 4, 4}, .tile = {4, 4, 4}, .windows = {{1, 1, 1}}},
      {.name = "video", .heads = 2, .head_dim = 128, .canvas = {6, 16, 24}, .tile = {6, 8, 8}, .windows = {{1, 1, 2}}},
      {.name = "video_bshd",
       .heads = 2,
       .head_dim = 128,
       .canvas = {12, 8, 16},
       .tile = {6, 8, 8},
       .windows = {{2, 1, 1}},
       .layout = Layout::kBshd},
      {.name = "windows_per_head",
       .heads = 4,
       .head_dim = 64,
       .canvas = {8, 8, 16},
       .tile = {4, 4, 4},
       .windows = {{1, 1, 1}, {2, 2, 4}, {1, 2, 1}, {2, 1, 4}}},
      {.name = "partial_tiles", .heads = 2, .head_dim = 128, .canvas = {7, 13, 19}, .tile = {6, 8, 8}, .windows = {{1, 2, 2}}},
      {.name = "text_after",
       .heads = 2,
       .head_dim = 128,
       .canvas = {6, 16, 16},
       .tile = {6, 8, 8},
       .windows = {{1, 1, 1}},
       .extra = {0, 77}},
      {.name = "text_before",
       .heads = 2,
       .head_dim = 64,
       .canvas = {1, 20, 20},
       .tile = {1, 8, 8},
       .windows = {{1, 2, 2}},
       .extra = {33, 0}},
      {.name = "text_both_lengths",
       .batch = 3,
       .heads = 2,
       .head_dim = 64,
       .canvas = {4, 6, 10},
       .tile = {2, 4, 4},
       .windows = {{1, 1, 2}},
       .extra = {5, 70},
       .key_lengths = {245, 246, 315},
       .layout = Layout::kBshd},
      {.name = "image", .heads = 2, .head_dim = 64, .canvas = {1, 32, 48}, .tile = {1, 16, 16}, .windows = {{1, 1, 3}}},
      {.name = "line", .head_dim = 32, .canvas = {1, 1, 300}, .tile = {1, 1, 64}, .windows = {{1, 1, 3}}},
      {.name = "tile_444", .heads = 2, .head_dim = 64, .canvas = {8, 12, 12}, .tile = {4, 4, 4}, .windows = {w3}},
      {.name = "tile_odd", .heads = 2, .head_dim = 64, .canvas = {9, 10, 11}, .tile = {3, 5, 7}, .windows = {{2, 2, 1}}},
      {.name = "tile_888", .head_dim = 128, .canvas = {8, 8, 16}, .tile = {8, 8, 8}, .windows = {{1, 1, 2}}},
      {.name = "tile_488", .head_dim = 64, .canvas = {8, 16, 16}, .tile = {4, 8, 8}, .windows = {{1, 2, 2}}},
      {.name = "dense", .heads = 2, .head_dim = 128, .canvas = {4, 10, 12}, .tile = {2, 8, 8}, .extra = {0, 9}, .pattern = Pattern::kFull},
      {.name = "head_dim_1", .head_dim = 1},
      {.name = "head_dim_12", .heads = 2, .head_dim = 12},
      {.name = "head_dim_80", .heads = 2, .head_dim = 80},
      {.name = "head_dim_96_bshd", .heads = 2, .head_dim = 96, .layout = Layout::kBshd},
      {.name = "head_dim_256", .head_dim = 256},
      {.name = "random_masks", .batch = 2, .heads = 3, .head_dim = 64, .canvas = {4, 9, 9}, .tile = {2, 4, 4}, .pattern = Pattern::kRandom},
      {.name = "random_masks_128", .heads = 2, .head_dim = 128, .canvas = {6, 16, 16}, .tile = {6, 8, 8}, .pattern = Pattern::kRandom},
      {.name = "cross",
       .heads = 2,
       .head_dim = 64,
       .canvas = {3, 8, 8},
       .tile = {3, 4, 4},
       .pattern = Pattern::kRandom,
       .key_canvas = {5, 7, 9}},
      {.name = "lists", .batch = 2, .heads = 3, .head_dim = 64, .canvas = {4, 9, 9}, .tile = {2, 4, 4}, .pattern = Pattern::kLists},
      {.name = "lists_text",
       .batch = 2,
       .heads = 2,
       .head_dim = 128,
       .canvas = {6, 16, 24},
       .tile = {6, 8, 8},
       .extra = {4, 70},
       .key_lengths = {2308, 2350},
       .layout = Layout::kBshd,
       .pattern = Pattern::kLists},
      {.name = "lists_cross",
       .heads = 2,
       .head_dim = 128,
       .canvas = {6, 16, 16},
       .tile = {6, 8, 8},
       .pattern = Pattern::kLists,
       .key_canvas = {7, 9, 20}},
      {.name = "lists_cross_64",
       .heads = 2,
       .head_dim = 64,
       .canvas = {5, 7, 9},
       .tile = {4, 4, 4},
       .layout = Layout::kBshd,
       .pattern = Pattern::kLists,
       .key_canvas = {3, 8, 8}},
      {.name = "one_hot", .heads = 2, .head_dim = 64, .canvas = {4, 8, 8}, .tile = {2, 4, 4}, .logit_scale = 60},
      {.name = "equal_logits",
       .heads = 2,
       .head_dim = 128,
       .canvas = {6, 8, 16},
       .tile = {6, 8, 8},
       .windows = {{1, 1, 2}},
       .logit_scale = 0},
  };
}

/// A random problem; the same for the same seed.
inline AttentionCase random_case(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  };
  const auto extent = [&](int64_t low, int64_t high) {
    return static_cast<int32_t>(pick(low, high));
  };
  constexpr int64_t kHeadDims[] = {8, 16, 32, 40, 64, 64, 64, 72, 128, 128, 128, 160};
  AttentionCase c{.name = "random_" + std::to_string(seed), .batch = pick(1, 2), .heads = pick(1, 3), .head_dim = kHeadDims[pick(0, 11)]};
  c.canvas = {extent(1, 9), extent(1, 20), extent(1, 24)};
  c.tile = {extent(1, std::min(c.canvas.t, 6)), extent(1, std::min(c.canvas.h, 9)), extent(1, std::min(c.canvas.w, 9))};
  if (pick(0, 3) == 0) c.tile = {std::min(c.canvas.t, 6), std::min(c.canvas.h, 8), std::min(c.canvas.w, 8)};
  // Tiny tiles make many of them: keep the lists short.
  while (Grid(c.canvas, c.tile).tile_count() > 400)
    c.canvas = {(c.canvas.t + 1) / 2, (c.canvas.h + 1) / 2, (c.canvas.w + 1) / 2},
    c.tile = {std::min(c.tile.t, c.canvas.t), std::min(c.tile.h, c.canvas.h), std::min(c.tile.w, c.canvas.w)};
  c.windows.clear();
  const int64_t windows = pick(0, 1) == 0 ? 1 : c.heads;
  for (int64_t i = 0; i < windows; ++i) c.windows.push_back({extent(1, 4), extent(1, 4), extent(1, 4)});
  if (pick(0, 1) == 0) c.extra = {pick(0, 1) * pick(0, 40), pick(0, 100)};
  c.layout = pick(0, 1) == 0 ? Layout::kBhsd : Layout::kBshd;
  if (pick(0, 7) == 0) c.pattern = Pattern::kFull;
  if (pick(0, 3) == 0) c.pattern = Pattern::kRandom;
  if (c.pattern == Pattern::kRandom && pick(0, 2) == 0) c.pattern = Pattern::kLists;
  const bool random_lists = c.pattern == Pattern::kRandom || c.pattern == Pattern::kLists;
  if (!random_lists && pick(0, 1) == 0) {
    const int64_t least = c.canvas.volume() + c.extra.before;
    for (int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(static_cast<int32_t>(least + pick(0, c.extra.after)));
  }
  if (random_lists && pick(0, 2) == 0) c.key_canvas = {extent(1, 6), extent(1, 12), extent(1, 12)};
  if (pick(0, 9) == 0) c.logit_scale = 40;
  return c;
}

inline Plan random_plan(const AttentionCase& c) {
  std::mt19937_64 random(c.canvas.volume() * 31 + c.tile.volume());
  const bool cross = c.key_canvas.volume() > 0;
  const Dim3 keys = cross ? c.key_canvas : c.canvas;
  const Grid key_grid(keys, {std::min(c.tile.t, keys.t), std::min(c.tile.h, keys.h), std::min(c.tile.w, keys.w)});
  const Tiling query = make_tiling(Grid(c.canvas, c.tile), c.extra), key = make_tiling(key_grid, cross ? ExtraTokens{} : c.extra);
  PlanBuilder builder(query, key);
  std::vector<int32_t> head_class;
  for (int64_t head = 0; head < c.heads; ++head) head_class.push_back(static_cast<int32_t>(head % 2));
  for (int64_t one_class = 0; one_class < std::min<int64_t>(c.heads, 2); ++one_class) {
    for (int32_t tile = 0; tile < query.tiles(); ++tile) {
      std::vector<int32_t> tiles, masks;
      const bool empty_row = random() % 5 == 0;
      for (int32_t k = 0; k < key.tiles() && !empty_row; ++k) {
        if (random() % 2 == 0) continue;
        tiles.push_back(k);
        const int32_t query_size = query.tile_size(tile), key_size = key.tile_size(k), row_words = (key_size + 63) / 64;
        if (c.pattern == Pattern::kLists || random() % 2 == 0) {
          masks.push_back(-1);
          continue;
        }
        std::vector<uint64_t> words(static_cast<size_t>(query_size) * row_words);
        for (int32_t q = 0; q < query_size; ++q) {
          const uint64_t kind = random() % 4;  // no key, some keys, all keys
          for (int32_t i = 0; i < key_size; ++i) {
            const bool seen = kind == 0 ? false : kind == 1 ? true : random() % 3 == 0;
            words[static_cast<size_t>(q * row_words + i / 64)] |= uint64_t{seen} << (i % 64);
          }
        }
        masks.push_back(builder.add_mask(query_size, key_size, words));
      }
      builder.add_row(tiles, masks);
    }
  }
  return builder.finish(head_class);
}

inline Plan make_plan(const AttentionCase& c) {
  if (c.pattern == Pattern::kRandom || c.pattern == Pattern::kLists) return random_plan(c);
  const Grid grid(c.canvas, c.tile);
  return c.pattern == Pattern::kFull ? full_plan(grid, c.extra) : sliding_tile_plan(grid, c.windows, c.extra);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// A tensor inside a larger buffer whose other elements are NaN: what reads or writes outside the view shows.
struct Guarded {
  std::vector<uint8_t> memory;
  TensorView view;

  static constexpr int64_t kMargin = 64;  // elements on either side; keeps 16-byte alignment

  static Guarded make(DType dtype, std::array<int64_t, 4> shape, Layout layout) {
    Guarded g;
    const int64_t elements = shape[0] * shape[1] * shape[2] * shape[3];
    g.memory.resize(static_cast<size_t>((elements + 2 * kMargin) * size_of(dtype) + 64));
    const auto base = reinterpret_cast<uintptr_t>(g.memory.data());
    auto* first = g.memory.data() + ((64 - base % 64) % 64);
    for (int64_t i = 0; i < elements + 2 * kMargin; ++i) store_element(first, dtype, i, kNan);
    g.view = view_of(first + kMargin * size_of(dtype), dtype, shape, layout);
    return g;
  }
  int64_t elements() const { return view.shape[0] * view.shape[1] * view.shape[2] * view.shape[3]; }
  /// True if everything around the view is still NaN.
  bool guards_hold() const {
    const auto* first = static_cast<const uint8_t*>(view.data) - kMargin * size_of(view.dtype);
    for (int64_t i = 0; i < kMargin; ++i) {
      if (!std::isnan(load_element(first, view.dtype, i)) || !std::isnan(load_element(first, view.dtype, kMargin + elements() + i)))
        return false;
    }
    return true;
  }
  Guarded(Guarded&&) = default;
  Guarded& operator=(Guarded&&) = default;

 private:
  Guarded() = default;
};

/// Tensors of a case: random inputs, poisoned outputs. Tokens past key_lengths hold NaN in k and v.
struct Problem {
  AttentionCase c;
  Plan plan;
  Guarded q, k, v, out, lse;

  ForwardTensors tensors() const { return {q.view, k.view, v.view, out.view, lse.view}; }
  AttentionOptions options(std::string_view kernel = {}) const { return {.scale = 0, .key_lengths = c.key_lengths, .kernel = kernel}; }
};

inline void fill_normal(const Guarded& g, uint64_t seed, double spread) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, 1);
  for (int64_t i = 0; i < g.elements(); ++i) store_element(g.view.data, g.view.dtype, i, static_cast<float>(spread * normal(random)));
}

inline Problem make_problem(const AttentionCase& c, DType dtype, uint64_t seed = 1) {
  Plan plan = make_plan(c);
  const std::array<int64_t, 4> queries{c.batch, c.heads, plan.query.tokens(), c.head_dim},
      keys{c.batch, c.heads, plan.key.tokens(), c.head_dim};
  Problem p{.c = c,
            .plan = std::move(plan),
            .q = Guarded::make(dtype, queries, c.layout),
            .k = Guarded::make(dtype, keys, c.layout),
            .v = Guarded::make(dtype, keys, c.layout),
            .out = Guarded::make(dtype, queries, c.layout),
            .lse = Guarded::make(DType::kF32, {c.batch, c.heads, queries[2], 1}, Layout::kBhsd)};
  fill_normal(p.q, seed * 3 + 1, c.logit_scale);
  fill_normal(p.k, seed * 3 + 2, 1);
  fill_normal(p.v, seed * 3 + 3, 1);
  for (size_t b = 0; b < c.key_lengths.size(); ++b) {
    for (const TensorView& view : {p.k.view, p.v.view}) {
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t token = c.key_lengths[b]; token < keys[2]; ++token) {
          const int64_t offset = static_cast<int64_t>(b) * view.strides[0] + h * view.strides[1] + token * view.strides[2];
          for (int64_t d = 0; d < c.head_dim; ++d) store_element(view.data, view.dtype, offset + d, kNan);
        }
      }
    }
  }
  return p;
}

/// What a result is off by. relative is ||got - want|| / ||want||; lse is the largest difference, infinite where only one is -inf.
struct Difference {
  double relative = 0, lse = 0;
};

inline double relative_difference(const TensorView& got, const TensorView& want) {
  double error = 0, norm = 0;
  for (int64_t b = 0; b < want.batch(); ++b) {
    for (int64_t h = 0; h < want.heads(); ++h) {
      for (int64_t token = 0; token < want.tokens(); ++token) {
        const int64_t at = b * got.strides[0] + h * got.strides[1] + token * got.strides[2];
        const int64_t from = b * want.strides[0] + h * want.strides[1] + token * want.strides[2];
        for (int64_t d = 0; d < want.head_dim(); ++d) {
          const double a = load_element(got.data, got.dtype, at + d), e = load_element(want.data, want.dtype, from + d);
          error += (a - e) * (a - e);
          norm += e * e;
        }
      }
    }
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

inline double largest_lse_difference(const TensorView& got, const TensorView& want) {
  double largest = 0;
  for (int64_t i = 0; i < want.batch() * want.heads() * want.tokens(); ++i) {  // both contiguous
    const double a = static_cast<const float*>(got.data)[i], e = static_cast<const float*>(want.data)[i];
    const double difference = a == e ? 0 : std::abs(a - e);
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

/// The case in double precision from the same rounded inputs: out and lse as f32.
struct Expected {
  Guarded out, lse;
};

inline Expected reference_of(const Problem& p) {
  const auto as_f32 = [](const TensorView& view, Layout layout) {
    Guarded g = Guarded::make(DType::kF32, view.shape, layout);
    for (int64_t i = 0; i < g.elements(); ++i) store_element(g.view.data, DType::kF32, i, load_element(view.data, view.dtype, i));
    return g;
  };
  const Guarded q = as_f32(p.q.view, p.c.layout), k = as_f32(p.k.view, p.c.layout), v = as_f32(p.v.view, p.c.layout);
  Expected e{Guarded::make(DType::kF32, p.q.view.shape, p.c.layout), Guarded::make(DType::kF32, p.lse.view.shape, Layout::kBhsd)};
  attention_forward({q.view, k.view, v.view, e.out.view, e.lse.view}, p.plan, p.options("reference"));
  return e;
}

inline Difference difference(const Problem& p, const Expected& e) {
  return {relative_difference(p.out.view, e.out.view), largest_lse_difference(p.lse.view, e.lse.view)};
}

/// Largest acceptable relative error of out. bf16 rounds the weights and the result to 8 bits, f16 to 11.
inline double tolerance(DType dtype) { return dtype == DType::kF32 ? 5e-6 : dtype == DType::kBf16 ? 4e-3 : 1e-3; }
/// Of lse: logits are sums of exact products in f32.
inline double lse_tolerance(const AttentionCase& c) { return 2e-5 * std::max(1.0, c.logit_scale); }

}  // namespace slidetile::test
