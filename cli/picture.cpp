#include "picture.h"

#include <png.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <span>

#include "slidetile/error.h"
#include "slidetile/file.h"

namespace {

using slidetile::ErrorCode;
using slidetile::fail;
using slidetile::require;

constexpr int64_t kMostPixels = int64_t{1} << 26;

// The typeface: strokes on a lattice where capitals reach from y = 0 to the base line at 12, small letters from 4, and descenders to 16. A
// point is two digits of base 36, x and y. '-' starts a polyline, '~' a smooth curve from the first point to the last, '@' a smooth closed
// one.
struct Glyph {
  char character;
  int width;
  const char* strokes;
};

constexpr Glyph kGlyphs[] = {
    {' ', 2, ""},
    {'(', 2, "~20040a2e"},
    {')', 2, "~00242a0e"},
    {'+', 6, "-0767-343a"},
    {',', 1, "-1c0e"},
    {'-', 4, "-0747"},
    {'.', 0, "-0c0c"},
    {'/', 5, "-0d50"},
    {':', 0, "-0505-0b0b"},
    {'<', 5, "-53075b"},
    {'=', 6, "-0565-0969"},
    {'>', 5, "-03570b"},
    {'%', 8, "@00404505@47878c4c-701c"},
    {'0', 6, "@00606c0c"},
    {'1', 4, "-03303c"},
    {'2', 6, "~03006064560c-0c6c"},
    {'3', 6, "~0210606626~26767c1c0a"},
    {'4', 7, "-5c500878"},
    {'5', 6, "-601006~0624646c1c0a"},
    {'6', 6, "~51300009@05656c0c"},
    {'7', 6, "-00602c"},
    {'8', 6, "@00606606@06666c0c"},
    {'9', 6, "@00606707~1b3c6c63"},
    {'A', 8, "-0c408c-1969"},
    {'B', 6, "-000c-0020~20606626-0626~26767c2c-2c0c"},
    {'C', 7, "~7250000c5c7a"},
    {'D', 7, "-000c-0020~20707c2c-2c0c"},
    {'E', 6, "-60000c6c-0656"},
    {'F', 6, "-60000c-0656"},
    {'G', 7, "~7250000c7c77-7747"},
    {'H', 7, "-000c-707c-0676"},
    {'I', 0, "-000c"},
    {'J', 4, "-4048~484c0c0a"},
    {'K', 6, "-000c-6008-256c"},
    {'L', 5, "-000c5c"},
    {'M', 8, "-0c0049808c"},
    {'N', 7, "-0c007c70"},
    {'O', 8, "@00808c0c"},
    {'P', 6, "-000c-0020~20606727-2707"},
    {'Q', 8, "@00808c0c-598d"},
    {'R', 6, "-000c-0020~20606727-2707-376c"},
    {'S', 6, "~62500006666c1c0a"},
    {'T', 8, "-0080-404c"},
    {'U', 7, "-0007~070c7c77-7770"},
    {'V', 8, "-004c80"},
    {'W', 8, "-002c436c80"},
    {'X', 7, "-007c-700c"},
    {'Y', 8, "-004680-464c"},
    {'Z', 6, "-00600c6c"},
    {'a', 5, "@04545c0c-545c"},
    {'b', 5, "-000c@04545c0c"},
    {'c', 5, "~5544040c4c5b"},
    {'d', 5, "-505c@04545c0c"},
    {'e', 5, "-0858~5854040c4c5b"},
    {'f', 4, "~402023-232c-0444"},
    {'g', 5, "@04545c0c-545c~5c5g1g0f"},
    {'h', 5, "-000c~08045459-595c"},
    {'i', 0, "-040c-0101"},
    {'j', 2, "-242d~2d2g0g-2121"},
    {'k', 5, "-000c-4409-275c"},
    {'l', 0, "-000c"},
    {'m', 8, "-040c~08044448-484c~48448488-888c"},
    {'n', 5, "-040c~08045459-595c"},
    {'o', 5, "@04545c0c"},
    {'p', 5, "-040g@04545c0c"},
    {'q', 5, "-545g@04545c0c"},
    {'r', 3, "-040c~080434"},
    {'s', 5, "~55440408585c1c0b"},
    {'t', 4, "-212a~2a2c4c-0444"},
    {'u', 5, "-0407~070c5c58-545c"},
    {'v', 6, "-043c64"},
    {'w', 8, "-042c456c84"},
    {'x', 5, "-045c-540c"},
    {'y', 6, "-043c-643c~3c2g0g"},
    {'z', 5, "-04540c5c"},
};

constexpr int kLattice = 12;  // height of capitals
constexpr int kSpacing = 3;

const Glyph& glyph_of(char character) {
  for (const Glyph& glyph : kGlyphs) {
    if (glyph.character == character) return glyph;
  }
  return kGlyphs[0];
}

int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

uint8_t mix(uint8_t below, uint8_t above, double cover) { return static_cast<uint8_t>(std::lround(below + cover * (above - below))); }

}  // namespace

Picture::Picture(int width, int height, Color background) : width_(width), height_(height) {
  require(width > 0 && height > 0 && int64_t{width} * height <= kMostPixels, "picture: ", width, " x ", height,
          " pixels, expected 1 to 2^26");
  pixels_.assign(static_cast<size_t>(width) * static_cast<size_t>(height), background);
}

void Picture::fill(Rect rect, Color color) {
  const int left = std::max(rect.x, 0), right = std::min(rect.x + rect.width, width_);
  if (left >= right) return;
  for (int y = std::max(rect.y, 0); y < std::min(rect.y + rect.height, height_); ++y) {
    const auto row = pixels_.begin() + int64_t{y} * width_;
    std::fill(row + left, row + right, color);
  }
}

