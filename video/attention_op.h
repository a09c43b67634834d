// The library's attention as a differentiable operation on torch tensors, and how much of a step it takes.
#pragma once

#include <torch/types.h>

#include <memory>

#include "video/token_plans.h"

namespace slidetile::video {

/// softmax(q k^T / sqrt(head_dim)) v over the pairs that the plan makes visible, with gradients for q, k and v. All are
/// [batch, tokens, heads, head_dim] with any strides; the result is contiguous. f32, bf16 or f16, on the plan's device; on CUDA the work
/// goes to the current stream with workspace from torch's allocator, and may be captured into a graph.
torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const std::shared_ptr<const LayerPlan>& plan);

/// While one lives, every attend() of the process, forward and backward, adds its time to it: wall time on CPU, events on the stream on
/// CUDA (not while a graph is captured). One at a time.
class AttentionTimer {
 public:
  AttentionTimer();
  ~AttentionTimer();
  AttentionTimer(const AttentionTimer&) = delete;
  AttentionTimer& operator=(const AttentionTimer&) = delete;

  /// Seconds since the start or the last call of this; waits for the device.
  double take_seconds();
  /// Calls of attention kernels so far.
  int64_t calls() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
  friend class TimedCall;
};

/// Name of the kernel that the last attend() ran ("" before the first): "cuda.sm90", "cpu.avx512bf16".
const char* last_attention_kernel() noexcept;

}  // namespace slidetile::video
