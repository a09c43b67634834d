// Frames of 8 bits a channel: what writers of videos take; scaled, set side by side, compared.
#pragma once

#include <cstdint>
#include <vector>

#include "video/sprites.h"

namespace slidetile::video {

struct Frames {
  int count = 0, height = 0, width = 0;
  std::vector<uint8_t> rgb;  // [count, height, width, 3]

  /// Black frames; throws unless every extent is positive and the frames take less than 2^33 bytes.
  static Frames black(int count, int height, int width);
  uint8_t* at(int frame, int y, int x) noexcept { return rgb.data() + offset(frame, y, x); }
  const uint8_t* at(int frame, int y, int x) const noexcept { return rgb.data() + offset(frame, y, x); }

 private:
  size_t offset(int frame, int y, int x) const noexcept {
    return ((static_cast<size_t>(frame) * static_cast<size_t>(height) + static_cast<size_t>(y)) * static_cast<size_t>(width) +
            static_cast<size_t>(x)) *
           3;
  }
};

/// Values are clamped to 0 to 1 (NaN to 0) and rounded to 255 steps.
Frames frames_of(const Clip& clip);

enum class Scaling : uint8_t { kNearest, kLanczos };
/// Every frame larger by a whole factor, 1 to 64.
Frames scaled(const Frames& frames, int factor, Scaling scaling);

/// Both videos beside each other, with `gap` grey columns between; throws unless count and height agree.
Frames side_by_side(const Frames& left, const Frames& right, int gap);
/// All frames as one picture of `columns` columns, in reading order, with `gap` grey pixels between.
Frames contact_sheet(const Frames& frames, int columns, int gap);

/// PSNR in dB over all samples (infinite for equal frames), and SSIM as the mean over frames and channels.
struct Difference {
  double psnr = 0, ssim = 0;
};
/// Throws unless the extents agree; SSIM needs frames of at least 11 x 11 pixels.
Difference difference(const Frames& a, const Frames& b);

}  // namespace slidetile::video
