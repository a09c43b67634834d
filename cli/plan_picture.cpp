#include "plan_picture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "slidetile/error.h"

namespace {

using slidetile::Dim3;
using slidetile::Plan;

constexpr Color kPaper{255, 255, 255}, kInk{28, 36, 48}, kFaint{104, 116, 134}, kBorder{205, 212, 222};
constexpr Color kQuery{214, 38, 76};

enum class State : uint8_t { kUnseen, kSeen, kSeenInPart, kUnseenInPart };
constexpr Color kColorOf[] = {{238, 241, 245}, {58, 123, 213}, {240, 150, 40}, {252, 228, 196}};

constexpr int kMargin = 28, kTitle = 15, kText = 11, kLabel = 9;
constexpr int kGap = 12;      // between slices
constexpr int kWideGap = 28;  // between tiles along t
constexpr int kMostWidth = 1800, kMostHeight = 1500, kMostCell = 14;

struct Seen {
  std::vector<State> state;  // [canvas tokens]
  int64_t tokens = 0, tiles = 0, partial_tiles = 0;
};

Seen seen_from(const Plan& plan, const SeenFrom& from) {
  const slidetile::Grid& grid = plan.query.grid;
  const auto token = static_cast<int32_t>(plan.query.extra.before + grid.token_index(from.query));
  const Dim3 tile = grid.tile();
  const int32_t query_tile = grid.tile_index({from.query.t / tile.t, from.query.h / tile.h, from.query.w / tile.w});
  const auto first = plan.query.token.begin() + plan.query.tile_begin[static_cast<size_t>(query_tile)];
  const auto slot = std::find(first, plan.query.token.end(), token) - first;
  Seen seen{std::vector<State>(static_cast<size_t>(grid.tokens())), 0, 0, 0};
  const int32_t row = plan.row(from.head, query_tile);
  for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
    const int32_t key_tile = plan.key_tile[static_cast<size_t>(entry)], size = plan.key.tile_size(key_tile), mask = plan.mask(entry);
    ++seen.tiles;
    seen.partial_tiles += mask >= 0;
    for (int32_t k = 0; k < size; ++k) {
      const auto word = mask < 0 ? 0 : static_cast<size_t>(plan.mask_begin[static_cast<size_t>(mask)] + slot * ((size + 63) / 64) + k / 64);
      const bool visible = mask < 0 || (plan.mask_words[word] >> (k % 64) & 1) != 0;
      seen.tokens += visible;
      if (key_tile >= grid.tile_count()) continue;
      const int32_t key_slot = plan.key.tile_begin[static_cast<size_t>(key_tile)] + k;
      const int64_t key = plan.key.token[static_cast<size_t>(key_slot)] - plan.key.extra.before;
      seen.state[static_cast<size_t>(key)] = mask < 0 ? State::kSeen : visible ? State::kSeenInPart : State::kUnseenInPart;
    }
  }
  return seen;
}

/// Where the slices go: rows of `columns` slices, the slices of a tile together.
struct Layout {
  int cell = 1, columns = 1, rows = 1, group = 1;  // group: slices between wide gaps
  int slice_width = 0, slice_height = 0, width = 0, height = 0;

  static Layout of(const slidetile::Grid& grid) {
    const Dim3 canvas = grid.canvas();
    const int group = grid.tile().t <= 12 ? grid.tile().t : 1;
    Layout best;
    double best_score = -1e9;
    for (int cell = kMostCell; cell >= 1 && best_score < 0; --cell) {
      for (int columns = group; columns < canvas.t + group; columns += group) {
        const Layout layout(grid, cell, columns, group);
        const bool fits = layout.width <= kMostWidth && layout.height <= kMostHeight;
        if (!fits && cell > 1) continue;
        const double score = (fits ? 1000 : -1000) - std::fabs(std::log(static_cast<double>(layout.width) / layout.height / 1.5));
        if (score > best_score) {
          best_score = score;
          best = layout;
        }
      }
    }
    return best;
  }

