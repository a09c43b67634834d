#include "video/frames.h"

#include <doctest/doctest.h>
#include <png.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "slidetile/error.h"
#include "temporary_folder.h"
#include "video/frame_writer.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

Frames random_frames(int count, int height, int width, unsigned seed) {
  Frames frames = Frames::black(count, height, width);
  std::mt19937 generator(seed);
  for (uint8_t& value : frames.rgb) value = static_cast<uint8_t>(generator());
  return frames;
}

Frames sprite_frames() { return frames_of(render(scene_from_sentence("a large red star moves left on clouds"), {16, 64, 64}, 7)); }

std::string message_of(const std::string& path, const Frames& frames) {
  try {
    write_frames(path, frames, 8);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Reads what encode_gif writes, by the letter of the format: every frame laid over the one before.
struct Gif {
  Frames frames;
  std::vector<int> hundredths;

  explicit Gif(const std::vector<std::byte>& bytes) : bytes_(bytes) {
    REQUIRE(std::memcmp(bytes.data(), "GIF89a", 6) == 0);
    at_ = 6;
    width_ = word(), height_ = word();
    REQUIRE(byte() == 0xf7);
    at_ += 2;
    const size_t palette = at_;
    at_ += 768;
    canvas_.assign(static_cast<size_t>(width_ * height_) * 3, 0);
    for (int kind = byte(); kind != 0x3b; kind = byte()) {
      if (kind == 0x21) {
        extension();
      } else {
        REQUIRE(kind == 0x2c);
        image(palette);
      }
    }
    CHECK(at_ == bytes.size());
    frames.height = height_, frames.width = width_;
  }

 private:
  int byte() {
    REQUIRE(at_ < bytes_.size());
    return static_cast<int>(bytes_[at_++]);
  }
  int word() {
    const int low = byte();
    return low | byte() << 8;
  }
  std::vector<uint8_t> blocks() {
    std::vector<uint8_t> all;
    for (int size = byte(); size != 0; size = byte()) {
      for (int i = 0; i < size; ++i) all.push_back(static_cast<uint8_t>(byte()));
    }
    return all;
  }
  void extension() {
    const int label = byte();
    const std::vector<uint8_t> data = blocks();
    if (label != 0xf9) return;
    hundredths.push_back(data[1] | data[2] << 8);
    transparent_ = data[3];
  }
  void image(size_t palette) {
    const int x0 = word(), y0 = word(), width = word(), height = word();
    REQUIRE(byte() == 0);
    REQUIRE(byte() == 8);
    const std::vector<int> symbols = decode(blocks());
    REQUIRE(symbols.size() == static_cast<size_t>(width * height));
    for (int i = 0; i < width * height; ++i) {
      const int symbol = symbols[static_cast<size_t>(i)];
      if (symbol == transparent_) continue;
      const size_t pixel = static_cast<size_t>((y0 + i / width) * width_ + x0 + i % width) * 3;
      for (size_t c = 0; c < 3; ++c) canvas_.at(pixel + c) = static_cast<uint8_t>(bytes_[palette + static_cast<size_t>(symbol) * 3 + c]);
    }
    frames.rgb.insert(frames.rgb.end(), canvas_.begin(), canvas_.end());
    frames.count++;
  }
  static std::vector<int> decode(const std::vector<uint8_t>& data) {
    std::vector<int> out;
    std::vector<std::vector<int>> table;
    size_t bit = 0, width = 9;
    const std::vector<int>* before = nullptr;
    std::vector<int> last;
    while (true) {
      size_t code = 0;
      REQUIRE(bit + width <= data.size() * 8);
      for (size_t i = 0; i < width; ++i, ++bit) code |= static_cast<size_t>(data[bit / 8] >> bit % 8 & 1) << i;
      if (code == 257) return out;
      if (code == 256) {
        table.clear();
        for (int i = 0; i < 258; ++i) table.push_back({i});
        width = 9, before = nullptr;
        continue;
      }
      REQUIRE(code <= table.size());
      std::vector<int> now;
      if (code < table.size()) {
        now = table[code];
      } else {
        REQUIRE(before != nullptr);
        now = last;
        now.push_back(last[0]);
      }
      if (before != nullptr && table.size() < 4096) {
        std::vector<int> added = last;
        added.push_back(now[0]);
        table.push_back(added);
      }
      if (table.size() == size_t{1} << width && width < 12) ++width;
      out.insert(out.end(), now.begin(), now.end());
      last = now;
      before = &last;
    }
  }

  const std::vector<std::byte>& bytes_;
  size_t at_ = 0;
  int width_ = 0, height_ = 0, transparent_ = -1;
  std::vector<uint8_t> canvas_;
};

}  // namespace

TEST_CASE("values are clamped and rounded") {
  Clip clip{{1, 1, 2}, {-1.f, 0.f, 0.5f, 1.f, 7.f, std::numeric_limits<float>::quiet_NaN()}};
  CHECK(frames_of(clip).rgb == std::vector<uint8_t>{0, 0, 128, 255, 255, 0});
  clip.pixels.pop_back();
  CHECK_THROWS_AS(frames_of(clip), Error);
  CHECK_THROWS_AS(Frames::black(0, 1, 1), Error);
  CHECK_THROWS_AS(Frames::black(1 << 30, 1 << 30, 1 << 30), Error);
}

TEST_CASE("scaling") {
  const Frames frames = random_frames(2, 3, 5, 1);
  const Frames nearest = scaled(frames, 4, Scaling::kNearest);
  REQUIRE(nearest.height == 12);
  REQUIRE(nearest.width == 20);
  for (int f = 0; f < 2; ++f) {
    for (int y = 0; y < 12; ++y) {
      for (int x = 0; x < 20; ++x) CHECK(std::equal(nearest.at(f, y, x), nearest.at(f, y, x) + 3, frames.at(f, y / 4, x / 4)));
    }
  }
  CHECK(scaled(frames, 1, Scaling::kLanczos).rgb == frames.rgb);
  Frames flat = Frames::black(1, 4, 4);
  std::fill(flat.rgb.begin(), flat.rgb.end(), uint8_t{77});
  const Frames smooth = scaled(flat, 3, Scaling::kLanczos);
  CHECK(std::all_of(smooth.rgb.begin(), smooth.rgb.end(), [](uint8_t value) { return value == 77; }));
  const Frames large = scaled(frames, 3, Scaling::kLanczos);  // an odd factor has places at the samples themselves
  for (int y = 0; y < 3; ++y) {
    for (int x = 0; x < 5; ++x)
      CHECK(std::equal(large.at(1, y * 3 + 1, x * 3 + 1), large.at(1, y * 3 + 1, x * 3 + 1) + 3, frames.at(1, y, x)));
  }
  CHECK_THROWS_AS(scaled(frames, 0, Scaling::kNearest), Error);
  CHECK_THROWS_AS(scaled(frames, 65, Scaling::kNearest), Error);
}

TEST_CASE("side by side and sheets") {
  const Frames left = random_frames(3, 4, 5, 2), right = random_frames(3, 4, 6, 3);
  const Frames both = side_by_side(left, right, 2);
  REQUIRE(both.width == 13);
  CHECK(std::memcmp(both.at(2, 3, 4), left.at(2, 3, 4), 3) == 0);
  CHECK(std::memcmp(both.at(2, 3, 7), right.at(2, 3, 0), 3) == 0);
  CHECK(both.at(1, 1, 5)[0] == both.at(0, 0, 6)[2]);
  CHECK_THROWS_AS(side_by_side(left, random_frames(2, 4, 5, 1), 1), Error);
  const Frames sheet = contact_sheet(left, 2, 1);
  REQUIRE(sheet.count == 1);
  REQUIRE(sheet.height == 9);
  REQUIRE(sheet.width == 11);
  CHECK(std::memcmp(sheet.at(0, 0, 6), left.at(1, 0, 0), 15) == 0);
  CHECK(std::memcmp(sheet.at(0, 8, 0), left.at(2, 3, 0), 15) == 0);
}

TEST_CASE("difference") {
  const Frames frames = random_frames(2, 16, 16, 4);
  CHECK(std::isinf(difference(frames, frames).psnr));
  CHECK(difference(frames, frames).ssim == doctest::Approx(1));
  Frames other = frames;
  for (uint8_t& value : other.rgb) value = static_cast<uint8_t>(value ^ 1);
  CHECK(difference(frames, other).psnr == doctest::Approx(20 * std::log10(255.0)));
  CHECK(difference(frames, other).ssim < 1);
  CHECK_THROWS_AS(difference(frames, random_frames(1, 16, 16, 4)), Error);
}

TEST_CASE("GIF: few colours come back exactly, many nearly") {
  Frames few = random_frames(5, 31, 47, 5);
  for (size_t i = 0; i < few.rgb.size(); ++i) few.rgb[i] = static_cast<uint8_t>(few.rgb[i] / 52 * 51);  // 125 colours
  few.rgb.resize(few.rgb.size());
  std::copy(few.at(1, 0, 0), few.at(2, 0, 0), few.at(2, 0, 0));  // a frame that changes nothing
  const Gif read(encode_gif(few, 8));
  CHECK(read.frames.count == 5);
  CHECK(read.frames.rgb == few.rgb);
  CHECK(read.hundredths == std::vector<int>{13, 12, 13, 12, 13});

  const Frames sprites = sprite_frames();
  const Gif gif(encode_gif(sprites, 10));
  REQUIRE(gif.frames.count == 16);
  CHECK(difference(gif.frames, sprites).psnr > 38);

  const Frames noise = random_frames(2, 200, 200, 6);  // fills the code table many times
  CHECK(Gif(encode_gif(noise, 10)).frames.count == 2);
  CHECK(difference(Gif(encode_gif(noise, 10)).frames, noise).psnr > 20);
}

TEST_CASE("PNG sheets come back exactly") {
  const TemporaryFolder folder;
  const Frames frames = sprite_frames();
  write_frames(folder / "a.PNG", frames, 8);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_file(&image, (folder / "a.PNG").c_str()) != 0);
  image.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
  REQUIRE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) != 0);
  const Frames sheet = contact_sheet(frames, 4, 1);
  CHECK(static_cast<int>(image.width) == sheet.width);
  CHECK(pixels == sheet.rgb);
}

TEST_CASE("what can't be written leaves nothing behind") {
  const TemporaryFolder folder;
  const Frames frames = sprite_frames();
  CHECK(message_of(folder / "a.avi", frames).find("expected a name that ends in .mp4, .gif or .png") != std::string::npos);
  CHECK(message_of(folder / "png", frames).find("expected a name") != std::string::npos);
  CHECK(message_of(folder / "no/a.gif", frames).find("No such file or directory") != std::string::npos);
  CHECK_THROWS_AS(write_frames(folder / "a.gif", frames, 0), Error);
  if (why_no_mp4() != nullptr) CHECK(message_of(folder / "a.mp4", frames).find("FFmpeg") != std::string::npos);
  CHECK(folder.files().empty());

  // A limit on the size of files stands for a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
  rlimit small = limit;
  small.rlim_cur = 100;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::vector<std::string> messages;
  for (const char* name : {"a.gif", "a.png", "a.mp4"}) messages.push_back(message_of(folder / name, frames));
  REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  for (const std::string& message : messages) CHECK(message.find("cannot write") != std::string::npos);
  CHECK(folder.files().empty());
}
