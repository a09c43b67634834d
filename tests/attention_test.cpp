// Every CPU kernel that this machine can run, on the shared problems, against reference/; and the checks at the public boundary.
#include "slidetile/attention.h"

#include <doctest/doctest.h>

#include "attention_cases.h"
#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr DType kDtypes[] = {DType::kF32, DType::kBf16, DType::kF16};
constexpr uint64_t kRandomProblems = 200;

std::vector<std::string> runnable_kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : forward_kernels(DeviceType::kCpu)) {
    if (kernel.reason.empty()) names.push_back(kernel.name);
  }
  return names;
}

void check_case(const AttentionCase& c, DType dtype) {
  const Problem reference_problem = make_problem(c, dtype);
  const Expected expected = reference_of(reference_problem);
  for (const std::string& kernel : runnable_kernels()) {
    CAPTURE(c.name);
    CAPTURE(kernel);
    CAPTURE(to_string(dtype));
    const Problem p = make_problem(c, dtype);
    attention_forward(p.tensors(), p.plan, p.options(kernel));
    const Difference d = difference(p, expected);
    CHECK(d.relative <= tolerance(dtype));
    CHECK(d.lse <= lse_tolerance(c));
    CHECK(p.out.guards_hold());
    CHECK(p.lse.guards_hold());
  }
}

}  // namespace

TEST_CASE("named problems") {
  uint64_t number = 0;
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : kDtypes) {
      if (takes_part(number++)) check_case(c, dtype);
    }
  }
}

TEST_CASE("random problems") {
  for (uint64_t seed = 1; seed <= kRandomProblems; ++seed) {
    if (takes_part(seed)) check_case(random_case(seed), kDtypes[seed % 3]);
  }
}

TEST_CASE("the same bits for any number of threads") {
  ThreadPool one(1), three(3);
  for (const std::string& kernel : runnable_kernels()) {
    for (const AttentionCase& c : {random_case(7), random_case(11), random_case(23)}) {
      const Problem a = make_problem(c, DType::kBf16), b = make_problem(c, DType::kBf16);
      AttentionOptions options = a.options(kernel);
      options.executor = &one;
      attention_forward(a.tensors(), a.plan, options);
      options = b.options(kernel);
      options.executor = &three;
      attention_forward(b.tensors(), b.plan, options);
      CHECK(std::memcmp(a.out.view.data, b.out.view.data, static_cast<size_t>(a.out.elements() * 2)) == 0);
      CHECK(std::memcmp(a.lse.view.data, b.lse.view.data, static_cast<size_t>(a.lse.elements() * 4)) == 0);
    }
  }
}

TEST_CASE("NaN and infinity reach only the rows that see them") {
  const AttentionCase c{.name = "nan", .heads = 1, .head_dim = 64, .canvas = {1, 16, 64}, .tile = {1, 8, 8}, .windows = {{1, 1, 1}}};
  for (const std::string& kernel : runnable_kernels()) {
    for (const float bad : {kNan, std::numeric_limits<float>::infinity()}) {
      const Problem clean = make_problem(c, DType::kF32), p = make_problem(c, DType::kF32);
      attention_forward(clean.tensors(), clean.plan, clean.options(kernel));
      store_element(p.k.view.data, DType::kF32, 0, bad);
      store_element(p.v.view.data, DType::kF32, 3, bad);
      attention_forward(p.tensors(), p.plan, p.options(kernel));
      for (int64_t token = 0; token < p.q.view.tokens(); ++token) {
        const bool sees = token / 64 < 8 && token % 64 < 8;  // token 0 is in the first tile
        CAPTURE(kernel);
        CAPTURE(token);
        const float got = load_element(p.out.view.data, DType::kF32, token * 64 + 3);
        if (sees) CHECK_FALSE(std::isfinite(got));
        if (!sees) CHECK(got == load_element(clean.out.view.data, DType::kF32, token * 64 + 3));
      }
    }
  }
}

TEST_CASE("lse is optional, and the default kernel is the first that can run") {
  const Problem p = make_problem(random_case(3), DType::kF32);
  const Expected expected = reference_of(p);
  ForwardTensors tensors = p.tensors();
  tensors.lse = {};
  if (runnable_kernels().empty()) return;
  attention_forward(tensors, p.plan, p.options());
  CHECK(relative_difference(p.out.view, expected.out.view) <= tolerance(DType::kF32));
}

