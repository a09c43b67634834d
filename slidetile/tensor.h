// Element types, devices, and views of tensors that someone else owns.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace slidetile {

enum class DType : uint8_t { kF32, kBf16, kF16 };

const char* to_string(DType dtype) noexcept;       // "f32", "bf16", "f16"
DType dtype_from_string(const std::string& name);  // throws on any other name
constexpr int64_t size_of(DType dtype) noexcept { return dtype == DType::kF32 ? 4 : 2; }

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

std::string to_string(const Device& device);  // "cpu", "cuda:0"

/// A strided view of a tensor of four axes that does not own its memory. For attention the axes are
/// [batch, heads, tokens, head_dim] whatever the order in memory is; strides are in elements and may be anything
/// except that the last axis is contiguous.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  explicit operator bool() const noexcept { return data != nullptr; }
  int64_t batch() const noexcept { return shape[0]; }
  int64_t heads() const noexcept { return shape[1]; }
  int64_t tokens() const noexcept { return shape[2]; }
  int64_t head_dim() const noexcept { return shape[3]; }
};

/// Order of the axes in memory, outermost first: b batch, h heads, s tokens, d head_dim.
enum class Layout : uint8_t { kBhsd, kBshd };

/// View of contiguous memory. shape is [batch, heads, tokens, head_dim] for either layout.
TensorView view_of(void* data, DType dtype, std::array<int64_t, 4> shape, Layout layout = Layout::kBhsd);

/// One past the largest element offset that the view reaches, 0 where an extent is 0; throws on overflow or negative strides.
int64_t span_of(const TensorView& view);

/// Memory on the host, 64-byte aligned, with the view of it.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::array<int64_t, 4> shape, Layout layout = Layout::kBhsd);

  const TensorView& view() const noexcept { return view_; }
  template <typename T>
  T* data() noexcept {
    return static_cast<T*>(view_.data);
  }
  template <typename T>
  const T* data() const noexcept {
    return static_cast<const T*>(view_.data);
  }
  int64_t elements() const noexcept { return elements_; }

 private:
  struct Free {
    void operator()(void* memory) const noexcept;
  };
  std::unique_ptr<void, Free> memory_;
  int64_t elements_ = 0;
  TensorView view_;
};

/// Conversions, round to nearest even, NaN stays NaN.
float bf16_to_f32(uint16_t bits) noexcept;
uint16_t f32_to_bf16(float value) noexcept;
float f16_to_f32(uint16_t bits) noexcept;
uint16_t f32_to_f16(float value) noexcept;

/// Element at an offset of a host tensor's data, as float, and back.
float load_element(const void* data, DType dtype, int64_t offset) noexcept;
void store_element(void* data, DType dtype, int64_t offset, float value) noexcept;

}  // namespace slidetile
