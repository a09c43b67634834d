#include "video/sprite_checker.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numbers>

namespace slidetile::video {
namespace {

constexpr float kPi = std::numbers::pi_v<float>;
constexpr float kLeastArea = 0.004f;  // of the frame, on average over the frames: less is noise
constexpr float kMoved = 0.09f;       // of the frame's smaller side: net way of what moves straight
constexpr float kWandered = 0.025f;   // standard deviation of a place that goes round or up and down
constexpr float kGrown = 1.6f;        // last area over first
constexpr float kTurned = 0.80f;      // overlap with the first frame's outline, below which it has turned

// Where a colour is in one frame: weights 0 or 1 a pixel, with moments in pixels.
struct Mask {
  std::vector<uint8_t> inside;
  float area = 0, x = 0, y = 0;
};

// Nearest palette colour of a pixel, or -1 for background: dark, or without a clear colour.
int classify(const float* pixel) {
  const float r = pixel[0], g = pixel[1], b = pixel[2], brightest = std::max({r, g, b});
  if (brightest < 0.45f) return -1;
  int nearest = -1;
  float least = 0.12f;  // squared distance
  for (int colour = 0; colour < kColours; ++colour) {
    const Rgb own = rgb_of(static_cast<Colour>(colour));
    const float distance = (r - own.r) * (r - own.r) + (g - own.g) * (g - own.g) + (b - own.b) * (b - own.b);
    if (distance < least) least = distance, nearest = colour;
  }
  return nearest;
}

// Keeps the largest connected part, so that stray pixels do not move the middle.
void keep_largest_part(Mask& mask, int32_t height, int32_t width) {
  std::vector<int32_t> part(mask.inside.size(), -1), stack;
  std::vector<int32_t> sizes;
  for (int32_t start = 0; start < height * width; ++start) {
    if (mask.inside[start] == 0 || part[start] >= 0) continue;
    const auto label = static_cast<int32_t>(sizes.size());
    sizes.push_back(0);
    stack.assign(1, start);
    part[start] = label;
    while (!stack.empty()) {
      const int32_t at = stack.back(), y = at / width, x = at % width;
      stack.pop_back();
      ++sizes[label];
      for (int32_t dy = -1; dy <= 1; ++dy) {
        for (int32_t dx = -1; dx <= 1; ++dx) {
          if (y + dy < 0 || y + dy >= height || x + dx < 0 || x + dx >= width) continue;
          const int32_t next = (y + dy) * width + x + dx;
          if (mask.inside[next] == 0 || part[next] >= 0) continue;
          part[next] = label;
          stack.push_back(next);
        }
      }
    }
  }
  if (sizes.empty()) return;
  const auto largest = static_cast<int32_t>(std::max_element(sizes.begin(), sizes.end()) - sizes.begin());
  for (size_t i = 0; i < part.size(); ++i) mask.inside[i] = part[i] == largest ? 1 : 0;
}

void measure(Mask& mask, int32_t height, int32_t width) {
  double area = 0, x_sum = 0, y_sum = 0;
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      if (mask.inside[y * width + x] == 0) continue;
      ++area, x_sum += x, y_sum += y;
    }
  }
  mask.area = static_cast<float>(area);
  mask.x = area > 0 ? static_cast<float>(x_sum / area) : 0;
  mask.y = area > 0 ? static_cast<float>(y_sum / area) : 0;
}

// Area and middle of a shape of radius 1, found once on a fine raster.
struct ShapeMoments {
  float area, x, y;
};

const std::array<ShapeMoments, kShapes>& shape_moments() {
  static const std::array<ShapeMoments, kShapes> moments = [] {
    std::array<ShapeMoments, kShapes> all{};
    constexpr int kSteps = 300;
    for (int shape = 0; shape < kShapes; ++shape) {
      double area = 0, x_sum = 0, y_sum = 0;
      for (int i = 0; i < kSteps * kSteps; ++i) {
        const float x = 3.0f * (static_cast<float>(i % kSteps) + 0.5f) / kSteps - 1.5f,
                    y = 3.0f * (static_cast<float>(i / kSteps) + 0.5f) / kSteps - 1.5f;
        if (signed_distance(static_cast<Shape>(shape), x, y) > 0) continue;
        area += 1, x_sum += x, y_sum += y;
      }
      all[shape] = {static_cast<float>(area * 9 / (kSteps * kSteps)), static_cast<float>(x_sum / area), static_cast<float>(y_sum / area)};
    }
    return all;
  }();
  return moments;
}