  int x(int t) const { return t % columns * (slice_width + kGap) + t % columns / group * (kWideGap - kGap); }
  int y(int t) const { return t / columns * (slice_height + kLabel + 7 + kGap + 4); }

 private:
  Layout() = default;
  Layout(const slidetile::Grid& grid, int cell_pixels, int column_count, int group_size)
      : cell(cell_pixels), columns(std::min(column_count, grid.canvas().t)), group(group_size) {
    const Dim3 canvas = grid.canvas(), tiles = grid.tiles();
    rows = (canvas.t + columns - 1) / columns;
    slice_width = canvas.w * cell + tiles.w + 1;  // a line between tiles
    slice_height = canvas.h * cell + tiles.h + 1;
    width = x(columns - 1) + slice_width;
    height = y((rows - 1) * columns) + slice_height + kLabel + 7;
  }
};

class Drawing {
 public:
  Drawing(const Plan& plan, const SeenFrom& from)
      : grid_(plan.query.grid), from_(from), seen_(seen_from(plan, from)), layout_(Layout::of(grid_)) {
    const Dim3 q = from.query;
    char share[32];
    std::snprintf(share, sizeof share, "%.2f %%", 100.0 * static_cast<double>(seen_.tokens) / static_cast<double>(plan.key.tokens()));
    sees_ = "The query at t " + std::to_string(q.t) + ", h " + std::to_string(q.h) + ", w " + std::to_string(q.w) + " sees " +
            grouped(seen_.tokens) + " of " + grouped(plan.key.tokens()) + " tokens (" + share + ") in " + grouped(seen_.tiles) +
            " tiles: " + grouped(seen_.tiles - seen_.partial_tiles) + " whole, " + grouped(seen_.partial_tiles) + " in part";
    if (const int64_t extra = plan.key.extra.before + plan.key.extra.after; extra > 0) {
      extra_ = "Not drawn: " + grouped(extra) + " extra tokens (" + grouped(plan.key.extra.before) + " before the canvas, " +
               grouped(plan.key.extra.after) + " after it), all seen";
    }
  }

  Picture draw() const {
    const int header = kMargin + kTitle + 14 + kText + 14 + kText + 12 + (extra_.empty() ? 0 : kText + 12) + 14;
    const int text = std::max({text_width(from_.title, kTitle), text_width(sees_, kText), text_width(extra_, kText), legend_width()});
    Picture picture(std::max(layout_.width, text) + 2 * kMargin, header + layout_.height + kMargin, kPaper);
    int y = kMargin;
    picture.text(kMargin, y, from_.title, kTitle, kInk);
    y += kTitle + 14;
    picture.text(kMargin, y, sees_, kText, kInk);
    y += kText + 14;
    if (!extra_.empty()) {
      picture.text(kMargin, y, extra_, kText, kFaint);
      y += kText + 12;
    }
    draw_legend(picture, y);
    const int left = (picture.width() - layout_.width) / 2;
    for (int t = 0; t < grid_.canvas().t; ++t) draw_slice(picture, t, left + layout_.x(t), header + layout_.y(t));
    return picture;
  }

 private:
  static constexpr int kSwatch = 12, kAfterSwatch = 7, kAfterItem = 24;
  static constexpr std::array<std::pair<Color, const char*>, 6> kLegend{{
      {kQuery, "the query"},
      {kPaper, "its tile"},
      {kColorOf[1], "seen, in a whole tile"},
      {kColorOf[2], "seen, in a tile with a mask"},
      {kColorOf[3], "masked: read, not seen"},
      {kColorOf[0], "not read"},
  }};

  static int legend_width() {
    int width = 0;
    for (const auto& [color, text] : kLegend) width += kSwatch + kAfterSwatch + text_width(text, kText) + kAfterItem;
    return width;
  }

