#include "slidetile/cuda/backward_lowering.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <queue>
#include <tuple>

namespace slidetile::cuda {
namespace {

// An item has at most this many times the mean of all items' steps: text, which every query reads, would trail otherwise.
constexpr int64_t kLongestOverMean = 3, kLongestAtLeast = 192;
constexpr int64_t kMostVisits = int64_t{1} << 25;  // 1 GiB of them, in two orders

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

// Blocks of each tile that are there.
std::vector<int32_t> blocks_of_tiles(const BlockTable& table) {
  const auto per_tile = static_cast<size_t>(table.shape.per_tile);
  std::vector<int32_t> counts(per_tile == 0 ? 0 : table.blocks.size() / per_tile);
  for (size_t i = 0; i < table.blocks.size(); ++i) counts[i / per_tile] += table.blocks[i].flags != 0;
  return counts;
}

BlockTable query_blocks_of(const Plan& transposed) {
  BlockTable table = make_block_table(transposed.key, {.largest = kBackwardQueryRows, .smallest = kBackwardQueryRows});
  const bool two_sizes = transposed.key.tiles() > transposed.key.grid.tile_count() && table.shape.box_rows < table.shape.slot_rows;
  for (Block& block : table.blocks) {
    const bool full = (block.flags & kBlockFull) != 0;
    if (block.flags != 0 && !full && (two_sizes || (block.flags & kBlockForeign) != 0)) block.flags |= kBlockClear;
  }
  return table;
}

// Where each tile lies along the axis that has the most tiles; -1: off the canvas.
std::vector<int32_t> slabs_of(const Tiling& tiling) {
  const Grid& grid = tiling.grid;
  const Dim3 tiles = grid.tiles();
  std::vector<int32_t> slabs(static_cast<size_t>(tiling.tiles()), -1);
  for (int32_t tile = 0; tile < grid.tile_count(); ++tile) {
    const Dim3 at = grid.tile_coordinate(tile);
    const int32_t along = tiles.w >= tiles.h && tiles.w >= tiles.t ? at.w : tiles.h >= tiles.t ? at.h : at.t;
    slabs[static_cast<size_t>(tile)] = along;
  }
  return slabs;
}

// A run of a key tile's list.
struct Run {
  int32_t tile, first, last;  // entries of the plan
  int32_t steps;
  bool cut;
};

class Builder {
 public:
  Builder(const Plan& plan, int32_t slots)
      : plan_(plan),
        slots_(slots),
        queries_(query_blocks_of(plan)),
        keys_(make_block_table(plan.query, {.largest = kBackwardKeyRows, .smallest = kBackwardKeyRows})),
        query_slab_(slabs_of(plan.key)),
        key_slab_(slabs_of(plan.query)),
        query_count_(blocks_of_tiles(queries_)),
        key_count_(blocks_of_tiles(keys_)) {}

  BackwardLoweringImage build() {
    for (int32_t c = 0; c < plan_.classes(); ++c) add_class(c);
    BackwardLoweringImage image;
    BackwardLowering& lowering = image.lowering;
    lowering.query = queries_.shape;
    lowering.key = keys_.shape;
    lowering.query_blocks = static_cast<int32_t>(queries_.blocks.size());
    for (const auto& items : items_) lowering.items = std::max(lowering.items, static_cast<int32_t>(items.size()));
    for (const auto& splits : splits_) lowering.splits = std::max(lowering.splits, static_cast<int32_t>(splits.size()));
    std::vector<BackwardItem> items;
    std::vector<BackwardSplit> splits;
    for (size_t c = 0; c < items_.size(); ++c) {
      items_[c].resize(static_cast<size_t>(lowering.items), {.key_block = -1, .first_visit = 0, .visits = 0, .steps = 0});
      splits_[c].resize(static_cast<size_t>(lowering.splits), {.key_block = -1, .first_partial = 0, .partials = 0});
      items.insert(items.end(), items_[c].begin(), items_[c].end());
      splits.insert(splits.end(), splits_[c].begin(), splits_[c].end());
    }
    lowering.partials = partials_;
    Bytes bytes;
    lowering.query_block = bytes.add(queries_.blocks);
    lowering.key_block = bytes.add(keys_.blocks);
    lowering.item = bytes.add(items);
    lowering.visit = bytes.add(visits_);
    lowering.visit_in_turn = bytes.add(visits_in_turn_);
    lowering.split = bytes.add(splits);
    lowering.contributions = bytes.add(contributions_);
    image.bytes = bytes.take();
    return image;
  }

 private:
  int32_t row(int32_t c, int32_t tile) const noexcept {
    return plan_.row_of[static_cast<size_t>(c) * static_cast<size_t>(plan_.query.tiles()) + static_cast<size_t>(tile)];
  }

  // Query blocks of an entry of the plan.
  int32_t steps_of(int64_t entry) const noexcept { return query_count_[static_cast<size_t>(plan_.key_tile[static_cast<size_t>(entry)])]; }

