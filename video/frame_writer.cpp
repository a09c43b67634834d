#include "video/frame_writer.h"

#include <png.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <span>

#include "slidetile/error.h"
#include "slidetile/file.h"

namespace slidetile::video {

FrameFormat frame_format_of(const std::string& path) {
  const size_t dot = path.find_last_of("./");
  std::string extension = dot == std::string::npos || path[dot] == '/' ? "" : path.substr(dot);
  std::transform(extension.begin(), extension.end(), extension.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (extension == ".gif") return FrameFormat::kGif;
  if (extension == ".png") return FrameFormat::kPng;
  require(extension == ".mp4", "cannot write '", path, "': expected a name that ends in .mp4, .gif or .png");
  if (const char* reason = why_no_mp4()) fail(ErrorCode::kUnsupported, "cannot write '", path, "': ", reason, "; .gif and .png work");
  return FrameFormat::kMp4;
}

void write_frames(const std::string& path, const Frames& frames, double frames_per_second) {
  require(frames_per_second >= 0.1 && frames_per_second <= 100, "frames a second: ", frames_per_second, ", expected 0.1 to 100");
  const FrameFormat format = frame_format_of(path);
  std::vector<std::byte> bytes;
  switch (format) {
    case FrameFormat::kMp4: bytes = encode_mp4(frames, frames_per_second); break;
    case FrameFormat::kGif: bytes = encode_gif(frames, frames_per_second); break;
    case FrameFormat::kPng: {
      const int gap = std::max(1, frames.width / 64);
      bytes = encode_png(contact_sheet(frames, static_cast<int>(std::ceil(std::sqrt(frames.count))), gap));
    }
  }
  const std::span<const std::byte> part = bytes;
  write_file(path, std::span(&part, 1));
}

std::vector<std::byte> encode_png(const Frames& frame) {
  require(frame.count == 1, "png: ", frame.count, " frames, expected 1");
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(frame.width);
  image.height = static_cast<png_uint_32>(frame.height);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = 0;
  std::vector<std::byte> bytes;
  bool ok = png_image_write_to_memory(&image, nullptr, &size, 0, frame.rgb.data(), 0, nullptr) != 0;
  if (ok) {
    bytes.resize(size);
    ok = png_image_write_to_memory(&image, bytes.data(), &size, 0, frame.rgb.data(), 0, nullptr) != 0;
  }
  if (!ok) fail(ErrorCode::kIo, "png: libpng says ", image.message);
  bytes.resize(size);
  return bytes;
}

}  // namespace slidetile::video
