// Plain loops in double precision over the plan's pairs: the specification of every other kernel.
//
// forward:  s_ij = scale q_i . k_j over the visible j;  lse_i = log sum_j exp(s_ij);  out_i = sum_j exp(s_ij - lse_i) v_j
// backward: p_ij = exp(s_ij - lse_i);  delta_i = dout_i . out_i;  ds_ij = p_ij (dout_i . v_j - delta_i)
//           dv_j = sum_i p_ij dout_i;  dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i
#include <cmath>
#include <limits>
#include <vector>

#include "slidetile/kernel.h"

namespace slidetile {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

int64_t offset_of(const TensorView& view, int64_t b, int64_t h, int64_t token) {
  return b * view.strides[0] + h * view.strides[1] + token * view.strides[2];
}

void load_row(const TensorView& view, int64_t b, int64_t h, int64_t token, std::vector<double>& row) {
  const int64_t offset = offset_of(view, b, h, token);
  if (view.dtype == DType::kF32) {
    const float* from = static_cast<const float*>(view.data) + offset;
    for (size_t d = 0; d < row.size(); ++d) row[d] = from[d];
  } else {
    for (size_t d = 0; d < row.size(); ++d) row[d] = load_element(view.data, view.dtype, offset + static_cast<int64_t>(d));
  }
}

void store_row(const TensorView& view, int64_t b, int64_t h, int64_t token, const std::vector<double>& row) {
  const int64_t offset = offset_of(view, b, h, token);
  for (size_t d = 0; d < row.size(); ++d)
    store_element(view.data, view.dtype, offset + static_cast<int64_t>(d), static_cast<float>(row[d]));
}

// Eight sums side by side, so that the compiler may use vectors.
double dot(const std::vector<double>& a, const std::vector<double>& b) {
  constexpr size_t kSums = 8;
  double sums[kSums] = {}, sum = 0;
  size_t d = 0;
  for (; d + kSums <= a.size(); d += kSums) {
    for (size_t i = 0; i < kSums; ++i) sums[i] += a[d + i] * b[d + i];
  }
  for (; d < a.size(); ++d) sum += a[d] * b[d];
  for (const double part : sums) sum += part;
  return sum;
}

struct Item {
  int64_t batch, head;
  int32_t tile;
};

Item item_of(int64_t index, int64_t heads, int32_t tiles) {
  return {index / (heads * tiles), index / tiles % heads, static_cast<int32_t>(index % tiles)};
}

// Calls visit(token) for the visible partners of one token, in the row's order. `slot` is the token's place in its tile.
template <typename Visit>
void for_each_visible(const PlanView& plan, const Item& item, int32_t slot, int64_t length, const Visit& visit) {
  const int32_t c = plan.head_class[plan.heads == 1 ? 0 : item.head];
  const int32_t row = plan.row_of[int64_t{c} * plan.query.tiles + item.tile];
  for (int64_t entry = plan.row_begin[row]; entry < plan.row_begin[row + 1]; ++entry) {
    const int32_t tile = plan.key_tile[entry], first = plan.key.tile_begin[tile], size = plan.key.tile_begin[tile + 1] - first;
    const int32_t mask = plan.mask_of == nullptr ? -1 : plan.mask_of[entry];
    const uint64_t* words = mask < 0 ? nullptr : plan.mask_words + plan.mask_begin[mask] + int64_t{slot} * ((size + 63) / 64);
    for (int32_t k = 0; k < size; ++k) {
      if (words != nullptr && (words[k / 64] >> (k % 64) & 1) == 0) continue;
      const int32_t token = plan.key.token[first + k];
      if (token < length) visit(token);
    }
  }
}

int64_t length_of(const int32_t* lengths, int64_t b, int64_t tokens) { return lengths == nullptr ? tokens : lengths[b]; }

void forward(const ForwardArgs& args) {
  const auto head_dim = static_cast<size_t>(args.q.head_dim());
  const int64_t heads = args.q.heads();
  const PlanView& plan = args.plan;
  args.executor->run(args.q.batch() * heads * plan.query.tiles, [&](int64_t index, int) {
    const Item item = item_of(index, heads, plan.query.tiles);
    const int64_t b = item.batch, h = item.head;
    const int32_t tile = item.tile;
    const int64_t key_length = length_of(args.key_lengths, b, plan.key.tokens);
    std::vector<double> q(head_dim), k(head_dim), out(head_dim), scores;
    std::vector<int32_t> keys;
    for (int32_t slot = plan.query.tile_begin[tile]; slot < plan.query.tile_begin[tile + 1]; ++slot) {
      const int32_t token = plan.query.token[slot];
      load_row(args.q, b, h, token, q);
      scores.clear();
      keys.clear();
      double largest = -kInfinity, sum = 0;
      if (token < length_of(args.query_lengths, b, plan.query.tokens)) {
        for_each_visible(plan, item, slot - plan.query.tile_begin[tile], key_length, [&](int32_t key) {
          load_row(args.k, b, h, key, k);
          keys.push_back(key);
          scores.push_back(args.scale * dot(q, k));
          largest = std::fmax(largest, scores.back());
        });
      }
      out.assign(head_dim, 0);
      for (size_t i = 0; i < keys.size(); ++i) {
        const double weight = std::exp(scores[i] - largest);
        sum += weight;
        load_row(args.v, b, h, keys[i], k);
        for (size_t d = 0; d < head_dim; ++d) out[d] += weight * k[d];
      }
      for (double& value : out) value = keys.empty() ? 0 : value / sum;
      store_row(args.out, b, h, token, out);
      if (args.lse)
        static_cast<float*>(args.lse.data)[offset_of(args.lse, b, h, token)] =
            static_cast<float>(keys.empty() ? -kInfinity : largest + std::log(sum));
    }
  });
}

void backward(const BackwardArgs& args) {
  const auto head_dim = static_cast<size_t>(args.q.head_dim());
  const int64_t heads = args.q.heads();
  const double scale = args.scale;
  const auto lse_of = [&](int64_t b, int64_t h, int64_t token) -> double {
    return static_cast<const float*>(args.lse.data)[offset_of(args.lse, b, h, token)];
  };
  args.executor->run(args.q.batch() * heads * args.plan.query.tiles, [&](int64_t index, int) {
    const PlanView& plan = args.plan;
    const Item item = item_of(index, heads, plan.query.tiles);
    const int64_t b = item.batch, h = item.head;
    const int32_t tile = item.tile;
    std::vector<double> q(head_dim), k(head_dim), v(head_dim), out(head_dim), dout(head_dim), dq(head_dim);
    for (int32_t slot = plan.query.tile_begin[tile]; slot < plan.query.tile_begin[tile + 1]; ++slot) {
      const int32_t token = plan.query.token[slot];
      dq.assign(head_dim, 0);
      if (token < length_of(args.query_lengths, b, plan.query.tokens)) {
        load_row(args.q, b, h, token, q);
        load_row(args.out, b, h, token, out);
        load_row(args.dout, b, h, token, dout);
        const double lse = lse_of(b, h, token), delta = dot(dout, out);
        for_each_visible(plan, item, slot - plan.query.tile_begin[tile], length_of(args.key_lengths, b, plan.key.tokens), [&](int32_t key) {
          load_row(args.k, b, h, key, k);
          load_row(args.v, b, h, key, v);
          const double ds = std::exp(scale * dot(q, k) - lse) * (dot(dout, v) - delta);
          for (size_t d = 0; d < head_dim; ++d) dq[d] += scale * ds * k[d];
        });
      }
      store_row(args.dq, b, h, token, dq);
    }
  });
  args.executor->run(args.q.batch() * heads * args.transposed.query.tiles, [&](int64_t index, int) {
    const PlanView& plan = args.transposed;
    const Item item = item_of(index, heads, plan.query.tiles);
    const int64_t b = item.batch, h = item.head;
    const int32_t tile = item.tile;
    std::vector<double> q(head_dim), k(head_dim), v(head_dim), out(head_dim), dout(head_dim), dk(head_dim), dv(head_dim);
    for (int32_t slot = plan.query.tile_begin[tile]; slot < plan.query.tile_begin[tile + 1]; ++slot) {
      const int32_t token = plan.query.token[slot];
      dk.assign(head_dim, 0);
      dv.assign(head_dim, 0);
      if (token < length_of(args.key_lengths, b, plan.query.tokens)) {
        load_row(args.k, b, h, token, k);
        load_row(args.v, b, h, token, v);
        for_each_visible(plan, item, slot - plan.query.tile_begin[tile], length_of(args.query_lengths, b, plan.key.tokens),
                         [&](int32_t query) {
                           load_row(args.q, b, h, query, q);
                           load_row(args.out, b, h, query, out);
                           load_row(args.dout, b, h, query, dout);
                           const double p = std::exp(scale * dot(q, k) - lse_of(b, h, query)), ds = p * (dot(dout, v) - dot(dout, out));
                           for (size_t d = 0; d < head_dim; ++d) {
                             dk[d] += scale * ds * q[d];
                             dv[d] += p * dout[d];
                           }
                         });
      }
      store_row(args.dk, b, h, token, dk);
      store_row(args.dv, b, h, token, dv);
    }
  });
}

const char* always() noexcept { return nullptr; }

constexpr ForwardKernel kForward[] = {
    {"reference", always, [](const ForwardArgs&) noexcept -> const char* { return nullptr; }, forward, nullptr}};
constexpr BackwardKernel kBackward[] = {
    {"reference", always, [](const BackwardArgs&) noexcept -> const char* { return nullptr; }, backward, nullptr}};

}  // namespace

std::span<const ForwardKernel> reference_forward_kernels() noexcept { return kForward; }
std::span<const BackwardKernel> reference_backward_kernels() noexcept { return kBackward; }

}  // namespace slidetile
