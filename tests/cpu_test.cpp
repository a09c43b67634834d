// What the shared table of problems does not ask of the CPU kernels: every set of this machine against reference/.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "attention_cases.h"
#include "slidetile/kernel.h"
#include "slidetile/window_natten.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<const ForwardKernel*> runnable() {
  std::vector<const ForwardKernel*> kernels;
  for (const ForwardKernel& kernel : cpu_forward_kernels()) {
    if (kernel.unavailable() == nullptr) kernels.push_back(&kernel);
  }
  return kernels;
}

// A problem on a plan of its own, with rows padded in memory: stride of a token is more than head_dim.
struct Strided {
  Plan plan;
  int64_t heads, head_dim;
  DType dtype;
  Guarded q, k, v, out, lse;

  static Guarded rows(DType dtype, int64_t heads, int64_t tokens, int64_t head_dim, int64_t padding) {
    Guarded g = Guarded::make(dtype, {1, heads, tokens, head_dim + padding}, Layout::kBshd);
    g.view.shape[3] = head_dim;
    return g;
  }
  static void fill(const Guarded& g, uint64_t seed, double spread) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal(0, 1);
    for (int64_t h = 0; h < g.view.heads(); ++h) {
      for (int64_t token = 0; token < g.view.tokens(); ++token) {
        for (int64_t d = 0; d < g.view.head_dim(); ++d) {
          store_element(g.view.data, g.view.dtype, h * g.view.strides[1] + token * g.view.strides[2] + d,
                        static_cast<float>(spread * normal(random)));
        }
      }
    }
  }
  Strided(Plan of, int64_t heads_, int64_t head_dim_, DType dtype_, double spread = 1)
      : plan(std::move(of)),
        heads(heads_),
        head_dim(head_dim_),
        dtype(dtype_),
        q(rows(dtype, heads, plan.query.tokens(), head_dim, 3)),
        k(rows(dtype, heads, plan.key.tokens(), head_dim, 5)),
        v(rows(dtype, heads, plan.key.tokens(), head_dim, 1)),
        out(rows(dtype, heads, plan.query.tokens(), head_dim, 2)),
        lse(rows(DType::kF32, heads, plan.query.tokens(), 1, 1)) {
    fill(q, 1, spread);
    fill(k, 2, 1);
    fill(v, 3, 1);
  }
  ForwardArgs args() const {
    return {.q = q.view,
            .k = k.view,
            .v = v.view,
            .out = out.view,
            .lse = lse.view,
            .plan = view_of(plan),
            .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))),
            .executor = &default_executor()};
  }
  // Rows of an output in double, token by token.
  std::vector<double> values(const Guarded& g) const {
    std::vector<double> values;
    for (int64_t h = 0; h < g.view.heads(); ++h) {
      for (int64_t token = 0; token < g.view.tokens(); ++token) {
        for (int64_t d = 0; d < g.view.head_dim(); ++d) {
          values.push_back(load_element(g.view.data, g.view.dtype, h * g.view.strides[1] + token * g.view.strides[2] + d));
        }
      }
    }
    return values;
  }
};

struct Outputs {
  std::vector<double> out, lse;
};

Outputs run(const Strided& p, const ForwardKernel& kernel, const ForwardArgs& args) {
  kernel.run(args);
  return {p.values(p.out), p.values(p.lse)};
}

// Equal up to rounding where finite; elsewhere both not finite.
void check_near(const Outputs& got, const Outputs& want, DType dtype) {
  double error = 0, norm = 0;
  size_t unlike = 0;
  for (size_t i = 0; i < want.out.size(); ++i) {
    if (std::isfinite(want.out[i]) != std::isfinite(got.out[i])) ++unlike;
    if (!std::isfinite(want.out[i]) || !std::isfinite(got.out[i])) continue;
    error += (got.out[i] - want.out[i]) * (got.out[i] - want.out[i]);
    norm += want.out[i] * want.out[i];
  }
  CHECK(unlike == 0);
  CHECK(std::sqrt(error) <= 2 * tolerance(dtype) * std::sqrt(norm));
  for (size_t i = 0; i < want.lse.size(); ++i) {
    if (!std::isfinite(want.lse[i])) {
      CHECK((std::isnan(want.lse[i]) ? std::isnan(got.lse[i]) : got.lse[i] == want.lse[i]));
    } else {
      CHECK(std::abs(got.lse[i] - want.lse[i]) <= 2e-5 * std::max(1.0, std::abs(want.lse[i])));
    }
  }
}

// What lies between the rows of a view is still NaN.
bool padding_untouched(const Guarded& g) {
  for (int64_t row = 0; row < g.view.tokens() * g.view.heads(); ++row) {
    for (int64_t d = g.view.head_dim(); d < g.view.strides[1]; ++d) {
      if (!std::isnan(load_element(g.view.data, g.view.dtype, row * g.view.strides[1] + d))) return false;
    }
  }
  return true;
}

void check_against_reference(const Strided& p, const ForwardArgs& args) {
  const Outputs want = run(p, reference_forward_kernels()[0], args);
  for (const ForwardKernel* kernel : runnable()) {
    CAPTURE(std::string(kernel->name));
    Strided::fill(p.out, 99, 1e3);
    Strided::fill(p.lse, 98, 1e3);
    check_near(run(p, *kernel, args), want, p.dtype);
    CHECK(padding_untouched(p.out));
  }
}

Plan natten(Dim3 canvas, Dim3 tile, Dim3 window) { return natten_plan(Grid(canvas, tile), std::array{NattenWindow{.window = window}}); }

}  // namespace

