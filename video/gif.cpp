// GIF files: one palette for all frames (median cut, then k-means), frames that hold only what changed, LZW.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "slidetile/error.h"
#include "video/frame_writer.h"

namespace slidetile::video {
namespace {

constexpr int kPaletteColours = 255, kTransparent = 255;  // the last place stands for "as in the frame before"
constexpr int kBits = 6, kRounds = 8;                     // colours are counted at 6 bits a channel
constexpr int kLongestSide = 65535;

using Rgb8 = std::array<uint8_t, 3>;

struct Bin {
  std::array<double, 3> sum{};  // of the colours in it
  double count = 0;
  std::array<double, 3> mean() const { return {sum[0] / count, sum[1] / count, sum[2] / count}; }
};

uint32_t bin_of(const uint8_t* pixel) {
  constexpr int kDrop = 8 - kBits;
  return static_cast<uint32_t>(pixel[0] >> kDrop) << 2 * kBits | static_cast<uint32_t>(pixel[1] >> kDrop) << kBits |
         static_cast<uint32_t>(pixel[2] >> kDrop);
}

double distance(const std::array<double, 3>& a, const std::array<double, 3>& b) {
  const double r = a[0] - b[0], g = a[1] - b[1], blue = a[2] - b[2];
  return 2 * r * r + 4 * g * g + blue * blue;  // roughly as the eye weighs them
}

std::vector<Bin> count_colours(const Frames& frames) {
  std::vector<Bin> all(size_t{1} << 3 * kBits);
  for (size_t i = 0; i < frames.rgb.size(); i += 3) {
    Bin& bin = all[bin_of(&frames.rgb[i])];
    for (size_t c = 0; c < 3; ++c) bin.sum[c] += frames.rgb[i + c];
    bin.count += 1;
  }
  std::erase_if(all, [](const Bin& bin) { return bin.count == 0; });
  return all;
}

// Bins [begin, end) and how far they spread along their widest channel.
struct Box {
  size_t begin, end, channel = 0;
  double spread = 0;
};

Box measured(const std::vector<Bin>& bins, size_t begin, size_t end) {
  Box box{begin, end};
  double weight = 0, sum[3]{}, squares[3]{};
  for (size_t i = begin; i < end; ++i) {
    const auto mean = bins[i].mean();
    weight += bins[i].count;
    for (size_t c = 0; c < 3; ++c) sum[c] += bins[i].count * mean[c], squares[c] += bins[i].count * mean[c] * mean[c];
  }
  for (size_t c = 0; c < 3; ++c) {
    const double spread = end - begin > 1 ? squares[c] - sum[c] * sum[c] / weight : 0;
    if (spread > box.spread) box.spread = spread, box.channel = c;
  }
  return box;
}

std::vector<std::array<double, 3>> median_cut(std::vector<Bin>& bins) {
  std::vector<Box> boxes{measured(bins, 0, bins.size())};
  while (boxes.size() < kPaletteColours) {
    const auto widest = std::max_element(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.spread < b.spread; });
    if (widest->spread <= 0) break;
    const Box box = *widest;
    const auto first = bins.begin() + static_cast<std::ptrdiff_t>(box.begin), last = bins.begin() + static_cast<std::ptrdiff_t>(box.end);
    std::sort(first, last, [&](const Bin& a, const Bin& b) { return a.mean()[box.channel] < b.mean()[box.channel]; });
    double weight = 0, sum = 0;
    for (size_t i = box.begin; i < box.end; ++i) weight += bins[i].count, sum += bins[i].sum[box.channel];
    size_t cut = box.begin + 1;  // where the channel passes its mean
    while (cut + 1 < box.end && bins[cut].mean()[box.channel] <= sum / weight) ++cut;
    *widest = measured(bins, box.begin, cut);
    boxes.push_back(measured(bins, cut, box.end));
  }
  std::vector<std::array<double, 3>> centres;
  for (const Box& box : boxes) {
    Bin all;
    for (size_t i = box.begin; i < box.end; ++i) {
      for (size_t c = 0; c < 3; ++c) all.sum[c] += bins[i].sum[c];
      all.count += bins[i].count;
    }
    centres.push_back(all.mean());
  }
  return centres;
}

size_t nearest(const std::vector<std::array<double, 3>>& centres, const std::array<double, 3>& colour) {
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < centres.size(); ++i) {
    if (const double d = distance(centres[i], colour); d < least) least = d, best = i;
  }
  return best;
}

std::vector<std::array<double, 3>> palette_of(const Frames& frames) {
  std::vector<Bin> bins = count_colours(frames);
  std::vector<std::array<double, 3>> centres = median_cut(bins);
  if (centres.size() < kPaletteColours) return centres;  // a colour for every bin
  for (int round = 0; round < kRounds; ++round) {
    std::vector<Bin> groups(centres.size());
    for (const Bin& bin : bins) {
      Bin& group = groups[nearest(centres, bin.mean())];
      for (size_t c = 0; c < 3; ++c) group.sum[c] += bin.sum[c];
      group.count += bin.count;
    }
    for (size_t i = 0; i < centres.size(); ++i) {
      if (groups[i].count > 0) centres[i] = groups[i].mean();
    }
  }
  return centres;
}

