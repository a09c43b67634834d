// Forward attention on Hopper: which problems it takes, and the arguments of its launch.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "slidetile/cuda/device.h"
#include "slidetile/cuda/forward_sm90.h"
#include "slidetile/cuda/forward_sm90_layout.cuh"
#include "slidetile/cuda/kernels.h"
#include "slidetile/cuda/lowering.h"
#include "slidetile/cuda/tensor_map.h"

namespace slidetile::cuda {
namespace {

// The workspace: items taken by the launch, by the one that repeats overflowed items, and their number; for each item whether it has
// overflowed; which ones have. Zero at first up to the last.
constexpr int64_t kWord = sizeof(int32_t), kOverflows = 2, kHasOverflowed = 4;

const char* forward_unavailable() noexcept { return unavailable(Needs::kHopper); }

int64_t work_items(const ForwardLowering& lowering, const TensorView& q) noexcept {
  int64_t items = 0;
  for (int32_t i = 0; i < lowering.groups; ++i) {
    const WorkGroup& group = lowering.group[i];
    items += q.batch() * (group.heads == 0 ? q.heads() : group.heads) * group.items;
  }
  return items;
}

const char* forward_why_not(const ForwardArgs& args) noexcept {
  if (args.q.device.type != DeviceType::kCuda) return "the tensors are not on a CUDA device";
  if (const char* reason = unavailable_on(args.q.device.index, Needs::kHopper)) return reason;
  if (args.q.dtype != DType::kBf16 && args.q.dtype != DType::kF16) return "elements are not bf16 or f16";
  if (args.q.head_dim() != 64 && args.q.head_dim() != 128) return "head_dim is not 64 or 128";
  if (args.plan.mask_of != nullptr) return "the plan has token masks";
  if (!(args.scale > 0)) return "the scale is not positive";
  const auto* lowering = static_cast<const Lowering*>(args.plan.lowering);
  if (lowering == nullptr) return "the plan was not uploaded by DevicePlan, or without its lowering";
  if (lowering->forward.why_not != nullptr) return lowering->forward.why_not;
  for (const TensorView* tensor : {&args.q, &args.k, &args.v, &args.out}) {
    if (const char* reason = tensor_map_why_not(*tensor)) return reason;
  }
  if (work_items(lowering->forward, args.q) > std::numeric_limits<int32_t>::max() / 2) return "there are 2^30 items of work or more";
  return nullptr;
}

int64_t forward_workspace_bytes(const ForwardArgs& args) noexcept {
  return kWord * (kHasOverflowed + 2 * work_items(static_cast<const Lowering*>(args.plan.lowering)->forward, args.q));
}

// Tokens that are in use whatever the lengths say.
int32_t always_in_use(const TilingView& tiling) noexcept { return static_cast<int32_t>(tiling.extra.before + tiling.canvas.volume()); }

void set_maps(CUtensorMap (&maps)[2], const TensorView& tensor, const TilingView& tiling, const BlockShape& shape) {
  const int64_t canvas = tiling.canvas.volume();
  const auto extra = static_cast<int32_t>(tiling.tokens == canvas ? 0 : tiling.tokens);  // making a map of none is cheap
  maps[0] = make_tensor_map(tensor, {.first_token = tiling.extra.before, .extent = tiling.canvas, .box = shape.box});
  maps[1] = make_tensor_map(tensor, {.first_token = 0, .extent = {1, 1, extra}, .box = {1, 1, shape.slot_rows}});
}

void forward_run(const ForwardArgs& args) {
  const ForwardLowering& lowering = static_cast<const Lowering*>(args.plan.lowering)->forward;
  const PlanView& plan = args.plan;
  const int64_t items = work_items(lowering, args.q);
  if (items == 0) return;
  HopperForwardParams params{};
  set_maps(params.q, args.q, plan.query, lowering.query);
  set_maps(params.k, args.k, plan.key, lowering.key);
  set_maps(params.v, args.v, plan.key, lowering.key);
  params.q_steps = sheet_steps(args.q);
  params.k_steps = sheet_steps(args.k);
  params.v_steps = sheet_steps(args.v);
  params.head_class = plan.head_class;
  params.row_of = plan.row_of;
  params.row_begin = plan.row_begin;
  params.key_tile = plan.key_tile;
  params.lowering = lowering;
  params.query_lengths = args.query_lengths;
  params.key_lengths = args.key_lengths;
  auto* const workspace = static_cast<int32_t*>(args.workspace);
  params.counter = workspace;
  params.overflows = workspace + kOverflows;
  params.has_overflowed = workspace + kHasOverflowed;
  params.overflowed = params.has_overflowed + items;
  params.out = args.out.data;
  params.lse = static_cast<float*>(args.lse.data);
  for (size_t axis = 0; axis < 3; ++axis) {
    params.out_strides[axis] = args.out.strides[axis];
    params.lse_strides[axis] = args.lse.data == nullptr ? 0 : args.lse.strides[axis];
  }
  params.batch = static_cast<int32_t>(args.q.batch());
  params.heads = static_cast<int32_t>(args.q.heads());
  params.plan_heads = plan.heads;
  params.query_tiles = plan.query.tiles;
  params.total_items = static_cast<int32_t>(items);
  params.query_tokens = static_cast<int32_t>(plan.query.tokens);
  params.query_always = always_in_use(plan.query);
  params.key_tokens = static_cast<int32_t>(plan.key.tokens);
  params.key_always = always_in_use(plan.key);
  params.before = static_cast<int32_t>(plan.query.extra.before);
  params.canvas_h = plan.query.canvas.h;
  params.canvas_w = plan.query.canvas.w;
  constexpr float kLog2E = 1.44269504088896f, kSlackLog2 = 8;
  params.scale_log2 = args.scale * kLog2E;
  params.slack = kSlackLog2 / params.scale_log2;

  const CurrentDevice current(args.q.device.index);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  check(cudaMemsetAsync(workspace, 0, static_cast<size_t>(kWord * (kHasOverflowed + items)), stream), "forward_sm90: cudaMemsetAsync");
  const int clusters = properties_of(args.q.device.index).multiprocessors / lowering.cluster;
  const ForwardLaunch how{.head_dim = static_cast<int>(args.q.head_dim()),
                          .step_rows = lowering.step_rows,
                          .cluster = lowering.cluster,
                          .ctas = static_cast<int>(std::min<int64_t>(clusters, items)) * lowering.cluster,
                          .stream = args.stream};
  if (args.q.dtype == DType::kBf16) {
    launch_forward_sm90_bf16(params, how);
  } else {
    launch_forward_sm90_f16(params, how);
  }
}

}  // namespace

const ForwardKernel kForwardSm90{.name = "cuda.sm90",
                                 .unavailable = forward_unavailable,
                                 .why_not = forward_why_not,
                                 .run = forward_run,
                                 .workspace_bytes = forward_workspace_bytes};

}  // namespace slidetile::cuda
