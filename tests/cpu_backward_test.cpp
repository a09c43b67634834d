// What the shared gradient problems do not ask of the CPU kernels: the same bits on any executor, and hidden infinities and NaN.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>

#include "gradient_cases.h"
#include "slidetile/kernel.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr DType kDtypes[] = {DType::kF32, DType::kBf16, DType::kF16};

std::vector<std::string> runnable_kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : backward_kernels(DeviceType::kCpu)) {
    if (kernel.reason.empty()) names.push_back(kernel.name);
  }
  return names;
}

// Promises several workers and runs their tasks one after the other, the last first.
class OneByOne final : public Executor {
 public:
  int workers() const noexcept override { return 4; }
  void run(int64_t count, const Task& task) override {
    for (int64_t i = count - 1; i >= 0; --i) task(i, static_cast<int>(i % workers()));
  }
};

using Bits = std::vector<std::byte>;

Bits bits_of(const GradientProblem& p) {
  Bits bits;
  for (const Guarded* g : {&p.dq, &p.dk, &p.dv}) {
    const auto* from = static_cast<const std::byte*>(g->view.data);
    bits.insert(bits.end(), from, from + g->elements() * size_of(g->view.dtype));
  }
  return bits;
}

void poison(const GradientProblem& p) {
  for (const Guarded* g : {&p.dq, &p.dk, &p.dv}) {
    for (int64_t i = 0; i < g->elements(); ++i) store_element(g->view.data, g->view.dtype, i, kNan);
  }
}

void run_on(const GradientProblem& p, const std::string& kernel, Executor& executor) {
  AttentionOptions options = p.forward.options(kernel);
  options.executor = &executor;
  attention_backward(p.tensors(), view_of(p.forward.plan), view_of(p.transposed), options);
}

}  // namespace

TEST_CASE("gradients have the same bits on any executor") {
  const AttentionCase cases[] = {
      {.name = "heads",
       .batch = 2,
       .heads = 3,
       .head_dim = 40,
       .canvas = {4, 12, 12},
       .tile = {2, 4, 4},
       .windows = {{1, 2, 2}, {2, 3, 1}, {2, 3, 3}},
       .extra = {3, 70},
       .key_lengths = {579, 640}},
      {.name = "many tiles", .heads = 2, .head_dim = 16, .canvas = {6, 10, 10}, .tile = {2, 2, 2}, .windows = {{3, 3, 3}}},
      {.name = "one row of tiles", .head_dim = 64, .canvas = {1, 1, 900}, .tile = {1, 1, 300}, .pattern = Pattern::kFull},
      {.name = "masks", .batch = 2, .heads = 3, .head_dim = 24, .canvas = {4, 9, 9}, .tile = {2, 4, 4}, .pattern = Pattern::kRandom},
  };
  ThreadPool one(1), two(2), three(3), eight(8);
  OneByOne one_by_one;
  Executor* executors[] = {&two, &three, &eight, &one_by_one};
  for (const AttentionCase& c : cases) {
    for (const DType dtype : kDtypes) {
      const GradientProblem p = make_gradient_problem(c, dtype);
      for (const std::string& kernel : runnable_kernels()) {
        CAPTURE(c.name);
        CAPTURE(kernel);
        CAPTURE(to_string(dtype));
        run_on(p, kernel, one);
        const Bits want = bits_of(p);
        for (Executor* executor : executors) {
          poison(p);
          run_on(p, kernel, *executor);
          CHECK(bits_of(p) == want);
        }
      }
    }
  }
}

TEST_CASE("gradients with a negative scale") {
  const AttentionCase c{.name = "negative", .head_dim = 24, .canvas = {2, 6, 7}, .tile = {2, 4, 4}, .windows = {{1, 2, 1}}};
  for (const std::string& kernel : runnable_kernels()) {
    CAPTURE(kernel);
    const GradientProblem p = make_gradient_problem(c, DType::kF32), e = make_gradient_problem(c, DType::kF32);
    const auto run = [](const GradientProblem& problem, std::string_view name) {
      AttentionOptions options = problem.forward.options("reference");
      options.scale = -0.3f;
      attention_forward(problem.forward.tensors(), problem.forward.plan, options);
      options.kernel = name;
      attention_backward(problem.tensors(), view_of(problem.forward.plan), view_of(problem.transposed), options);
    };
    run(p, kernel);
    run(e, "reference");
    CHECK(relative_difference(p.dq.view, e.dq.view) < 1e-5);
    CHECK(relative_difference(p.dk.view, e.dk.view) < 1e-5);
    CHECK(relative_difference(p.dv.view, e.dv.view) < 1e-5);
  }
}

