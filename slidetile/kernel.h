// What a back end provides: arguments of one attention call, and lists of kernels that can run it.
#pragma once

#include <cstdint>
#include <span>

#include "slidetile/parallel.h"
#include "slidetile/plan.h"
#include "slidetile/tensor.h"

namespace slidetile {

/// Arguments are checked before a kernel sees them (attention.cpp). Query and key tokens may differ in number.
struct ForwardArgs {
  TensorView q;                            // [batch, heads, query tokens, head_dim]
  TensorView k, v;                         // [batch, heads, key tokens, head_dim]
  TensorView out;                          // like q
  TensorView lse;                          // f32 [batch, heads, query tokens, 1], natural logarithm; no data: not wanted
  PlanView plan;                           // on the tensors' device
  const int32_t* query_lengths = nullptr;  // [batch] tokens in use, on the tensors' device; null: all. Rows past it: out 0, lse -inf
  const int32_t* key_lengths = nullptr;    // [batch] tokens in use; only tokens after the canvas may be unused
  float scale = 1;
  Executor* executor = nullptr;  // CPU: where to run
  void* stream = nullptr;        // CUDA: cudaStream_t
  void* workspace = nullptr;     // CUDA: device memory, workspace_bytes(args) of it, 256-byte aligned
};

/// Gradients of sum(out * dout) with respect to q, k and v.
struct BackwardArgs {
  TensorView q, k, v, out, lse, dout;  // as in ForwardArgs; dout like out
  TensorView dq, dk, dv;               // like q, k, v; all written
  PlanView plan, transposed;
  const int32_t* query_lengths = nullptr;
  const int32_t* key_lengths = nullptr;
  float scale = 1;
  Executor* executor = nullptr;
  void* stream = nullptr;
  void* workspace = nullptr;
};

template <typename Args>
struct Kernel {
  const char* name;                              // "cuda.sm90", "cpu.avx512bf16"
  const char* (*unavailable)() noexcept;         // why this machine or build can't run it; nullptr: it can
  const char* (*why_not)(const Args&) noexcept;  // why it can't run this problem (or on this machine); nullptr: it can
  void (*run)(const Args&);
  int64_t (*workspace_bytes)(const Args&) noexcept;  // device memory that run needs; nullptr: none
};
using ForwardKernel = Kernel<ForwardArgs>;
using BackwardKernel = Kernel<BackwardArgs>;

/// Best first; the first that can run is used.
std::span<const ForwardKernel> cpu_forward_kernels() noexcept;
std::span<const BackwardKernel> cpu_backward_kernels() noexcept;
std::span<const ForwardKernel> cuda_forward_kernels() noexcept;
std::span<const BackwardKernel> cuda_backward_kernels() noexcept;
/// Double-precision loops: the specification of every other kernel, chosen only by name.
std::span<const ForwardKernel> reference_forward_kernels() noexcept;
std::span<const BackwardKernel> reference_backward_kernels() noexcept;

}  // namespace slidetile
