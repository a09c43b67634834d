#include "video/frames.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "slidetile/error.h"
#include "slidetile/metrics.h"

namespace slidetile::video {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 33;
constexpr int kMostFactor = 64, kChannels = 3, kLobes = 3;
constexpr uint8_t kGrey = 96;

// Weights of the 2 * kLobes source samples around each of the `factor` places of a pixel, first sample relative to the pixel.
struct Taps {
  int first;
  float weight[2 * kLobes];
};

double lanczos(double x) {
  if (x == 0) return 1;
  if (std::abs(x) >= kLobes) return 0;
  const double p = std::numbers::pi * x;
  return kLobes * std::sin(p) * std::sin(p / kLobes) / (p * p);
}

std::vector<Taps> lanczos_taps(int factor) {
  std::vector<Taps> taps(static_cast<size_t>(factor));
  for (int i = 0; i < factor; ++i) {
    const double centre = (i + 0.5) / factor - 0.5;  // relative to the pixel's own centre
    Taps& t = taps[static_cast<size_t>(i)];
    t.first = static_cast<int>(std::floor(centre)) - kLobes + 1;
    double sum = 0;
    for (int k = 0; k < 2 * kLobes; ++k) sum += lanczos(t.first + k - centre);
    for (int k = 0; k < 2 * kLobes; ++k) t.weight[k] = static_cast<float>(lanczos(t.first + k - centre) / sum);
  }
  return taps;
}

void scale_nearest(const Frames& in, int factor, Frames& out) {
  const size_t row_bytes = static_cast<size_t>(out.width) * kChannels;
  for (int f = 0; f < in.count; ++f) {
    for (int y = 0; y < in.height; ++y) {
      uint8_t* first = out.at(f, y * factor, 0);
      for (int x = 0; x < out.width; ++x) std::memcpy(first + x * kChannels, in.at(f, y, x / factor), kChannels);
      for (int i = 1; i < factor; ++i) std::memcpy(out.at(f, y * factor + i, 0), first, row_bytes);
    }
  }
}

void scale_lanczos(const Frames& in, int factor, Frames& out) {
  const std::vector<Taps> taps = lanczos_taps(factor);
  std::vector<float> wide(static_cast<size_t>(in.height) * static_cast<size_t>(out.width) * kChannels);  // [in.height, out.width, 3]
  const auto wide_at = [&](int y, int x) {
    return wide.data() + (static_cast<size_t>(y) * static_cast<size_t>(out.width) + x) * kChannels;
  };
  for (int f = 0; f < in.count; ++f) {
    for (int y = 0; y < in.height; ++y) {
      for (int x = 0; x < out.width; ++x) {
        const Taps& t = taps[static_cast<size_t>(x % factor)];
        float sum[kChannels]{};
        for (int k = 0; k < 2 * kLobes; ++k) {
          const uint8_t* pixel = in.at(f, y, std::clamp(x / factor + t.first + k, 0, in.width - 1));
          for (int c = 0; c < kChannels; ++c) sum[c] += t.weight[k] * pixel[c];
        }
        std::copy_n(sum, kChannels, wide_at(y, x));
      }
    }
    for (int y = 0; y < out.height; ++y) {
      const Taps& t = taps[static_cast<size_t>(y % factor)];
      for (int x = 0; x < out.width; ++x) {
        float sum[kChannels]{};
        for (int k = 0; k < 2 * kLobes; ++k) {
          const float* pixel = wide_at(std::clamp(y / factor + t.first + k, 0, in.height - 1), x);
          for (int c = 0; c < kChannels; ++c) sum[c] += t.weight[k] * pixel[c];
        }
        for (int c = 0; c < kChannels; ++c) out.at(f, y, x)[c] = static_cast<uint8_t>(std::lround(std::clamp(sum[c], 0.f, 255.f)));
      }
    }
  }
}

void copy_frame(const Frames& from, int frame, Frames& into, std::pair<int, int> corner) {  // corner: y, x in frame 0 or the same frame
  const int to_frame = into.count == 1 ? 0 : frame;
  for (int y = 0; y < from.height; ++y) {
    std::memcpy(into.at(to_frame, corner.first + y, corner.second), from.at(frame, y, 0), static_cast<size_t>(from.width) * kChannels);
  }
}

}  // namespace

