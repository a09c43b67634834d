#include "slidetile/grid.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <ostream>

#include "slidetile/error.h"

namespace slidetile {

std::string to_string(const Dim3& dim) { return std::to_string(dim.t) + 'x' + std::to_string(dim.h) + 'x' + std::to_string(dim.w); }

std::ostream& operator<<(std::ostream& out, const Dim3& dim) { return out << to_string(dim); }

Dim3 dim3_from_string(const std::string& text) {
  int32_t values[3] = {1, 1, 1};
  int count = 0;
  const char *at = text.data(), *end = text.data() + text.size();
  bool ok = !text.empty();
  while (ok && count < 3) {
    const auto [next, error] = std::from_chars(at, end, values[count]);
    ok = error == std::errc() && values[count] > 0;
    ++count;
    at = next;
    if (at == end) break;
    ok = ok && *at++ == 'x' && at != end;
  }
  require(ok && at == end, "extents: got '", text, "', expected TxHxW, HxW or W with positive numbers, for example 30x48x80");
  if (count == 1) return {1, 1, values[0]};
  if (count == 2) return {1, values[0], values[1]};
  return {values[0], values[1], values[2]};
}

Grid::Grid(Dim3 canvas, Dim3 tile) : canvas_(canvas), tile_(tile) {
  require(canvas.t > 0 && canvas.h > 0 && canvas.w > 0, "grid: canvas ", canvas, " must have positive extents");
  require(tile.t > 0 && tile.h > 0 && tile.w > 0, "grid: tile ", tile, " must have positive extents");
  require(tile.t <= canvas.t && tile.h <= canvas.h && tile.w <= canvas.w, "grid: tile ", tile, " is larger than canvas ", canvas);
  const int64_t plane = int64_t{canvas.h} * canvas.w;
  require(plane <= std::numeric_limits<int32_t>::max() / canvas.t, "grid: canvas ", canvas, " has 2^31 tokens or more");
  tiles_ = {(canvas.t - 1) / tile.t + 1, (canvas.h - 1) / tile.h + 1, (canvas.w - 1) / tile.w + 1};
}

Dim3 Grid::tile_coordinate(int32_t tile) const noexcept {
  const int32_t plane = tiles_.h * tiles_.w;
  return {tile / plane, tile % plane / tiles_.w, tile % tiles_.w};
}

int32_t Grid::tile_index(const Dim3& at) const noexcept { return (at.t * tiles_.h + at.h) * tiles_.w + at.w; }

Box Grid::box(int32_t tile) const noexcept {
  const Dim3 at = tile_coordinate(tile);
  const Dim3 origin{at.t * tile_.t, at.h * tile_.h, at.w * tile_.w};
  return {origin,
          {std::min(tile_.t, canvas_.t - origin.t), std::min(tile_.h, canvas_.h - origin.h), std::min(tile_.w, canvas_.w - origin.w)}};
}

Dim3 Grid::token_coordinate(int64_t token) const noexcept {
  const int64_t plane = int64_t{canvas_.h} * canvas_.w;
  return {static_cast<int32_t>(token / plane), static_cast<int32_t>(token % plane / canvas_.w), static_cast<int32_t>(token % canvas_.w)};
}

int64_t Grid::token_index(const Dim3& at) const noexcept { return (int64_t{at.t} * canvas_.h + at.h) * canvas_.w + at.w; }

}  // namespace slidetile