TEST_CASE("two halves of the keys merge to the whole") {
  const Grid grid({4, 8, 8}, {2, 4, 4});
  const AttentionCase c{
      .name = "merge", .batch = 2, .heads = 2, .head_dim = 32, .canvas = grid.canvas(), .tile = grid.tile(), .pattern = Pattern::kFull};
  const Problem p = make_problem(c, DType::kF32);
  const Tiling tiling = make_tiling(grid);
  const auto half = [&](int32_t first, int32_t last) {
    PlanBuilder builder(tiling, tiling);
    std::vector<int32_t> tiles;
    for (int32_t tile = first; tile < last; ++tile) tiles.push_back(tile);
    for (int32_t tile = 0; tile < tiling.tiles(); ++tile) builder.add_row(tile == 3 ? std::vector<int32_t>{} : tiles);
    return builder.finish({0});
  };
  const Plan first = half(0, 3), second = half(3, tiling.tiles());
  const Problem a = make_problem(c, DType::kF32), b = make_problem(c, DType::kF32);
  attention_forward(a.tensors(), first, a.options("reference"));
  attention_forward(b.tensors(), second, b.options("reference"));
  attention_forward(p.tensors(), p.plan, p.options("reference"));
  merge({a.out.view, a.lse.view}, {b.out.view, b.lse.view});
  for (int64_t b_index = 0; b_index < 2; ++b_index) {
    for (int64_t token = 0; token < tiling.tokens(); ++token) {
      const bool empty = std::find(tiling.token.begin() + tiling.tile_begin[3], tiling.token.begin() + tiling.tile_begin[4], token) !=
                         tiling.token.begin() + tiling.tile_begin[4];
      const int64_t at = b_index * p.out.view.strides[0] + token * p.out.view.strides[2];
      const float want = empty ? 0 : load_element(p.out.view.data, DType::kF32, at);
      CHECK(load_element(a.out.view.data, DType::kF32, at) == doctest::Approx(want).epsilon(1e-5));
    }
  }
}

TEST_CASE("what does not fit is refused, with the value and what was expected") {
  const Problem p = make_problem({.name = "bad", .heads = 2, .head_dim = 64, .extra = {0, 10}}, DType::kF32);
  const auto refused = [&](ForwardTensors tensors, const std::string& message, AttentionOptions options = {}) {
    options.kernel = options.kernel.empty() ? "reference" : options.kernel;
    try {
      attention_forward(tensors, p.plan, options);
      FAIL("accepted, expected: ", message);
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find(message) != std::string::npos);
      CAPTURE(error.what());
      CHECK_MESSAGE(std::string(error.what()).find(message) != std::string::npos, error.what());
    }
  };
  const auto with = [&](auto change) {
    ForwardTensors tensors = p.tensors();
    change(tensors);
    return tensors;
  };
  refused(with([](auto& t) { t.k.shape[2] = 265; }),
          "k has 265 tokens, the plan covers 266 (canvas 4x8x8, extra tokens 0 before and 10 after)");
  refused(with([](auto& t) { t.q.data = nullptr; }), "q has no data");
  for (const size_t axis : {0, 1, 2}) refused(with([&](auto& t) { t.q.shape[axis] = 0; }), "with none of them 0");
  refused(with([](auto& t) { t.v.data = static_cast<char*>(t.v.data) + 3; }), "v starts 3 bytes past a multiple of 4");
  refused(with([](auto& t) { t.q.shape[3] = t.k.shape[3] = t.v.shape[3] = t.out.shape[3] = 257; }), "head_dim is 257, expected 1 to 256");
  refused(with([](auto& t) { t.v.dtype = DType::kBf16; }), "v is bf16, expected f32");
  refused(with([](auto& t) { t.out.strides[3] = 2; }), "out has stride 2 along head_dim, expected 1");
  refused(with([](auto& t) { t.k.strides[1] = -64; }), "must not be negative");
  refused(with([](auto& t) {
            t.k.strides[1] = int64_t{1} << 62;
            t.k.strides[0] = t.k.strides[1];
            t.k.strides[2] = t.k.strides[1];
          }),
          "reaches past 2^63");
  refused(with([](auto& t) { t.k.device = {DeviceType::kCuda, 1}; }), "k is on cuda:1, q is on cpu");
  refused(with([](auto& t) { t.lse.dtype = DType::kF16; }), "lse is f16, expected f32");
  const std::vector<int32_t> short_lengths{255}, many{266, 266};
  refused(p.tensors(), "key length 255 must be 256 to 266", {.key_lengths = short_lengths});
  refused(p.tensors(), "key_lengths has 2 elements, expected batch = 1", {.key_lengths = many});
  const std::vector<int32_t> long_lengths{267};
  refused(p.tensors(), "key length 267 must be 256 to 266", {.key_lengths = long_lengths});
  refused(p.tensors(), "no kernel is named 'fast' on cpu", {.kernel = "fast"});
  refused(p.tensors(), "scale is inf", {.scale = std::numeric_limits<float>::infinity()});
  const std::vector<Window> windows{{1, 1, 1}, {2, 2, 2}, {1, 2, 1}};
  const Plan three_heads = sliding_tile_plan(p.plan.query.grid, windows, {0, 10});
  CHECK_THROWS_WITH_AS(attention_forward(p.tensors(), three_heads, p.options("reference")),
                       "attention forward: q has 2 heads, the plan has 3", Error);
}