  static void draw_legend(Picture& picture, int y) {
    int x = kMargin;
    for (const auto& [color, text] : kLegend) {
      const bool outline = color.red == kPaper.red;
      picture.frame({x, y, kSwatch - 1, kSwatch - 1}, outline ? 2 : 1, outline ? kInk : kBorder);
      picture.fill({x, y, kSwatch - 1, kSwatch - 1}, color);
      x += kSwatch + kAfterSwatch;
      picture.text(x, y, text, kText, kInk);
      x += text_width(text, kText) + kAfterItem;
    }
  }

  int offset(int index, int tile) const { return index * layout_.cell + index / tile + 1; }

  void draw_slice(Picture& picture, int t, int x, int y) const {
    const Dim3 canvas = grid_.canvas(), tile = grid_.tile();
    const bool of_query = t == from_.query.t;
    picture.text(x, y, "t = " + std::to_string(t), kLabel, of_query ? kQuery : kFaint);
    y += kLabel + 7;
    picture.fill({x, y, layout_.slice_width, layout_.slice_height}, kBorder);
    for (int h = 0; h < canvas.h; ++h) {
      for (int w = 0; w < canvas.w; ++w) {
        const State state = seen_.state[static_cast<size_t>(grid_.token_index({t, h, w}))];
        draw_token(picture, x + offset(w, tile.w), y + offset(h, tile.h), kColorOf[static_cast<size_t>(state)]);
      }
    }
    if (t / tile.t == from_.query.t / tile.t) draw_query_tile(picture, x, y);
    if (of_query) draw_query(picture, x + offset(from_.query.w, tile.w), y + offset(from_.query.h, tile.h));
  }

  void draw_token(Picture& picture, int x, int y, Color color) const {
    const int cell = layout_.cell;
    picture.fill({x, y, cell, cell}, color);
    if (cell < 5) return;  // a fine line between tokens
    const auto lighter = [](uint8_t part) {
      return static_cast<uint8_t>(part + (255 - part) / 3);
    };
    const Color line{lighter(color.red), lighter(color.green), lighter(color.blue)};
    picture.fill({x + cell - 1, y, 1, cell}, line);
    picture.fill({x, y + cell - 1, cell, 1}, line);
  }

  void draw_query_tile(Picture& picture, int x, int y) const {
    const Dim3 tile = grid_.tile(), canvas = grid_.canvas();
    const int h = from_.query.h / tile.h * tile.h, w = from_.query.w / tile.w * tile.w;
    const int height = std::min(tile.h, canvas.h - h) * layout_.cell, width = std::min(tile.w, canvas.w - w) * layout_.cell;
    picture.frame({x + offset(w, tile.w), y + offset(h, tile.h), width, height}, layout_.cell > 2 ? 2 : 1, kInk);
  }

  void draw_query(Picture& picture, int x, int y) const {
    const int cell = layout_.cell, size = std::max(cell, 4), shift = (size - cell) / 2;
    picture.frame({x - shift, y - shift, size, size}, 2, kPaper);
    picture.fill({x - shift, y - shift, size, size}, kQuery);
  }

  const slidetile::Grid& grid_;
  const SeenFrom& from_;
  Seen seen_;
  Layout layout_;
  std::string sees_, extra_;
};

}  // namespace

std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) text.insert(static_cast<size_t>(at), ",");
  return text;
}

Picture draw_seen(const Plan& plan, const SeenFrom& from) {
  const Dim3 canvas = plan.query.grid.canvas(), q = from.query;
  slidetile::require(q.t >= 0 && q.h >= 0 && q.w >= 0 && q.t < canvas.t && q.h < canvas.h && q.w < canvas.w, "query ", q.t, ',', q.h, ',',
                     q.w, " lies outside canvas ", canvas, ", expected 0,0,0 to ", canvas.t - 1, ',', canvas.h - 1, ',', canvas.w - 1);
  slidetile::require(from.head >= 0 && (plan.heads() == 1 || from.head < plan.heads()), "head ", from.head, " of ", plan.heads());
  return Drawing(plan, from).draw();
}
