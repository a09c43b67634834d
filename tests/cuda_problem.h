// Tensors of a problem on the device, a plan there and the calls that run it: what the GPU tests share.
#pragma once

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_reference.h"
#include "gradient_cases.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"

namespace slidetile::test {

inline constexpr DType kDtypes[] = {DType::kBf16, DType::kF16, DType::kF32};
inline constexpr Device kDevice{DeviceType::kCuda, 0};

inline void check_cuda(cudaError_t status) { REQUIRE_MESSAGE(status == cudaSuccess, std::string(cudaGetErrorString(status))); }

inline std::vector<std::string> runnable(const std::vector<KernelInfo>& kernels) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels) {
    if (kernel.reason.empty()) names.push_back(kernel.name);
  }
  return names;
}

/// False where no kernel of that name takes the problem; any other error fails the test.
template <typename Run>
bool attempt(const Run& run) {
  try {
    run();
    return true;
  } catch (const Error& error) {
    REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
    return false;
  }
}

inline double scale_of(const AttentionCase& c) { return 1 / std::sqrt(static_cast<double>(c.head_dim)); }

/// Tensors of a case on the device: random inputs, poisoned outputs, NaN around all of them and in k and v past the lengths.
struct DeviceProblem {
  AttentionCase c;
  Plan host, host_transposed;
  DevicePlan plan;
  DeviceTensor q, k, v, out, lse, dout, dq, dk, dv;
  DeviceMemory lengths, workspace;
  float scale = 0;  // as in AttentionOptions

  DeviceProblem(const AttentionCase& of, DType dtype, int64_t shift = 0) : DeviceProblem(of, make_plan(of), dtype, shift) {}
  /// A plan that is not the case's own.
  DeviceProblem(const AttentionCase& of, Plan own, DType dtype, int64_t shift = 0)
      : c(of), host(std::move(own)), host_transposed(transpose(host)) {
    plan = DevicePlan(host, host_transposed, kDevice);
    const std::array<int64_t, 4> queries{c.batch, c.heads, host.query.tokens(), c.head_dim},
        keys{c.batch, c.heads, host.key.tokens(), c.head_dim};
    for (DeviceTensor* tensor : {&q, &out, &dout, &dq}) *tensor = DeviceTensor(dtype, queries, c.layout, shift);
    for (DeviceTensor* tensor : {&k, &v, &dk, &dv}) *tensor = DeviceTensor(dtype, keys, c.layout, shift);
    lse = DeviceTensor(DType::kF32, {c.batch, c.heads, queries[2], 1}, Layout::kBhsd);
    const int32_t* unused_from = c.key_lengths.empty() ? nullptr : c.key_lengths.data();
    q.fill(1, c.logit_scale, nullptr);
    k.fill(2, 1, unused_from);
    v.fill(3, 1, unused_from);
    dout.fill(4, 1, nullptr);
    if (!c.key_lengths.empty()) {
      lengths = DeviceMemory(static_cast<int64_t>(c.key_lengths.size() * sizeof(int32_t)));
      check_cuda(cudaMemcpy(lengths.data(), c.key_lengths.data(), static_cast<size_t>(lengths.bytes()), cudaMemcpyHostToDevice));
    }
  }

  ForwardTensors forward() const { return {q.view, k.view, v.view, out.view, lse.view}; }
  BackwardTensors backward() const { return {q.view, k.view, v.view, out.view, lse.view, dout.view, dq.view, dk.view, dv.view}; }
  AttentionOptions options(std::string_view kernel = {}) const {
    return {.scale = scale,
            .key_lengths = {static_cast<const int32_t*>(lengths.data()), c.key_lengths.size()},
            .kernel = kernel,
            .workspace = {static_cast<std::byte*>(workspace.data()), static_cast<size_t>(workspace.bytes())}};
  }
  void run_forward(std::string_view kernel = {}, void* stream = nullptr) {
    reserve(forward_workspace_bytes(forward(), plan.view(), options(kernel)));
    AttentionOptions o = options(kernel);
    o.stream = stream;
    attention_forward(forward(), plan.view(), o);
  }
  void run_backward(std::string_view kernel = {}, void* stream = nullptr) {
    reserve(backward_workspace_bytes(backward(), plan.view(), plan.transposed(), options(kernel)));
    AttentionOptions o = options(kernel);
    o.stream = stream;
    attention_backward(backward(), plan.view(), plan.transposed(), o);
  }
  void reserve(int64_t bytes) {
    if (bytes <= workspace.bytes()) return;
    workspace = DeviceMemory(bytes);
    check_cuda(cudaMemset(workspace.data(), 0xff, static_cast<size_t>(bytes)));
  }
  ReferenceArgs reference() const {
    const auto* on_device = static_cast<const int32_t*>(lengths.data());
    const bool same = host.query == host.key;
    return {.q = q.view,
            .k = k.view,
            .v = v.view,
            .dout = dout.view,
            .plan = plan.view(),
            .transposed = plan.transposed(),
            .query_lengths = same ? on_device : nullptr,
            .key_lengths = on_device,
            .scale = scale != 0 ? scale : scale_of(c)};
  }
};

/// Relative to the tensor, or to elements of 0.01 where it is nearly zero (gradients of a row that sees one key are).
inline double relative(const Sums& sums) {
  constexpr double kFloor = 1e-4;  // of a square
  if (sums.wrong > 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(sums.error / std::max(sums.norm, kFloor * static_cast<double>(sums.count)));
}

inline double off(const DeviceTensor& got, const DeviceDoubles& want) { return relative(compare_on_device(got.view, want.data())); }

inline double lse_off(const DeviceTensor& got, const DeviceDoubles& want) {
  const Sums sums = compare_on_device(got.view, want.data());
  return sums.wrong > 0 ? std::numeric_limits<double>::infinity() : sums.largest;
}

inline std::vector<uint8_t> bytes_of(const DeviceTensor& tensor) {
  std::vector<uint8_t> bytes(static_cast<size_t>(tensor.memory.bytes()));
  check_cuda(cudaMemcpy(bytes.data(), tensor.memory.data(), bytes.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

inline std::vector<std::vector<uint8_t>> results_of(const DeviceProblem& p) {
  std::vector<std::vector<uint8_t>> all;
  for (const DeviceTensor* tensor : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) all.push_back(bytes_of(*tensor));
  return all;
}

inline void poison_results(const DeviceProblem& p) {
  for (const DeviceTensor* tensor : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) tensor->poison();
}

inline AttentionCase video_case(int64_t head_dim) {
  return {.name = "video",
          .batch = 2,
          .heads = 3,
          .head_dim = head_dim,
          .canvas = {12, 16, 24},
          .tile = {6, 8, 8},
          .windows = {{1, 2, 1}, {2, 1, 3}, {1, 1, 1}},
          .extra = {0, 77},
          .key_lengths = {4608 + 50, 4608 + 77}};
}

inline std::string kernel_for(const std::vector<KernelInfo>& kernels) { return kernels.empty() ? "" : kernels.front().name; }

}  // namespace slidetile::test
