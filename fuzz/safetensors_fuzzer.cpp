// Any bytes are a safetensors file or an Error; what is read lies within the file.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "slidetile/error.h"
#include "slidetile/safetensors.h"

using namespace slidetile;

namespace {

void check(bool ok) {
  if (!ok) std::abort();
}

void read_all(const SafetensorsFile& file, std::span<const std::byte> bytes) {
  for (const SafetensorsTensor& tensor : file.tensors()) {
    check(file.find(tensor.name) == &tensor);
    if (!tensor.data.empty())
      check(tensor.data.data() >= bytes.data() && tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
    try {
      const Tensor copy = file.load(tensor.name, DType::kF32);
      check(copy.elements() * size_of(file.dtype(tensor.name)) == static_cast<int64_t>(tensor.data.size()));
      const TensorView view = file.view(tensor.name);
      check(span_of(view) * size_of(view.dtype) <= static_cast<int64_t>(tensor.data.size()));
    } catch (const Error&) {
      continue;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    read_all(SafetensorsFile(bytes, "input"), bytes);
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
