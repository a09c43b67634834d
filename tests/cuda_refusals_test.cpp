// What calls on a GPU refuse, and what they say: input that does not fit, kernels that can't run it, memory that is not there, a device
// that is lost.
#include <algorithm>

#include "cuda_problem.h"
#include "slidetile/device_buffer.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

template <typename Call>
void check_refused(const Call& call, ErrorCode code, const std::string& message) {
  try {
    call();
    FAIL_CHECK("accepted, expected: ", message);
  } catch (const Error& error) {
    CHECK(error.code() == code);
    CHECK_MESSAGE(std::string(error.what()).find(message) != std::string::npos, std::string(error.what()));
  }
}

bool can_run(const std::string& kernel) {
  const std::vector<std::string> names = runnable(forward_kernels(DeviceType::kCuda));
  return std::find(names.begin(), names.end(), kernel) != names.end();
}

void move_by(TensorView& view, int64_t bytes) { view.data = static_cast<char*>(view.data) + bytes; }

}  // namespace

TEST_CASE("bad input is refused with the value and what was expected") {
  const DeviceProblem p(video_case(128), DType::kBf16);
  const auto refused = [&](const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options, const std::string& message,
                           ErrorCode code = ErrorCode::kInvalidArgument) {
    check_refused([&] { attention_forward(tensors, plan, options); }, code, message);
  };
  ForwardTensors tensors = p.forward();
  refused(tensors, view_of(p.host), p.options(), "the plan is on cpu, q is on cuda:0");
  tensors.k.device.index = 1;
  refused(tensors, p.plan.view(), p.options(), "k is on cuda:1, q is on cuda:0");
  tensors = p.forward();
  tensors.v.device = {};
  refused(tensors, p.plan.view(), p.options(), "v is on cpu, q is on cuda:0");
  tensors = p.forward();
  for (TensorView* view : {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse}) view->device.index = 63;
  PlanView plan = p.plan.view();
  plan.device.index = 63;
  refused(tensors, plan, p.options(), "no such CUDA device", ErrorCode::kUnsupported);
  refused(p.forward(), p.plan.view(), p.options("reference"), "no kernel is named 'reference' on cuda:0", ErrorCode::kUnsupported);
  tensors = p.forward();
  tensors.q.shape[2] -= 1;
  refused(tensors, p.plan.view(), p.options(), "the plan covers 4685");
  for (const size_t axis : {0, 1, 2}) {
    tensors = p.forward();
    tensors.q.shape[axis] = 0;
    refused(tensors, p.plan.view(), p.options(), "expected [batch, heads, tokens, head_dim] with none of them 0");
  }
  tensors = p.forward();
  move_by(tensors.v, 1);
  refused(tensors, p.plan.view(), p.options(), "v starts 1 bytes past a multiple of 2");
  tensors = p.forward();
  tensors.out.strides[2] = -128;
  refused(tensors, p.plan.view(), p.options(), "must not be negative");
  AttentionOptions options = p.options();
  options.key_lengths = options.key_lengths.first(1);
  refused(p.forward(), p.plan.view(), options, "key_lengths has 1 elements, expected batch = 2");
  const DeviceMemory workspace(int64_t{1} << 26);
  options = p.options();
  options.workspace = {static_cast<std::byte*>(workspace.data()) + 16, static_cast<size_t>(workspace.bytes() - 16)};
  const auto backward = [&](const PlanView& transposed) {
    attention_backward(p.backward(), p.plan.view(), transposed, options);
  };
  check_refused([&] { backward(p.plan.transposed()); }, ErrorCode::kInvalidArgument,
                "the workspace starts 16 bytes past a multiple of 256");
  options.workspace = {};
  check_refused([&] { backward(p.plan.transposed()); }, ErrorCode::kInvalidArgument, "needs a workspace of");
  // As many tokens, but of another canvas.
  AttentionCase other = p.c;
  std::swap(other.canvas.h, other.canvas.w);
  const DeviceProblem o(other, DType::kBf16);
  check_refused([&] { backward(o.plan.transposed()); }, ErrorCode::kInvalidArgument, "canvas 12x24x16");
  CHECK_THROWS_AS(DevicePlan(p.host, o.host_transposed, kDevice), Error);
  Plan fewer_heads = p.host;
  fewer_heads.head_class.pop_back();
  CHECK_THROWS_AS(DevicePlan(p.host, fewer_heads, kDevice), Error);
  CHECK_THROWS_AS(static_cast<void>(DevicePlan(p.host, kDevice).transposed()), Error);
}

