// Gradients of the shared problems: inputs of the backward pass with poisoned outputs, and what reference/ gives for them.
#pragma once

#include "attention_cases.h"

namespace slidetile::test {

struct GradientProblem {
  Problem forward;  // out and lse hold the forward pass's result
  Plan transposed;
  Guarded dout, dq, dk, dv;

  BackwardTensors tensors() const {
    const ForwardTensors f = forward.tensors();
    return {f.q, f.k, f.v, f.out, f.lse, dout.view, dq.view, dk.view, dv.view};
  }
};

/// The forward result comes from reference/ rounded to the element type, as a kernel would have written it.
inline GradientProblem make_gradient_problem(const AttentionCase& c, DType dtype, uint64_t seed = 1) {
  Problem forward = make_problem(c, dtype, seed);
  attention_forward(forward.tensors(), forward.plan, forward.options("reference"));
  Plan transposed = transpose(forward.plan);
  const auto like = [&](const TensorView& view) {
    return Guarded::make(dtype, view.shape, c.layout);
  };
  GradientProblem p{.forward = std::move(forward),
                    .transposed = std::move(transposed),
                    .dout = like(forward.q.view),
                    .dq = like(forward.q.view),
                    .dk = like(forward.k.view),
                    .dv = like(forward.v.view)};
  fill_normal(p.dout, seed * 3 + 7, 1);
  return p;
}

/// Runs a kernel over poisoned gradients.
inline void run_backward(const GradientProblem& p, std::string_view kernel) {
  for (const Guarded* gradient : {&p.dq, &p.dk, &p.dv}) {
    for (int64_t i = 0; i < gradient->elements(); ++i) store_element(gradient->view.data, gradient->view.dtype, i, kNan);
  }
  attention_backward(p.tensors(), view_of(p.forward.plan), view_of(p.transposed), p.forward.options(kernel));
}

/// Gradients in double precision from the same rounded q, k, v and dout, with out and lse exact.
struct ExpectedGradients {
  Guarded dq, dk, dv;
};

inline ExpectedGradients reference_gradients(const GradientProblem& p) {
  const Expected forward = reference_of(p.forward);
  const Layout layout = p.forward.c.layout;
  const auto copy = [&](const TensorView& view) {
    Guarded g = Guarded::make(DType::kF32, view.shape, layout);
    for (int64_t i = 0; i < g.elements(); ++i) store_element(g.view.data, DType::kF32, i, load_element(view.data, view.dtype, i));
    return g;
  };
  const auto empty = [&](const TensorView& view) {
    return Guarded::make(DType::kF32, view.shape, layout);
  };
  const BackwardTensors t = p.tensors();
  const Guarded q = copy(t.q), k = copy(t.k), v = copy(t.v), dout = copy(t.dout);
  ExpectedGradients e{empty(t.q), empty(t.k), empty(t.v)};
  attention_backward({q.view, k.view, v.view, forward.out.view, forward.lse.view, dout.view, e.dq.view, e.dk.view, e.dv.view},
                     view_of(p.forward.plan), view_of(p.transposed), p.forward.options("reference"));
  return e;
}

/// ||got - want|| / ||want|| of each gradient.
struct GradientDifference {
  double dq = 0, dk = 0, dv = 0;
};

inline GradientDifference gradient_difference(const GradientProblem& p, const ExpectedGradients& e) {
  return {relative_difference(p.dq.view, e.dq.view), relative_difference(p.dk.view, e.dk.view), relative_difference(p.dv.view, e.dv.view)};
}

/// Largest acceptable relative error of a gradient.
inline double gradient_tolerance(DType dtype) { return dtype == DType::kF32 ? 2e-5 : dtype == DType::kBf16 ? 8e-3 : 2e-3; }

}  // namespace slidetile::test