  std::vector<Run> cut_rows(int32_t c) const {
    int64_t steps = 0, items = 0;
    std::vector<int64_t> of_tile(static_cast<size_t>(plan_.query.tiles()));
    for (int32_t tile = 0; tile < plan_.query.tiles(); ++tile) {
      const int32_t r = row(c, tile);
      for (int64_t e = plan_.row_first(r); e < plan_.row_last(r); ++e) of_tile[static_cast<size_t>(tile)] += steps_of(e);
      steps += of_tile[static_cast<size_t>(tile)] * key_count_[static_cast<size_t>(tile)];
      items += key_count_[static_cast<size_t>(tile)];
    }
    const int64_t longest = std::max(kLongestAtLeast, kLongestOverMean * steps / std::max<int64_t>(items, 1));
    std::vector<Run> runs;
    for (int32_t tile = 0; tile < plan_.query.tiles(); ++tile) {
      const int32_t r = row(c, tile);
      const int64_t all = of_tile[static_cast<size_t>(tile)], pieces = std::max<int64_t>(1, (all + longest - 1) / longest);
      int64_t entry = plan_.row_first(r), done = 0;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        Run run{tile, static_cast<int32_t>(entry), 0, 0, pieces > 1};
        for (; entry < plan_.row_last(r) && (piece + 1 == pieces || done + run.steps < all * (piece + 1) / pieces); ++entry)
          run.steps += steps_of(entry);
        run.last = static_cast<int32_t>(entry);
        done += run.steps;
        runs.push_back(run);
      }
    }
    return runs;
  }

  // The query tiles of a run, slab by slab.
  std::vector<int32_t> list_of(const Run& run) const {
    std::vector<int32_t> tiles(plan_.key_tile.begin() + run.first, plan_.key_tile.begin() + run.last);
    std::stable_sort(tiles.begin(), tiles.end(), [this](int32_t a, int32_t b) { return slab_of_query(a) < slab_of_query(b); });
    return tiles;
  }
  int32_t slab_of_query(int32_t tile) const noexcept { return query_slab_[static_cast<size_t>(tile)]; }

  // In turn the blocks of a key tile would wait for each other at every query: in each slab, each begins a tile further on.
  void spread(std::vector<int32_t>& tiles, int32_t block) const {
    for (auto first = tiles.begin(); first != tiles.end();) {
      const auto last = std::find_if(first, tiles.end(), [&](int32_t tile) { return slab_of_query(tile) != slab_of_query(*first); });
      std::rotate(first, first + block % (last - first), last);
      first = last;
    }
  }

  void add_visits(std::vector<BackwardVisit>& visits, const std::vector<int32_t>& tiles) const {
    for (const int32_t tile : tiles)
      visits.push_back({.first_block = tile * queries_.shape.per_tile, .blocks = query_count_[static_cast<size_t>(tile)]});
  }

  // Items go slab by slab along the canvas's longest axis, and so do their lists: what is at work at a time shares most of its queries,
  // which the second-level cache has to hold with their dq sums. What is off the canvas comes first, and in a slab the longest rows.
  void add_class(int32_t c) {
    std::vector<Run> runs = cut_rows(c);
    std::stable_sort(runs.begin(), runs.end(), [this](const Run& a, const Run& b) {
      const int32_t slab_a = key_slab_[static_cast<size_t>(a.tile)], slab_b = key_slab_[static_cast<size_t>(b.tile)];
      return std::tie(slab_a, b.steps) < std::tie(slab_b, a.steps);
    });
    std::vector<std::vector<std::vector<int32_t>>> partials(static_cast<size_t>(plan_.query.tiles()));
    int32_t partial = 0;
    auto& items = items_.emplace_back();
    for (const Run& run : runs) {
      const int32_t blocks = key_count_[static_cast<size_t>(run.tile)];
      auto& cut = partials[static_cast<size_t>(run.tile)];
      if (run.cut) cut.resize(static_cast<size_t>(blocks));
      for (int32_t b = 0; b < blocks; ++b) {
        if (run.cut) cut[static_cast<size_t>(b)].push_back(static_cast<int32_t>(items.size()));
        items.push_back({.key_block = run.tile * keys_.shape.per_tile + b,
                         .first_visit = static_cast<int32_t>(visits_.size()),
                         .visits = run.last - run.first,
                         .steps = run.steps});
        std::vector<int32_t> tiles = list_of(run);
        add_visits(visits_, tiles);
        spread(tiles, b);
        add_visits(visits_in_turn_, tiles);
      }
    }
    const std::vector<int32_t> contributions = set_ranks(items);
    auto& splits = splits_.emplace_back();
    for (size_t tile = 0; tile < partials.size(); ++tile) {
      for (size_t b = 0; b < partials[tile].size(); ++b) {
        const auto& cut = partials[tile][b];
        splits.push_back({.key_block = static_cast<int32_t>(tile) * keys_.shape.per_tile + static_cast<int32_t>(b),
                          .first_partial = partial,
                          .partials = static_cast<int32_t>(cut.size())});
        for (const int32_t item : cut) items[static_cast<size_t>(item)].partial = partial++;
      }
    }
    partials_ = std::max(partials_, partial);
    for (const int32_t count : contributions)
      contributions_.insert(contributions_.end(), static_cast<size_t>(queries_.shape.per_tile), count);
  }

