#include "slidetile/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/json_guard.h"

namespace slidetile {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian and are used in place");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLargestHeader = 100'000'000;  // the format's own limit
constexpr uint64_t kAlignment = 64;               // of the tensors' bytes in files that we write
constexpr const char* kMetadataKey = "__metadata__";

struct ElementType {
  const char* name;
  uint64_t bits;
};
constexpr ElementType kElementTypes[] = {
    {"F32", 32},    {"BF16", 16},   {"F16", 16},    {"F64", 64},    {"I64", 64},    {"U64", 64}, {"C64", 64},
    {"I32", 32},    {"U32", 32},    {"I16", 16},    {"U16", 16},    {"BOOL", 8},    {"I8", 8},   {"U8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},
};

const ElementType* element_type(std::string_view name) noexcept {
  for (const ElementType& type : kElementTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

std::string text_of(std::span<const int64_t> shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  return text + "]";
}

// Bytes of a tensor. `where` opens the message where the shape and the type have no size.
uint64_t bytes_of(const std::string& where, std::string_view dtype, std::span<const int64_t> shape) {
  const ElementType* type = element_type(dtype);
  require(type != nullptr, where, "dtype is ", in_quotes(dtype), ", expected one of the format's: F32, BF16, F16, F64, I64, U8, ...");
  uint64_t bits = type->bits;
  for (const int64_t extent : shape) {
    require(extent >= 0, where, "shape is ", text_of(shape), ", expected no negative extent");
    require(!__builtin_mul_overflow(bits, static_cast<uint64_t>(extent), &bits) && bits <= uint64_t{std::numeric_limits<int64_t>::max()},
            where, "shape is ", text_of(shape), ", its size in ", dtype, " overflows 2^63 bits");
  }
  require(bits % 8 == 0, where, "shape is ", text_of(shape), ", its ", bits, " bits in ", dtype, " are no whole number of bytes");
  return bits / 8;
}

std::array<int64_t, 4> four_axes(const std::string& where, const SafetensorsTensor& tensor) {
  require(tensor.shape.size() <= 4, where, "it has ", tensor.shape.size(), " axes, expected at most 4");
  std::array<int64_t, 4> shape{1, 1, 1, 1};
  std::copy(tensor.shape.begin(), tensor.shape.end(), shape.end() - static_cast<ptrdiff_t>(tensor.shape.size()));
  return shape;
}

std::vector<int64_t> shape_from(const std::string& where, const Json& value) {
  std::vector<int64_t> shape;
  bool ok = value.is_array();
  for (size_t axis = 0; ok && axis < value.size(); ++axis) {
    ok = value[axis].is_number_unsigned() && value[axis].get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()};
    if (ok) shape.push_back(value[axis].get<int64_t>());
  }
  require(ok, where, "shape is ", shown(value), ", expected an array of integers from 0 to 2^63 - 1");
  return shape;
}

SafetensorsTensor tensor_from(const std::string& file, const std::string& name, const Json& value, std::span<const std::byte> data) {
  const std::string where = file + "tensor " + in_quotes(name) + ": ";
  require(value.is_object(), where, "its entry is ", shown(value), ", expected an object with dtype, shape and data_offsets");
  for (const char* key : {"dtype", "shape", "data_offsets"}) require(value.contains(key), where, "its entry has no ", key);
  const Json &dtype = value["dtype"], &offsets = value["data_offsets"];
  require(dtype.is_string(), where, "dtype is ", shown(dtype), ", expected a string");
  SafetensorsTensor tensor{.name = name, .dtype = dtype.get<std::string>(), .shape = shape_from(where, value["shape"]), .data = {}};
  require(offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned(), where,
          "data_offsets is ", shown(offsets), ", expected two integers from 0 on");
  const auto first = offsets[0].get<uint64_t>(), last = offsets[1].get<uint64_t>();
  require(first <= last && last <= data.size(), where, "data_offsets is ", shown(offsets), ", expected an ascending pair within the ",
          data.size(), " bytes after the header");
  const uint64_t expected = bytes_of(where, tensor.dtype, tensor.shape);
  require(last - first == expected, where, "data_offsets is ", shown(offsets), ", expected ", expected, " bytes for shape ",
          text_of(tensor.shape), " in ", tensor.dtype);
  tensor.data = data.subspan(first, last - first);
  return tensor;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  const auto mapping = std::make_shared<const MappedFile>(path);
  mapping_ = mapping;
  parse(mapping->bytes());
}

SafetensorsFile::SafetensorsFile(std::span<const std::byte> bytes, std::string name) : path_(std::move(name)) { parse(bytes); }

void SafetensorsFile::parse(std::span<const std::byte> bytes) {
  const std::string where = "safetensors " + in_quotes(path_) + ": ";
  require(bytes.size() >= kLengthBytes, where, "it has ", bytes.size(), " bytes, expected at least the ", kLengthBytes,
          " of the header's length");
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  require(length <= kLargestHeader, where, "its header claims ", length, " bytes, expected at most ", kLargestHeader);
  require(length <= bytes.size() - kLengthBytes, where, "its header claims ", length, " bytes, the file has ", bytes.size() - kLengthBytes,
          " after the length");
  parse_header({reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, static_cast<size_t>(length)},
               bytes.subspan(kLengthBytes + length));
}

void SafetensorsFile::parse_header(std::string_view text, std::span<const std::byte> data) {
  const std::string where = "safetensors " + in_quotes(path_) + ": ";
  require(text.starts_with('{'), where, "its header does not start with '{'");
  constexpr int kDeepest = 3;  // header, tensor, shape
  const Json header = parse_json<Json>(text, where + "header: ", kDeepest);
  for (const auto& [name, value] : header.items()) {
    if (name != kMetadataKey) {
      tensors_.push_back(tensor_from(where, name, value, data));
      continue;
    }
    require(value.is_object(), where, kMetadataKey, " is ", shown(value), ", expected an object of strings");
    for (const auto& [key, entry] : value.items()) {
      require(entry.is_string(), where, kMetadataKey, ": ", in_quotes(key), " is ", shown(entry), ", expected a string");
      metadata_.emplace(key, entry.get<std::string>());
    }
  }
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
  });
  int64_t end = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const SafetensorsTensor& tensor = tensors_[i];
    const int64_t first = tensor.data.data() - data.data();
    require(first == end, where, "tensor ", in_quotes(tensor.name), " starts at byte ", first, " after the header, expected ", end,
            first < end ? ": it overlaps " : ": there is a gap after ",
            i == 0 ? "the header" : "tensor " + in_quotes(tensors_[i - 1].name));
    end = first + static_cast<int64_t>(tensor.data.size());
    index_.emplace(tensor.name, i);
  }
  require(end == static_cast<int64_t>(data.size()), where, "its tensors end at byte ", end, " after the header, the file has ",
          data.size());
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const SafetensorsTensor& tensor : tensors_) names.push_back(tensor.name);
  return names;
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const SafetensorsTensor& SafetensorsFile::at(std::string_view name) const {
  if (const SafetensorsTensor* tensor = find(name)) return *tensor;
  constexpr size_t kListed = 8;
  std::string known;
  for (size_t i = 0; i < std::min(tensors_.size(), kListed); ++i) known += (i == 0 ? "" : ", ") + in_quotes(tensors_[i].name);
  if (tensors_.size() > kListed) known += ", ...";
  fail(ErrorCode::kInvalidArgument, "safetensors ", in_quotes(path_), ": it has no tensor ", in_quotes(name), ", it has ",
       known.empty() ? "none at all" : known);
}

