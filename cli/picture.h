// A picture in memory: rectangles, outlines and text, written as PNG.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

struct Color {
  uint8_t red, green, blue;
};

/// Pixels from (x, y), to the right and down.
struct Rect {
  int x, y, width, height;
};

class Picture {
 public:
  /// Throws slidetile::Error on more than 2^26 pixels.
  Picture(int width, int height, Color background);

  int width() const noexcept { return width_; }
  int height() const noexcept { return height_; }
  const Color& at(int x, int y) const { return pixels_[static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x)]; }

  /// What lies outside the picture is not drawn.
  void fill(Rect rect, Color color);
  /// A frame of `thickness` pixels around the outside of the rectangle.
  void frame(Rect rect, int thickness, Color color);
  /// ASCII text; (x, y) is the upper left corner of its capitals, `size` their height in pixels.
  void text(int x, int y, std::string_view text, int size, Color color);

  /// Writes a PNG file, which appears whole or not at all. Throws slidetile::Error.
  void write(const std::string& path) const;

 private:
  struct Point {
    double x, y;
  };
  void stroke(const std::vector<Point>& points, double width, Color color);
  std::vector<std::vector<Point>> strokes_of(std::string_view glyph) const;
  std::vector<uint8_t> encode() const;

  int width_, height_;
  std::vector<Color> pixels_;
};

/// Width of a text in pixels.
int text_width(std::string_view text, int size);
