#include "slidetile/attention.h"

#include <cmath>
#include <limits>

#include "slidetile/error.h"

namespace slidetile {
namespace {

constexpr int64_t kLargestHeadDim = 256;
constexpr uintptr_t kWorkspaceAlignment = 256;

// Texts of messages, made only where one is thrown: a call checks its tensors every time.
struct ShapeText {
  const TensorView& view;
};
std::ostream& operator<<(std::ostream& out, const ShapeText& text) {
  out << "[";
  for (size_t axis = 0; axis < 4; ++axis) out << (axis != 0 ? ", " : "") << text.view.shape[axis];
  return out << "]";
}

struct DeviceText {
  const Device& device;
};
std::ostream& operator<<(std::ostream& out, const DeviceText& text) { return out << to_string(text.device); }

struct TilesText {
  const TilingView& tiling;
};
std::ostream& operator<<(std::ostream& out, const TilesText& text) {
  return out << text.tiling.tokens << " tokens in " << text.tiling.tiles << " tiles (canvas " << text.tiling.canvas << ")";
}

struct Named {
  const char* name;
  const TensorView& view;
};

void require_like(const char* where, const Named& given, const TensorView& like, DType dtype) {
  const auto& [name, view] = given;
  require(view.data != nullptr, where, ": ", name, " has no data");
  require(view.shape == like.shape, where, ": ", name, " is ", ShapeText{view}, ", expected ", ShapeText{like});
  require(view.dtype == dtype, where, ": ", name, " is ", to_string(view.dtype), ", expected ", to_string(dtype));
  require(view.device == like.device, where, ": ", name, " is on ", DeviceText{view.device}, ", q is on ", DeviceText{like.device});
  require(view.shape[3] <= 1 || view.strides[3] == 1, where, ": ", name, " has stride ", view.strides[3], " along head_dim, expected 1");
  const auto past = reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(size_of(dtype));
  require(past == 0, where, ": ", name, " starts ", past, " bytes past a multiple of ", size_of(dtype), ", an element's size");
  span_of(view);
}

bool same_tiles(const TilingView& a, const TilingView& b) {
  return a.tokens == b.tokens && a.tiles == b.tiles && a.canvas == b.canvas && a.extra == b.extra;
}

TensorView with_shape(TensorView like, std::array<int64_t, 4> shape) {
  like.shape = shape;
  return like;
}

void check_inputs(const char* where, const ForwardTensors& t, const PlanView& plan, const AttentionOptions& options) {
  const TensorView& q = t.q;
  require(q.data != nullptr, where, ": q has no data");
  require(q.batch() > 0 && q.heads() > 0 && q.tokens() > 0, where, ": q is ", ShapeText{q},
          ", expected [batch, heads, tokens, head_dim] with none of them 0");
  require(q.head_dim() >= 1 && q.head_dim() <= kLargestHeadDim, where, ": head_dim is ", q.head_dim(), ", expected 1 to ", kLargestHeadDim);
  require_like(where, {"q", q}, q, q.dtype);
  require(q.tokens() == plan.query.tokens, where, ": q has ", q.tokens(), " tokens, the plan covers ", plan.query.tokens, " (canvas ",
          plan.query.canvas, ", extra tokens ", plan.query.extra.before, " before and ", plan.query.extra.after, " after)");
  const TensorView keys = with_shape(q, {q.batch(), q.heads(), plan.key.tokens, q.head_dim()});
  require(t.k.tokens() == plan.key.tokens, where, ": k has ", t.k.tokens(), " tokens, the plan covers ", plan.key.tokens, " (canvas ",
          plan.key.canvas, ", extra tokens ", plan.key.extra.before, " before and ", plan.key.extra.after, " after)");
  require_like(where, {"k", t.k}, keys, q.dtype);
  require_like(where, {"v", t.v}, keys, q.dtype);
  require_like(where, {"out", t.out}, q, q.dtype);
  if (t.lse) require_like(where, {"lse", t.lse}, with_shape(q, {q.batch(), q.heads(), q.tokens(), 1}), DType::kF32);
  require(plan.heads == 1 || plan.heads == q.heads(), where, ": q has ", q.heads(), " heads, the plan has ", plan.heads);
  require(plan.device == q.device, where, ": the plan is on ", DeviceText{plan.device}, ", q is on ", DeviceText{q.device});
  require(std::isfinite(options.scale), where, ": scale is ", options.scale, ", expected a finite number");
  if (!options.key_lengths.empty()) {
    require(static_cast<int64_t>(options.key_lengths.size()) == q.batch(), where, ": key_lengths has ", options.key_lengths.size(),
            " elements, expected batch = ", q.batch());
    if (q.device.type == DeviceType::kCpu) {
      const int64_t least = plan.key.tokens - plan.key.extra.after;
      for (const int32_t length : options.key_lengths) {
        require(length >= least && length <= plan.key.tokens, where, ": key length ", length, " must be ", least, " to ", plan.key.tokens,
                ": only the ", plan.key.extra.after, " tokens after the canvas may be unused");
      }
    }
  }
}

float scale_of(const AttentionOptions& options, int64_t head_dim) {
  return options.scale != 0 ? options.scale : static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim)));
}

