// An endless source of short captioned clips: coloured shapes that move over plain or textured backgrounds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "slidetile/grid.h"

namespace slidetile::video {

/// RGB frames with values 0 to 1: pixel (t, y, x) starts at ((t * extent.h + y) * extent.w + x) * 3.
struct Clip {
  Dim3 extent;                // frames, height, width in pixels
  std::vector<float> pixels;  // [t, h, w, 3]
};

enum class Shape : uint8_t { kCircle, kSquare, kTriangle, kDiamond, kCross, kStar, kRing, kBar };
enum class Colour : uint8_t { kRed, kGreen, kBlue, kYellow, kCyan, kMagenta, kOrange, kWhite };
enum class Size : uint8_t { kSmall, kLarge };
enum class Motion : uint8_t { kLeft, kRight, kUp, kDown, kDiagonal, kCircle, kBounce, kGrow, kSpin, kStay };
enum class Background : uint8_t { kPlain, kStripes, kChecks, kClouds };

inline constexpr int kShapes = 8, kColours = 8, kSizes = 2, kMotions = 10, kBackgrounds = 4;

std::string_view to_string(Shape shape) noexcept;            // "circle"
std::string_view to_string(Colour colour) noexcept;          // "red"
std::string_view to_string(Size size) noexcept;              // "small"
std::string_view to_string(Motion motion) noexcept;          // "moves left", "spins", "stays still"
std::string_view to_string(Background background) noexcept;  // "plain", "stripes"

/// Red, green and blue of a colour, 0 to 1.
struct Rgb {
  float r, g, b;
};
Rgb rgb_of(Colour colour) noexcept;

struct Sprite {
  Size size;
  Colour colour;
  Shape shape;
  Motion motion;
  friend bool operator==(const Sprite&, const Sprite&) = default;
};

/// What a clip shows. Its sentence is "a small red circle moves left on stripes", with two objects joined by "and".
struct Scene {
  std::vector<Sprite> sprites;  // one or two, of different colours
  Background background = Background::kPlain;
  friend bool operator==(const Scene&, const Scene&) = default;
};

std::string sentence_of(const Scene& scene);
/// Reads what sentence_of writes; the background may be left out (plain). Throws Error naming the word that it does not know
/// and what may stand there.
Scene scene_from_sentence(const std::string& sentence);
/// Every word of the grammar, in a fixed order: a word's place is its token in the model's text input.
const std::vector<std::string>& vocabulary();
/// Words of a sentence as places in the vocabulary; throws on an unknown word, listing the known ones.
std::vector<int32_t> tokenize(const std::string& sentence);

/// False for what can't be seen: a circle or a ring that spins.
bool is_visible(const Sprite& sprite) noexcept;
/// True for about one in ten (shape, colour, motion) triples: training scenes never show these, so that their
/// sentences can be used to judge what was learnt.
bool is_held_out(const Sprite& sprite) noexcept;

/// Which scenes a source draws, as probabilities.
struct SceneMix {
  double two_objects = 0.25;
  double textured = 0.5;
  double directed = 0;  // that an object moves left, right, up or down, whatever else was drawn
};

/// A random training scene (never a held-out one): the same for the same seed and index.
Scene draw_scene(uint64_t seed, uint64_t index, const SceneMix& mix = {});
/// A random held-out scene of one object.
Scene draw_held_out_scene(uint64_t seed, uint64_t index);

/// The scene as a clip; places, paces and textures are drawn from the seed. Any extent with at least 2 frames of 16 x 16 pixels.
Clip render(const Scene& scene, Dim3 extent, uint64_t seed);

/// Signed distance (negative inside) of a point to a shape of radius 1 around the origin, y downwards.
float signed_distance(Shape shape, float x, float y) noexcept;

}  // namespace slidetile::video
