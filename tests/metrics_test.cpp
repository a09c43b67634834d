// Metrics against values worked out by hand and against a direct evaluation of SSIM's definition.
#include "slidetile/metrics.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {
namespace {

template <typename Sample>
struct Picture {
  int64_t height, width, stride;
  std::vector<Sample> samples;

  Picture(int64_t h, int64_t w, int64_t gap = 0) : height(h), width(w), stride(w + gap), samples(static_cast<size_t>(h * (w + gap))) {}
  Plane<Sample> plane() const { return {samples.data(), height, width, stride}; }
  Sample& at(int64_t y, int64_t x) { return samples[static_cast<size_t>(y * stride + x)]; }
};

/// SSIM from its definition: each window's weighted moments about its own means.
double ssim_by_definition(const Plane<float>& a, const Plane<float>& b) {
  double sum = 0, windows = 0;
  for (int64_t y = 5; y < a.height - 5; ++y) {
    for (int64_t x = 5; x < a.width - 5; ++x) {
      const auto mean = [&](auto&& f) {
        double total = 0, weights = 0;
        for (int64_t i = -5; i <= 5; ++i) {
          for (int64_t j = -5; j <= 5; ++j) {
            const double weight = std::exp(-static_cast<double>(i * i + j * j) / 4.5);
            total += weight * f(a.data[(y + i) * a.stride + x + j], b.data[(y + i) * b.stride + x + j]);
            weights += weight;
          }
        }
        return total / weights;
      };
      const double ma = mean([](double p, double) { return p; }), mb = mean([](double, double q) { return q; });
      const double va = mean([&](double p, double) { return (p - ma) * (p - ma); }),
                   vb = mean([&](double, double q) { return (q - mb) * (q - mb); });
      const double cov = mean([&](double p, double q) { return (p - ma) * (q - mb); });
      sum += (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4));
      ++windows;
    }
  }
  return sum / windows;
}

TEST_CASE("relative error is ||a - b|| / ||b|| whatever the types and layouts") {
  const std::array<int64_t, 4> shape{2, 3, 4, 5};
  Tensor a(DType::kF32, shape), b(DType::kBf16, shape, Layout::kBshd);
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t s = 0; s < 4; ++s) {
        for (int64_t d = 0; d < 5; ++d) {
          const auto value = static_cast<float>(n * 60 + h * 20 + s * 5 + d);
          a.data<float>()[n * 60 + h * 20 + s * 5 + d] = value * 1.25f;
          store_element(b.view().data, DType::kBf16, n * 60 + h * 5 + s * 15 + d, value);
        }
      }
    }
  }
  CHECK(relative_error(a.view(), b.view()) == doctest::Approx(0.25));
  CHECK(relative_error(a.view(), a.view()) == 0);
  CHECK_THROWS_AS(relative_error(a.view(), Tensor(DType::kF32, {2, 3, 5, 4}).view()), Error);
  TensorView on_device = a.view();
  on_device.device = {DeviceType::kCuda, 0};
  CHECK_THROWS_AS(relative_error(on_device, b.view()), Error);
}

TEST_CASE("relative error of zeros and NaN") {
  Tensor a(DType::kF32, {1, 1, 1, 2}), zero(DType::kF32, {1, 1, 1, 2});
  zero.data<float>()[0] = zero.data<float>()[1] = 0;
  a.data<float>()[0] = 1;
  a.data<float>()[1] = 0;
  CHECK(relative_error(zero.view(), zero.view()) == 0);
  CHECK(std::isinf(relative_error(a.view(), zero.view())));
  CHECK(relative_error(zero.view(), a.view()) == 1);
  a.data<float>()[1] = NAN;
  CHECK(std::isnan(relative_error(a.view(), zero.view())));
}

TEST_CASE("PSNR of a known difference") {
  Picture<uint8_t> a(3, 4, 2), b(3, 4);
  for (int64_t y = 0; y < 3; ++y) {
    for (int64_t x = 0; x < 4; ++x) {
      a.at(y, x) = static_cast<uint8_t>(10 * x + y);
      b.at(y, x) = static_cast<uint8_t>(10 * x + y + 5);
    }
  }
  CHECK(psnr(a.plane(), b.plane()) == doctest::Approx(20 * std::log10(255.0 / 5)));
  CHECK(std::isinf(psnr(a.plane(), a.plane())));
  Picture<float> c(1, 2), d(1, 2);
  d.at(0, 1) = 0.1f;  // mean squared error 0.005
  CHECK(psnr(c.plane(), d.plane()) == doctest::Approx(-10 * std::log10(0.005)));
  CHECK(psnr(c.plane(), d.plane(), 10) == doctest::Approx(20 - 10 * std::log10(0.005)));
  CHECK_THROWS_AS(psnr(c.plane(), Picture<float>(2, 1).plane()), Error);
  CHECK_THROWS_AS(psnr(c.plane(), d.plane(), 0), Error);
  CHECK_THROWS_AS(psnr(Plane<float>{}, Plane<float>{}), Error);
}

TEST_CASE("SSIM is its definition, 1 for equal pictures, and the same for bytes and floats") {
  std::mt19937 random(9);
  Picture<float> a(17, 23, 3), b(17, 23);
  Picture<uint8_t> bytes_a(17, 23), bytes_b(17, 23, 1);
  for (int64_t y = 0; y < 17; ++y) {
    for (int64_t x = 0; x < 23; ++x) {
      bytes_a.at(y, x) = static_cast<uint8_t>(std::uniform_int_distribution(0, 255)(random));
      bytes_b.at(y, x) = static_cast<uint8_t>((bytes_a.at(y, x) * 3 + std::uniform_int_distribution(0, 255)(random)) / 4);
      a.at(y, x) = static_cast<float>(bytes_a.at(y, x)) / 255;
      b.at(y, x) = static_cast<float>(bytes_b.at(y, x)) / 255;
    }
  }
  CHECK(ssim(a.plane(), b.plane()) == doctest::Approx(ssim_by_definition(a.plane(), b.plane())).epsilon(1e-9));
  CHECK(ssim(bytes_a.plane(), bytes_b.plane()) == doctest::Approx(ssim(a.plane(), b.plane())).epsilon(1e-5));
  CHECK(ssim(a.plane(), a.plane()) == doctest::Approx(1));
  // Constant planes have no structure: only the luminance term is left.
  Picture<float> dark(11, 11), bright(11, 11);
  for (float& sample : bright.samples) sample = 0.5f;
  CHECK(ssim(dark.plane(), bright.plane()) == doctest::Approx(1e-4 / (0.25 + 1e-4)));
  CHECK_THROWS_AS(ssim(Picture<float>(10, 30).plane(), Picture<float>(10, 30).plane()), Error);
}

}  // namespace
}  // namespace slidetile