// A sequence that attends to itself has one length for queries and keys.
bool same_sequence(const PlanView& plan) {
  return plan.query.tokens == plan.key.tokens && plan.query.canvas == plan.key.canvas && plan.query.extra == plan.key.extra;
}

ForwardArgs forward_args(const ForwardTensors& t, const PlanView& plan, const AttentionOptions& options) {
  check_inputs("attention forward", t, plan, options);
  const int32_t* lengths = options.key_lengths.empty() ? nullptr : options.key_lengths.data();
  return {.q = t.q,
          .k = t.k,
          .v = t.v,
          .out = t.out,
          .lse = t.lse,
          .plan = plan,
          .query_lengths = same_sequence(plan) ? lengths : nullptr,
          .key_lengths = lengths,
          .scale = scale_of(options, t.q.head_dim()),
          .executor = options.executor != nullptr || t.q.device.type != DeviceType::kCpu ? options.executor : &default_executor(),
          .stream = options.stream,
          .workspace = options.workspace.data()};
}

BackwardArgs backward_args(const BackwardTensors& t, const PlanView& plan, const PlanView& transposed, const AttentionOptions& options) {
  const char* where = "attention backward";
  check_inputs(where, {t.q, t.k, t.v, t.out, t.lse}, plan, options);
  require(t.lse.data != nullptr, where, ": lse has no data, expected what attention_forward wrote");
  require_like(where, {"dout", t.dout}, t.q, t.q.dtype);
  require_like(where, {"dq", t.dq}, t.q, t.q.dtype);
  require_like(where, {"dk", t.dk}, t.k, t.q.dtype);
  require_like(where, {"dv", t.dv}, t.k, t.q.dtype);
  require(transposed.device == plan.device, where, ": the transposed plan is on ", DeviceText{transposed.device}, ", the plan is on ",
          DeviceText{plan.device});
  require(same_tiles(transposed.query, plan.key) && same_tiles(transposed.key, plan.query) && transposed.heads == plan.heads, where,
          ": the transposed plan is of ", TilesText{transposed.query}, " by ", TilesText{transposed.key}, " and ", transposed.heads,
          " heads, expected ", TilesText{plan.key}, " by ", TilesText{plan.query}, " and ", plan.heads);
  const ForwardArgs forward = forward_args({t.q, t.k, t.v, t.out, t.lse}, plan, options);
  return {.q = t.q,
          .k = t.k,
          .v = t.v,
          .out = t.out,
          .lse = t.lse,
          .dout = t.dout,
          .dq = t.dq,
          .dk = t.dk,
          .dv = t.dv,
          .plan = plan,
          .transposed = transposed,
          .query_lengths = forward.query_lengths,
          .key_lengths = forward.key_lengths,
          .scale = forward.scale,
          .executor = forward.executor,
          .stream = forward.stream,
          .workspace = forward.workspace};
}

template <typename Args>
const Kernel<Args>& choose(const char* where, const Args& args, std::string_view name, std::span<const Kernel<Args>> kernels,
                           std::span<const Kernel<Args>> reference) {
  std::string refused;
  bool known = false;
  const auto find = [&](std::span<const Kernel<Args>> list) -> const Kernel<Args>* {
    for (const Kernel<Args>& kernel : list) {
      if (!name.empty() && name != kernel.name) continue;
      known = true;
      const char* reason = kernel.unavailable();
      if (reason == nullptr) reason = kernel.why_not(args);
      if (reason == nullptr) return &kernel;
      refused += std::string(refused.empty() ? "" : "; ") + kernel.name + ": " + reason;
    }
    return nullptr;
  };
  if (const auto* kernel = find(kernels)) return *kernel;
  if (!name.empty() && args.q.device.type == DeviceType::kCpu) {
    if (const auto* kernel = find(reference)) return *kernel;
  }
  if (!name.empty() && !known) fail(ErrorCode::kUnsupported, where, ": no kernel is named '", name, "' on ", to_string(args.q.device));
  fail(ErrorCode::kUnsupported, where, ": no kernel can run this problem (", refused.empty() ? "none is built in" : refused, ")");
}

const ForwardKernel& choose(const ForwardArgs& args, const AttentionOptions& options) {
  const bool cpu = args.q.device.type == DeviceType::kCpu;
  return choose("attention forward", args, options.kernel, cpu ? cpu_forward_kernels() : cuda_forward_kernels(),
                reference_forward_kernels());
}

