// Tensors: conversions exhaustively against a reference in double, spans, layouts, allocation.
#include "slidetile/tensor.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "slidetile/error.h"

namespace slidetile {
namespace {

/// A binary floating-point format with `fraction` stored bits and exponents biased by `bias`.
struct Format {
  int exponent, fraction, bias;
};
constexpr Format kF16{5, 10, 15}, kBf16{8, 7, 127};

/// The value that the bits stand for, from the definition.
double value_of(uint16_t bits, const Format& format) {
  const int exponent = bits >> format.fraction & ((1 << format.exponent) - 1), fraction = bits & ((1 << format.fraction) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << format.exponent) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - format.bias - format.fraction);
  return sign * std::ldexp((1 << format.fraction) + fraction, exponent - format.bias - format.fraction);
}

/// The nearest of the format, ties to even, from the definition: rounds value / (unit in the last place) in double, which is exact here.
uint16_t nearest(float value, const Format& format) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double magnitude = std::fabs(double{value});
  const int largest = (1 << format.exponent) - 1;
  if (std::isinf(magnitude)) return static_cast<uint16_t>(sign | largest << format.fraction);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), 1 - format.bias);
  const double units = std::nearbyint(std::ldexp(magnitude, format.fraction - exponent));  // the current mode is ties to even
  // A carry out of the fraction moves into the exponent by itself; so does a subnormal that rounds up to a normal number.
  const auto bits = static_cast<int64_t>(units) + (static_cast<int64_t>(exponent + format.bias - 1) << format.fraction);
  return static_cast<uint16_t>(sign | std::min<int64_t>(bits, int64_t{largest} << format.fraction));
}

template <typename Widen>
void check_widening(const Format& format, const Widen& widen) {
  int wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = value_of(static_cast<uint16_t>(bits), format), got = widen(static_cast<uint16_t>(bits));
    const bool same = std::isnan(expected) ? std::isnan(got) : expected == got && std::signbit(expected) == std::signbit(got);
    wrong += !same;
  }
  CHECK(wrong == 0);
}

/// Every 16-bit value, the midpoints between neighbours and the floats beside both, and random bit patterns.
template <typename Narrow, typename Widen>
void check_narrowing(const Format& format, const Narrow& narrow, const Widen& widen) {
  int wrong = 0;
  const auto check = [&](float value) {
    const uint16_t got = narrow(value);
    wrong += std::isnan(value) ? !std::isnan(widen(got)) || (got >> 15 != 0) != std::signbit(value) : got != nearest(value, format);
  };
  const auto check_around = [&](float value) {
    check(value);
    check(std::nextafter(value, std::numeric_limits<float>::infinity()));
    check(std::nextafter(value, -std::numeric_limits<float>::infinity()));
  };
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = widen(half);
    check(value);
    if (std::isnan(value)) continue;
    if (narrow(value) != half) ++wrong;
    check_around(value);
    const float next = widen(static_cast<uint16_t>(bits + 1));
    if (std::isfinite(value) && std::isfinite(next)) check_around(static_cast<float>((double{value} + double{next}) / 2));
  }
  std::mt19937 random(8);
  for (int i = 0; i < 2'000'000; ++i) check(std::bit_cast<float>(static_cast<uint32_t>(random())));
  for (uint32_t payload : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u, 0x7f808000u}) check(std::bit_cast<float>(payload));
  for (float value :
       {65503.996f, 65504.0f, 65519.996f, 65520.0f, 65536.0f, 3.4e38f, 3.3961e38f, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 0x1p-149f}) {
    check_around(value);
    check_around(-value);
  }
  CHECK(wrong == 0);
}

TEST_CASE("every f16 and bf16 value widens exactly") {
  check_widening(kF16, f16_to_f32);
  check_widening(kBf16, bf16_to_f32);
}

TEST_CASE("floats narrow to the nearest f16 and bf16, ties to even, NaN to NaN") {
  check_narrowing(kF16, f32_to_f16, f16_to_f32);
  check_narrowing(kBf16, f32_to_bf16, bf16_to_f32);
}

