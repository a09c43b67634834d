// What crosses the border to Python: tensors, extents, and plans with what is cached beside them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "exchange.h"
#include "slidetile/grid.h"
#include "slidetile/plan.h"
#include "slidetile/tensor.h"

namespace slidetile::python {

namespace nb = nanobind;

using Extents = std::array<int32_t, 3>;

inline Dim3 dim3_of(const Extents& extents) { return {extents[0], extents[1], extents[2]}; }
inline Extents extents_of(const Dim3& dim) { return dim.axes(); }

/// A plan and what is derived from it once: its transposed plan, its copies on devices. Never changed after it was made.
class SharedPlan {
 public:
  explicit SharedPlan(Plan plan);
  ~SharedPlan();
  SharedPlan(const SharedPlan&) = delete;
  SharedPlan& operator=(const SharedPlan&) = delete;

  const Plan& plan() const noexcept { return plan_; }
  const Plan& transposed();
  /// Views on a device, uploaded at the first call for it.
  PlanView view(const Device& device);
  PlanView transposed_view(const Device& device);

 private:
  struct DeviceCopies;

  Plan plan_;
  std::mutex mutex_;
  PlanView host_;
  std::unique_ptr<Plan> transposed_;
  PlanView host_transposed_;
  std::unique_ptr<DeviceCopies> copies_;
};
using PlanPtr = std::shared_ptr<SharedPlan>;

/// A plan as bytes and back: content that travels as a tensor through a compiled graph. The same content gives the same object while
/// that lives. Bytes that name a plan known by its digest are read again only for Check::kAll: attention calls don't.
enum class Check { kAll, kUnknown };
std::vector<uint8_t> to_bytes(const Plan& plan);
PlanPtr plan_from_bytes(std::span<const uint8_t> bytes, Check check);
PlanPtr remember(Plan plan);

/// An array argument. Python passes a tensor of the type that it named to `use_tensor_type`, a DLPack object, or the tuple (address,
/// dtype, device, shape, strides) where device is -1 for the host and strides are in elements.
struct ArrayArg {
  void* data = nullptr;
  const char* dtype = "";  // "f32", "bf16", "f16", "i32", "u8", "other"
  Device device;
  size_t axes = 0;
  std::array<int64_t, 4> shape{}, strides{};  // of the first four
  nb::object owner;                           // keeps data alive during the call
};
enum class Access { kRead, kWrite };
ArrayArg array_from(nb::handle object, const char* name, Access access);

/// Device memory for one call, from the library of the tensor type: its allocator and its current stream.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  /// False where no tensor type was named.
  bool allocate(int64_t bytes, const Device& device);
  std::byte* data() const noexcept;

 private:
  exchange::ManagedTensor* tensor_ = nullptr;
};

/// [batch, heads, tokens, head_dim] view of an array of four axes in the given order.
TensorView tensor_view(const ArrayArg& array, const char* name, Layout layout);
/// f32 [batch, heads, tokens] as [batch, heads, tokens, 1].
TensorView lse_view(const ArrayArg& array, const char* name);

void bind_arrays(nb::module_& module);
void bind_plans(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_tables(nb::module_& module);

}  // namespace slidetile::python
