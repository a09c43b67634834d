#include "bench/backward.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "bench/cpu_peak.h"
#include "slidetile/attention.h"
#include "slidetile/error.h"

namespace slidetile::bench {
namespace {

constexpr int kRounds = 3;
constexpr double kPeakSeconds = 0.06;
constexpr int kSampledTokens = 8;

struct Tensors {
  Tensor q, k, v, out, dout, dq, dk, dv, lse;

  BackwardTensors views() const {
    return {q.view(), k.view(), v.view(), out.view(), lse.view(), dout.view(), dq.view(), dk.view(), dv.view()};
  }
};

Tensors make_tensors(const BenchCase& c) {
  const std::array<int64_t, 4> shape{1, c.heads, c.plan.query.tokens(), c.head_dim};
  const auto make = [&] {
    return Tensor(c.dtype, shape);
  };
  Tensors t{make(), make(), make(), make(), make(), make(), make(), make(), Tensor(DType::kF32, {1, c.heads, shape[2], 1})};
  fill_normal(t.q, 1);
  fill_normal(t.k, 2);
  fill_normal(t.v, 3);
  fill_normal(t.dout, 4);
  return t;
}

std::vector<double> row_of(const Tensor& tensor, int64_t head, int64_t token) {
  const TensorView& view = tensor.view();
  std::vector<double> row(static_cast<size_t>(view.head_dim()));
  const int64_t offset = head * view.strides[1] + token * view.strides[2];
  for (size_t d = 0; d < row.size(); ++d) row[d] = load_element(view.data, view.dtype, offset + static_cast<int64_t>(d));
  return row;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

// Sums of squares of what a gradient is off by and of what it should be.
struct Error {
  double off = 0, norm = 0;

  void add(const std::vector<double>& got, const std::vector<double>& want) {
    for (size_t d = 0; d < want.size(); ++d) {
      off += (got[d] - want[d]) * (got[d] - want[d]);
      norm += want[d] * want[d];
    }
  }
  double relative() const { return norm == 0 ? std::sqrt(off) : std::sqrt(off / norm); }
};

// Calls visit(partner) for the partners of a token of head 0 in a plan without masks.
template <typename Visit>
void for_each_partner(const Plan& plan, int32_t tile, const Visit& visit) {
  const int32_t row = plan.row(0, tile);
  for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
    const auto partner = static_cast<size_t>(plan.key_tile[static_cast<size_t>(entry)]);
    for (int32_t slot = plan.key.tile_begin[partner]; slot < plan.key.tile_begin[partner + 1]; ++slot)
      visit(int64_t{plan.key.token[static_cast<size_t>(slot)]});
  }
}

// The largest of the three gradients' relative errors on sampled tokens of head 0, in double precision from out and lse as they are.
double error_of(const BenchCase& c, const Plan& plan, const Plan& transposed, const Tensors& t) {
  require(plan.mask_of.empty(), "bench: case ", c.name, " has masks, expected none");
  const double scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
  const auto lse = [&](int64_t query) {
    return double{t.lse.data<float>()[query]};
  };
  Error dq_error, dk_error, dv_error;
  std::mt19937 random(7);
  for (int sample = 0; sample < kSampledTokens;) {
    const auto tile = static_cast<int32_t>(random() % static_cast<uint32_t>(plan.query.tiles()));
    const int64_t token = plan.query.token[static_cast<size_t>(plan.query.tile_begin[static_cast<size_t>(tile)])];
    if (plan.row_first(plan.row(0, tile)) == plan.row_last(plan.row(0, tile))) continue;
    ++sample;
    const std::vector<double> own_q = row_of(t.q, 0, token), own_dout = row_of(t.dout, 0, token);
    std::vector<double> dq(own_q.size());
    const double delta = dot(own_dout, row_of(t.out, 0, token));
    for_each_partner(plan, tile, [&](int64_t key) {
      const std::vector<double> k = row_of(t.k, 0, key);
      const double ds = std::exp(scale * dot(own_q, k) - lse(token)) * (dot(own_dout, row_of(t.v, 0, key)) - delta);
      for (size_t d = 0; d < k.size(); ++d) dq[d] += scale * ds * k[d];
    });
    dq_error.add(row_of(t.dq, 0, token), dq);
    const std::vector<double> own_k = row_of(t.k, 0, token), own_v = row_of(t.v, 0, token);
    std::vector<double> dk(own_k.size()), dv(own_k.size());
    for_each_partner(transposed, tile, [&](int64_t query) {
      const std::vector<double> q = row_of(t.q, 0, query), dout = row_of(t.dout, 0, query);
      const double p = std::exp(scale * dot(q, own_k) - lse(query));
      const double ds = p * (dot(dout, own_v) - dot(dout, row_of(t.out, 0, query)));
      for (size_t d = 0; d < q.size(); ++d) {
        dk[d] += scale * ds * q[d];
        dv[d] += p * dout[d];
      }
    });
    dk_error.add(row_of(t.dk, 0, token), dk);
    dv_error.add(row_of(t.dv, 0, token), dv);
  }
  return std::max({dq_error.relative(), dk_error.relative(), dv_error.relative()});
}

}  // namespace

std::vector<BenchRow> run_backward_case(const BenchCase& c, const BenchOptions& options) {
  const std::vector<std::string> kernels = kernels_for(c, backward_kernels(DeviceType::kCpu), options.kernel);
  if (kernels.empty()) return {};
  const Tensors tensors = make_tensors(c);
  const Plan plan = part_of(c.plan, c.every), none = part_of(c.plan, 0);
  const Plan transposed = transpose(plan), none_transposed = transpose(none);
  const double pairs = static_cast<double>(visible_pairs(c.plan, c.heads)),
               part = static_cast<double>(visible_pairs(plan, c.heads)) / pairs;
  const BackwardTensors views = tensors.views();
  attention_forward({views.q, views.k, views.v, views.out, views.lse}, plan);
  std::vector<BenchRow> rows;
  for (const std::string& kernel : kernels) {
    std::vector<double> seconds, peak;
    double error = 0;
    for (int round = 0; round < kRounds; ++round) {
      peak.push_back(multiply_add_peak(kernel, default_executor(), kPeakSeconds));
      // Packing and writing, the time of a plan without pairs, do not grow with them.
      const double fixed =
          part == 1 ? 0 : seconds_of([&] { attention_backward(views, view_of(none), view_of(none_transposed), {.kernel = kernel}); });
      const double all = seconds_of([&] { attention_backward(views, view_of(plan), view_of(transposed), {.kernel = kernel}); });
      seconds.push_back(fixed + (all - fixed) / part);
      if (round == 0) error = error_of(c, plan, transposed, tensors);
      require(error <= tolerance(c.dtype), "bench: backward of ", kernel, " on ", c.name, " is wrong: relative error ", error,
              ", expected at most ", tolerance(c.dtype));
    }
    BenchRow row{.case_name = c.name,
                 .title = c.title,
                 .kernel = kernel,
                 .dtype = to_string(c.dtype),
                 .heads = c.heads,
                 .model_heads = c.model_heads,
                 .part = part,
                 .relative_error = error};
    set_times(row, seconds, 10 * pairs * static_cast<double>(c.head_dim), median_of(peak));
    rows.push_back(row);
  }
  return rows;
}

}  // namespace slidetile::bench