// Two groups of tokens in one tile that do not see each other: what is not finite in one does not reach the other.
TEST_CASE("infinities and NaN of hidden pairs reach no gradient") {
  constexpr int32_t kTokens = 90, kFirst = 37;
  const Tiling tiling = make_tiling(Grid({1, 1, kTokens}, {1, 1, kTokens}));
  std::vector<uint64_t> words(size_t{kTokens} * 2);
  for (int32_t q = 0; q < kTokens; ++q) {
    for (int32_t k = 0; k < kTokens; ++k) words[static_cast<size_t>(q * 2 + k / 64)] |= uint64_t{(q < kFirst) == (k < kFirst)} << (k % 64);
  }
  PlanBuilder builder(tiling, tiling);
  const int32_t tile = 0, mask = builder.add_mask(kTokens, kTokens, words);
  builder.add_row({&tile, 1}, {&mask, 1});
  const Plan plan = builder.finish({0});
  const AttentionCase c{.name = "groups", .head_dim = 40, .canvas = {1, 1, kTokens}, .tile = {1, 1, kTokens}, .windows = {{1, 1, 1}}};
  for (const DType dtype : kDtypes) {
    for (const std::string& kernel : runnable_kernels()) {
      CAPTURE(kernel);
      CAPTURE(to_string(dtype));
      for (const float planted : {kNan, kInfinity}) {
        GradientProblem clean = make_gradient_problem(c, dtype), spoilt = make_gradient_problem(c, dtype);
        for (GradientProblem* p : {&clean, &spoilt}) {
          p->forward.plan = plan;
          p->transposed = transpose(plan);
        }
        const BackwardTensors t = spoilt.tensors();
        for (const TensorView& view : {t.q, t.k, t.v, t.dout}) store_element(view.data, dtype, 5 * view.strides[2] + 3, planted);
        for (const GradientProblem* p : {&clean, &spoilt}) {
          attention_forward(p->forward.tensors(), p->forward.plan, p->forward.options("reference"));
          run_backward(*p, kernel);
        }
        const auto second_group = [&](TensorView view) {
          view.data = static_cast<char*>(view.data) + kFirst * view.strides[2] * size_of(dtype);
          view.shape[2] -= kFirst;
          return view;
        };
        const double tolerance = gradient_tolerance(dtype);
        CHECK(relative_difference(second_group(spoilt.dq.view), second_group(clean.dq.view)) <= tolerance);
        CHECK(relative_difference(second_group(spoilt.dk.view), second_group(clean.dk.view)) <= tolerance);
        CHECK(relative_difference(second_group(spoilt.dv.view), second_group(clean.dv.view)) <= tolerance);
        CHECK(std::isnan(load_element(spoilt.dq.view.data, dtype, 0)));
      }
    }
  }
}

TEST_CASE("keys that no query reads, and rows past the length, have gradients 0") {
  AttentionCase c{
      .name = "unread", .batch = 2, .head_dim = 16, .canvas = {1, 1, 64}, .tile = {1, 1, 16}, .windows = {{1, 1, 1}}, .extra = {0, 20}};
  c.key_lengths = {64, 70};
  for (const std::string& kernel : runnable_kernels()) {
    CAPTURE(kernel);
    GradientProblem p = make_gradient_problem(c, DType::kF32);
    const Tiling tiling = p.forward.plan.query;
    PlanBuilder builder(tiling, tiling);
    for (int32_t tile = 0; tile < tiling.tiles(); ++tile) {
      const std::array<int32_t, 2> keys{0, 2};
      builder.add_row(keys);
    }
    p.forward.plan = builder.finish({0});
    p.transposed = transpose(p.forward.plan);
    attention_forward(p.forward.tensors(), p.forward.plan, p.forward.options("reference"));
    run_backward(p, kernel);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t token = 0; token < 84; ++token) {
        const bool read = token < 16 || (token >= 32 && token < 48), used = token < c.key_lengths[static_cast<size_t>(b)];
        for (int64_t d = 0; d < 16; ++d) {
          const int64_t at = (b * 84 + token) * 16 + d;
          CHECK((p.dq.view.data != nullptr && (load_element(p.dq.view.data, DType::kF32, at) != 0) == used));
          CHECK((load_element(p.dk.view.data, DType::kF32, at) != 0) == read);
          CHECK((load_element(p.dv.view.data, DType::kF32, at) != 0) == read);
        }
      }
    }
  }
}
