// Attention over a plan: checks the arguments, chooses a kernel, runs it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slidetile/kernel.h"

namespace slidetile {

struct AttentionOptions {
  float scale = 0;                       // 0: 1 / sqrt(head_dim)
  std::span<const int32_t> key_lengths;  // [batch] tokens of the sequence in use, on the tensors' device; empty: all.
                                         // At least the canvas and what is before it. Rows past it: out 0, lse -inf.
                                         // CUDA: not checked, since a call reads nothing back; one out of range counts as the nearest in it
  std::string_view kernel;               // empty: the best that can run; else its name, or "reference"
  Executor* executor = nullptr;          // CPU: null is default_executor()
  void* stream = nullptr;                // CUDA: cudaStream_t; null is the default stream
  std::span<std::byte> workspace;        // CUDA: device memory, 256-byte aligned, see forward_workspace_bytes
};

/// q and out [batch, heads, query tokens, head_dim]; k and v [batch, heads, key tokens, head_dim]; lse f32 [batch, heads, query tokens, 1]
/// or without data. One element type (f32, bf16, f16) and one device for q, k, v and out; head_dim 1 to 256.
struct ForwardTensors {
  TensorView q, k, v, out, lse;
};

/// out = softmax(scale q k^T) v over the pairs that the plan makes visible; a row that sees no key gives out 0 and lse -inf.
/// Tokens stay in the sequence's order. Throws Error: invalid_argument for tensors that do not fit each other or the plan,
/// unsupported where no kernel can run the problem (the message lists why).
void attention_forward(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options = {});
void attention_forward(const ForwardTensors& tensors, const Plan& plan, const AttentionOptions& options = {});

/// As ForwardTensors, with dout like out, and the gradients dq, dk, dv like q, k, v.
struct BackwardTensors {
  TensorView q, k, v, out, lse, dout, dq, dk, dv;
};

/// Gradients of sum(out * dout). `transposed` is transpose(plan). All of dq, dk and dv is written.
void attention_backward(const BackwardTensors& tensors, const PlanView& plan, const PlanView& transposed,
                        const AttentionOptions& options = {});

/// Bytes of device memory that attention_forward or attention_backward needs as options.workspace; 0 on CPU.
int64_t forward_workspace_bytes(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options = {});
int64_t backward_workspace_bytes(const BackwardTensors& tensors, const PlanView& plan, const PlanView& transposed,
                                 const AttentionOptions& options = {});

/// Name of the kernel that attention_forward would run; throws as it does.
const char* forward_kernel_name(const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options = {});

/// Two results over disjoint keys of the same queries as one: out [batch, heads, tokens, head_dim], lse f32 [.., 1]. `into` is read
/// and written. Host tensors.
struct PartialResult {
  TensorView out, lse;
};
void merge(const PartialResult& into, const PartialResult& other);

/// A kernel of this build, best first within a device; `reason` says why this machine can't run it ("" if it can).
struct KernelInfo {
  std::string name, reason;
};
std::vector<KernelInfo> forward_kernels(DeviceType device);
std::vector<KernelInfo> backward_kernels(DeviceType device);

}  // namespace slidetile