const BackwardKernel& choose(const BackwardArgs& args, const AttentionOptions& options) {
  const bool cpu = args.q.device.type == DeviceType::kCpu;
  return choose("attention backward", args, options.kernel, cpu ? cpu_backward_kernels() : cuda_backward_kernels(),
                reference_backward_kernels());
}

template <typename Args>
int64_t workspace_bytes(const Kernel<Args>& kernel, const Args& args) {
  return kernel.workspace_bytes == nullptr ? 0 : kernel.workspace_bytes(args);
}

template <typename Args>
void run(const char* where, const Kernel<Args>& kernel, const Args& args, const AttentionOptions& options) {
  const int64_t needed = workspace_bytes(kernel, args);
  require(static_cast<int64_t>(options.workspace.size()) >= needed, where, ": ", kernel.name, " needs a workspace of ", needed,
          " bytes, got ", options.workspace.size());
  const auto past = reinterpret_cast<uintptr_t>(options.workspace.data()) % kWorkspaceAlignment;
  require(needed == 0 || past == 0, where, ": the workspace starts ", past, " bytes past a multiple of ", kWorkspaceAlignment);
  kernel.run(args);
}

template <typename Args>
std::vector<KernelInfo> describe(std::span<const Kernel<Args>> kernels) {
  std::vector<KernelInfo> infos;
  for (const Kernel<Args>& kernel : kernels) {
    const char* reason = kernel.unavailable();
    infos.push_back({kernel.name, reason == nullptr ? "" : reason});
  }
  return infos;
}

}  // namespace

void attention_forward(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options) {
  const ForwardArgs args = forward_args(tensors, plan, options);
  run("attention forward", choose(args, options), args, options);
}

void attention_forward(const ForwardTensors& tensors, const Plan& plan, const AttentionOptions& options) {
  attention_forward(tensors, view_of(plan), options);
}

void attention_backward(const BackwardTensors& tensors, const PlanView& plan, const PlanView& transposed, const AttentionOptions& options) {
  const BackwardArgs args = backward_args(tensors, plan, transposed, options);
  run("attention backward", choose(args, options), args, options);
}

int64_t forward_workspace_bytes(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options) {
  const ForwardArgs args = forward_args(tensors, plan, options);
  return workspace_bytes(choose(args, options), args);
}

int64_t backward_workspace_bytes(const BackwardTensors& tensors, const PlanView& plan, const PlanView& transposed,
                                 const AttentionOptions& options) {
  const BackwardArgs args = backward_args(tensors, plan, transposed, options);
  return workspace_bytes(choose(args, options), args);
}

const char* forward_kernel_name(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options) {
  return choose(forward_args(tensors, plan, options), options).name;
}

void merge(const PartialResult& into, const PartialResult& other) {
  const TensorView &out = into.out, &lse = into.lse;
  require(out.device.type == DeviceType::kCpu, "merge: out is on ", to_string(out.device), ", expected cpu");
  require_like("merge: into", {"out", out}, out, out.dtype);
  require_like("merge: into", {"lse", lse}, with_shape(out, {out.batch(), out.heads(), out.tokens(), 1}), DType::kF32);
  require_like("merge: other", {"out", other.out}, out, out.dtype);
  require_like("merge: other", {"lse", other.lse}, lse, DType::kF32);
  const auto offset = [](const TensorView& view, int64_t b, int64_t h, int64_t token) {
    return b * view.strides[0] + h * view.strides[1] + token * view.strides[2];
  };
  for (int64_t b = 0; b < out.batch(); ++b) {
    for (int64_t h = 0; h < out.heads(); ++h) {
      for (int64_t token = 0; token < out.tokens(); ++token) {
        auto& lse_a = static_cast<float*>(lse.data)[offset(lse, b, h, token)];
        const float lse_b = static_cast<const float*>(other.lse.data)[offset(other.lse, b, h, token)];
        const double largest = std::max(lse_a, lse_b);
        if (largest == -std::numeric_limits<double>::infinity()) continue;  // neither saw a key: out stays 0
        const double weight_a = std::exp(lse_a - largest), weight_b = std::exp(lse_b - largest), sum = weight_a + weight_b;
        const int64_t to = offset(out, b, h, token), from = offset(other.out, b, h, token);
        for (int64_t d = 0; d < out.head_dim(); ++d) {
          const double a = load_element(out.data, out.dtype, to + d), c = load_element(other.out.data, out.dtype, from + d);
          store_element(out.data, out.dtype, to + d, static_cast<float>((weight_a * a + weight_b * c) / sum));
        }
        lse_a = static_cast<float>(largest + std::log(sum));
      }
    }
  }
}

std::vector<KernelInfo> forward_kernels(DeviceType device) {
  return describe(device == DeviceType::kCpu ? cpu_forward_kernels() : cuda_forward_kernels());
}

std::vector<KernelInfo> backward_kernels(DeviceType device) {
  return describe(device == DeviceType::kCpu ? cpu_backward_kernels() : cuda_backward_kernels());
}

}  // namespace slidetile