  // Plays items of a head on the slots and ranks each visit by when it comes. Returns how many come to each query tile. Heads follow
  // each other without a pause, so the head that counts begins while slots still work on one before it: ranks of a head that begins on
  // all slots at once would keep every head's first items waiting for its last ones.
  std::vector<int32_t> set_ranks(const std::vector<BackwardItem>& items) {
    constexpr int64_t kStep = 10, kBetween = 7, kStart = 15;  // time of a step, between two visits to a query block, to begin an item
    constexpr int kHeads = 2;
    struct Slot {
      int64_t time;
      int32_t index;
      bool operator>(const Slot& other) const noexcept { return std::tie(time, index) > std::tie(other.time, other.index); }
    };
    const auto tiles = static_cast<size_t>(plan_.key.tiles());
    struct Head {
      std::vector<int32_t> ranks;
      std::vector<int64_t> free_at;
    };
    std::vector<Head> heads(kHeads, {std::vector<int32_t>(tiles), std::vector<int64_t>(tiles)});
    struct Place {
      Head* head = nullptr;
      size_t visit = 0, end = 0;
    };
    std::vector<Place> places(static_cast<size_t>(slots_));
    std::priority_queue<Slot, std::vector<Slot>, std::greater<>> slots;
    for (int32_t i = 0; i < slots_; ++i) slots.push({0, i});
    size_t next = 0;
    while (!slots.empty()) {
      Slot slot = slots.top();
      slots.pop();
      Place& place = places[static_cast<size_t>(slot.index)];
      if (place.visit == place.end) {
        if (next == items.size() * kHeads) continue;
        place.head = &heads[next / items.size()];
        const BackwardItem& item = items[next++ % items.size()];
        place.visit = static_cast<size_t>(item.first_visit);
        place.end = place.visit + static_cast<size_t>(item.visits);
        slot.time += kStart;
      } else {
        BackwardVisit& visit = visits_in_turn_[place.visit++];
        const auto tile = static_cast<size_t>(visit.first_block / queries_.shape.per_tile);
        int64_t& free_at = place.head->free_at[tile];
        const int64_t begin = std::max(slot.time, free_at);
        const int32_t rank = place.head->ranks[tile]++;
        if (place.head == &heads.back()) visit.rank = rank;
        free_at = begin + kBetween;
        slot.time = begin + visit.blocks * kStep;
      }
      slots.push(slot);
    }
    return heads.back().ranks;
  }

  const Plan& plan_;
  const int32_t slots_;
  const BlockTable queries_, keys_;
  const std::vector<int32_t> query_slab_, key_slab_, query_count_, key_count_;
  std::vector<std::vector<BackwardItem>> items_;
  std::vector<std::vector<BackwardSplit>> splits_;
  std::vector<BackwardVisit> visits_, visits_in_turn_;
  std::vector<int32_t> contributions_;
  int32_t partials_ = 0;
};

template <typename T>
void move_to(const T*& offset, const void* base) {
  offset = reinterpret_cast<const T*>(static_cast<const std::byte*>(base) + reinterpret_cast<size_t>(offset));
}

const char* why_not(const Plan& plan) {
  if (plan.masks() > 0) return "the plan has token masks";
  const char* reason = blocks_why_not(plan.query);
  if (reason == nullptr) reason = blocks_why_not(plan.key);
  if (reason != nullptr) return reason;
  int64_t visits = 0;  // about: a tile's list is there once for each of its blocks
  for (size_t i = 0; i < plan.row_of.size(); ++i) {
    const int64_t size = plan.query.tile_size(static_cast<int32_t>(i % static_cast<size_t>(plan.query.tiles())));
    visits += (plan.row_last(plan.row_of[i]) - plan.row_first(plan.row_of[i])) * ((size + kBackwardKeyRows - 1) / kBackwardKeyRows);
  }
  if (visits > kMostVisits) return "the plan's lists are too long";
  return nullptr;
}

}  // namespace

BackwardLoweringImage lower_backward(const Plan& transposed, int32_t slots) {
  if (const char* reason = why_not(transposed)) {
    BackwardLoweringImage image;
    image.lowering.why_not = reason;
    return image;
  }
  return Builder(transposed, slots).build();
}

BackwardLowering relocated(const BackwardLoweringImage& image, const void* base) {
  BackwardLowering lowering = image.lowering;
  if (lowering.why_not != nullptr) return lowering;
  move_to(lowering.query_block, base);
  move_to(lowering.key_block, base);
  move_to(lowering.item, base);
  move_to(lowering.visit, base);
  move_to(lowering.visit_in_turn, base);
  move_to(lowering.split, base);
  move_to(lowering.contributions, base);
  return lowering;
}

}  // namespace slidetile::cuda