TEST_CASE("there is a kernel, the portable one at the end") {
  REQUIRE_FALSE(runnable().empty());
  CHECK(std::string(runnable().back()->name) == "cpu.portable");
}

TEST_CASE("every head_dim") {
  const Plan plan = natten({2, 7, 9}, {2, 3, 4}, {2, 3, 5});
  for (int64_t head_dim = 1; head_dim <= 256; head_dim += head_dim < 70 ? 1 : 31) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
      CAPTURE(head_dim);
      const Strided p(plan, 2, head_dim, dtype);
      check_against_reference(p, p.args());
    }
  }
}

TEST_CASE("masks of tiles that fall into several work items") {
  const Strided p(natten({8, 9, 17}, {8, 8, 8}, {5, 3, 7}), 2, 64, DType::kBf16);
  check_against_reference(p, p.args());
  const Strided q(natten({6, 16, 16}, {6, 8, 8}, {3, 5, 5}), 1, 128, DType::kF32);
  check_against_reference(q, q.args());
}

TEST_CASE("a negative scale, large logits and constant ones") {
  const Plan plan = sliding_tile_plan(Grid({4, 9, 9}, {2, 4, 4}), std::array{Window{2, 2, 2}});
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const double spread : {0.0, 1.0, 30.0, 1000.0}) {
      for (const float scale : {0.3f, -0.3f, 1e-30f}) {
        CAPTURE(spread);
        CAPTURE(scale);
        const Strided p(plan, 1, 16, dtype, spread);
        ForwardArgs args = p.args();
        args.scale = scale;
        check_against_reference(p, args);
      }
    }
  }
}

TEST_CASE("inside a tile, NaN and infinity reach only the rows that see them") {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      const Strided p(natten({1, 8, 16}, {1, 8, 8}, {1, 3, 3}), 1, 24, dtype);
      for (const Guarded* g : {&p.k, &p.v}) store_element(g->view.data, dtype, (g == &p.k ? 20 : 77) * g->view.strides[2] + 5, bad);
      check_against_reference(p, p.args());
    }
  }
}

TEST_CASE("a row whose every score is -inf is no number; a row without keys is 0") {
  const Tiling tiling = make_tiling(Grid({1, 1, 6}, {1, 1, 3}));
  PlanBuilder builder(tiling, tiling);
  builder.add_row(std::array<int32_t, 1>{0});
  builder.add_row(std::array<int32_t, 0>{});
  const Strided p(builder.finish({0}), 1, 1, DType::kF32);
  for (int64_t token = 0; token < 6; ++token) {
    store_element(p.q.view.data, DType::kF32, token * p.q.view.strides[2], 1);
    store_element(p.k.view.data, DType::kF32, token * p.k.view.strides[2], -kInfinity);
  }
  for (const ForwardKernel* kernel : runnable()) {
    CAPTURE(std::string(kernel->name));
    const Outputs got = run(p, *kernel, p.args());
    for (size_t token = 0; token < 6; ++token) {
      if (token < 3) CHECK(std::isnan(got.out[token]));
      if (token >= 3) CHECK(got.out[token] == 0);
      if (token >= 3) CHECK(got.lse[token] == -static_cast<double>(kInfinity));
    }
  }
}

TEST_CASE("lengths of queries and keys, where a tiling lists tokens in any order") {
  const auto shuffled = [](int32_t tokens, int32_t tile, uint64_t seed) {
    Tiling tiling{.grid = {}, .extra = {}, .tile_begin = {0}, .token = {}};
    for (int32_t i = 0; i < tokens; ++i) tiling.token.push_back(i);
    std::mt19937_64 random(seed);
    std::shuffle(tiling.token.begin(), tiling.token.end(), random);
    for (int32_t end = tile; end - tile < tokens; end += tile) tiling.tile_begin.push_back(std::min(end, tokens));
    return tiling;
  };
  const Tiling query = shuffled(231, 70, 1), key = shuffled(309, 100, 2);
  PlanBuilder builder(query, key);
  for (int32_t tile = 0; tile < query.tiles(); ++tile) builder.add_row(std::array<int32_t, 3>{0, 2, 3});
  const Plan plan = builder.finish({0});
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const int32_t keys : {309, 200, 3, 0}) {
      const Strided p(plan, 2, 40, dtype);
      for (int64_t token = keys; token < 309; ++token) {
        for (const Guarded* g : {&p.k, &p.v}) {
          for (int64_t h = 0; h < 2; ++h) store_element(g->view.data, dtype, h * g->view.strides[1] + token * g->view.strides[2] + 1, kNan);
        }
      }
      const int32_t queries = 150;
      ForwardArgs args = p.args();
      args.query_lengths = &queries;
      args.key_lengths = &keys;
      check_against_reference(p, args);
    }
  }
}

TEST_CASE("an executor may run tasks in any order, one at a time") {
  struct Backwards final : Executor {
    int workers() const noexcept override { return 3; }
    void run(int64_t count, const Task& task) override {
      for (int64_t i = count; i-- > 0;) task(i, static_cast<int>(i % 3));
    }
  } backwards;
  const Strided p(sliding_tile_plan(Grid({4, 10, 10}, {2, 4, 4}), std::array{Window{2, 2, 2}, Window{1, 3, 1}}), 2, 32, DType::kF16);
  ForwardArgs args = p.args();
  args.executor = &backwards;
  check_against_reference(p, args);
}