Frames Frames::black(int count, int height, int width) {
  require(count > 0 && height > 0 && width > 0, "frames: ", count, " of ", height, " x ", width, " pixels, expected positive extents");
  const auto bytes = static_cast<__int128>(count) * height * width * kChannels;
  require(bytes < kMostBytes, "frames: ", count, " of ", height, " x ", width, " pixels, expected less than 2^33 bytes");
  Frames frames;
  frames.count = count, frames.height = height, frames.width = width;
  frames.rgb.assign(static_cast<size_t>(bytes), 0);
  return frames;
}

Frames frames_of(const Clip& clip) {
  Frames frames = Frames::black(clip.extent.t, clip.extent.h, clip.extent.w);
  require(clip.pixels.size() == frames.rgb.size(), "frames: the clip has ", clip.pixels.size(), " values, its extent ", clip.extent,
          " takes ", frames.rgb.size());
  std::transform(clip.pixels.begin(), clip.pixels.end(), frames.rgb.begin(),
                 [](float value) { return value > 0 ? static_cast<uint8_t>(std::min(value, 1.f) * 255.f + 0.5f) : uint8_t{0}; });
  return frames;
}

Frames scaled(const Frames& frames, int factor, Scaling scaling) {
  require(factor >= 1 && factor <= kMostFactor, "scale: ", factor, ", expected 1 to ", kMostFactor);
  if (factor == 1) return frames;
  Frames out = Frames::black(frames.count, frames.height * factor, frames.width * factor);
  if (scaling == Scaling::kNearest) {
    scale_nearest(frames, factor, out);
  } else {
    scale_lanczos(frames, factor, out);
  }
  return out;
}

Frames side_by_side(const Frames& left, const Frames& right, int gap) {
  require(left.count == right.count && left.height == right.height, "side by side: ", left.count, " frames of height ", left.height,
          " and ", right.count, " of height ", right.height, ", expected the same");
  Frames out = Frames::black(left.count, left.height, left.width + gap + right.width);
  std::fill(out.rgb.begin(), out.rgb.end(), kGrey);
  for (int f = 0; f < left.count; ++f) {
    copy_frame(left, f, out, {0, 0});
    copy_frame(right, f, out, {0, left.width + gap});
  }
  return out;
}

Frames contact_sheet(const Frames& frames, int columns, int gap) {
  require(columns >= 1 && gap >= 0, "sheet: ", columns, " columns and a gap of ", gap, ", expected at least 1 and 0");
  columns = std::min(columns, frames.count);
  const int rows = (frames.count + columns - 1) / columns;
  Frames out = Frames::black(1, rows * (frames.height + gap) - gap, columns * (frames.width + gap) - gap);
  std::fill(out.rgb.begin(), out.rgb.end(), kGrey);
  for (int f = 0; f < frames.count; ++f) {
    copy_frame(frames, f, out, {f / columns * (frames.height + gap), f % columns * (frames.width + gap)});
  }
  return out;
}

Difference difference(const Frames& a, const Frames& b) {
  require(a.count == b.count && a.height == b.height && a.width == b.width, "difference: ", a.count, " x ", a.height, " x ", a.width,
          " and ", b.count, " x ", b.height, " x ", b.width, ", expected the same extents");
  const auto plane = [](const Frames& frames) {
    const int64_t width = int64_t{frames.width} * kChannels;
    return Plane<uint8_t>{frames.rgb.data(), int64_t{frames.count} * frames.height, width, width};
  };
  Difference result{psnr(plane(a), plane(b)), 0};
  const auto samples = static_cast<size_t>(a.height) * static_cast<size_t>(a.width);
  std::vector<uint8_t> one(samples), other(samples);
  for (int f = 0; f < a.count; ++f) {
    for (int c = 0; c < kChannels; ++c) {
      for (size_t i = 0; i < samples; ++i) one[i] = a.at(f, 0, 0)[i * kChannels + c], other[i] = b.at(f, 0, 0)[i * kChannels + c];
      result.ssim += ssim(Plane<uint8_t>{one.data(), a.height, a.width, a.width}, Plane<uint8_t>{other.data(), a.height, a.width, a.width});
    }
  }
  result.ssim /= static_cast<double>(a.count) * kChannels;
  return result;
}

}  // namespace slidetile::video
