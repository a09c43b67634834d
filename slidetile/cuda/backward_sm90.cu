// Attention backward on Hopper: which problems it takes, its workspace, and the arguments of its launches.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "slidetile/cuda/backward_lowering.h"
#include "slidetile/cuda/backward_sm90.h"
#include "slidetile/cuda/backward_sm90_params.cuh"
#include "slidetile/cuda/device.h"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/lowering.h"
#include "slidetile/cuda/tensor_map.h"

namespace slidetile::cuda {
namespace {

const char* backward_unavailable() noexcept { return unavailable(Needs::kHopper); }

const BackwardLowering* lowering_of(const BackwardArgs& args) noexcept {
  const auto* lowering = static_cast<const Lowering*>(args.transposed.lowering);
  return lowering == nullptr ? nullptr : lowering->backward;
}

const char* backward_why_not(const BackwardArgs& args) noexcept {
  if (args.q.device.type != DeviceType::kCuda) return "the tensors are not on a CUDA device";
  if (const char* reason = unavailable_on(args.q.device.index, Needs::kHopper)) return reason;
  if (args.q.dtype != DType::kBf16 && args.q.dtype != DType::kF16) return "elements are not bf16 or f16";
  if (args.q.head_dim() != 64 && args.q.head_dim() != 128) return "head_dim is not 64 or 128";
  if (args.plan.mask_of != nullptr) return "the plan has token masks";
  const BackwardLowering* lowering = lowering_of(args);
  if (lowering == nullptr) return "the transposed plan was not uploaded by DevicePlan, or without its lowering";
  if (lowering->why_not != nullptr) return lowering->why_not;
  for (const TensorView* tensor : {&args.q, &args.k, &args.v, &args.out, &args.dout, &args.dq, &args.dk, &args.dv}) {
    if (const char* reason = tensor_map_why_not(*tensor)) return reason;
  }
  const int64_t sheets = args.q.batch() * args.q.heads(), most = std::numeric_limits<int32_t>::max();
  const int64_t blocks = std::max({lowering->query_blocks, lowering->items, lowering->splits, lowering->partials, 1});
  if (sheets > most / blocks) return "there are 2^31 blocks or more";
  return nullptr;
}

// Where the parts of the workspace begin.
struct Workspace {
  int64_t ticket = 0, turn = 0, lse_terms = 0, delta = 0, dq_sums = 0, partials = 0, bytes = 0;
};

Workspace workspace_of(const BackwardArgs& args, const BackwardLowering& lowering) noexcept {
  Workspace workspace;
  const auto take = [&](int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    const int64_t at = workspace.bytes;
    workspace.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  const int64_t sheets = args.q.batch() * args.q.heads(), blocks = sheets * lowering.query_blocks, dim = args.q.head_dim();
  workspace.ticket = take(4);
  workspace.turn = take(blocks * 4);
  workspace.lse_terms = take(blocks * kBackwardQueryRows * 4);
  workspace.delta = take(blocks * kBackwardQueryRows * 4);
  workspace.dq_sums = take(blocks * kBackwardQueryRows * dim * 4);
  workspace.partials = take(sheets * lowering.partials * 2 * kBackwardKeyRows * dim * 4);
  return workspace;
}

int64_t backward_workspace_bytes(const BackwardArgs& args) noexcept {
  const BackwardLowering* lowering = lowering_of(args);
  return lowering == nullptr || lowering->why_not != nullptr ? 0 : workspace_of(args, *lowering).bytes;
}

TensorMaps maps_of(const TensorView& tensor, const TilingView& tiling, const BlockShape& shape) {
  const auto tokens = static_cast<int32_t>(tensor.tokens());
  return {.canvas = make_tensor_map(tensor, {.first_token = tiling.extra.before, .extent = tiling.canvas, .box = shape.box}),
          .extra = make_tensor_map(tensor, {.first_token = 0, .extent = {1, 1, tokens}, .box = {1, 1, shape.slot_rows}}),
          .steps = sheet_steps(tensor)};
}

TokenGeometry geometry_of(const TilingView& tiling, const BlockShape& shape) noexcept {
  return {.first = static_cast<int32_t>(tiling.extra.before),
          .h = tiling.canvas.h,
          .w = tiling.canvas.w,
          .box_h = shape.box.h,
          .box_w = shape.box.w};
}

Strides strides_of(const TensorView& tensor) noexcept {
  return {.batch = tensor.strides[0], .head = tensor.strides[1], .token = tensor.strides[2]};
}

// Deep kernels begin sums at lse / scale, which has to stay below kNoRow. Sums in turn are as good where any order will do.
DqOrder order_for(const BackwardArgs& args, DqOrder asked) noexcept {
  constexpr float kLeastScale = 1e-15f;
  return std::abs(args.scale) < kLeastScale ? DqOrder::kInTurn : asked;
}

void run(const BackwardArgs& args, DqOrder order) {
  const BackwardLowering& lowering = *lowering_of(args);
  const TilingView &queries = args.plan.query, &keys = args.plan.key;
  BackwardParams params{};
  params.q = maps_of(args.q, queries, lowering.query);
  params.dout = maps_of(args.dout, queries, lowering.query);
  params.k = maps_of(args.k, keys, lowering.key);
  params.v = maps_of(args.v, keys, lowering.key);
  params.tables = lowering;
  params.query = geometry_of(queries, lowering.query);
  params.key = geometry_of(keys, lowering.key);
  params.head_class = args.transposed.head_class;
  params.plan_heads = args.transposed.heads;
  params.query_lengths = args.query_lengths;
  params.key_lengths = args.key_lengths;
  params.heads = static_cast<int32_t>(args.q.heads());
  params.sheets = static_cast<int32_t>(args.q.batch() * args.q.heads());
  constexpr int32_t kRowBytes = static_cast<int32_t>(kSlabRowBytes);
  params.query_bytes = lowering.query.box_rows * kRowBytes;
  params.query_extra_bytes = lowering.query.slot_rows * kRowBytes;
  params.key_bytes = lowering.key.box_rows * kRowBytes;
  params.key_extra_bytes = lowering.key.slot_rows * kRowBytes;
  params.scale = args.scale;
  params.out = args.out.data;
  params.dout_data = args.dout.data;
  params.lse = static_cast<const float*>(args.lse.data);
  params.dq = args.dq.data;
  params.dk = args.dk.data;
  params.dv = args.dv.data;
  params.out_strides = strides_of(args.out);
  params.dout_strides = strides_of(args.dout);
  params.lse_strides = strides_of(args.lse);
  params.dq_strides = strides_of(args.dq);
  params.dk_strides = strides_of(args.dk);
  params.dv_strides = strides_of(args.dv);
  const Workspace workspace = workspace_of(args, lowering);
  auto* const memory = static_cast<std::byte*>(args.workspace);
  params.ticket = reinterpret_cast<int32_t*>(memory + workspace.ticket);
  params.turn = reinterpret_cast<int32_t*>(memory + workspace.turn);
  params.lse_terms = reinterpret_cast<float*>(memory + workspace.lse_terms);
  params.delta = reinterpret_cast<float*>(memory + workspace.delta);
  params.dq_sums = reinterpret_cast<float*>(memory + workspace.dq_sums);
  params.partials = reinterpret_cast<float*>(memory + workspace.partials);

  const CurrentDevice current(args.q.device.index);
  const int64_t items = int64_t{params.sheets} * lowering.items;
  const BackwardLaunch how{
      .head_dim = static_cast<int>(args.q.head_dim()),
      .ctas = static_cast<int>(std::min<int64_t>(properties_of(args.q.device.index).multiprocessors, std::max<int64_t>(items, 1))),
      .order = order_for(args, order),
      .stream = args.stream};
  if (args.q.dtype == DType::kBf16) {
    launch_backward_sm90_bf16(params, how);
  } else {
    launch_backward_sm90_f16(params, how);
  }
}

}  // namespace

const BackwardKernel kBackwardSm90{.name = "cuda.sm90",
                                   .unavailable = backward_unavailable,
                                   .why_not = backward_why_not,
                                   .run = [](const BackwardArgs& args) { run(args, DqOrder::kInTurn); },
                                   .workspace_bytes = backward_workspace_bytes};

const BackwardKernel kBackwardSm90Atomic{.name = "cuda.sm90.atomic",
                                         .unavailable = backward_unavailable,
                                         .why_not = backward_why_not,
                                         .run = [](const BackwardArgs& args) { run(args, DqOrder::kAny); },
                                         .workspace_bytes = backward_workspace_bytes};

}  // namespace slidetile::cuda
