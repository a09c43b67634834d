#include "video/attention_op.h"

#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <vector>

#include "slidetile/attention.h"
#include "slidetile/error.h"

namespace slidetile::video {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<const char*> last_kernel{""};

// The library's loops on torch's own threads: a second pool would fight with the first, whose threads spin for a while after each loop.
class TorchThreads final : public Executor {
 public:
  int workers() const noexcept override { return at::get_num_threads(); }
  void run(int64_t count, const Task& task) override {
    std::atomic<int64_t> next{0};
    const int64_t workers = std::min<int64_t>(this->workers(), count);
    at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(index, static_cast<int>(worker));
      }
    });
  }
};

Executor& torch_threads() {
  static TorchThreads threads;
  return threads;
}

DType dtype_of(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kFloat32: return DType::kF32;
    case torch::kBFloat16: return DType::kBf16;
    case torch::kFloat16: return DType::kF16;
    default: fail(ErrorCode::kUnsupported, "attention: tensors of ", toString(tensor.scalar_type()), ", expected f32, bf16 or f16");
  }
}

// [batch, tokens, heads, head_dim] as the library's [batch, heads, tokens, head_dim]: strides say so, nothing moves.
TensorView view_of_torch(const torch::Tensor& tensor) {
  return {.data = tensor.data_ptr(),
          .dtype = dtype_of(tensor),
          .device = device_of(tensor.device()),
          .shape = {tensor.size(0), tensor.size(2), tensor.size(1), tensor.size(3)},
          .strides = {tensor.stride(0), tensor.stride(2), tensor.stride(1), tensor.stride(3)}};
}

torch::Tensor readable(const torch::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }

torch::Tensor make_workspace(int64_t bytes, const torch::Device& device) {
  return torch::empty({bytes}, torch::TensorOptions().dtype(torch::kUInt8).device(device));
}

c10::Stream current_stream(const torch::Device& device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

}  // namespace

struct AttentionTimer::State {
  std::mutex mutex;
  double seconds = 0;
  std::atomic<int64_t> calls{0};
  std::vector<std::pair<c10::Event, c10::Event>> events;  // not yet read
};

namespace {
std::atomic<AttentionTimer*> current_timer{nullptr};
}  // namespace

