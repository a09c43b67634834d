#include "video/sprites.h"

#include <doctest/doctest.h>

#include <set>
#include <string>

#include "slidetile/error.h"
#include "video/sprite_checker.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

// Share of scenes that the checker reads back without a mistake.
double share_read(const SceneMix& mix, Dim3 extent, int clips) {
  int right = 0;
  for (int i = 0; i < clips; ++i) {
    const Scene scene = draw_scene(99, static_cast<uint64_t>(i), mix);
    right += score(render(scene, extent, static_cast<uint64_t>(i)), scene).all() ? 1 : 0;
  }
  return static_cast<double>(right) / clips;
}

std::string message_of(const std::string& sentence) {
  try {
    scene_from_sentence(sentence);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("the checker reads the source itself") {
  CHECK(share_read({.two_objects = 0}, {16, 64, 64}, 150) >= 0.98);
  CHECK(share_read({.two_objects = 1}, {16, 64, 64}, 60) >= 0.95);
  CHECK(share_read({.two_objects = 0}, {16, 32, 32}, 100) >= 0.97);
  CHECK(share_read({.two_objects = 0}, {9, 48, 80}, 60) >= 0.95);
}

TEST_CASE("the checker does not take one thing for another") {
  const Scene scene{{{Size::kLarge, Colour::kRed, Shape::kSquare, Motion::kLeft}}, Background::kPlain};
  const Clip clip = render(scene, {16, 64, 64}, 1);
  const auto with = [&](auto change) {
    Scene other = scene;
    change(other.sprites[0]);
    return score(clip, other);
  };
  CHECK(with([](Sprite&) {}).all());
  CHECK(with([](Sprite& s) { s.motion = Motion::kRight; }).motions == 0);
  CHECK(with([](Sprite& s) { s.shape = Shape::kCircle; }).shapes == 0);
  CHECK(with([](Sprite& s) { s.colour = Colour::kOrange; }).colours == 0);
  const Clip empty{{16, 64, 64}, std::vector<float>(16 * 64 * 64 * 3, 0.2f)};
  CHECK(score(empty, scene).colours == 0);
}

TEST_CASE("sentences go back and forth") {
  for (uint64_t i = 0; i < 300; ++i) {
    const Scene scene = draw_scene(3, i);
    CHECK(scene_from_sentence(sentence_of(scene)) == scene);
    CHECK(tokenize(sentence_of(scene)).size() >= 7);
  }
  CHECK(scene_from_sentence("a small red star spins").background == Background::kPlain);
  CHECK(message_of("a tiny red star spins") == "prompt 'a tiny red star spins': at 'tiny', expected small or large");
  CHECK(message_of("a small red star moves").find("expected moves left, moves right") != std::string::npos);
  CHECK(message_of("a small red ring spins").find("can't be seen to spin") != std::string::npos);
  CHECK(message_of("a small red star spins and a large red bar grows").find("two different colours") != std::string::npos);
  CHECK(message_of("a small red star spins over checks").find("'and', 'on' or the end") != std::string::npos);
  CHECK_FALSE(message_of("").empty());
  CHECK_THROWS_WITH_AS(tokenize("a small purple star"), doctest::Contains("'purple' is not known"), Error);
}

TEST_CASE("clips are a function of their seed, and training never shows what is held out") {
  const Scene scene = draw_scene(1, 2);
  CHECK(render(scene, {8, 32, 32}, 5).pixels == render(scene, {8, 32, 32}, 5).pixels);
  CHECK(render(scene, {8, 32, 32}, 5).pixels != render(scene, {8, 32, 32}, 6).pixels);
  int held_out = 0, triples = 0;
  for (int place = 0; place < kShapes * kColours * kMotions; ++place) {
    const Sprite sprite{Size::kSmall, static_cast<Colour>(place / kMotions % kColours), static_cast<Shape>(place / kMotions / kColours),
                        static_cast<Motion>(place % kMotions)};
    triples += is_visible(sprite) ? 1 : 0;
    held_out += is_visible(sprite) && is_held_out(sprite) ? 1 : 0;
  }
  CHECK(held_out > triples / 20);
  CHECK(held_out < triples / 6);
  for (uint64_t i = 0; i < 2000; ++i) {
    for (const Sprite& sprite : draw_scene(8, i).sprites) CHECK_FALSE(is_held_out(sprite));
    CHECK(is_held_out(draw_held_out_scene(8, i).sprites[0]));
  }
  CHECK_THROWS_AS(render(scene, {1, 64, 64}, 0), Error);
}
