// Reads a clip of sprites back by plain image processing: the judge of generated clips.
#pragma once

#include <vector>

#include "video/sprites.h"

namespace slidetile::video {

/// What the checker sees of one object.
struct Sighting {
  Colour colour;
  Shape shape;
  Motion motion;
};

/// The `count` largest objects of different colours, largest first; fewer where no more colours are seen.
std::vector<Sighting> read_clip(const Clip& clip, int count);

/// How much of a scene a clip shows. An object is found by its colour; shape and motion count only for those found.
struct Score {
  int objects = 0, colours = 0, shapes = 0, motions = 0;
  bool all() const noexcept { return colours == objects && shapes == objects && motions == objects; }
};
Score score(const Clip& clip, const Scene& scene);

}  // namespace slidetile::video
