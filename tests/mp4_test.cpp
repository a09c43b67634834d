// encode_mp4, read back by FFmpeg's own decoder.
extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
}
#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "temporary_folder.h"
#include "video/frame_writer.h"

using namespace slidetile::video;

namespace {

struct Read {
  Frames frames;
  double seconds = 0;
  std::string codec;
};

void take_frames(AVCodecContext* decoder, AVFrame* frame, SwsContext* converter, Frames& into) {
  while (avcodec_receive_frame(decoder, frame) >= 0) {
    into.rgb.resize(into.rgb.size() + static_cast<size_t>(into.height * into.width * 3));
    uint8_t* to[] = {into.at(into.count++, 0, 0)};
    const int stride[] = {into.width * 3};
    sws_scale(converter, frame->data, frame->linesize, 0, into.height, to, stride);
  }
}

Read read_mp4(const std::string& path) {
  Read read;
  AVFormatContext* file = nullptr;
  REQUIRE(avformat_open_input(&file, path.c_str(), nullptr, nullptr) >= 0);
  REQUIRE(avformat_find_stream_info(file, nullptr) >= 0);
  REQUIRE(file->nb_streams == 1);
  read.seconds = static_cast<double>(file->duration) / AV_TIME_BASE;
  const AVCodecParameters* parameters = file->streams[0]->codecpar;
  CHECK(parameters->color_space == AVCOL_SPC_BT709);
  read.codec = avcodec_get_name(parameters->codec_id);
  read.frames.height = parameters->height, read.frames.width = parameters->width;
  AVCodecContext* decoder = avcodec_alloc_context3(avcodec_find_decoder(parameters->codec_id));
  REQUIRE(avcodec_parameters_to_context(decoder, parameters) >= 0);
  REQUIRE(avcodec_open2(decoder, decoder->codec, nullptr) >= 0);
  SwsContext* converter = sws_getContext(parameters->width, parameters->height, AV_PIX_FMT_YUV420P, parameters->width, parameters->height,
                                         AV_PIX_FMT_RGB24, SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, nullptr, nullptr, nullptr);
  const int* bt709 = sws_getCoefficients(SWS_CS_ITU709);
  sws_setColorspaceDetails(converter, bt709, 0, bt709, 1, 0, 1 << 16, 1 << 16);
  AVPacket* packet = av_packet_alloc();
  AVFrame* frame = av_frame_alloc();
  while (av_read_frame(file, packet) >= 0) {
    REQUIRE(avcodec_send_packet(decoder, packet) >= 0);
    av_packet_unref(packet);
    take_frames(decoder, frame, converter, read.frames);
  }
  REQUIRE(avcodec_send_packet(decoder, nullptr) >= 0);
  take_frames(decoder, frame, converter, read.frames);
  av_frame_free(&frame), av_packet_free(&packet), sws_freeContext(converter), avcodec_free_context(&decoder), avformat_close_input(&file);
  return read;
}

}  // namespace

TEST_CASE("frames come back nearly, with their number and time") {
  const TemporaryFolder folder;
  const Clip clip = render(scene_from_sentence("a large red star moves left on clouds"), {16, 64, 64}, 7);
  const Frames frames = scaled(frames_of(clip), 4, Scaling::kNearest);
  write_frames(folder / "a.mp4", frames, 8);
  const Read read = read_mp4(folder / "a.mp4");
  CHECK(read.codec == (avcodec_find_encoder_by_name("libx264") != nullptr ? "h264" : "mpeg4"));
  REQUIRE(read.frames.count == 16);
  CHECK(read.seconds == doctest::Approx(2).epsilon(0.01));
  const Difference d = difference(read.frames, frames);
  MESSAGE(read.codec, ": PSNR ", d.psnr, ", SSIM ", d.ssim, ", bytes ", std::filesystem::file_size(folder / "a.mp4"));
  CHECK(d.psnr > 30);
  CHECK(encode_mp4(frames, 8) == encode_mp4(frames, 8));

  Frames odd = Frames::black(3, 33, 47);  // one row and column less
  write_frames(folder / "b.mp4", odd, 30);
  const Read small = read_mp4(folder / "b.mp4");
  CHECK(small.frames.count == 3);
  CHECK(small.frames.height == 32);
  CHECK(small.frames.width == 46);
}
