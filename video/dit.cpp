#include "video/dit.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "slidetile/error.h"
#include "video/attention_op.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

constexpr double kPeriod = 10000;  // the longest of the time embedding and of the rotations

torch::TensorOptions f32(const torch::TensorOptions& options) { return options.dtype(torch::kFloat32); }

// RMS norm over the whole width, before heads are split.
struct RmsNorm : torch::nn::Module {
  RmsNorm(int64_t width, double eps, const torch::TensorOptions& options)
      : weight(register_parameter("weight", torch::ones({width}, options))), eps_(eps) {}
  Tensor forward(const Tensor& x) const { return torch::rms_norm(x, weight.sizes(), weight, eps_); }

  Tensor weight;
  double eps_;
};

// Training keeps short types between torch's kernels, each of which computes in f32 whatever it reads: gradients would otherwise move, and
// the graph hold, twice the memory. Without gradients intermediate results stay in f32, as in diffusers.
Tensor between_kernels(const Tensor& x) { return torch::GradMode::is_enabled() ? x : x.to(torch::kFloat32); }

struct LayerNorm : torch::nn::Module {
  LayerNorm(int64_t width, double eps, const torch::TensorOptions& options)
      : weight(register_parameter("weight", torch::ones({width}, options))),
        bias(register_parameter("bias", torch::zeros({width}, options))),
        eps_(eps) {}
  Tensor forward(const Tensor& x) const {
    const Tensor wide = between_kernels(x);
    const auto dtype = wide.scalar_type();
    return torch::layer_norm(wide, weight.sizes(), weight.to(dtype), bias.to(dtype), eps_).to(x.scalar_type());
  }

  Tensor weight, bias;
  double eps_;
};

// a + b c as `dtype`. Without gradients that is computed in the widest type of the three, in one pass over memory.
Tensor sum_of_product(const Tensor& a, const Tensor& b, const Tensor& c, torch::ScalarType dtype) {
  if (torch::GradMode::is_enabled()) return torch::addcmul(a.to(dtype), b.to(dtype), c.to(dtype));
  Tensor out = torch::empty(b.sizes(), b.options().dtype(dtype));
  return torch::addcmul_out(out, a, b, c);
}

// LN(x) (1 + scale) + shift, computed in f32. x [b, s, d], scale and shift [b, 1, d] in f32.
Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, double eps) {
  const Tensor normal = torch::layer_norm(between_kernels(x), {x.size(-1)}, {}, {}, eps);
  return sum_of_product(shift, normal, scale + 1, x.scalar_type());
}

// x + y gate, computed in f32. gate [b, 1, d] in f32.
Tensor gated_sum(const Tensor& x, const Tensor& y, const Tensor& gate) { return sum_of_product(x, y, gate, x.scalar_type()); }

// Turns consecutive pairs of channels. x [b, s, h, d], rotations complex [s, 1, d / 2].
Tensor rotate(const Tensor& x, const Tensor& rotations) {
  const Tensor pairs = torch::view_as_complex(x.to(torch::kFloat32).unflatten(-1, {-1, 2}));
  return torch::view_as_real(pairs * rotations).flatten(-2).to(x.scalar_type());
}

template <typename T>
std::shared_ptr<T> add(torch::nn::Module& parent, const std::string& name, std::shared_ptr<T> child) {
  return parent.register_module(name, std::move(child));
}

std::shared_ptr<torch::nn::Module> add_group(torch::nn::Module& parent, const std::string& name) {
  return add(parent, name, std::make_shared<torch::nn::Module>(name));
}

}  // namespace

struct Linear : torch::nn::Module {
  Linear(int64_t in, int64_t out, const torch::TensorOptions& options) : Linear({out, in}, options) {}
  // A weight of any further axes, all of them inputs.
  Linear(std::vector<int64_t> shape, const torch::TensorOptions& options) {
    int64_t in = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) in *= shape[axis];
    const double bound = 1 / std::sqrt(static_cast<double>(in));
    weight = register_parameter("weight", torch::empty(shape, options).uniform_(-bound, bound));
    bias = register_parameter("bias", torch::empty({shape[0]}, options).uniform_(-bound, bound));
  }
  Tensor forward(const Tensor& x) const { return torch::linear(x, weight.dim() == 2 ? weight : weight.flatten(1), bias); }

  Tensor weight, bias;
};

