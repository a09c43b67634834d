// Double-precision attention on the GPU, one plain loop per row: what the GPU kernels are compared with where the host's reference would
// take too long. It is itself compared with reference/ in cuda_test.cpp. Also what fills, poisons and compares device memory.
#pragma once

#include <cstdint>
#include <memory>

#include "slidetile/attention.h"

namespace slidetile::test {

/// Device memory.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t bytes);
  void* data() const noexcept { return memory_.get(); }
  int64_t bytes() const noexcept { return bytes_; }

 private:
  struct Free {
    void operator()(void* memory) const noexcept;
  };
  std::unique_ptr<void, Free> memory_;
  int64_t bytes_ = 0;
};

/// A tensor between two margins, all of it NaN at first.
struct DeviceTensor {
  static constexpr int64_t kMargin = 512;  // elements
  DeviceMemory memory;
  TensorView view;
  int64_t shift = 0;

  DeviceTensor() = default;
  /// `shift` elements off alignment.
  DeviceTensor(DType dtype, std::array<int64_t, 4> shape, Layout layout, int64_t shift = 0);
  /// All of the memory, and the view where it has been moved elsewhere.
  void poison() const;
  /// Random normal numbers; tokens from lengths[b] on stay as they are (lengths: host, or null).
  void fill(uint64_t seed, double spread, const int32_t* lengths) const;
  bool margins_hold() const;
};

/// [batch][heads][tokens][head_dim] doubles.
struct DeviceDoubles {
  DeviceMemory memory;
  double* data() const { return static_cast<double*>(memory.data()); }
};

struct ReferenceArgs {
  TensorView q, k, v, dout;
  PlanView plan, transposed;  // on the device; transposed for gradients
  const int32_t *query_lengths = nullptr, *key_lengths = nullptr;
  double scale = 1;
  int64_t every = 1;    // only every n-th row in tile order; the others are NaN, which compare_on_device leaves out
  TensorView out, lse;  // backward: a forward result to start from, instead of computing it
};
struct ReferenceResult {
  DeviceDoubles out, lse, dq, dk, dv;
};
ReferenceResult reference_forward_on_device(const ReferenceArgs& args);
/// Also fills out and lse.
ReferenceResult reference_backward_on_device(const ReferenceArgs& args);

struct Sums {
  double error = 0, norm = 0;    // of squares
  int64_t count = 0, wrong = 0;  // elements; NaN or infinite where the other is not
  double largest = 0;
};
/// Synchronises.
Sums compare_on_device(const TensorView& got, const double* want);

/// Whether equally much memory holds the same bytes. Synchronises.
bool same_bytes(const DeviceMemory& a, const DeviceMemory& b);

/// Rows of a plan as a planner on the GPU would write them: query tile q reads the key tiles k for which q + k is even.
struct DeviceRows {
  int32_t tiles = 0;
  int32_t *row_of = nullptr, *key_tile = nullptr;  // [tiles], [tiles * tiles]
  int64_t* row_begin = nullptr;                    // [tiles + 1]
};
void write_checkered_rows(const DeviceRows& rows, void* stream);

/// Ends a kernel in a trap: every later call on the device fails.
void lose_device();

}  // namespace slidetile::test
