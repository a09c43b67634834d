// Stands in for mp4.cpp where FFmpeg's libraries are absent.
#include "slidetile/error.h"
#include "video/frame_writer.h"

namespace slidetile::video {

const char* why_no_mp4() noexcept { return "this build has no FFmpeg libraries (libavcodec-dev, libavformat-dev, libswscale-dev)"; }

std::vector<std::byte> encode_mp4(const Frames&, double) { fail(ErrorCode::kUnsupported, "mp4: ", why_no_mp4()); }

}  // namespace slidetile::video
