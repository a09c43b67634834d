#include "slidetile/tensor.h"

#include <bit>
#include <cstdlib>
#include <limits>

#include "slidetile/error.h"

namespace slidetile {

const char* to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBf16: return "bf16";
    case DType::kF16: return "f16";
  }
  return "unknown";
}

DType dtype_from_string(const std::string& name) {
  for (DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    if (name == to_string(dtype)) return dtype;
  }
  fail(ErrorCode::kInvalidArgument, "dtype: got '", name, "', expected f32, bf16 or f16");
}

std::string to_string(const Device& device) { return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index); }

TensorView view_of(void* data, DType dtype, std::array<int64_t, 4> shape, Layout layout) {
  TensorView view{.data = data, .dtype = dtype, .device = {}, .shape = shape, .strides = {}};
  const auto [batch, heads, tokens, head_dim] = shape;
  if (layout == Layout::kBhsd) {
    view.strides = {heads * tokens * head_dim, tokens * head_dim, head_dim, 1};
  } else {
    view.strides = {tokens * heads * head_dim, head_dim, heads * head_dim, 1};
  }
  return view;
}

int64_t span_of(const TensorView& view) {
  bool empty = false;
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t extent = view.shape[axis], stride = view.strides[axis];
    require(extent >= 0 && stride >= 0, "tensor: extent ", extent, " and stride ", stride, " of axis ", axis, " must not be negative");
    empty = empty || extent == 0;
  }
  if (empty) return 0;
  int64_t span = 1;
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t extent = view.shape[axis], stride = view.strides[axis];
    int64_t reach = 0;
    const bool overflow = __builtin_mul_overflow(extent - 1, stride, &reach) || __builtin_add_overflow(span, reach, &span);
    require(!overflow, "tensor: axis ", axis, " with extent ", extent, " and stride ", stride, " reaches past 2^63 elements");
  }
  return span;
}

Tensor::Tensor(DType dtype, std::array<int64_t, 4> shape, Layout layout) {
  int64_t bytes = size_of(dtype);
  for (int64_t extent : shape) {
    require(extent >= 0, "tensor: extent ", extent, " must not be negative");
    require(!__builtin_mul_overflow(bytes, extent, &bytes) && bytes < std::numeric_limits<int64_t>::max() - 64,
            "tensor: its size overflows 2^63 bytes");
  }
  const auto padded = static_cast<size_t>((bytes + 63) / 64 * 64 + (bytes == 0 ? 64 : 0));
  memory_.reset(std::aligned_alloc(64, padded));
  if (!memory_) fail(ErrorCode::kOutOfMemory, "tensor: no memory for ", bytes, " bytes");
  elements_ = bytes / size_of(dtype);
  view_ = view_of(memory_.get(), dtype, shape, layout);
}

void Tensor::Free::operator()(void* memory) const noexcept { std::free(memory); }

float bf16_to_f32(uint16_t bits) noexcept { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f16_to_f32(uint16_t bits) noexcept {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu, fraction = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or above
  if (magnitude >= 0x38800000u) {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  // Subnormal: adding 2^-1 aligns the fraction so that the float adder rounds to nearest even at 2^-24.
  const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
  return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
}

float load_element(const void* data, DType dtype, int64_t offset) noexcept {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[offset];
    case DType::kBf16: return bf16_to_f32(static_cast<const uint16_t*>(data)[offset]);
    case DType::kF16: return f16_to_f32(static_cast<const uint16_t*>(data)[offset]);
  }
  return 0;
}

void store_element(void* data, DType dtype, int64_t offset, float value) noexcept {
  switch (dtype) {
    case DType::kF32: static_cast<float*>(data)[offset] = value; break;
    case DType::kBf16: static_cast<uint16_t*>(data)[offset] = f32_to_bf16(value); break;
    case DType::kF16: static_cast<uint16_t*>(data)[offset] = f32_to_f16(value); break;
  }
}

}  // namespace slidetile
