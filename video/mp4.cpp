// MP4 files by FFmpeg's libraries: H.264 by libx264, or MPEG-4 where that is absent.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "slidetile/error.h"
#include "video/frame_writer.h"

namespace slidetile::video {
namespace {

constexpr int kBufferBytes = 1 << 16, kTimeUnits = 90000;
constexpr const char* kQuality = "16";  // libx264's constant rate factor: no difference to be seen

void check(int result, const char* what) {
  if (result >= 0) return;
  char reason[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(result, reason, sizeof reason);
  fail(result == AVERROR(ENOMEM) ? ErrorCode::kOutOfMemory : ErrorCode::kUnsupported, "mp4: ", what, ": ", reason);
}

template <typename T>
T* made(T* object, const char* what) {
  if (object == nullptr) fail(ErrorCode::kOutOfMemory, "mp4: no memory for ", what);
  return object;
}

// A file in memory for the muxer, which goes back to fill in sizes.
struct Memory {
  std::vector<std::byte> bytes;
  size_t position = 0;

  static int write(void* opaque, uint8_t* data, int count) {
    auto& self = *static_cast<Memory*>(opaque);
    const size_t end = self.position + static_cast<size_t>(count);
    if (end > self.bytes.size()) self.bytes.resize(end);
    std::memcpy(self.bytes.data() + self.position, data, static_cast<size_t>(count));
    self.position = end;
    return count;
  }
  static int64_t seek(void* opaque, int64_t offset, int whence) {
    auto& self = *static_cast<Memory*>(opaque);
    const auto size = static_cast<int64_t>(self.bytes.size());
    if (whence == AVSEEK_SIZE) return size;
    const int64_t target = whence == SEEK_CUR ? static_cast<int64_t>(self.position) + offset : whence == SEEK_END ? size + offset : offset;
    if (target < 0 || target > size) return AVERROR(EINVAL);
    self.position = static_cast<size_t>(target);
    return target;
  }
};

struct Deleter {
  void operator()(AVCodecContext* object) const noexcept { avcodec_free_context(&object); }
  void operator()(AVFormatContext* object) const noexcept { avformat_free_context(object); }
  void operator()(AVFrame* object) const noexcept { av_frame_free(&object); }
  void operator()(AVPacket* object) const noexcept { av_packet_free(&object); }
  void operator()(SwsContext* object) const noexcept { sws_freeContext(object); }
  void operator()(AVIOContext* object) const noexcept {
    av_freep(&object->buffer);
    avio_context_free(&object);
  }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter>;

class Mp4 {
 public:
  Mp4(const Frames& frames, double frames_per_second)
      : frames_(frames), ticks_(kTimeUnits / frames_per_second), width_(frames.width & ~1), height_(frames.height & ~1) {
    // H.264 in 4:2:0 has even extents: an odd last row or column is left out.
    require(width_ > 0 && height_ > 0, "mp4: ", frames.height, " x ", frames.width, " pixels, expected at least 2 x 2");
    av_log_set_level(AV_LOG_QUIET);
    open_file();
    open_encoder(frames_per_second);
    open_converter();
  }

  std::vector<std::byte> encode() {
    check(avformat_write_header(file_.get(), nullptr), "cannot start the file");
    for (int f = 0; f < frames_.count; ++f) {
      convert(f);
      picture_->pts = std::llround(f * ticks_);
      check(avcodec_send_frame(encoder_.get(), picture_.get()), "cannot encode a frame");
      drain();
    }
    check(avcodec_send_frame(encoder_.get(), nullptr), "cannot end the stream");
    drain();
    check(av_write_trailer(file_.get()), "cannot end the file");
    avio_flush(io_.get());
    check(io_->error, "cannot write");
    return std::move(memory_.bytes);
  }

 private:
  void open_file() {
    AVFormatContext* file = nullptr;
    check(avformat_alloc_output_context2(&file, nullptr, "mp4", nullptr), "FFmpeg cannot write the format");
    file_.reset(file);
    file_->flags |= AVFMT_FLAG_BITEXACT;  // equal frames give equal files
    auto* buffer = static_cast<unsigned char*>(made(av_malloc(kBufferBytes), "a buffer"));
    io_.reset(avio_alloc_context(buffer, kBufferBytes, 1, &memory_, nullptr, Memory::write, Memory::seek));
    if (!io_) av_free(buffer);
    file_->pb = made(io_.get(), "the file");
  }

  void open_encoder(double frames_per_second) {
    const AVCodec* codec = avcodec_find_encoder_by_name("libx264");
    const bool h264 = codec != nullptr;
    if (!h264) codec = avcodec_find_encoder(AV_CODEC_ID_MPEG4);
    if (codec == nullptr) fail(ErrorCode::kUnsupported, "mp4: FFmpeg's libraries here encode neither H.264 nor MPEG-4");
    encoder_.reset(made(avcodec_alloc_context3(codec), "the encoder"));
    encoder_->width = width_, encoder_->height = height_;
    encoder_->pix_fmt = AV_PIX_FMT_YUV420P;
    encoder_->time_base = {1, h264 ? kTimeUnits : static_cast<int>(std::lround(std::max(frames_per_second, 1.0) * 100))};
    encoder_->framerate = av_d2q(frames_per_second, 1 << 16);
    encoder_->colorspace = AVCOL_SPC_BT709, encoder_->color_primaries = AVCOL_PRI_BT709, encoder_->color_trc = AVCOL_TRC_BT709;
    encoder_->color_range = AVCOL_RANGE_MPEG;
    encoder_->flags |= AV_CODEC_FLAG_BITEXACT;
    encoder_->thread_count = 1;  // short clips; the same bytes on every machine
    if (file_->oformat->flags & AVFMT_GLOBALHEADER) encoder_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    if (h264) {
      check(av_opt_set(encoder_->priv_data, "crf", kQuality, 0), "option crf");
      check(av_opt_set(encoder_->priv_data, "preset", "slow", 0), "option preset");
    } else {
      encoder_->flags |= AV_CODEC_FLAG_QSCALE;
      encoder_->global_quality = 2 * FF_QP2LAMBDA;
      ticks_ = ticks_ * encoder_->time_base.den / kTimeUnits;
    }
    check(avcodec_open2(encoder_.get(), codec, nullptr), "cannot open the encoder");
    stream_ = made(avformat_new_stream(file_.get(), nullptr), "the stream");
    stream_->time_base = encoder_->time_base;
    stream_->avg_frame_rate = encoder_->framerate;
    check(avcodec_parameters_from_context(stream_->codecpar, encoder_.get()), "parameters");
    packet_.reset(made(av_packet_alloc(), "a packet"));
  }

  void open_converter() {
    picture_.reset(made(av_frame_alloc(), "a frame"));
    picture_->format = encoder_->pix_fmt;
    picture_->width = width_, picture_->height = height_;
    check(av_frame_get_buffer(picture_.get(), 0), "a frame");
    converter_.reset(made(sws_getContext(width_, height_, AV_PIX_FMT_RGB24, width_, height_, AV_PIX_FMT_YUV420P,
                                         SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP, nullptr, nullptr, nullptr),
                          "the colour conversion"));
    const int* bt709 = sws_getCoefficients(SWS_CS_ITU709);
    check(sws_setColorspaceDetails(converter_.get(), bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16), "the colour conversion");
  }

  void convert(int frame) {
    check(av_frame_make_writable(picture_.get()), "a frame");
    const uint8_t* source[] = {frames_.at(frame, 0, 0)};
    const int stride[] = {frames_.width * 3};
    check(sws_scale(converter_.get(), source, stride, 0, height_, picture_->data, picture_->linesize), "the colour conversion");
  }

  void drain() {
    while (true) {
      const int result = avcodec_receive_packet(encoder_.get(), packet_.get());
      if (result == AVERROR(EAGAIN) || result == AVERROR_EOF) return;
      check(result, "cannot encode a frame");
      if (packet_->duration == 0) packet_->duration = std::llround(ticks_);  // of the last frame too
      av_packet_rescale_ts(packet_.get(), encoder_->time_base, stream_->time_base);
      packet_->stream_index = stream_->index;
      check(av_interleaved_write_frame(file_.get(), packet_.get()), "cannot write a frame");
    }
  }

  const Frames& frames_;
  double ticks_;  // of the encoder's time base, a frame
  const int width_, height_;
  Memory memory_;
  Owned<AVIOContext> io_;
  Owned<AVFormatContext> file_;
  Owned<AVCodecContext> encoder_;
  Owned<AVFrame> picture_;
  Owned<AVPacket> packet_;
  Owned<SwsContext> converter_;
  AVStream* stream_ = nullptr;  // the file's
};

}  // namespace

const char* why_no_mp4() noexcept { return nullptr; }

std::vector<std::byte> encode_mp4(const Frames& frames, double frames_per_second) { return Mp4(frames, frames_per_second).encode(); }

}  // namespace slidetile::video