// Adds the time of its scope to the current timer.
class TimedCall {
 public:
  explicit TimedCall(const torch::Device& device) : timer_(current_timer.load()), device_(device) {
    if (!timer_) return;
    if (device_.is_cuda()) {
      start_.emplace(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
      start_->record(current_stream(device_));
    } else {
      began_ = Clock::now();
    }
  }
  ~TimedCall() {
    if (!timer_) return;
    AttentionTimer::State& state = *timer_->state_;
    state.calls++;
    const std::lock_guard lock(state.mutex);
    if (device_.is_cuda()) {
      c10::Event end(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
      end.record(current_stream(device_));
      state.events.emplace_back(std::move(*start_), std::move(end));
    } else {
      state.seconds += std::chrono::duration<double>(Clock::now() - began_).count();
    }
  }
  TimedCall(const TimedCall&) = delete;
  TimedCall& operator=(const TimedCall&) = delete;

 private:
  AttentionTimer* timer_;
  torch::Device device_;
  Clock::time_point began_;
  std::optional<c10::Event> start_;
};

AttentionTimer::AttentionTimer() : state_(std::make_unique<State>()) {
  AttentionTimer* none = nullptr;
  require(current_timer.compare_exchange_strong(none, this), "attention timer: one is there already, expected one at a time");
}

AttentionTimer::~AttentionTimer() { current_timer = nullptr; }

double AttentionTimer::take_seconds() {
  const std::lock_guard lock(state_->mutex);
  for (auto& [start, end] : state_->events) {
    end.synchronize();
    state_->seconds += start.elapsedTime(end) * 1e-3;
  }
  state_->events.clear();
  return std::exchange(state_->seconds, 0);
}

int64_t AttentionTimer::calls() const noexcept { return state_->calls; }

const char* last_attention_kernel() noexcept { return last_kernel; }

namespace {

// How a call runs on a device, with the memory that it needs.
struct Call {
  c10::OptionalDeviceGuard guard;
  torch::Tensor workspace;
  AttentionOptions options;

  explicit Call(const torch::Device& device) {
    if (device.is_cuda()) {
      guard.reset_device(device);
      options.stream = current_stream(device).native_handle();
    } else {
      options.executor = &torch_threads();
    }
  }
  void allocate(int64_t bytes, const torch::Device& device) {
    if (bytes == 0) return;
    workspace = make_workspace(bytes, device);
    options.workspace = {static_cast<std::byte*>(workspace.data_ptr()), static_cast<size_t>(bytes)};
  }
};

// out, and lse where it is wanted (a defined tensor).
void run_forward(const ForwardTensors& tensors, const LayerPlan& plan, const torch::Device& device) {
  Call call(device);
  call.allocate(forward_workspace_bytes(tensors, plan.view(), call.options), device);
  last_kernel = forward_kernel_name(tensors, plan.view(), call.options);
  const TimedCall timed(device);
  attention_forward(tensors, plan.view(), call.options);
}

struct PlanHolder : torch::CustomClassHolder {
  explicit PlanHolder(std::shared_ptr<const LayerPlan> held) : plan(std::move(held)) {}
  std::shared_ptr<const LayerPlan> plan;
};

class Attend : public torch::autograd::Function<Attend> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& q_in, const torch::Tensor& k_in,
                               const torch::Tensor& v_in, const std::shared_ptr<const LayerPlan>& plan) {
    const torch::Tensor q = readable(q_in), k = readable(k_in), v = readable(v_in);
    const torch::Tensor out = torch::empty(q.sizes(), q.options());
    // [b, h, s, 1], as the library wants it
    const torch::Tensor lse = torch::empty({q.size(0), q.size(2), q.size(1), 1}, q.options().dtype(torch::kFloat32));
    TensorView lse_view = view_of_torch(lse.transpose(1, 2));
    run_forward({view_of_torch(q), view_of_torch(k), view_of_torch(v), view_of_torch(out), lse_view}, *plan, q.device());
    context->save_for_backward({q, k, v, out, lse});
    context->saved_data["plan"] = torch::IValue::make_capsule(c10::make_intrusive<PlanHolder>(plan));
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto holder = c10::static_intrusive_pointer_cast<PlanHolder>(context->saved_data["plan"].toCapsule());
    const LayerPlan& plan = *holder->plan;
    const torch::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3];
    const torch::Tensor dout = readable(grads[0].to(q.scalar_type()));
    const auto like = [](const torch::Tensor& tensor) {
      return torch::empty(tensor.sizes(), tensor.options());
    };
    const torch::Tensor dq = like(q), dk = like(k), dv = like(v);
    const BackwardTensors tensors{
        view_of_torch(q),    view_of_torch(k),  view_of_torch(v),  view_of_torch(out), view_of_torch(saved[4].transpose(1, 2)),
        view_of_torch(dout), view_of_torch(dq), view_of_torch(dk), view_of_torch(dv)};
    const torch::Device device = q.device();
    Call call(device);
    call.allocate(backward_workspace_bytes(tensors, plan.view(), plan.transposed(), call.options), device);
    const TimedCall timed(device);
    attention_backward(tensors, plan.view(), plan.transposed(), call.options);
    return {dq, dk, dv, torch::Tensor()};
  }
};

}  // namespace

torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const std::shared_ptr<const LayerPlan>& plan) {
  require(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "attention: q, k and v have ", q.dim(), ", ", k.dim(), " and ", v.dim(),
          " axes, expected 4: batch, tokens, heads, head_dim");
  if (torch::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad())) return Attend::apply(q, k, v, plan);
  const torch::Tensor q_read = readable(q), k_read = readable(k), v_read = readable(v);
  torch::Tensor out = torch::empty(q.sizes(), q.options());
  run_forward({view_of_torch(q_read), view_of_torch(k_read), view_of_torch(v_read), view_of_torch(out), {}}, *plan, q.device());
  return out;
}

}  // namespace slidetile::video