DType SafetensorsFile::dtype(std::string_view name) const {
  const SafetensorsTensor& tensor = at(name);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    if (tensor.dtype == safetensors_dtype(dtype)) return dtype;
  }
  fail(ErrorCode::kUnsupported, "safetensors ", in_quotes(path_), ": tensor ", in_quotes(name), " is ", tensor.dtype,
       ", expected F32, BF16 or F16");
}

TensorView SafetensorsFile::view(std::string_view name) const {
  const SafetensorsTensor& tensor = at(name);
  const std::string where = "safetensors " + in_quotes(path_) + ": tensor " + in_quotes(name) + ": ";
  const DType type = dtype(name);
  const auto misaligned = reinterpret_cast<uintptr_t>(tensor.data.data()) % static_cast<uintptr_t>(size_of(type));
  if (misaligned != 0) {
    fail(ErrorCode::kUnsupported, where, "it starts ", misaligned, " bytes past a multiple of ", size_of(type),
         " and must be copied first");
  }
  return view_of(const_cast<std::byte*>(tensor.data.data()), type, four_axes(where, tensor));
}

Tensor SafetensorsFile::load(std::string_view name, DType dtype) const {
  const SafetensorsTensor& tensor = at(name);
  const DType from = this->dtype(name);
  Tensor copy(dtype, four_axes("safetensors " + in_quotes(path_) + ": tensor " + in_quotes(name) + ": ", tensor));
  if (copy.elements() == 0) return copy;
  if (from == dtype) {
    std::memcpy(copy.view().data, tensor.data.data(), tensor.data.size());
    return copy;
  }
  constexpr int64_t kChunk = 1024;
  alignas(8) std::array<std::byte, kChunk * 4> chunk;  // aligned, as the file need not be
  for (int64_t first = 0; first < copy.elements(); first += kChunk) {
    const int64_t count = std::min(kChunk, copy.elements() - first);
    std::memcpy(chunk.data(), tensor.data.data() + first * size_of(from), static_cast<size_t>(count * size_of(from)));
    for (int64_t i = 0; i < count; ++i) store_element(copy.view().data, dtype, first + i, load_element(chunk.data(), from, i));
  }
  return copy;
}

