#include "slidetile/cuda/lowering.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <tuple>

namespace slidetile::cuda {
namespace {

// How much waste it takes to make twice as many boxes worth it.
constexpr double kCostOfHalving = 0.04;

int32_t ceil_div(int32_t a, int32_t b) noexcept { return (a + b - 1) / b; }

bool off_canvas(const Tiling& tiling, int32_t tile) noexcept { return tile >= tiling.grid.tile_count(); }

// Blocks along an axis of n tokens, cut into tiles and each tile into blocks.
int64_t blocks_along(int32_t n, int32_t tile, int32_t block) noexcept {
  if (n == 0) return 0;
  const int32_t last = n % tile;
  return int64_t{n / tile} * ceil_div(tile, block) + (last == 0 ? 0 : ceil_div(last, block));
}

struct Choice {
  double cost = 0;
  bool divides = false;  // no block reaches into the next tile
  Dim3 box{1, 1, 1};
};

// The box of at most `rows` tokens that needs the fewest blocks; one that divides the tile, is longer in w, then in h, if several do.
Choice best_box(const Grid& grid, int32_t rows) {
  const Dim3 canvas = grid.canvas(), tile = grid.tile();
  Choice best;
  for (int32_t w = std::min(tile.w, rows); w >= 1; --w) {
    for (int32_t h = std::min(tile.h, rows / w); h >= 1; --h) {
      const int32_t t = std::min(tile.t, rows / (w * h));
      const Dim3 even{ceil_div(tile.t, ceil_div(tile.t, t)), ceil_div(tile.h, ceil_div(tile.h, h)), ceil_div(tile.w, ceil_div(tile.w, w))};
      const auto blocks = static_cast<double>(blocks_along(canvas.t, tile.t, even.t) * blocks_along(canvas.h, tile.h, even.h) *
                                              blocks_along(canvas.w, tile.w, even.w));
      const bool divides = tile.t % even.t == 0 && tile.h % even.h == 0 && tile.w % even.w == 0;
      const double cost = blocks * rows;
      if (best.cost == 0 || cost < best.cost || (cost == best.cost && divides && !best.divides)) best = {cost, divides, even};
    }
  }
  return best;
}

void set_valid(Block& block, int32_t row) noexcept { block.valid[row / 32] |= uint32_t{1} << (row % 32); }

void finish_block(Block& block, const BlockShape& shape, int32_t rows_brought) {
  int32_t valid = 0;
  for (const uint32_t word : block.valid) valid += std::popcount(word);
  if (valid == shape.slot_rows) block.flags |= kBlockFull;
  if (valid < rows_brought) block.flags |= kBlockForeign;
}

// The blocks of a tile of the canvas.
void cut_tile(const Grid& grid, int32_t tile, const BlockShape& shape, Block* out) {
  const auto [origin, extent] = grid.box(tile);
  const Dim3 box = shape.box, canvas = grid.canvas();
  for (int32_t t = 0; t < extent.t; t += box.t) {
    for (int32_t h = 0; h < extent.h; h += box.h) {
      for (int32_t w = 0; w < extent.w; w += box.w, ++out) {
        *out = {.w = origin.w + w, .h = origin.h + h, .t = origin.t + t, .flags = kBlockPresent, .valid = {}};
        int32_t brought = 0;
        for (int32_t row = 0; row < shape.box_rows; ++row) {
          const Dim3 at{t + row / (box.h * box.w), h + row / box.w % box.h, w + row % box.w};
          if (at.t < extent.t && at.h < extent.h && at.w < extent.w) set_valid(*out, row);
          brought += origin.t + at.t < canvas.t && origin.h + at.h < canvas.h && origin.w + at.w < canvas.w;
        }
        finish_block(*out, shape, brought);
      }
    }
  }
}

void cut_run(const Tiling& tiling, int32_t tile, const BlockShape& shape, Block* out) {
  const int32_t first = tiling.token[static_cast<size_t>(tiling.tile_begin[static_cast<size_t>(tile)])], size = tiling.tile_size(tile);
  for (int32_t done = 0; done < size; done += shape.slot_rows, ++out) {
    *out = {.w = first + done, .h = 0, .t = 0, .flags = kBlockPresent | kBlockExtra, .valid = {}};
    for (int32_t row = 0; row < std::min(shape.slot_rows, size - done); ++row) set_valid(*out, row);
    const int64_t rest = tiling.tokens() - out->w;
    finish_block(*out, shape, static_cast<int32_t>(std::min<int64_t>(shape.slot_rows, rest)));
  }
}

// Bytes of the tables; a table's pointer is its offset.
class Bytes {
 public:
  template <typename T>
  const T* add(const std::vector<T>& values) {
    const size_t at = (bytes_.size() + 255) / 256 * 256;
    bytes_.resize(at + std::max<size_t>(values.size(), 1) * sizeof(T));
    if (!values.empty()) std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<const T*>(at);
  }
  std::vector<std::byte> take() noexcept { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Consecutive units, whole tiles where they fit, evenly over the CTAs of a cluster.
std::vector<int32_t> make_items(const Tiling& tiling, const BlockTable& units, int32_t cluster) {
  const int32_t per_item = cluster * kUnitsPerCta;
  std::vector<int32_t> items, open;
  const auto close = [&] {
    if (open.empty()) return;
    const size_t at = items.size();
    items.resize(at + static_cast<size_t>(per_item), -1);
    const int32_t count = static_cast<int32_t>(open.size()), each = ceil_div(count, cluster);
    for (int32_t i = 0; i < count; ++i) {
      items[at + static_cast<size_t>(i / each * kUnitsPerCta + i % each)] = open[static_cast<size_t>(i)];
    }
    open.clear();
  };
  int32_t tile_before = -1;
  for (int32_t tile = 0; tile < tiling.tiles(); ++tile) {
    // Tiles share an item only with their neighbours along w: others have too few keys in common.
    if (tile_before >= 0) {
      const bool extra = off_canvas(tiling, tile), extra_before = off_canvas(tiling, tile_before);
      if (extra != extra_before || (!extra && tile % tiling.grid.tiles().w == 0)) close();
    }
    tile_before = tile;
    int32_t count = 0;
    while (count < units.shape.per_tile && units.blocks[static_cast<size_t>(tile * units.shape.per_tile + count)].flags != 0) ++count;
    if (count >= per_item) close();
    for (int32_t i = 0; i < count; ++i) {
      open.push_back(tile * units.shape.per_tile + i);
      if (static_cast<int32_t>(open.size()) == per_item) close();
    }
  }
  close();
  return items;
}

// Blocks that each item of a class reads: of its longest row.
std::vector<int64_t> item_lengths(const Plan& plan, const std::vector<int32_t>& items, const ForwardLowering& lowering,
                                  int32_t head_class) {
  const auto per_item = static_cast<size_t>(lowering.cluster * kUnitsPerCta);
  std::vector<int64_t> lengths(items.size() / per_item);
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i] < 0) continue;
    const int32_t tile = items[i] / lowering.query.per_tile;
    const int32_t row = plan.row_of[static_cast<size_t>(head_class) * static_cast<size_t>(plan.query.tiles()) + static_cast<size_t>(tile)];
    lengths[i / per_item] = std::max(lengths[i / per_item], plan.row_last(row) - plan.row_first(row));
  }
  return lengths;
}

void set_order(const Plan& plan, const std::vector<int32_t>& items, ForwardLowering& lowering, Bytes& bytes) {
  const auto per_item = static_cast<size_t>(lowering.cluster * kUnitsPerCta);
  const auto count = static_cast<int32_t>(items.size() / per_item);
  std::vector<int32_t> order, heads;
  struct Bucket {
    int32_t length;  // log2, in halves
    WorkGroup group;
  };
  std::vector<Bucket> buckets;
  for (int32_t c = 0; c < plan.classes(); ++c) {
    const auto first_head = static_cast<int32_t>(heads.size());
    for (int32_t head = 0; head < plan.heads() && plan.heads() > 1; ++head) {
      if (plan.head_class[static_cast<size_t>(head)] == c) heads.push_back(head);
    }
    const auto head_count = static_cast<int32_t>(heads.size()) - first_head;
    if (plan.heads() > 1 ? head_count == 0 : plan.head_class[0] != c) continue;
    const std::vector<int64_t> lengths = item_lengths(plan, items, lowering, c);
    const auto bucket_of = [&](int32_t item) {
      return static_cast<int32_t>(std::log2(static_cast<double>(std::max<int64_t>(lengths[static_cast<size_t>(item)], 1))) * 2);
    };
    // Heads outermost, then w, then t, h fastest: what runs at one time shares the most keys.
    std::vector<std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>> sorted;
    for (int32_t item = 0; item < count; ++item) {
      const int32_t unit = items[static_cast<size_t>(item) * per_item], tile = unit / lowering.query.per_tile;
      const Dim3 at = off_canvas(plan.query, tile) ? Dim3{0, 0, tile} : plan.query.grid.tile_coordinate(tile);
      sorted.emplace_back(-bucket_of(item), at.w, at.t, at.h, item);
    }
    std::sort(sorted.begin(), sorted.end());
    for (const auto& entry : sorted) {
      const int32_t length = -std::get<0>(entry), item = std::get<4>(entry);
      const auto at = static_cast<int32_t>(order.size());
      const bool fresh = buckets.empty() || buckets.back().group.first_head != first_head || buckets.back().length != length ||
                         buckets.back().group.first_item + buckets.back().group.items != at;
      if (fresh || entry == sorted.front()) buckets.push_back({length, {at, 0, first_head, head_count}});
      ++buckets.back().group.items;
      order.push_back(item);
    }
  }
  // Classes of their own never merge; the shortest buckets of a class do when there are too many.
  while (static_cast<int32_t>(buckets.size()) > kMaxWorkGroups) {
    auto shortest = buckets.end();
    for (auto it = std::next(buckets.begin()); it != buckets.end(); ++it) {
      const bool same = std::prev(it)->group.first_head == it->group.first_head &&
                        std::prev(it)->group.first_item + std::prev(it)->group.items == it->group.first_item;
      if (same && (shortest == buckets.end() || it->length < shortest->length)) shortest = it;
    }
    if (shortest == buckets.end()) break;
    std::prev(shortest)->group.items += shortest->group.items;
    buckets.erase(shortest);
  }
  if (static_cast<int32_t>(buckets.size()) > kMaxWorkGroups) {
    lowering.why_not = "the plan has more than 16 head classes";
    return;
  }
  std::stable_sort(buckets.begin(), buckets.end(), [](const Bucket& a, const Bucket& b) { return a.length > b.length; });
  lowering.groups = static_cast<int32_t>(buckets.size());
  for (size_t i = 0; i < buckets.size(); ++i) lowering.group[i] = buckets[i].group;
  lowering.items = count;
  lowering.item_units = bytes.add(items);
  lowering.item_order = bytes.add(order);
  lowering.head_order = bytes.add(heads);
}

ForwardLowering lower_forward(const Plan& plan, Bytes& bytes) {
  ForwardLowering lowering;
  lowering.why_not = blocks_why_not(plan.query);
  if (lowering.why_not == nullptr) lowering.why_not = blocks_why_not(plan.key);
  if (lowering.why_not != nullptr) return lowering;
  const BlockTable units = make_block_table(plan.query, {.largest = kUnitRows, .smallest = kUnitRows});
  lowering.query = units.shape;
  int64_t blocks = 0;
  for (const Block& block : units.blocks) blocks += block.flags != 0;
  // Tiles of one unit have rows of their own: steps of one small tile then let each warpgroup skip what it doesn't see.
  const bool one_row = plan.rows() <= plan.classes();
  const bool small = units.shape.per_tile == 1 && !one_row;
  lowering.step_rows = small ? 64 : 128;
  lowering.cluster = units.shape.per_tile > kUnitsPerCta || one_row ? 2 : 1;
  const BlockTable keys = make_block_table(plan.key, {.largest = lowering.step_rows, .smallest = 8});
  lowering.key = keys.shape;
  lowering.query_blocks = bytes.add(units.blocks);
  lowering.key_blocks = bytes.add(keys.blocks);
  set_order(plan, make_items(plan.query, units, lowering.cluster), lowering, bytes);
  return lowering;
}

template <typename T>
void move_to(const T*& offset, const void* base) {
  offset = reinterpret_cast<const T*>(static_cast<const std::byte*>(base) + reinterpret_cast<size_t>(offset));
}

}  // namespace