// Intersection over union of a mask with a shape of the same area and middle, turned by an angle.
float overlap(const Mask& mask, int32_t height, int32_t width, Shape shape, float angle) {
  const ShapeMoments& m = shape_moments()[static_cast<int>(shape)];
  const float radius = std::sqrt(mask.area / m.area), cosine = std::cos(angle), sine = std::sin(angle);
  float both = 0, either = 0;
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      const float dx = (static_cast<float>(x) - mask.x) / radius, dy = (static_cast<float>(y) - mask.y) / radius;
      const bool seen = mask.inside[y * width + x] != 0;
      if (!seen && dx * dx + dy * dy > 4) continue;
      const bool expected = signed_distance(shape, dx * cosine + dy * sine + m.x, -dx * sine + dy * cosine + m.y) <= 0;
      both += seen && expected ? 1 : 0;
      either += seen || expected ? 1 : 0;
    }
  }
  return either > 0 ? both / either : 0;
}

// Overlap of two masks moved onto each other's middle.
float overlap(const Mask& a, const Mask& b, int32_t height, int32_t width) {
  const auto dx = static_cast<int32_t>(std::lround(b.x - a.x)), dy = static_cast<int32_t>(std::lround(b.y - a.y));
  float both = 0, either = 0;
  for (int32_t y = -std::abs(dy); y < height + std::abs(dy); ++y) {
    for (int32_t x = -std::abs(dx); x < width + std::abs(dx); ++x) {
      const auto at = [&](const Mask& mask, int32_t row, int32_t column) {
        return row >= 0 && row < height && column >= 0 && column < width && mask.inside[row * width + column] != 0;
      };
      const bool in_a = at(a, y, x), in_b = at(b, y + dy, x + dx);
      both += in_a && in_b ? 1 : 0;
      either += in_a || in_b ? 1 : 0;
    }
  }
  return either > 0 ? both / either : 0;
}

float deviation(const std::vector<float>& values) {
  float mean = 0, square = 0;
  for (const float value : values) mean += value / static_cast<float>(values.size());
  for (const float value : values) square += (value - mean) * (value - mean) / static_cast<float>(values.size());
  return std::sqrt(square);
}

// Way from the first quarter of the frames to the last quarter, stretched to the whole clip: noise of single frames averages out.
float way(const std::vector<float>& places) {
  const size_t n = places.size(), quarter = std::max<size_t>(1, n / 4);
  float first = 0, last = 0;
  for (size_t i = 0; i < quarter; ++i) {
    first += places[i] / static_cast<float>(quarter);
    last += places[n - 1 - i] / static_cast<float>(quarter);
  }
  return (last - first) * static_cast<float>(n - 1) / static_cast<float>(n - quarter);
}

