// Gradients: reference/ against finite differences, and every CPU kernel against reference/.
#include <doctest/doctest.h>

#include "gradient_cases.h"
#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr uint64_t kRandomProblems = 48;

std::vector<std::string> runnable_kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : backward_kernels(DeviceType::kCpu)) {
    if (kernel.reason.empty()) names.push_back(kernel.name);
  }
  return names;
}

// A one-hot softmax has gradients near zero, where an error relative to them says nothing.
bool has_gradients(const AttentionCase& c) { return c.logit_scale <= 1; }

void check_case(const AttentionCase& c, DType dtype) {
  if (!has_gradients(c) || runnable_kernels().empty()) return;
  const GradientProblem p = make_gradient_problem(c, dtype);
  const ExpectedGradients expected = reference_gradients(p);
  for (const std::string& kernel : runnable_kernels()) {
    CAPTURE(c.name);
    CAPTURE(kernel);
    CAPTURE(to_string(dtype));
    run_backward(p, kernel);
    const GradientDifference d = gradient_difference(p, expected);
    CHECK(d.dq <= gradient_tolerance(dtype));
    CHECK(d.dk <= gradient_tolerance(dtype));
    CHECK(d.dv <= gradient_tolerance(dtype));
    CHECK((p.dq.guards_hold() && p.dk.guards_hold() && p.dv.guards_hold()));
  }
}

double loss(const GradientProblem& p) {
  attention_forward(p.forward.tensors(), p.forward.plan, p.forward.options("reference"));
  double sum = 0;
  const TensorView &out = p.forward.out.view, &dout = p.dout.view;
  for (int64_t i = 0; i < p.dout.elements(); ++i)
    sum += double{load_element(out.data, DType::kF32, i)} * load_element(dout.data, DType::kF32, i);
  return sum;
}

}  // namespace

TEST_CASE("reference gradients agree with finite differences") {
  AttentionCase masks{
      .name = "masks", .heads = 2, .head_dim = 3, .canvas = {2, 3, 4}, .tile = {1, 2, 2}, .extra = {1, 3}, .pattern = Pattern::kRandom};
  AttentionCase window{
      .name = "window", .batch = 2, .head_dim = 5, .canvas = {1, 5, 6}, .tile = {1, 2, 2}, .windows = {{1, 2, 2}}, .extra = {2, 4}};
  window.key_lengths = {33, 36};
  window.layout = Layout::kBshd;
  for (const AttentionCase& c : {masks, window}) {
    CAPTURE(c.name);
    const GradientProblem p = make_gradient_problem(c, DType::kF32);
    run_backward(p, "reference");
    const BackwardTensors t = p.tensors();
    const auto check = [&](const TensorView& input, const TensorView& gradient, const Guarded& owner) {
      for (int64_t i = 0; i < owner.elements(); i += 7) {
        constexpr float kStep = 1.0f / 64;
        const float value = load_element(input.data, DType::kF32, i);
        if (std::isnan(value)) continue;  // a key that is not in use
        store_element(input.data, DType::kF32, i, value + kStep);
        const double above = loss(p);
        store_element(input.data, DType::kF32, i, value - kStep);
        const double below = loss(p);
        store_element(input.data, DType::kF32, i, value);
        CHECK((above - below) / (2 * kStep) == doctest::Approx(load_element(gradient.data, DType::kF32, i)).epsilon(0.01).scale(0.1));
      }
    };
    check(t.q, t.dq, p.forward.q);
    check(t.k, t.dk, p.forward.k);
    check(t.v, t.dv, p.forward.v);
  }
}

TEST_CASE("named problems") {
  uint64_t number = 0;
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
      if (takes_part(number++)) check_case(c, dtype);
    }
  }
}

TEST_CASE("random problems") {
  for (uint64_t seed = 1; seed <= kRandomProblems; ++seed) {
    constexpr DType kDtypes[] = {DType::kF32, DType::kBf16, DType::kF16};
    if (takes_part(seed)) check_case(random_case(seed), kDtypes[seed % 3]);
  }
}

TEST_CASE("a transposed plan of something else is refused, with what was expected") {
  const GradientProblem p = make_gradient_problem({.name = "bad", .heads = 2, .canvas = {2, 4, 8}, .tile = {1, 2, 4}}, DType::kF32);
  const auto refused = [&](const PlanView& transposed, const std::string& message) {
    try {
      attention_backward(p.tensors(), view_of(p.forward.plan), transposed, p.forward.options("reference"));
      FAIL_CHECK("accepted, expected: ", message);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      CHECK_MESSAGE(std::string(error.what()).find(message) != std::string::npos, error.what());
    }
  };
  // As many tokens each.
  refused(view_of(full_plan(Grid({2, 8, 4}, {1, 2, 4}))), "of 64 tokens in 8 tiles (canvas 2x8x4) by 64 tokens in 8 tiles (canvas 2x8x4)");
  refused(view_of(full_plan(Grid({2, 4, 8}, {2, 4, 8}))), "expected 64 tokens in 8 tiles (canvas 2x4x8)");
  refused(view_of(full_plan(Grid({2, 4, 4}, {1, 2, 4}))), "of 32 tokens in 4 tiles");
  PlanView elsewhere = view_of(p.transposed);
  elsewhere.device = {DeviceType::kCuda, 0};
  refused(elsewhere, "the transposed plan is on cuda:0, the plan is on cpu");
}
