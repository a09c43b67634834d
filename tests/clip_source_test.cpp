#include "video/clip_source.h"

#include <doctest/doctest.h>

#include <cmath>

#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::video;

TEST_CASE("batches depend on seed and step alone") {
  ClipSourceOptions options{.seed = 4, .extent = {4, 16, 24}, .clips = 5};
  const ClipBatch direct = clip_batch(options, 7);
  CHECK(direct.pixels.size() == 5 * 4 * 16 * 24 * 3);
  for (const int threads : {1, 3}) {
    options.threads = threads;
    ClipSource source(options, 5);
    CHECK(source.take().pixels == clip_batch(options, 5).pixels);
    CHECK(source.take().scenes == clip_batch(options, 6).scenes);
    const ClipBatch taken = source.take();
    CHECK(taken.scenes == direct.scenes);
    CHECK(taken.pixels == direct.pixels);
    for (uint64_t step = 8; step < 20; ++step) CHECK(source.take().scenes == clip_batch(options, step).scenes);
  }
  options.seed = 5;
  CHECK(clip_batch(options, 7).pixels != direct.pixels);
}

TEST_CASE("pixels are the rendered ones in 255 steps, and scenes follow the mix") {
  const ClipSourceOptions options{.seed = 1, .extent = {2, 16, 16}, .clips = 40, .mix = {.two_objects = 0, .textured = 0, .directed = 1}};
  const ClipBatch batch = clip_batch(options, 0);
  int bright = 0;
  for (const uint8_t value : batch.pixels) bright += value > 200 ? 1 : 0;
  CHECK(bright > 100);
  for (const Scene& scene : batch.scenes) {
    REQUIRE(scene.sprites.size() == 1);
    CHECK(static_cast<int>(scene.sprites[0].motion) < 4);
    CHECK(scene.background == Background::kPlain);
    CHECK_FALSE(is_held_out(scene.sprites[0]));
  }
}

TEST_CASE("what can't be rendered is an error, before or while it is taken") {
  CHECK_THROWS_WITH_AS(clip_batch({.clips = 0}, 0), "clips: a batch of 0, expected 1 to 4096", Error);
  CHECK_THROWS_AS(ClipSource({.clips = 1, .threads = -1}, 0), Error);
  ClipSource source({.extent = {1, 8, 8}, .clips = 2, .threads = 2}, 0);
  CHECK_THROWS_AS(source.take(), Error);
}
