// A canvas cut into tiles: extents, coordinates, and the two orders of tokens.
#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <string>

namespace slidetile {

/// Extents or coordinates along time, height and width. A 2-D image has t = 1, a 1-D sequence t = h = 1.
struct Dim3 {
  int32_t t = 1, h = 1, w = 1;

  constexpr int64_t volume() const noexcept { return int64_t{t} * h * w; }
  constexpr std::array<int32_t, 3> axes() const noexcept { return {t, h, w}; }
  friend bool operator==(const Dim3&, const Dim3&) = default;
};

/// "TxHxW", e.g. "30x48x80".
std::string to_string(const Dim3& dim);
std::ostream& operator<<(std::ostream& out, const Dim3& dim);
/// Reads "TxHxW", "HxW" (t = 1) or "W" (t = h = 1); every extent positive.
Dim3 dim3_from_string(const std::string& text);

/// The default tile for video: 384 tokens.
inline constexpr Dim3 kDefaultTile{6, 8, 8};

/// A box of tokens: origin and extent on the canvas.
struct Box {
  Dim3 origin, extent;
};

/// A canvas cut into tiles. Tiles are numbered in raster order; the last tile of an axis may be partial, and a tile
/// holds only real tokens. Raster order numbers the canvas's tokens t-major; tile order lists them tile by tile, in raster
/// order inside a tile.
class Grid {
 public:
  Grid() = default;
  /// Throws unless every extent is positive, no tile extent is beyond the canvas's, and the canvas has fewer than 2^31 tokens.
  Grid(Dim3 canvas, Dim3 tile);

  const Dim3& canvas() const noexcept { return canvas_; }
  const Dim3& tile() const noexcept { return tile_; }
  /// Tiles along each axis.
  const Dim3& tiles() const noexcept { return tiles_; }
  int32_t tile_count() const noexcept { return static_cast<int32_t>(tiles_.volume()); }
  int64_t tokens() const noexcept { return canvas_.volume(); }

  Dim3 tile_coordinate(int32_t tile) const noexcept;
  int32_t tile_index(const Dim3& coordinate) const noexcept;
  /// The tokens of a tile, clipped to the canvas.
  Box box(int32_t tile) const noexcept;
  Dim3 token_coordinate(int64_t token) const noexcept;
  int64_t token_index(const Dim3& coordinate) const noexcept;

  friend bool operator==(const Grid&, const Grid&) = default;

 private:
  Dim3 canvas_{0, 0, 0}, tile_{1, 1, 1}, tiles_{0, 0, 0};
};

}  // namespace slidetile