Motion read_motion(const std::vector<Mask>& masks, int32_t height, int32_t width) {
  const auto side = static_cast<float>(std::min(height, width));
  std::vector<float> xs, ys, areas;
  const Mask* first = nullptr;
  float least_overlap = 1;
  for (const Mask& mask : masks) {
    if (mask.area < 4) continue;
    xs.push_back(mask.x / side);
    ys.push_back(mask.y / side);
    areas.push_back(mask.area);
    if (first == nullptr) first = &mask;
  }
  if (xs.size() < 2) return Motion::kStay;
  const float dx = way(xs), dy = way(ys);
  const float spread_x = deviation(xs), spread_y = deviation(ys);
  const size_t quarter = std::max<size_t>(1, areas.size() / 4);
  float before = 0, after = 0;
  for (size_t i = 0; i < quarter; ++i) before += areas[i], after += areas[areas.size() - 1 - i];
  // A circle's way over its first and last quarter is small next to its spread; a straight path's is 3.5 times its spread.
  const bool straight_x = std::abs(dx) > kMoved && std::abs(dx) > 2.4f * spread_x;
  const bool straight_y = std::abs(dy) > kMoved && std::abs(dy) > 2.4f * spread_y;
  const bool slanted = std::min(std::abs(dx), std::abs(dy)) > 0.45f * std::max(std::abs(dx), std::abs(dy));
  if (straight_x && straight_y && slanted) return Motion::kDiagonal;
  if (straight_x && std::abs(dx) >= std::abs(dy)) return dx < 0 ? Motion::kLeft : Motion::kRight;
  if (straight_y) return dy < 0 ? Motion::kUp : Motion::kDown;
  if (spread_x > kWandered && spread_y > kWandered) return Motion::kCircle;
  if (spread_y > kWandered) return Motion::kBounce;
  if (after > kGrown * before) return Motion::kGrow;
  for (const Mask& mask : masks) {
    if (mask.area >= 4) least_overlap = std::min(least_overlap, overlap(*first, mask, height, width));
  }
  return least_overlap < kTurned ? Motion::kSpin : Motion::kStay;
}

Shape read_shape(const std::vector<Mask>& masks, int32_t height, int32_t width, Motion motion) {
  std::array<float, kShapes> total{};
  for (size_t t = 0; t < masks.size(); ++t) {
    if (masks[t].area < 4) continue;
    for (int shape = 0; shape < kShapes; ++shape) {
      float best = 0;
      const bool turns = motion == Motion::kSpin;
      for (int step = 0; step < (turns ? 24 : 1); ++step) {
        best = std::max(best, overlap(masks[t], height, width, static_cast<Shape>(shape), kPi * static_cast<float>(step) / 12));
      }
      total[shape] += best;
    }
  }
  return static_cast<Shape>(std::max_element(total.begin(), total.end()) - total.begin());
}

}  // namespace

std::vector<Sighting> read_clip(const Clip& clip, int count) {
  const auto [frames, height, width] = clip.extent;
  const size_t plane = static_cast<size_t>(height) * static_cast<size_t>(width);
  std::vector<int> colour_of(plane * static_cast<size_t>(frames));
  std::array<float, kColours> areas{};
  for (size_t i = 0; i < colour_of.size(); ++i) {
    colour_of[i] = classify(clip.pixels.data() + i * 3);
    if (colour_of[i] >= 0) areas[colour_of[i]] += 1 / static_cast<float>(colour_of.size());
  }
  std::vector<int> order(kColours);
  for (int colour = 0; colour < kColours; ++colour) order[colour] = colour;
  std::sort(order.begin(), order.end(), [&](int a, int b) { return areas[a] > areas[b]; });
  std::vector<Sighting> sightings;
  for (int i = 0; i < std::min(count, kColours) && areas[order[i]] >= kLeastArea; ++i) {
    std::vector<Mask> masks(static_cast<size_t>(frames));
    for (int32_t t = 0; t < frames; ++t) {
      Mask& mask = masks[t];
      mask.inside.resize(plane);
      for (size_t p = 0; p < plane; ++p) mask.inside[p] = colour_of[t * plane + p] == order[i] ? 1 : 0;
      keep_largest_part(mask, height, width);
      measure(mask, height, width);
    }
    const Motion motion = read_motion(masks, height, width);
    sightings.push_back({static_cast<Colour>(order[i]), read_shape(masks, height, width, motion), motion});
  }
  return sightings;
}

Score score(const Clip& clip, const Scene& scene) {
  const std::vector<Sighting> sightings = read_clip(clip, static_cast<int>(scene.sprites.size()));
  Score score{.objects = static_cast<int>(scene.sprites.size())};
  for (const Sprite& sprite : scene.sprites) {
    for (const Sighting& seen : sightings) {
      if (seen.colour != sprite.colour) continue;
      ++score.colours;
      score.shapes += seen.shape == sprite.shape ? 1 : 0;
      score.motions += seen.motion == sprite.motion ? 1 : 0;
    }
  }
  return score;
}

}  // namespace slidetile::video