// Projections and norms of one attention.
struct DitAttention : torch::nn::Module {
  DitAttention(const DitConfig& config, const torch::TensorOptions& options) : heads(config.num_attention_heads) {
    const int64_t d = config.width();
    const auto linear = [&] {
      return std::make_shared<Linear>(d, d, options);
    };
    to_q = add(*this, "to_q", linear());
    to_k = add(*this, "to_k", linear());
    to_v = add(*this, "to_v", linear());
    to_out = add(*add_group(*this, "to_out"), "0", linear());
    norm_q = add(*this, "norm_q", std::make_shared<RmsNorm>(d, config.eps, options));
    norm_k = add(*this, "norm_k", std::make_shared<RmsNorm>(d, config.eps, options));
  }
  Tensor split(const Tensor& x) const { return x.unflatten(-1, {heads, -1}); }

  Tensor self(const Tensor& x, const Tensor& rotations, const std::shared_ptr<const LayerPlan>& plan) const {
    const Tensor q = rotate(split(norm_q->forward(to_q->forward(x))), rotations);
    const Tensor k = rotate(split(norm_k->forward(to_k->forward(x))), rotations);
    return to_out->forward(attend(q, k, split(to_v->forward(x)), plan).flatten(2));
  }
  // To the text: a few words, so that torch's own attention does.
  Tensor cross(const Tensor& x, const Tensor& text) const {
    const Tensor q = split(norm_q->forward(to_q->forward(x))), k = split(norm_k->forward(to_k->forward(text))),
                 v = split(to_v->forward(text));
    const Tensor out = torch::scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
    return to_out->forward(out.transpose(1, 2).flatten(2));
  }

  int64_t heads;
  std::shared_ptr<Linear> to_q, to_k, to_v, to_out;
  std::shared_ptr<RmsNorm> norm_q, norm_k;
};

struct DitBlock : torch::nn::Module {
  DitBlock(const DitConfig& config, const torch::TensorOptions& options) : eps(config.eps) {
    const int64_t d = config.width();
    attn1 = add(*this, "attn1", std::make_shared<DitAttention>(config, options));
    attn2 = add(*this, "attn2", std::make_shared<DitAttention>(config, options));
    if (config.cross_attn_norm) norm2 = add(*this, "norm2", std::make_shared<LayerNorm>(d, config.eps, f32(options)));
    const auto net = add_group(*add_group(*this, "ffn"), "net");
    ffn_in = add(*add_group(*net, "0"), "proj", std::make_shared<Linear>(d, config.ffn_dim, options));
    ffn_out = add(*net, "2", std::make_shared<Linear>(config.ffn_dim, d, options));
    scale_shift_table = register_parameter("scale_shift_table", torch::randn({1, 6, d}, f32(options)) / std::sqrt(static_cast<double>(d)));
  }

  // x [b, s, d], text [b, words, d], time [b, 6, d] in f32
  Tensor forward(const Tensor& x_in, const Tensor& text, const Tensor& time, const Tensor& rotations,
                 const std::shared_ptr<const LayerPlan>& plan) const {
    const auto part = (scale_shift_table + time).chunk(6, 1);  // shift, scale, gate of attention, then of the feed-forward
    Tensor x = gated_sum(x_in, attn1->self(modulated_norm(x_in, part[1], part[0], eps), rotations, plan), part[2]);
    x = x + attn2->cross(norm2 ? norm2->forward(x) : x, text);
    return gated_sum(x, feed_forward(modulated_norm(x, part[4], part[3], eps)), part[5]);
  }

  Tensor feed_forward(const Tensor& x) const {
    if (torch::GradMode::is_enabled() || !x.is_cpu()) return ffn_out->forward(torch::gelu(ffn_in->forward(x), "tanh"));
    // The hidden layer is the widest tensor of all: on CPU it is made some rows at a time, which stay in the cache, and whose memory the
    // allocator keeps (32 MB and more it gets from the system anew each time, page by page).
    constexpr int64_t kBytes = int64_t{4} << 20;
    const Tensor rows = x.flatten(0, 1);
    const int64_t row_bytes = ffn_in->weight.size(0) * static_cast<int64_t>(x.element_size());
    Tensor out = torch::empty(rows.sizes(), rows.options());
    for (int64_t begin = 0, step = std::max<int64_t>(kBytes / row_bytes, 16); begin < rows.size(0); begin += step) {
      const int64_t count = std::min(step, rows.size(0) - begin);
      Tensor hidden = ffn_in->forward(rows.narrow(0, begin, count)), part = out.narrow(0, begin, count);
      torch::gelu_(hidden, "tanh");
      torch::addmm_out(part, ffn_out->bias, hidden, ffn_out->weight.t());
    }
    return out.view_as(x);
  }