void Picture::frame(Rect rect, int thickness, Color color) {
  const int outer = rect.width + 2 * thickness;
  fill({rect.x - thickness, rect.y - thickness, outer, thickness}, color);
  fill({rect.x - thickness, rect.y + rect.height, outer, thickness}, color);
  fill({rect.x - thickness, rect.y, thickness, rect.height}, color);
  fill({rect.x + rect.width, rect.y, thickness, rect.height}, color);
}

std::vector<std::vector<Picture::Point>> Picture::strokes_of(std::string_view glyph) const {
  std::vector<std::vector<Point>> strokes;
  for (size_t at = 0; at < glyph.size();) {
    const char kind = glyph[at++];
    std::vector<Point> points;
    for (; at + 1 < glyph.size() && glyph[at] != '-' && glyph[at] != '~' && glyph[at] != '@'; at += 2) {
      points.push_back({static_cast<double>(digit(glyph[at])), static_cast<double>(digit(glyph[at + 1]))});
    }
    const bool closed = kind == '@';
    for (int round = 0; kind != '-' && round < 4; ++round) {  // cutting corners makes a smooth curve
      std::vector<Point> cut;
      const size_t count = points.size(), edges = closed ? count : count - 1;
      if (!closed) cut.push_back(points.front());
      for (size_t i = 0; i < edges; ++i) {
        const Point a = points[i], b = points[(i + 1) % count];
        // The outer edges of an open curve are cut in the middle, once, so that its ends keep their direction.
        if (closed || i > 0) cut.push_back({a.x + (b.x - a.x) / 4, a.y + (b.y - a.y) / 4});
        if (closed || i + 1 < edges) cut.push_back({b.x - (b.x - a.x) / 4, b.y - (b.y - a.y) / 4});
      }
      if (!closed) cut.push_back(points.back());
      points = std::move(cut);
    }
    if (closed) points.push_back(points.front());
    strokes.push_back(std::move(points));
  }
  return strokes;
}

void Picture::stroke(const std::vector<Point>& points, double width, Color color) {
  const double half = width / 2, reach = half + 1;
  double left = 1e9, right = -1e9, top = 1e9, bottom = -1e9;
  for (const Point& point : points) {
    left = std::min(left, point.x);
    right = std::max(right, point.x);
    top = std::min(top, point.y);
    bottom = std::max(bottom, point.y);
  }
  const int first_x = std::max(0, static_cast<int>(left - reach)), last_x = std::min(width_ - 1, static_cast<int>(right + reach));
  const int first_y = std::max(0, static_cast<int>(top - reach)), last_y = std::min(height_ - 1, static_cast<int>(bottom + reach));
  for (int y = first_y; y <= last_y; ++y) {
    for (int x = first_x; x <= last_x; ++x) {
      const Point centre{x + 0.5, y + 0.5};
      double nearest = 1e9;
      for (size_t i = 0; i + 1 < points.size(); ++i) {
        const double dx = points[i + 1].x - points[i].x, dy = points[i + 1].y - points[i].y, length = dx * dx + dy * dy;
        const double along = (centre.x - points[i].x) * dx + (centre.y - points[i].y) * dy,
                     part = length > 0 ? std::clamp(along / length, 0.0, 1.0) : 0;
        nearest = std::min(nearest, std::hypot(centre.x - points[i].x - part * dx, centre.y - points[i].y - part * dy));
      }
      const double cover = std::clamp(half + 0.5 - nearest, 0.0, 1.0);
      Color& pixel = pixels_[static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x)];
      pixel = {mix(pixel.red, color.red, cover), mix(pixel.green, color.green, cover), mix(pixel.blue, color.blue, cover)};
    }
  }
}

void Picture::text(int x, int y, std::string_view text, int size, Color color) {
  const double scale = static_cast<double>(size) / kLattice, width = std::max(1.2, 0.13 * size);
  double pen = x + width / 2;
  for (const char character : text) {
    const Glyph& glyph = glyph_of(character);
    for (std::vector<Point>& points : strokes_of(glyph.strokes)) {
      for (Point& point : points) point = {pen + point.x * scale, y + point.y * scale};
      stroke(points, width, color);
    }
    pen += (glyph.width + kSpacing) * scale;
  }
}

int text_width(std::string_view text, int size) {
  int units = 0;
  for (const char character : text) units += glyph_of(character).width + kSpacing;
  return static_cast<int>(std::ceil(units * static_cast<double>(size) / kLattice));
}

std::vector<uint8_t> Picture::encode() const {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width_);
  image.height = static_cast<png_uint_32>(height_);
  image.format = PNG_FORMAT_RGB;
  static_assert(sizeof(Color) == 3);
  png_alloc_size_t size = 0;
  std::vector<uint8_t> bytes;
  bool ok = png_image_write_to_memory(&image, nullptr, &size, 0, pixels_.data(), 0, nullptr) != 0;
  if (ok) {
    bytes.resize(size);
    ok = png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels_.data(), 0, nullptr) != 0;
  }
  if (!ok) fail(ErrorCode::kIo, "picture: libpng says ", image.message);
  bytes.resize(size);
  return bytes;
}

void Picture::write(const std::string& path) const {
  const std::vector<uint8_t> bytes = encode();
  const std::span<const std::byte> part = std::as_bytes(std::span(bytes));
  slidetile::write_file(path, std::span(&part, 1));
}
