// Reads and writes tensors in safetensors files: 8 bytes of header length, a JSON header, then the tensors' bytes.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slidetile/tensor.h"

namespace slidetile {

/// A tensor as such a file holds it: contiguous, little-endian, of any number of axes. `dtype` is the format's name: F32, BF16, F16, or
/// one that the library does not compute in (F64, I64, U8, BOOL, F8_E4M3, ...).
struct SafetensorsTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

using SafetensorsMetadata = std::map<std::string, std::string>;

/// A safetensors file, mapped for reading: opening reads the header alone. Everything in it is checked when it is opened: what
/// does not fit throws Error (kIo: the file can't be read; kInvalidArgument: its contents) with the file, the tensor, the value and
/// what was expected.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);
  /// The same over memory of the caller's, which must outlive the result; `name` stands for the file in messages.
  SafetensorsFile(std::span<const std::byte> bytes, std::string name);

  /// In the order of their bytes.
  const std::vector<SafetensorsTensor>& tensors() const noexcept { return tensors_; }
  std::vector<std::string> names() const;
  const SafetensorsMetadata& metadata() const noexcept { return metadata_; }

  /// nullptr where there is no such tensor.
  const SafetensorsTensor* find(std::string_view name) const noexcept;
  /// Throws where there is no such tensor.
  const SafetensorsTensor& at(std::string_view name) const;

  /// View of the file's own bytes, only for reading; a tensor of fewer than four axes gets axes of 1 in front. Throws where the tensor
  /// has more than four, or is no f32, bf16 or f16, or does not start at a multiple of its element size (then use load).
  TensorView view(std::string_view name) const;
  /// A copy in the given element type, with axes as in view.
  Tensor load(std::string_view name, DType dtype) const;
  /// Element type of a tensor that view and load take; throws Error(kUnsupported) for others.
  DType dtype(std::string_view name) const;

 private:
  void parse(std::span<const std::byte> bytes);
  void parse_header(std::string_view text, std::span<const std::byte> data);

  std::string path_;
  std::shared_ptr<const void> mapping_;
  std::vector<SafetensorsTensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  SafetensorsMetadata metadata_;
};

/// The format's name of an element type: "F32", "BF16" or "F16".
const char* safetensors_dtype(DType dtype) noexcept;

/// A contiguous host tensor as write_safetensors takes it, with all four axes. The view's memory must outlive the result.
SafetensorsTensor safetensors_tensor(std::string name, const TensorView& view);

/// Writes a file that holds exactly these tensors, whole or not at all (see write_file); each tensor starts at a multiple of its element
/// size. Throws Error on names given twice, unknown types and sizes that do not fit the shapes.
void write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors, const SafetensorsMetadata& metadata = {});

}  // namespace slidetile
