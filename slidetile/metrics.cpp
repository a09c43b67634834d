#include "slidetile/metrics.h"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename Sample>
void check_planes(const Plane<Sample>& a, const Plane<Sample>& b, int64_t least, const char* what) {
  require(a.height == b.height && a.width == b.width, what, ": the planes are ", a.height, " x ", a.width, " and ", b.height, " x ",
          b.width);
  require(a.height >= least && a.width >= least, what, ": planes of ", a.height, " x ", a.width, ", expected at least ", least, " x ",
          least);
  require(a.data != nullptr && b.data != nullptr && a.stride >= a.width && b.stride >= b.width, what,
          ": planes need data and rows at least ", a.width, " samples apart, got ", a.stride, " and ", b.stride);
}

template <typename Sample>
double psnr_of(const Plane<Sample>& a, const Plane<Sample>& b, double peak) {
  check_planes(a, b, 1, "psnr");
  require(peak > 0, "psnr: peak ", peak, " must be positive");
  double sum = 0;
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t x = 0; x < a.width; ++x) {
      const double p = a.data[y * a.stride + x], q = b.data[y * b.stride + x], difference = p - q;
      sum += difference * difference;
    }
  }
  if (sum == 0) return kInfinity;
  return 10 * std::log10(peak * peak * static_cast<double>(a.height) * static_cast<double>(a.width) / sum);
}

constexpr int64_t kWindow = 11;
constexpr size_t kMoments = 5;
using Moments = std::array<double, kMoments>;  // means of a, b, a^2, b^2, a b

std::array<double, kWindow> gaussian_window() {
  std::array<double, kWindow> weights{};
  double sum = 0;
  constexpr int64_t kCentre = kWindow / 2;
  for (int64_t i = 0; i < kWindow; ++i) {
    const auto distance = static_cast<double>(i - kCentre);
    sum += weights[static_cast<size_t>(i)] = std::exp(-distance * distance / (2 * 1.5 * 1.5));
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

template <typename Sample>
double ssim_of(const Plane<Sample>& a, const Plane<Sample>& b, double peak) {
  check_planes(a, b, kWindow, "ssim");
  require(peak > 0, "ssim: peak ", peak, " must be positive");
  const std::array<double, kWindow> weights = gaussian_window();
  const double c1 = 0.01 * peak * 0.01 * peak, c2 = 0.03 * peak * 0.03 * peak;
  const int64_t height = a.height - kWindow + 1, width = a.width - kWindow + 1;
  std::vector<Moments> column(static_cast<size_t>(a.width));  // the window is a product: first along columns, then along rows
  double sum = 0;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < a.width; ++x) {
      Moments moments{};
      for (int64_t i = 0; i < kWindow; ++i) {
        const double weight = weights[static_cast<size_t>(i)], p = a.data[(y + i) * a.stride + x], q = b.data[(y + i) * b.stride + x];
        moments[0] += weight * p;
        moments[1] += weight * q;
        moments[2] += weight * p * p;
        moments[3] += weight * q * q;
        moments[4] += weight * p * q;
      }
      column[static_cast<size_t>(x)] = moments;
    }
    for (int64_t x = 0; x < width; ++x) {
      Moments mean{};
      for (int64_t i = 0; i < kWindow; ++i) {
        for (size_t m = 0; m < kMoments; ++m) mean[m] += weights[static_cast<size_t>(i)] * column[static_cast<size_t>(x + i)][m];
      }
      const auto [of_a, of_b, of_aa, of_bb, of_ab] = mean;
      const double variance_a = of_aa - of_a * of_a, variance_b = of_bb - of_b * of_b, covariance = of_ab - of_a * of_b;
      sum += (2 * of_a * of_b + c1) * (2 * covariance + c2) / ((of_a * of_a + of_b * of_b + c1) * (variance_a + variance_b + c2));
    }
  }
  return sum / (static_cast<double>(height) * static_cast<double>(width));
}

}  // namespace

double relative_error(const TensorView& a, const TensorView& b) {
  require(a.shape == b.shape, "relative error: the tensors' shapes differ: [", a.shape[0], ", ", a.shape[1], ", ", a.shape[2], ", ",
          a.shape[3], "] and [", b.shape[0], ", ", b.shape[1], ", ", b.shape[2], ", ", b.shape[3], "]");
  require(a.device == Device{} && b.device == Device{}, "relative error: the tensors are on ", to_string(a.device), " and ",
          to_string(b.device), ", expected cpu");
  double difference = 0, norm = 0;
  const auto [batch, heads, tokens, channels] = a.shape;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = 0; s < tokens; ++s) {
        for (int64_t d = 0; d < channels; ++d) {
          const double p = load_element(a.data, a.dtype, n * a.strides[0] + h * a.strides[1] + s * a.strides[2] + d * a.strides[3]);
          const double q = load_element(b.data, b.dtype, n * b.strides[0] + h * b.strides[1] + s * b.strides[2] + d * b.strides[3]);
          difference += (p - q) * (p - q);
          norm += q * q;
        }
      }
    }
  }
  if (difference == 0 && norm == 0) return 0;
  return std::sqrt(difference) / std::sqrt(norm);
}

double psnr(const Plane<uint8_t>& a, const Plane<uint8_t>& b) { return psnr_of(a, b, 255); }
double psnr(const Plane<float>& a, const Plane<float>& b, double peak) { return psnr_of(a, b, peak); }
double ssim(const Plane<uint8_t>& a, const Plane<uint8_t>& b) { return ssim_of(a, b, 255); }
double ssim(const Plane<float>& a, const Plane<float>& b, double peak) { return ssim_of(a, b, peak); }

}  // namespace slidetile
