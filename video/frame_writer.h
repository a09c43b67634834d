// Writes frames as .mp4, .gif or .png, chosen by the file's name.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "video/frames.h"

namespace slidetile::video {

enum class FrameFormat : uint8_t { kMp4, kGif, kPng };

/// By the extension, in any case. Throws where it is another one, or where this build cannot write it: before hours of work, not after.
FrameFormat frame_format_of(const std::string& path);

/// Writes all frames; the file appears whole or not at all. A PNG file is a sheet of all frames, square as far as possible. Throws Error.
void write_frames(const std::string& path, const Frames& frames, double frames_per_second);

/// The same as bytes in memory, one function for each format. Frames a second lie between 0.1 and 100.
std::vector<std::byte> encode_gif(const Frames& frames, double frames_per_second);
std::vector<std::byte> encode_mp4(const Frames& frames, double frames_per_second);
std::vector<std::byte> encode_png(const Frames& frame);  // one frame

/// nullptr where encode_mp4 works, else why it does not.
const char* why_no_mp4() noexcept;

}  // namespace slidetile::video
