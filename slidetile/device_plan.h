// A plan in the memory of a GPU, uploaded once and used by any number of calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "slidetile/plan.h"

namespace slidetile {

/// Owns device memory with a plan and, for gradients, its transpose. Views of it stay valid while it lives, also when it is moved.
///
/// A planner that runs on the GPU needs no DevicePlan: it fills a PlanView with pointers to device memory of its own. `device`, the
/// extents (`tiles`, `tokens`, `heads`, `classes`, `rows`) and every array must then agree as validate(const Plan&) wants them, and
/// `entries`, `longest_row` and `largest_tile` may be upper bounds, since the host does not see the rows. Taking the view of an uploaded
/// plan and replacing `row_of`, `row_begin`, `key_tile` (and the masks) is the short way: the tilings stay as they are, and so may
/// `lowering` for attention_forward: it describes the tilings, and an order of work that serves any rows over them, for as many heads as
/// the plan uploaded had (for any number if it was one for any number). Without a lowering the portable kernels run.
class DevicePlan {
 public:
  DevicePlan() noexcept;
  /// Copies the plan to `device`, a CUDA device, on `stream` (cudaStream_t, null: the default stream) and waits for it. Throws Error:
  /// invalid_argument for another device or an inconsistent plan, out_of_memory, device, and unsupported in a build without CUDA.
  DevicePlan(const Plan& plan, const Device& device, void* stream = nullptr);
  /// Also takes transpose(plan), which attention_backward reads.
  DevicePlan(const Plan& plan, const Plan& transposed, const Device& device, void* stream = nullptr);
  ~DevicePlan();
  DevicePlan(DevicePlan&&) noexcept;
  DevicePlan& operator=(DevicePlan&&) noexcept;

  /// Views with device pointers. Throw if there is no such plan.
  const PlanView& view() const;
  const PlanView& transposed() const;
  /// Device memory in use.
  int64_t bytes() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// How the Hopper forward kernel cuts a plan's tiles into blocks.
struct DeviceBlocks {
  std::string why_not;                   // empty: it can
  Dim3 query, key;                       // extent of a block on the canvas, in tokens
  int32_t query_rows = 0, key_rows = 0;  // rows that a block takes, with those that hold no token
  double pairs = 0;                      // that are multiplied, over the plan's heads, with those that nobody sees
};
/// On the host: needs no device. In a build without CUDA `why_not` says so.
DeviceBlocks device_blocks(const Plan& plan);

}  // namespace slidetile
