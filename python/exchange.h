// DLPack's C exchange interface, as far as it is called here: what a tensor is and memory for it, without making Python objects.
#pragma once

#include <cstdint>

namespace slidetile::python::exchange {

// Layouts are those of DLPack, major version 1.
struct Version {
  uint32_t major, minor;
};

struct Tensor {
  void* data;
  int32_t device_type, device_index, axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};

using SetError = void (*)(void* context, const char* kind, const char* message);

struct Interface {
  Version version;
  Interface* previous;
  int (*allocate)(Tensor* like, ManagedTensor** made, void* context, SetError set_error);
  int (*managed_from_object)(void* object, ManagedTensor** made);
  int (*object_from_managed)(ManagedTensor* tensor, void** object);
  int (*describe)(void* object, Tensor* tensor);  // what it points to lives as long as the object; may be null
  int (*current_stream)(int32_t device_type, int32_t device_index, void** stream);
};

inline constexpr uint32_t kMajor = 1;
inline constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
inline constexpr const char* kCapsule = "dlpack_exchange_api";

}  // namespace slidetile::python::exchange
