// Arrays from Python as tensor views.
#include "convert.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "slidetile/error.h"

namespace slidetile::python {
namespace {

// The type whose instances are read through `interface`, and that interface. Set once; the interpreter's lock guards them.
PyTypeObject* tensor_type = nullptr;
const exchange::Interface* interface = nullptr;

bool use_tensor_type(nb::handle type) {
  const nb::object capsule = nb::getattr(type, exchange::kAttribute, nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), exchange::kCapsule)) return false;
  const auto* given = static_cast<const exchange::Interface*>(PyCapsule_GetPointer(capsule.ptr(), exchange::kCapsule));
  while (given != nullptr && given->version.major > exchange::kMajor) given = given->previous;
  if (given == nullptr || given->version.major != exchange::kMajor || given->describe == nullptr) return false;
  interface = given;
  tensor_type = reinterpret_cast<PyTypeObject*>(nb::object(nb::borrow(type)).release().ptr());
  return true;
}

template <typename DLPackType>
const char* dtype_name(const DLPackType& dtype) {
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

Device device_of(int type, int index, const char* name) {
  require(type == nb::device::cpu::value || type == nb::device::cuda::value || type == nb::device::cuda_managed::value, name,
          ": on DLPack device type ", type, ", expected the host or CUDA");
  return type == nb::device::cpu::value ? Device{} : Device{DeviceType::kCuda, index};
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
  const nb::tuple shape = nb::cast<nb::tuple>(tuple[3]), strides = nb::cast<nb::tuple>(tuple[4]);
  require(shape.size() == strides.size(), name, ": ", shape.size(), " extents and ", strides.size(), " strides");
  array.axes = shape.size();
  for (size_t axis = 0; axis < std::min(array.axes, array.shape.size()); ++axis) {
    array.shape[axis] = nb::cast<int64_t>(shape[axis]);
    array.strides[axis] = nb::cast<int64_t>(strides[axis]);
  }
  return array;
}

// No Python object is made, and no stream waits for another.
ArrayArg from_tensor(nb::handle object, const char* name) {
  exchange::Tensor tensor{};
  if (interface->describe(object.ptr(), &tensor) != 0) throw nb::python_error();
  ArrayArg array;
  array.data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  array.dtype = dtype_name(tensor);
  array.device = device_of(tensor.device_type, tensor.device_index, name);
  array.axes = static_cast<size_t>(tensor.axes);
  for (size_t axis = 0; axis < std::min(array.axes, array.shape.size()); ++axis) {
    array.shape[axis] = tensor.shape[axis];
    array.strides[axis] = tensor.strides[axis];
  }
  return array;
}

template <typename Array>
ArrayArg from_dlpack(const Array& given, const char* name) {
  ArrayArg array;
  array.data = const_cast<void*>(static_cast<const void*>(given.data()));
  array.dtype = dtype_name(given.dtype());
  array.device = device_of(given.device_type(), given.device_id(), name);
  array.axes = given.ndim();
  for (size_t axis = 0; axis < std::min(array.axes, array.shape.size()); ++axis) {
    array.shape[axis] = static_cast<int64_t>(given.shape(axis));
    array.strides[axis] = given.stride(axis);
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

Workspace::~Workspace() {
  if (tensor_ != nullptr && tensor_->deleter != nullptr) tensor_->deleter(tensor_);
}

std::byte* Workspace::data() const noexcept { return static_cast<std::byte*>(tensor_->tensor.data) + tensor_->tensor.byte_offset; }

bool Workspace::allocate(int64_t bytes, const Device& device) {
  if (interface == nullptr) return false;
  exchange::Tensor like{.data = nullptr,
                        .device_type = nb::device::cuda::value,
                        .device_index = device.index,
                        .axes = 1,
                        .code = static_cast<uint8_t>(nb::dlpack::dtype_code::UInt),
                        .bits = 8,
                        .lanes = 1,
                        .shape = &bytes,
                        .strides = nullptr,
                        .byte_offset = 0};
  std::string message;
  const auto set_error = [](void* context, const char*, const char* text) {
    *static_cast<std::string*>(context) = text;
  };
  if (interface->allocate(&like, &tensor_, &message, set_error) != 0) {
    PyErr_Clear();
    fail(ErrorCode::kOutOfMemory, "workspace of ", bytes, " bytes: ", message);
  }
  return true;
}

ArrayArg array_from(nb::handle object, const char* name, Access access) {
  if (tensor_type != nullptr && PyObject_TypeCheck(object.ptr(), tensor_type)) return from_tensor(object, name);
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
  require(array.axes == 4, name, ": ", array.axes, " axes, expected 4: ", order);
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
  require(array.axes == 3, name, ": ", array.axes, " axes, expected 3: [batch, heads, tokens]");
  return {.data = array.data,
          .dtype = element_type(array, name),
          .device = array.device,
          .shape = {array.shape[0], array.shape[1], array.shape[2], 1},
          .strides = {array.strides[0], array.strides[1], array.strides[2], 1}};
}

namespace {

nb::dlpack::dtype dlpack_type(const std::string& name) {
  using Code = nb::dlpack::dtype_code;
  const DType dtype = dtype_from_string(name);
  const Code code = dtype == DType::kBf16 ? Code::Bfloat : Code::Float;
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(8 * size_of(dtype)), 1};
}

// Host memory as a DLPack object that jax takes without a copy: it asks for 64 bytes of alignment.
nb::object host_array(const std::vector<size_t>& shape, const std::string& dtype) {
  constexpr std::align_val_t kAlignment{64};
  const nb::dlpack::dtype type = dlpack_type(dtype);
  size_t bytes = type.bits / 8;
  for (const size_t extent : shape) bytes *= extent;
  void* memory = ::operator new(bytes, kAlignment);
  const nb::capsule owner(memory, [](void* owned) noexcept { ::operator delete(owned, kAlignment); });
  return nb::cast(nb::ndarray<nb::array_api, nb::device::cpu>(memory, shape.size(), shape.data(), owner, nullptr, type));
}

}  // namespace

void bind_arrays(nb::module_& module) {
  module.def("use_tensor_type", use_tensor_type, nb::arg("type"));
  module.def("host_array", host_array, nb::arg("shape"), nb::arg("dtype"));
}

}  // namespace slidetile::python
