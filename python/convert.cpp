// Arrays from Python as tensor views.
#include "convert.h"

#include <nanobind/stl/string.h>

#include <cstring>

#include "slidetile/error.h"

namespace slidetile::python {
namespace {

const char* dtype_name(const nb::dlpack::dtype& dtype) {
  using Code = nb::dlpack::dtype_code;
  if (dtype.lanes != 1) return "other";
  const auto code = static_cast<Code>(dtype.code);
  if (code == Code::Float && dtype.bits == 32) return "f32";
  if (code == Code::Float && dtype.bits == 16) return "f16";
  if (code == Code::Bfloat && dtype.bits == 16) return "bf16";
  if (code == Code::Int && dtype.bits == 32) return "i32";
  if (code == Code::UInt && dtype.bits == 8) return "u8";
  return "other";
}

const char* known_dtype(const std::string& name) {
  for (const char* known : {"f32", "bf16", "f16", "i32", "u8"}) {
    if (name == known) return known;
  }
  return "other";
}

ArrayArg from_tuple(const nb::tuple& tuple, const char* name) {
  require(tuple.size() == 5, name, ": a tuple of ", tuple.size(), " elements, expected (address, dtype, device, shape, strides)");
  ArrayArg array;
  array.data = reinterpret_cast<void*>(nb::cast<uintptr_t>(tuple[0]));
  array.dtype = known_dtype(nb::cast<std::string>(tuple[1]));
  const int device = nb::cast<int>(tuple[2]);
  array.device = device < 0 ? Device{} : Device{DeviceType::kCuda, device};
  for (nb::handle extent : nb::cast<nb::tuple>(tuple[3])) array.shape.push_back(nb::cast<int64_t>(extent));
  for (nb::handle stride : nb::cast<nb::tuple>(tuple[4])) array.strides.push_back(nb::cast<int64_t>(stride));
  require(array.shape.size() == array.strides.size(), name, ": ", array.shape.size(), " extents and ", array.strides.size(), " strides");
  return array;
}

template <typename Array>
ArrayArg from_dlpack(const Array& given, const char* name) {
  ArrayArg array;
  array.data = const_cast<void*>(static_cast<const void*>(given.data()));
  array.dtype = dtype_name(given.dtype());
  const int type = given.device_type();
  require(type == nb::device::cpu::value || type == nb::device::cuda::value || type == nb::device::cuda_managed::value, name,
          ": on DLPack device type ", type, ", expected the host or CUDA");
  array.device = type == nb::device::cpu::value ? Device{} : Device{DeviceType::kCuda, given.device_id()};
  for (size_t axis = 0; axis < given.ndim(); ++axis) {
    array.shape.push_back(static_cast<int64_t>(given.shape(axis)));
    array.strides.push_back(given.stride(axis));
  }
  array.owner = nb::cast(given);
  return array;
}

DType element_type(const ArrayArg& array, const char* name) {
  require(std::strcmp(array.dtype, "f32") == 0 || std::strcmp(array.dtype, "bf16") == 0 || std::strcmp(array.dtype, "f16") == 0, name,
          ": expected float32, bfloat16 or float16");
  return dtype_from_string(array.dtype);
}

}  // namespace

ArrayArg array_from(nb::handle object, const char* name, Access access) {
  if (nb::isinstance<nb::tuple>(object)) return from_tuple(nb::cast<nb::tuple>(object), name);
  // Only the writer's cast refuses arrays that are read-only (jax arrays always are).
  if (access == Access::kWrite) {
    nb::ndarray<> array;
    require(nb::try_cast(object, array), name, ": expected a writable array that has DLPack");
    return from_dlpack(array, name);
  }
  nb::ndarray<nb::ro> array;
  require(nb::try_cast(object, array), name, ": expected an array that has DLPack (a torch, numpy or jax array)");
  return from_dlpack(array, name);
}

TensorView tensor_view(const ArrayArg& array, const char* name, Layout layout) {
  const char* order = layout == Layout::kBhsd ? "[batch, heads, tokens, head_dim]" : "[batch, tokens, heads, head_dim]";
  require(array.shape.size() == 4, name, ": ", array.shape.size(), " axes, expected 4: ", order);
  TensorView view{.data = array.data, .dtype = element_type(array, name), .device = array.device};
  for (size_t axis = 0; axis < 4; ++axis) {
    const size_t from = layout == Layout::kBshd && (axis == 1 || axis == 2) ? 3 - axis : axis;
    view.shape[axis] = array.shape[from];
    view.strides[axis] = array.strides[from];
  }
  require(view.shape[0] > 0 && view.shape[1] > 0 && view.shape[2] > 0 && view.shape[3] > 0, name, ": shape ", view.shape[0], " x ",
          view.shape[1], " x ", view.shape[2], " x ", view.shape[3], " (batch, heads, tokens, head_dim), expected none of them 0");
  return view;
}

TensorView lse_view(const ArrayArg& array, const char* name) {
  require(array.shape.size() == 3, name, ": ", array.shape.size(), " axes, expected 3: [batch, heads, tokens]");
  return {.data = array.data,
          .dtype = element_type(array, name),
          .device = array.device,
          .shape = {array.shape[0], array.shape[1], array.shape[2], 1},
          .strides = {array.strides[0], array.strides[1], array.strides[2], 1}};
}

}  // namespace slidetile::python