class Writer {
 public:
  void byte(int value) { bytes_.push_back(static_cast<std::byte>(value)); }
  void word(int value) { byte(value & 255), byte(value >> 8); }
  void text(const char* text) {
    while (*text != '\0') byte(*text++);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// LZW as GIF has it: codes of 9 to 12 bits, lowest bit first, in blocks of up to 255 bytes.
class Lzw {
 public:
  explicit Lzw(Writer& out) : out_(out), next_(size_t{kCodes} * 256) { clear(); }

  void put(uint8_t symbol) {
    if (prefix_ < 0) {
      prefix_ = symbol;
      return;
    }
    uint16_t& known = next_[static_cast<size_t>(prefix_) * 256 + symbol];
    if (known != 0) {
      prefix_ = known;
      return;
    }
    code(prefix_);
    prefix_ = symbol;
    if (used_ == kCodes) {
      clear();
      return;
    }
    known = static_cast<uint16_t>(used_++);
    if (used_ - 1 == 1 << width_) ++width_;
  }

  void finish() {
    if (prefix_ >= 0) code(prefix_);
    code(kEnd);
    if (filled_ > 0) block_.push_back(static_cast<uint8_t>(bits_));
    flush_block();
    out_.byte(0);
  }

 private:
  static constexpr int kClear = 256, kEnd = 257, kCodes = 4096;

  void clear() {
    code(kClear);
    std::fill(next_.begin(), next_.end(), uint16_t{0});
    used_ = kEnd + 1;
    width_ = 9;
  }
  void code(int value) {
    bits_ |= static_cast<uint32_t>(value) << filled_;
    for (filled_ += width_; filled_ >= 8; filled_ -= 8, bits_ >>= 8) {
      block_.push_back(static_cast<uint8_t>(bits_));
      if (block_.size() == 255) flush_block();
    }
  }
  void flush_block() {
    if (block_.empty()) return;
    out_.byte(static_cast<int>(block_.size()));
    for (const uint8_t value : block_) out_.byte(value);
    block_.clear();
  }

  Writer& out_;
  std::vector<uint16_t> next_;  // [codes, 256]: the code of a prefix and a symbol, 0 where there is none
  std::vector<uint8_t> block_;
  uint32_t bits_ = 0;
  int filled_ = 0, width_ = 9, used_ = 0, prefix_ = -1;
};

// The part of a frame that differs from the frame before.
struct Region {
  int x0, y0, x1, y1;
};

Region changed_region(const std::vector<uint8_t>& now, const std::vector<uint8_t>& before, int width, int height) {
  Region region{width, height, 0, 0};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const size_t i = static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x);
      if (now[i] == before[i]) continue;
      region = {std::min(region.x0, x), std::min(region.y0, y), std::max(region.x1, x + 1), std::max(region.y1, y + 1)};
    }
  }
  return region.x1 == 0 ? Region{0, 0, 1, 1} : region;
}

void write_header(Writer& out, const Frames& frames, const std::vector<std::array<double, 3>>& palette) {
  out.text("GIF89a");
  out.word(frames.width), out.word(frames.height);
  out.byte(0xf7), out.byte(0), out.byte(0);  // 256 colours for all frames
  for (size_t i = 0; i < 256; ++i) {
    for (size_t c = 0; c < 3; ++c) out.byte(i < palette.size() ? static_cast<int>(std::lround(palette[i][c])) : 0);
  }
  out.byte(0x21), out.byte(0xff), out.byte(11), out.text("NETSCAPE2.0"), out.byte(3), out.byte(1), out.word(0), out.byte(0);  // for ever
}

void write_frame(Writer& out, const Region& region, int hundredths) {
  out.byte(0x21), out.byte(0xf9), out.byte(4), out.byte(0x05);  // stays under the next frame; has a transparent colour
  out.word(hundredths), out.byte(kTransparent), out.byte(0);
  out.byte(0x2c), out.word(region.x0), out.word(region.y0), out.word(region.x1 - region.x0), out.word(region.y1 - region.y0), out.byte(0);
  out.byte(8);  // bits of a symbol
}

}  // namespace

std::vector<std::byte> encode_gif(const Frames& frames, double frames_per_second) {
  require(frames.width <= kLongestSide && frames.height <= kLongestSide, "gif: ", frames.height, " x ", frames.width,
          " pixels, expected at most ", kLongestSide, " a side");
  const std::vector<std::array<double, 3>> palette = palette_of(frames);
  std::unordered_map<uint32_t, uint8_t> place_of;  // colour -> palette
  const auto place = [&](const uint8_t* pixel) {
    const uint32_t colour = static_cast<uint32_t>(pixel[0]) << 16 | static_cast<uint32_t>(pixel[1]) << 8 | pixel[2];
    const auto [found, is_new] = place_of.try_emplace(colour);
    if (is_new) {
      found->second = static_cast<uint8_t>(
          nearest(palette, {static_cast<double>(pixel[0]), static_cast<double>(pixel[1]), static_cast<double>(pixel[2])}));
    }
    return found->second;
  };

  Writer out;
  write_header(out, frames, palette);
  const size_t pixels = static_cast<size_t>(frames.height) * static_cast<size_t>(frames.width);
  std::vector<uint8_t> now(pixels), before(pixels, kTransparent);
  for (int f = 0; f < frames.count; ++f) {
    for (size_t i = 0; i < pixels; ++i) now[i] = place(frames.at(f, 0, 0) + i * 3);
    const Region region = changed_region(now, before, frames.width, frames.height);
    const auto moment = [&](int frame) {
      return std::lround(frame * 100 / frames_per_second);
    };
    write_frame(out, region, static_cast<int>(moment(f + 1) - moment(f)));
    Lzw lzw(out);
    for (int y = region.y0; y < region.y1; ++y) {
      for (int x = region.x0; x < region.x1; ++x) {
        const size_t i = static_cast<size_t>(y) * static_cast<size_t>(frames.width) + static_cast<size_t>(x);
        lzw.put(now[i] == before[i] ? uint8_t{kTransparent} : now[i]);
      }
    }
    lzw.finish();
    std::swap(now, before);
  }
  out.byte(0x3b);
  return out.take();
}

}  // namespace slidetile::video