const char* safetensors_dtype(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBf16: return "BF16";
    case DType::kF16: return "F16";
  }
  return "";
}

SafetensorsTensor safetensors_tensor(std::string name, const TensorView& view) {
  const auto [batch, heads, tokens, head_dim] = view.shape;
  const char* dtype = safetensors_dtype(view.dtype);
  require(view.device.type == DeviceType::kCpu, "safetensors: tensor ", in_quotes(name), " is on ", to_string(view.device),
          ", expected cpu");
  require(view.strides == view_of(view.data, view.dtype, view.shape).strides, "safetensors: tensor ", in_quotes(name), " of shape ",
          text_of(view.shape), " has strides ", text_of(view.strides), ", expected contiguous ones");
  const uint64_t bytes = bytes_of("safetensors: tensor " + in_quotes(name) + ": ", dtype, view.shape);
  return {std::move(name), dtype, {batch, heads, tokens, head_dim}, {static_cast<const std::byte*>(view.data), static_cast<size_t>(bytes)}};
}

void write_safetensors(const std::string& path, std::span<const SafetensorsTensor> tensors, const SafetensorsMetadata& metadata) {
  const std::string where = "safetensors " + in_quotes(path) + ": ";
  std::vector<const SafetensorsTensor*> order;  // widest elements first: then each starts at a multiple of its element size
  for (const SafetensorsTensor& tensor : tensors) {
    const std::string at = where + "tensor " + in_quotes(tensor.name) + ": ";
    const uint64_t expected = bytes_of(at, tensor.dtype, tensor.shape);
    require(tensor.data.size() == expected, at, "it has ", tensor.data.size(), " bytes, expected ", expected, " for shape ",
            text_of(tensor.shape), " in ", tensor.dtype);
    require(tensor.name != kMetadataKey, at, "the format keeps this name for itself");
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return element_type(a->dtype)->bits > element_type(b->dtype)->bits;
  });
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t offset = 0;
  std::vector<std::span<const std::byte>> parts(2);
  for (const SafetensorsTensor* tensor : order) {
    require(!header.contains(tensor->name), where, "tensor ", in_quotes(tensor->name), " is given twice");
    header[tensor->name] = {{"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {offset, offset + tensor->data.size()}}};
    offset += tensor->data.size();
    parts.push_back(tensor->data);
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    fail(ErrorCode::kInvalidArgument, where, "a tensor's name or the metadata is no UTF-8");
  }
  text.resize((text.size() + kLengthBytes + kAlignment - 1) / kAlignment * kAlignment - kLengthBytes, ' ');
  require(text.size() <= kLargestHeader, where, "its header needs ", text.size(), " bytes, expected at most ", kLargestHeader);
  const uint64_t length = text.size();
  parts[0] = std::as_bytes(std::span(&length, 1));
  parts[1] = std::as_bytes(std::span(text));
  write_file(path, parts);
}

}  // namespace slidetile