const char* blocks_why_not(const Tiling& tiling) {
  const int64_t limit = int64_t{1} << 20;
  if (tiling.tiles() > limit) return "there are more than 2^20 tiles";
  for (int32_t tile = tiling.grid.tile_count(); tile < tiling.tiles(); ++tile) {
    const auto first = static_cast<size_t>(tiling.tile_begin[static_cast<size_t>(tile)]);
    for (int32_t i = 1; i < tiling.tile_size(tile); ++i) {
      if (tiling.token[first + static_cast<size_t>(i)] != tiling.token[first] + i)
        return "tiles are not boxes of a canvas or runs of tokens";
    }
  }
  return nullptr;
}

BlockTable make_block_table(const Tiling& tiling, SlotLimits limits) {
  BlockTable table;
  double best_cost = 0;
  for (int32_t rows = limits.largest, halvings = 0; rows >= limits.smallest; rows /= 2, ++halvings) {
    double cost = 0;
    Dim3 box{1, 1, rows};
    if (tiling.grid.tile_count() > 0) {
      const Choice choice = best_box(tiling.grid, rows);
      cost = choice.cost * (1 + kCostOfHalving * halvings);
      box = choice.box;
    }
    if (table.shape.slot_rows == 0 || cost < best_cost) {
      best_cost = cost;
      table.shape.box = box;
      table.shape.box_rows = static_cast<int32_t>(box.volume());
      table.shape.slot_rows = rows;
    }
  }
  BlockShape& shape = table.shape;
  if (tiling.grid.tile_count() > 0) {
    const Dim3 tile = tiling.grid.tile();
    shape.per_tile = ceil_div(tile.t, shape.box.t) * ceil_div(tile.h, shape.box.h) * ceil_div(tile.w, shape.box.w);
  }
  for (int32_t tile = tiling.grid.tile_count(); tile < tiling.tiles(); ++tile) {
    shape.per_tile = std::max(shape.per_tile, ceil_div(tiling.tile_size(tile), shape.slot_rows));
  }
  table.blocks.resize(static_cast<size_t>(tiling.tiles()) * static_cast<size_t>(shape.per_tile));
  for (int32_t tile = 0; tile < tiling.tiles(); ++tile) {
    Block* out = table.blocks.data() + static_cast<size_t>(tile) * static_cast<size_t>(shape.per_tile);
    if (off_canvas(tiling, tile)) {
      cut_run(tiling, tile, shape, out);
    } else {
      cut_tile(tiling.grid, tile, shape, out);
    }
  }
  return table;
}

LoweringImage lower(const Plan& plan) {
  Bytes bytes;
  LoweringImage image;
  image.lowering.forward = lower_forward(plan, bytes);
  image.bytes = bytes.take();
  return image;
}

Lowering relocated(const LoweringImage& image, const void* base) {
  Lowering lowering = image.lowering;
  ForwardLowering& forward = lowering.forward;
  move_to(forward.query_blocks, base);
  move_to(forward.key_blocks, base);
  move_to(forward.item_units, base);
  move_to(forward.item_order, base);
  move_to(forward.head_order, base);
  return lowering;
}

}  // namespace slidetile::cuda