  double eps;
  std::shared_ptr<DitAttention> attn1, attn2;
  std::shared_ptr<LayerNorm> norm2;
  std::shared_ptr<Linear> ffn_in, ffn_out;
  Tensor scale_shift_table;
};

bool stays_f32(std::string_view parameter) noexcept {
  for (const std::string_view part : {"time_embedder", "scale_shift_table", "norm2"}) {
    for (size_t at = parameter.find(part); at != std::string_view::npos; at = parameter.find(part, at + 1)) {
      const size_t end = at + part.size();
      if ((at == 0 || parameter[at - 1] == '.') && (end == parameter.size() || parameter[end] == '.')) return true;
    }
  }
  return false;
}

Dit::Dit(const DitConfig& config, const torch::TensorOptions& options) : config_(config) {
  const int64_t d = config.width();
  const auto [pt, ph, pw] = config.patch_size;
  patch_embedding_ = add(*this, "patch_embedding", std::make_shared<Linear>(std::vector{d, config.in_channels, pt, ph, pw}, options));
  const auto conditions = add_group(*this, "condition_embedder");
  const auto time = add_group(*conditions, "time_embedder");
  time_1_ = add(*time, "linear_1", std::make_shared<Linear>(config.freq_dim, d, f32(options)));
  time_2_ = add(*time, "linear_2", std::make_shared<Linear>(d, d, f32(options)));
  time_proj_ = add(*conditions, "time_proj", std::make_shared<Linear>(d, 6 * d, options));
  const auto text = add_group(*conditions, "text_embedder");
  text_1_ = add(*text, "linear_1", std::make_shared<Linear>(config.text_dim, d, options));
  text_2_ = add(*text, "linear_2", std::make_shared<Linear>(d, d, options));
  const auto blocks = add_group(*this, "blocks");
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks_.push_back(add(*blocks, std::to_string(layer), std::make_shared<DitBlock>(config, options)));
  }
  proj_out_ = add(*this, "proj_out", std::make_shared<Linear>(d, config.out_channels * config.patch_volume(), options));
  scale_shift_table_ = register_parameter("scale_shift_table", torch::randn({1, 2, d}, f32(options)) / std::sqrt(static_cast<double>(d)));
}

void Dit::set_dtype(torch::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  for (auto& parameter : named_parameters()) {
    if (!stays_f32(parameter.key())) parameter.value().set_data(parameter.value().to(dtype));
  }
}

torch::ScalarType Dit::dtype() const { return proj_out_->weight.scalar_type(); }

Dim3 Dit::canvas_of(Dim3 latents) const {
  const auto [pt, ph, pw] = config_.patch_size;
  require(latents.t > 0 && latents.h > 0 && latents.w > 0 && latents.t % pt == 0 && latents.h % ph == 0 && latents.w % pw == 0,
          "transformer: latents of ", latents, ", expected multiples of the patch ", pt, "x", ph, "x", pw);
  return {static_cast<int32_t>(latents.t / pt), static_cast<int32_t>(latents.h / ph), static_cast<int32_t>(latents.w / pw)};
}