TEST_CASE("elements are stored and loaded as their type") {
  for (DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    Tensor tensor(dtype, {1, 1, 2, 3});
    store_element(tensor.view().data, dtype, 5, -1.5f);
    CHECK(load_element(tensor.view().data, dtype, 5) == -1.5f);
    CHECK(dtype_from_string(to_string(dtype)) == dtype);
  }
  CHECK_THROWS_AS(dtype_from_string("float32"), Error);
  CHECK_THROWS_AS(dtype_from_string(""), Error);
}

TEST_CASE("views of contiguous memory put every element in its place") {
  const std::array<int64_t, 4> shape{2, 3, 5, 7};
  for (Layout layout : {Layout::kBhsd, Layout::kBshd}) {
    const TensorView view = view_of(nullptr, DType::kF32, shape, layout);
    const bool bhsd = layout == Layout::kBhsd;
    int64_t offset = 0;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t outer = 0; outer < (bhsd ? 3 : 5); ++outer) {
        for (int64_t inner = 0; inner < (bhsd ? 5 : 3); ++inner) {
          const int64_t head = bhsd ? outer : inner, token = bhsd ? inner : outer;
          CHECK(b * view.strides[0] + head * view.strides[1] + token * view.strides[2] == offset);
          offset += 7;
        }
      }
    }
    CHECK(span_of(view) == 2 * 3 * 5 * 7);
    CHECK(!view);
  }
}

TEST_CASE("the span of a view is one past its last element, and overflow is an error") {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const auto span = [](std::array<int64_t, 4> shape, std::array<int64_t, 4> strides) {
    TensorView view;
    view.shape = shape;
    view.strides = strides;
    return span_of(view);
  };
  CHECK(span({1, 1, 1, 1}, {kMost, kMost, kMost, kMost}) == 1);
  CHECK(span({2, 3, 4, 5}, {1000, 100, 10, 1}) == 1000 + 200 + 30 + 5);
  CHECK(span({2, 3, 4, 5}, {0, 0, 0, 1}) == 5);  // broadcast
  CHECK(span({2, 0, 4, 5}, {kMost, kMost, 1, 1}) == 0);
  CHECK(span({2, 1, 1, 1}, {kMost - 1, 1, 1, 1}) == kMost);
  CHECK_THROWS_AS(span({2, 1, 1, 1}, {kMost, 1, 1, 1}), Error);
  CHECK_THROWS_AS(span({3, 1, 1, 1}, {kMost / 2 + 1, 1, 1, 1}), Error);
  CHECK_THROWS_AS(span({kMost, kMost, 1, 1}, {1, 1, 1, 1}), Error);
  CHECK_THROWS_AS(span({kMost, 2, kMost, 1}, {kMost, 1, 1, 1}), Error);
  CHECK_THROWS_AS(span({2, 2, 2, 2}, {8, 4, -2, 1}), Error);
  CHECK_THROWS_AS(span({2, 2, -2, 2}, {8, 4, 2, 1}), Error);
}

TEST_CASE("tensors are aligned, move without copying, and refuse sizes that overflow") {
  Tensor tensor(DType::kBf16, {1, 2, 3, 5}, Layout::kBshd);
  CHECK(tensor.elements() == 30);
  CHECK(reinterpret_cast<uintptr_t>(tensor.view().data) % 64 == 0);
  CHECK(tensor.view().strides == std::array<int64_t, 4>{30, 5, 10, 1});
  const void* data = tensor.view().data;
  const Tensor moved = std::move(tensor);
  CHECK(moved.view().data == data);
  const Tensor empty(DType::kF32, {0, 2, 3, 5});
  CHECK(empty.elements() == 0);
  CHECK(empty.view().data != nullptr);
  constexpr int64_t kBig = int64_t{1} << 31;
  CHECK_THROWS_AS(Tensor(DType::kF32, {kBig, kBig, 1, 1}), Error);
  CHECK_THROWS_AS(Tensor(DType::kF32, {kBig, kBig, kBig, kBig}), Error);
  CHECK_THROWS_AS(Tensor(DType::kF32, {1, -1, 1, 1}), Error);
}

TEST_CASE("devices have names") {
  CHECK(to_string(Device{}) == "cpu");
  CHECK(to_string(Device{DeviceType::kCuda, 1}) == "cuda:1");
}

}  // namespace
}  // namespace slidetile
