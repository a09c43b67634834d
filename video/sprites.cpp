#include "video/sprites.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <random>
#include <span>
#include <sstream>

#include "slidetile/error.h"

namespace slidetile::video {
namespace {

constexpr std::string_view kShapeNames[kShapes] = {"circle", "square", "triangle", "diamond", "cross", "star", "ring", "bar"};
constexpr std::string_view kColourNames[kColours] = {"red", "green", "blue", "yellow", "cyan", "magenta", "orange", "white"};
constexpr std::string_view kSizeNames[kSizes] = {"small", "large"};
constexpr std::string_view kMotionNames[kMotions] = {"moves left",        "moves right", "moves up", "moves down", "moves diagonally",
                                                     "moves in a circle", "bounces",     "grows",    "spins",      "stays still"};
constexpr std::string_view kBackgroundNames[kBackgrounds] = {"plain", "stripes", "checks", "clouds"};
constexpr Rgb kColourValues[kColours] = {{0.90f, 0.10f, 0.10f}, {0.10f, 0.75f, 0.15f}, {0.15f, 0.25f, 0.95f}, {0.95f, 0.90f, 0.10f},
                                         {0.10f, 0.85f, 0.90f}, {0.90f, 0.15f, 0.85f}, {0.98f, 0.50f, 0.05f}, {0.97f, 0.97f, 0.97f}};
constexpr float kRadius[kSizes] = {0.13f, 0.21f};  // of the frame's smaller side
constexpr float kPairScale = 0.7f;                 // two objects share the frame, each in its half
constexpr float kTau = 2 * std::numbers::pi_v<float>;

// Numbers that depend on the seed and the draw's place only, alike on every platform (unlike std::uniform_*_distribution).
class Random {
 public:
  Random(uint64_t seed, uint64_t index) : engine_(seed * 0x9e3779b97f4a7c15u ^ (index + 1) * 0xbf58476d1ce4e5b9u) { engine_.discard(4); }
  float between(float low, float high) { return low + (high - low) * static_cast<float>(engine_() >> 40) * 0x1p-24f; }
  int below(int count) { return static_cast<int>(engine_() % static_cast<uint64_t>(count)); }
  bool chance(double probability) { return between(0, 1) < probability; }