Tensor Dit::rotations(const Dim3& canvas, const RopeScale& scale, const torch::Device& device) {
  for (const Rotations& made : rotations_) {
    if (made.canvas == canvas && made.scale == scale && made.complex.device() == device) return made.complex;
  }
  const int64_t d = config_.attention_head_dim, across = 2 * (d / 6);
  const std::array<int64_t, 3> channels{d - 2 * across, across, across};
  const auto extents = canvas.axes();
  std::vector<Tensor> angles;  // of each axis, [t, h, w, channels / 2]
  for (size_t axis = 0; axis < 3; ++axis) {
    require(extents[axis] <= config_.rope_max_seq_len, "transformer: canvas ", canvas, ", expected at most ", config_.rope_max_seq_len,
            " tokens on an axis (rope_max_seq_len)");
    const auto f64 = torch::TensorOptions().dtype(torch::kFloat64);
    const Tensor frequency = torch::pow(kPeriod, -torch::arange(0, channels[axis], 2, f64) / channels[axis]);
    std::array<int64_t, 4> shape{1, 1, 1, -1};
    shape[axis] = extents[axis];
    const Tensor angle = torch::outer(torch::arange(extents[axis], f64) * scale[axis], frequency).view(shape);
    angles.push_back(angle.expand({canvas.t, canvas.h, canvas.w, -1}));
  }
  const Tensor angle = torch::cat(angles, -1).view({canvas.volume(), 1, d / 2});
  const Tensor complex = torch::complex(angle.cos().to(torch::kFloat32), angle.sin().to(torch::kFloat32)).to(device);
  constexpr size_t kKept = 4;
  if (rotations_.size() == kKept) rotations_.erase(rotations_.begin());
  rotations_.push_back({canvas, scale, complex});
  return complex;
}

Tensor Dit::forward(const Tensor& latents, const Tensor& timestep, const Tensor& text_in, const TokenPlans& plans, const RopeScale& scale) {
  require(latents.dim() == 5 && latents.size(1) == config_.in_channels, "transformer: latents of shape ", latents.sizes(),
          ", expected batch x ", config_.in_channels, " channels x t x h x w");
  const int64_t batch = latents.size(0);
  require(timestep.dim() == 1 && timestep.size(0) == batch, "transformer: timestep of shape ", timestep.sizes(), ", expected ", batch);
  require(text_in.dim() == 3 && text_in.size(0) == batch && text_in.size(2) == config_.text_dim, "transformer: text of shape ",
          text_in.sizes(), ", expected ", batch, " x words x ", config_.text_dim);
  const auto extent = [&](int64_t axis) {
    return static_cast<int32_t>(latents.size(axis));
  };
  const Dim3 canvas = canvas_of({extent(2), extent(3), extent(4)});
  require(plans.canvas() == canvas && plans.layers() == config_.num_layers, "transformer: plans of ", plans.layers(), " layers over ",
          plans.canvas(), ", expected ", config_.num_layers, " over ", canvas);
  const auto [pt, ph, pw] = config_.patch_size;
  const Tensor turns = rotations(canvas, scale, latents.device());

  // A convolution whose stride is its extent is a linear layer over patches, whose channels come first.
  const Tensor patches = latents.to(dtype())
                             .view({batch, config_.in_channels, canvas.t, pt, canvas.h, ph, canvas.w, pw})
                             .permute({0, 2, 4, 6, 1, 3, 5, 7})
                             .reshape({batch, canvas.volume(), config_.in_channels * pt * ph * pw});
  Tensor x = patch_embedding_->forward(patches);

  const int64_t half = config_.freq_dim / 2;
  const Tensor frequency = torch::exp(torch::arange(half, f32(latents.options())) * (-std::log(kPeriod) / static_cast<double>(half)));
  const Tensor angle = timestep.to(torch::kFloat32).unsqueeze(1) * frequency;
  const Tensor time = time_2_->forward(torch::silu(time_1_->forward(torch::cat({angle.cos(), angle.sin()}, 1)))).to(dtype());
  const Tensor time_6 = time_proj_->forward(torch::silu(time)).unflatten(1, {6, -1}).to(torch::kFloat32);
  const Tensor text = text_2_->forward(torch::gelu(text_1_->forward(text_in.to(dtype())), "tanh"));

  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = blocks_[layer]->forward(x, text, time_6, turns, plans.share(static_cast<int64_t>(layer)));
  }

  const auto last = (scale_shift_table_ + time.unsqueeze(1)).chunk(2, 1);  // shift, scale
  x = proj_out_->forward(modulated_norm(x, last[1], last[0], config_.eps));
  return x.view({batch, canvas.t, canvas.h, canvas.w, pt, ph, pw, config_.out_channels})
      .permute({0, 7, 1, 4, 2, 5, 3, 6})
      .reshape({batch, config_.out_channels, latents.size(2), latents.size(3), latents.size(4)});
}

}  // namespace slidetile::video