TEST_CASE("the Hopper kernels say why they can't run a problem" * doctest::skip(!can_run("cuda.sm90"))) {
  const auto refused = [](const DeviceProblem& p, const ForwardTensors& tensors, const std::string& message) {
    check_refused([&] { attention_forward(tensors, p.plan.view(), p.options("cuda.sm90")); }, ErrorCode::kUnsupported,
                  "cuda.sm90: " + message);
    CHECK(forward_kernel_name(tensors, p.plan.view(), p.options()) != std::string("cuda.sm90"));
  };
  DeviceProblem p(video_case(128), DType::kBf16);
  CHECK(forward_kernel_name(p.forward(), p.plan.view(), p.options()) == std::string("cuda.sm90"));
  ForwardTensors tensors = p.forward();
  move_by(tensors.k, 2);
  refused(p, tensors, "a tensor does not start at a multiple of 16 bytes");
  tensors = p.forward();
  tensors.q.strides[2] += 4;
  refused(p, tensors, "a tensor has strides that are not multiples of 16 bytes");
  tensors = p.forward();
  tensors.k.strides[1] = 0;  // all heads share their keys
  refused(p, tensors, "a tensor has strides of 0");
  p.scale = -1;
  refused(p, p.forward(), "the scale is not positive");
  const DeviceProblem wide(video_case(96), DType::kBf16), f32(video_case(128), DType::kF32);
  refused(wide, wide.forward(), "head_dim is not 64 or 128");
  refused(f32, f32.forward(), "elements are not bf16 or f16");
  AttentionCase masks = video_case(128);
  masks.pattern = Pattern::kRandom;
  masks.key_lengths.clear();
  const DeviceProblem masked(masks, DType::kBf16);
  refused(masked, masked.forward(), "the plan has token masks");
}

TEST_CASE("heads that share their keys") {
  for (const DType dtype : kDtypes) {
    AttentionCase c = video_case(128);
    c.windows = {{1, 2, 1}};
    DeviceProblem p(c, dtype);
    p.k.view.strides[1] = p.v.view.strides[1] = 0;
    p.run_forward();
    const ReferenceResult want = reference_forward_on_device(p.reference());
    CHECK(off(p.out, want.out) <= tolerance(dtype));
  }
}

TEST_CASE("a device that is out of memory") {
  // A plan of more than 4 MB, where less than 2 are left.
  AttentionCase c = video_case(64);
  c.canvas = {8, 128, 128};
  c.tile = {1, 2, 2};
  const Plan large = make_plan(c);
  std::vector<DeviceMemory> all;
  size_t free = 0, total = 0;
  for (int64_t bytes = int64_t{1} << 33; bytes >= int64_t{1} << 21; bytes /= 2) {
    for (;;) {
      void* memory = nullptr;
      if (cudaMalloc(&memory, static_cast<size_t>(bytes)) != cudaSuccess) break;
      cudaFree(memory);
      all.emplace_back(bytes);
    }
    cudaGetLastError();
  }
  check_cuda(cudaMemGetInfo(&free, &total));
  CAPTURE(free);
  check_refused([&] { DevicePlan(large, kDevice); }, ErrorCode::kOutOfMemory, "device plan: cudaMalloc: cudaErrorMemoryAllocation");
  all.clear();
  const DevicePlan fits(large, kDevice);  // nothing of the failure stays behind
  CHECK(fits.bytes() > int64_t{1} << 22);
  check_cuda(cudaGetLastError());
}

// Loses the device for the whole process, so a test of its own runs it: cuda_test --no-skip --test-case='a lost device*'.
TEST_CASE("a lost device is an error that says what happened" * doctest::skip()) {
  DeviceProblem p(video_case(128), DType::kBf16);
  // Kernels, and the workspace of the one that needs the most.
  for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) attempt([&] { p.run_forward(kernel); });
  for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) attempt([&] { p.run_backward(kernel); });
  lose_device();
  const std::string what = std::string(": ") + cudaGetErrorName(cudaGetLastError());
  CAPTURE(what);
  CHECK(what != ": cudaSuccess");
  for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
    if (kernel == "cuda.f32") continue;
    CAPTURE(kernel);
    check_refused([&] { p.run_forward(kernel); }, ErrorCode::kDevice, what);
  }
  for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
    if (kernel == "cuda.f32") continue;
    CAPTURE(kernel);
    check_refused([&] { p.run_backward(kernel); }, ErrorCode::kDevice, what);
  }
  check_refused([&] { DevicePlan(p.host, kDevice); }, ErrorCode::kDevice, what);
  check_refused([&] { DeviceBuffer(16, kDevice); }, ErrorCode::kDevice, what);
  check_refused([&] { synchronize(kDevice); }, ErrorCode::kDevice, what);
}