 private:
  std::mt19937_64 engine_;
};

float polygon_distance(std::span<const std::array<float, 2>> corners, float x, float y) {
  float nearest = 1e9f;
  bool inside = false;
  for (size_t i = 0, j = corners.size() - 1; i < corners.size(); j = i++) {
    const auto [ax, ay] = corners[j];
    const auto [bx, by] = corners[i];
    const float ex = bx - ax, ey = by - ay, px = x - ax, py = y - ay;
    const float along = std::clamp((px * ex + py * ey) / (ex * ex + ey * ey), 0.0f, 1.0f);
    nearest = std::min(nearest, std::hypot(px - along * ex, py - along * ey));
    if ((ay > y) != (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
  }
  return inside ? -nearest : nearest;
}

float box_distance(float x, float y, float half_width, float half_height) {
  const float dx = std::abs(x) - half_width, dy = std::abs(y) - half_height;
  return std::hypot(std::max(dx, 0.0f), std::max(dy, 0.0f)) + std::min(std::max(dx, dy), 0.0f);
}

constexpr std::array<std::array<float, 2>, 3> kTriangle{{{0, -1}, {0.92f, 0.72f}, {-0.92f, 0.72f}}};
constexpr std::array<std::array<float, 2>, 4> kDiamond{{{0, -1.05f}, {0.6f, 0}, {0, 1.05f}, {-0.6f, 0}}};

std::array<std::array<float, 2>, 10> star_corners() {
  std::array<std::array<float, 2>, 10> corners;
  for (int i = 0; i < 10; ++i) {
    const float radius = i % 2 == 0 ? 1.1f : 0.45f, angle = kTau * static_cast<float>(i) / 10;
    corners[static_cast<size_t>(i)] = {radius * std::sin(angle), -radius * std::cos(angle)};
  }
  return corners;
}

// Where a sprite is at a time in [0, 1]. Lengths are fractions of the frame's smaller side, origin in its middle.
struct Pose {
  float x, y, radius, angle;
};

struct Path {
  Motion motion;
  float x, y, radius, reach, phase, dx, dy;

  Pose at(float time) const {
    const float along = (time - 0.5f) * 2 * reach;
    switch (motion) {
      case Motion::kLeft: return {x - along, y, radius, 0};
      case Motion::kRight: return {x + along, y, radius, 0};
      case Motion::kUp: return {x, y - along, radius, 0};
      case Motion::kDown: return {x, y + along, radius, 0};
      case Motion::kDiagonal: return {x + dx * along, y + dy * along, radius, 0};
      case Motion::kCircle: return {x + reach * std::cos(phase + kTau * time), y + reach * std::sin(phase + kTau * time), radius, 0};
      case Motion::kBounce: return {x, y + reach - 2 * reach * std::abs(std::sin(kTau * time)), radius, 0};
      case Motion::kGrow: return {x, y, radius * (0.55f + 0.75f * time), 0};
      case Motion::kSpin: return {x, y, radius, kTau * 0.5f * time};
      case Motion::kStay: return {x, y, radius, 0};
    }
    return {x, y, radius, 0};
  }
};

// The part of the frame that a sprite stays in.
struct Room {
  float middle_x, half_width, half_height, scale;
};

Path draw_path(const Sprite& sprite, const Room& room, Random& random) {
  Path path{.motion = sprite.motion,
            .x = room.middle_x,
            .y = 0,
            .radius = kRadius[static_cast<int>(sprite.size)] * room.scale,
            .reach = 0,
            .phase = random.between(0, kTau),
            .dx = random.below(2) == 0 ? 1.0f : -1.0f,
            .dy = random.below(2) == 0 ? 1.0f : -1.0f};
  const float largest = path.radius * (sprite.motion == Motion::kGrow ? 1.3f : 1.0f) * 1.1f;
  const float free_x = std::max(room.half_width - largest, 0.0f), free_y = std::max(room.half_height - largest, 0.0f);
  const bool along_x = sprite.motion == Motion::kLeft || sprite.motion == Motion::kRight;
  const bool along_y = sprite.motion == Motion::kUp || sprite.motion == Motion::kDown || sprite.motion == Motion::kBounce;
  const bool along_both = sprite.motion == Motion::kDiagonal || sprite.motion == Motion::kCircle;
  const float free = along_x ? free_x : along_y ? free_y : std::min(free_x, free_y);
  if (along_x || along_y || along_both) path.reach = free * random.between(0.7f, 0.95f);
  const float jitter_x = along_x || along_both ? free_x - path.reach : free_x,
              jitter_y = along_y || along_both ? free_y - path.reach : free_y;
  path.x += jitter_x * random.between(-0.8f, 0.8f);
  path.y += jitter_y * random.between(-0.8f, 0.8f);
  return path;
}

// Dark and nearly grey, so that no background has the colour of a sprite.
struct Texture {
  Background kind;
  Rgb low, high;
  float frequency, angle, phase[6];

  Rgb at(float x, float y) const {
    const float u = x * std::cos(angle) + y * std::sin(angle), v = -x * std::sin(angle) + y * std::cos(angle);
    float mix = 0;
    switch (kind) {
      case Background::kPlain: break;
      case Background::kStripes: mix = std::sin(kTau * frequency * u) > 0 ? 1 : 0; break;
      case Background::kChecks: mix = (std::sin(kTau * frequency * u) > 0) != (std::sin(kTau * frequency * v) > 0) ? 1 : 0; break;
      case Background::kClouds:
        mix = 0.5f + 0.17f * (std::sin(kTau * 1.1f * u + phase[0]) + std::sin(kTau * 1.7f * v + phase[1]) +
                              std::sin(kTau * 2.3f * (u + v) * 0.7f + phase[2]));
        break;
    }
    return {low.r + (high.r - low.r) * mix, low.g + (high.g - low.g) * mix, low.b + (high.b - low.b) * mix};
  }
};

Texture draw_texture(Background kind, Random& random) {
  const auto shade = [&](float low, float high) {
    const float grey = random.between(low, high);
    return Rgb{grey + random.between(-0.04f, 0.04f), grey + random.between(-0.04f, 0.04f), grey + random.between(-0.04f, 0.04f)};
  };
  Texture texture{.kind = kind,
                  .low = shade(0.05f, 0.14f),
                  .high = shade(0.2f, 0.3f),
                  .frequency = random.between(2, 4),
                  .angle = random.between(0, kTau / 2),
                  .phase = {}};
  for (float& phase : texture.phase) phase = random.between(0, kTau);
  return texture;
}

template <typename Enum, size_t kCount>
bool read_word(const std::string& word, const std::string_view (&names)[kCount], Enum& value) {
  const auto found = std::find(std::begin(names), std::end(names), word);
  if (found == std::end(names)) return false;
  value = static_cast<Enum>(found - std::begin(names));
  return true;
}

template <size_t kCount>
std::string list(const std::string_view (&names)[kCount]) {
  std::string text;
  for (size_t i = 0; i < kCount; ++i) text += (i == 0 ? "" : i + 1 == kCount ? " or " : ", ") + std::string(names[i]);
  return text;
}

class SentenceReader {
 public:
  explicit SentenceReader(const std::string& sentence) : sentence_(sentence) {
    std::istringstream words(sentence);
    for (std::string word; words >> word;) words_.push_back(word);
  }

  Scene read() {
    Scene scene;
    scene.sprites.push_back(sprite());
    if (accept("and")) {
      scene.sprites.push_back(sprite());
      if (scene.sprites[0].colour == scene.sprites[1].colour) refuse("two different colours");
    }
    if (accept("on")) one_of(kBackgroundNames, scene.background);
    if (next_ != words_.size()) refuse(scene.sprites.size() == 1 ? "'and', 'on' or the end" : "'on' or the end");
    return scene;
  }

 private:
  Sprite sprite() {
    Sprite sprite{};
    if (!accept("a")) refuse("'a'");
    one_of(kSizeNames, sprite.size);
    one_of(kColourNames, sprite.colour);
    one_of(kShapeNames, sprite.shape);
    for (int motion = 0; motion < kMotions; ++motion) {
      std::istringstream words{std::string(kMotionNames[motion])};
      size_t at = next_;
      bool same = true;
      for (std::string word; same && words >> word; ++at) same = at < words_.size() && words_[at] == word;
      if (!same) continue;
      next_ = at;
      sprite.motion = static_cast<Motion>(motion);
      if (!is_visible(sprite)) refuse("another motion: a circle or a ring can't be seen to spin");
      return sprite;
    }
    refuse(list(kMotionNames));
  }

  template <typename Enum, size_t kCount>
  void one_of(const std::string_view (&names)[kCount], Enum& value) {
    if (next_ >= words_.size() || !read_word(words_[next_], names, value)) refuse(list(names));
    ++next_;
  }

  bool accept(std::string_view word) {
    if (next_ >= words_.size() || words_[next_] != word) return false;
    ++next_;
    return true;
  }

  [[noreturn]] void refuse(const std::string& expected) const {
    fail(ErrorCode::kInvalidArgument, "prompt '", sentence_, "': ", next_ < words_.size() ? "at '" + words_[next_] + "'" : "at its end",
         ", expected ", expected);
  }

  const std::string& sentence_;
  std::vector<std::string> words_;
  size_t next_ = 0;
};

Sprite draw_sprite(Random& random) {
  return {static_cast<Size>(random.below(kSizes)), static_cast<Colour>(random.below(kColours)), static_cast<Shape>(random.below(kShapes)),
          static_cast<Motion>(random.below(kMotions))};
}

}  // namespace

std::string_view to_string(Shape shape) noexcept { return kShapeNames[static_cast<int>(shape)]; }
std::string_view to_string(Colour colour) noexcept { return kColourNames[static_cast<int>(colour)]; }
std::string_view to_string(Size size) noexcept { return kSizeNames[static_cast<int>(size)]; }
std::string_view to_string(Motion motion) noexcept { return kMotionNames[static_cast<int>(motion)]; }
std::string_view to_string(Background background) noexcept { return kBackgroundNames[static_cast<int>(background)]; }
Rgb rgb_of(Colour colour) noexcept { return kColourValues[static_cast<int>(colour)]; }

std::string sentence_of(const Scene& scene) {
  std::string text;
  for (const Sprite& sprite : scene.sprites) {
    text += text.empty() ? "a " : " and a ";
    for (const std::string_view word : {to_string(sprite.size), to_string(sprite.colour), to_string(sprite.shape)})
      text += std::string(word) + " ";
    text += to_string(sprite.motion);
  }
  return text + " on " + std::string(to_string(scene.background));
}

Scene scene_from_sentence(const std::string& sentence) { return SentenceReader(sentence).read(); }

const std::vector<std::string>& vocabulary() {
  static const std::vector<std::string> words = [] {
    std::vector<std::string> all;
    const auto add = [&](std::string_view phrase) {
      std::istringstream stream{std::string(phrase)};
      for (std::string word; stream >> word;) {
        if (std::find(all.begin(), all.end(), word) == all.end()) all.push_back(word);
      }
    };
    add("a and on");
    for (const auto name : kSizeNames) add(name);
    for (const auto name : kColourNames) add(name);
    for (const auto name : kShapeNames) add(name);
    for (const auto name : kMotionNames) add(name);
    for (const auto name : kBackgroundNames) add(name);
    return all;
  }();
  return words;
}

std::vector<int32_t> tokenize(const std::string& sentence) {
  std::vector<int32_t> tokens;
  std::istringstream stream(sentence);
  for (std::string word; stream >> word;) {
    const auto found = std::find(vocabulary().begin(), vocabulary().end(), word);
    if (found == vocabulary().end()) {
      std::string known;
      for (const std::string& entry : vocabulary()) known += (known.empty() ? "" : " ") + entry;
      fail(ErrorCode::kInvalidArgument, "prompt: the word '", word, "' is not known; known words: ", known);
    }
    tokens.push_back(static_cast<int32_t>(found - vocabulary().begin()));
  }
  return tokens;
}

bool is_visible(const Sprite& sprite) noexcept {
  return sprite.motion != Motion::kSpin || (sprite.shape != Shape::kCircle && sprite.shape != Shape::kRing);
}

bool is_held_out(const Sprite& sprite) noexcept {
  const int place =
      (static_cast<int>(sprite.shape) * kColours + static_cast<int>(sprite.colour)) * kMotions + static_cast<int>(sprite.motion);
  return static_cast<uint32_t>(place) * 2654435761u % 10007u % 10u == 0;
}

Scene draw_scene(uint64_t seed, uint64_t index, const SceneMix& mix) {
  Random random(seed, index);
  Scene scene;
  const size_t sprites = random.chance(mix.two_objects) ? 2 : 1;
  while (scene.sprites.size() < sprites) {
    Sprite sprite = draw_sprite(random);
    if (mix.directed > 0 && random.chance(mix.directed)) sprite.motion = static_cast<Motion>(random.below(4));
    const bool same_colour = !scene.sprites.empty() && scene.sprites[0].colour == sprite.colour;
    if (is_visible(sprite) && !is_held_out(sprite) && !same_colour) scene.sprites.push_back(sprite);
  }
  if (random.chance(mix.textured)) scene.background = static_cast<Background>(1 + random.below(kBackgrounds - 1));
  return scene;
}

Scene draw_held_out_scene(uint64_t seed, uint64_t index) {
  Random random(seed ^ 0x5eed, index);
  for (;;) {
    const Sprite sprite = draw_sprite(random);
    if (is_visible(sprite) && is_held_out(sprite)) return {{sprite}, static_cast<Background>(random.below(kBackgrounds))};
  }
}

float signed_distance(Shape shape, float x, float y) noexcept {
  static const std::array<std::array<float, 2>, 10> star = star_corners();
  switch (shape) {
    case Shape::kCircle: return std::hypot(x, y) - 0.92f;
    case Shape::kSquare: return box_distance(x, y, 0.8f, 0.8f);
    case Shape::kTriangle: return polygon_distance(kTriangle, x, y);
    case Shape::kDiamond: return polygon_distance(kDiamond, x, y);
    case Shape::kCross: return std::min(box_distance(x, y, 0.95f, 0.3f), box_distance(x, y, 0.3f, 0.95f));
    case Shape::kStar: return polygon_distance(star, x, y);
    case Shape::kRing: return std::abs(std::hypot(x, y) - 0.72f) - 0.24f;
    case Shape::kBar: return box_distance(x, y, 1.0f, 0.36f);
  }
  return 1;
}

Clip render(const Scene& scene, Dim3 extent, uint64_t seed) {
  require(extent.t >= 2 && extent.h >= 16 && extent.w >= 16, "render: extent ", extent, " must be at least 2 frames of 16 x 16 pixels");
  require(!scene.sprites.empty() && scene.sprites.size() <= 2, "render: a scene has ", scene.sprites.size(), " objects, expected 1 or 2");
  Random random(seed, 0);
  Clip clip{extent, std::vector<float>(static_cast<size_t>(extent.volume()) * 3)};
  const auto side = static_cast<float>(std::min(extent.h, extent.w));
  const float half_width = static_cast<float>(extent.w) / side / 2, half_height = static_cast<float>(extent.h) / side / 2;
  const Texture texture = draw_texture(scene.background, random);
  std::vector<Path> paths;
  for (const Sprite& sprite : scene.sprites) {
    const bool alone = scene.sprites.size() == 1;
    const Room whole{0, half_width, half_height, 1},
        half{(paths.empty() ? -half_width : half_width) / 2, half_width / 2, half_height, kPairScale};
    paths.push_back(draw_path(sprite, alone ? whole : half, random));
  }
  std::vector<Rgb> behind(static_cast<size_t>(extent.h) * static_cast<size_t>(extent.w));
  const auto place = [&](int32_t at, int32_t count, float half) {
    return (static_cast<float>(at) + 0.5f) / static_cast<float>(count) * 2 * half - half;
  };
  for (int32_t y = 0; y < extent.h; ++y) {
    for (int32_t x = 0; x < extent.w; ++x) {
      behind[static_cast<size_t>(y * extent.w + x)] = texture.at(place(x, extent.w, half_width), place(y, extent.h, half_height));
    }
  }
  float* pixel = clip.pixels.data();
  for (int32_t t = 0; t < extent.t; ++t) {
    std::array<Pose, 2> poses{};
    for (size_t i = 0; i < paths.size(); ++i) poses[i] = paths[i].at(static_cast<float>(t) / static_cast<float>(extent.t - 1));
    for (int32_t y = 0; y < extent.h; ++y) {
      for (int32_t x = 0; x < extent.w; ++x, pixel += 3) {
        Rgb colour = behind[static_cast<size_t>(y * extent.w + x)];
        for (size_t i = 0; i < paths.size(); ++i) {
          const Pose& pose = poses[i];
          const float px = (place(x, extent.w, half_width) - pose.x) / pose.radius,
                      py = (place(y, extent.h, half_height) - pose.y) / pose.radius;
          if (px * px + py * py > 2.0f) continue;
          const float cosine = std::cos(pose.angle), sine = std::sin(pose.angle);
          const float distance = signed_distance(scene.sprites[i].shape, px * cosine + py * sine, -px * sine + py * cosine);
          const float cover = std::clamp(0.5f - distance * pose.radius * side, 0.0f, 1.0f);  // a pixel wide edge
          const Rgb own = rgb_of(scene.sprites[i].colour);
          colour = {colour.r + (own.r - colour.r) * cover, colour.g + (own.g - colour.g) * cover, colour.b + (own.b - colour.b) * cover};
        }
        pixel[0] = colour.r;
        pixel[1] = colour.g;
        pixel[2] = colour.b;
      }
    }
  }
  return clip;
}

}  // namespace slidetile::video
