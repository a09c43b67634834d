// What a plan costs: visible pairs, density, FLOPs, counts of blocks. All work per distinct row.
#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "slidetile/error.h"
#include "slidetile/plan.h"

namespace slidetile {
namespace {

int64_t pairs_of_mask(const Plan& plan, int32_t mask) {
  int64_t pairs = 0;
  for (int64_t word = plan.mask_begin[static_cast<size_t>(mask)]; word < plan.mask_begin[static_cast<size_t>(mask) + 1]; ++word) {
    pairs += std::popcount(plan.mask_words[static_cast<size_t>(word)]);
  }
  return pairs;
}

std::vector<int64_t> pairs_of_masks(const Plan& plan) {
  std::vector<int64_t> pairs;
  pairs.reserve(static_cast<size_t>(plan.masks()));
  for (int32_t mask = 0; mask < plan.masks(); ++mask) pairs.push_back(pairs_of_mask(plan, mask));
  return pairs;
}

/// Visible pairs of each class.
std::vector<int64_t> pairs_of_classes(const Plan& plan) {
  const std::vector<int64_t> mask_pairs = pairs_of_masks(plan);
  // A row has `keys` tokens that all its queries see, and `masked` pairs (masks fix the number of queries).
  std::vector<int64_t> keys(static_cast<size_t>(plan.rows())), masked(keys.size()), pairs(static_cast<size_t>(plan.classes()));
  for (int32_t row = 0; row < plan.rows(); ++row) {
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      if (const int32_t mask = plan.mask(entry); mask >= 0) {
        masked[static_cast<size_t>(row)] += mask_pairs[static_cast<size_t>(mask)];
      } else {
        keys[static_cast<size_t>(row)] += plan.key.tile_size(plan.key_tile[static_cast<size_t>(entry)]);
      }
    }
  }
  for (size_t i = 0; i < plan.row_of.size(); ++i) {
    const auto row = static_cast<size_t>(plan.row_of[i]), tiles = static_cast<size_t>(plan.query.tiles());
    pairs[i / tiles] += plan.query.tile_size(static_cast<int32_t>(i % tiles)) * keys[row] + masked[row];
  }
  return pairs;
}

/// A run of slots of a query tile, and how many tiles of a query block have one like it.
struct Segment {
  int32_t row, first, last;  // slots counted from the tile's first
  int32_t tiles;
  friend auto operator<=>(const Segment&, const Segment&) = default;
};

void join_equal(std::vector<Segment>& segments) {
  std::sort(segments.begin(), segments.end());
  size_t kept = 0;
  for (const Segment& segment : segments) {
    Segment& last = segments[kept == 0 ? 0 : kept - 1];
    if (kept > 0 && last.row == segment.row && last.first == segment.first && last.last == segment.last) {
      ++last.tiles;
    } else {
      segments[kept++] = segment;
    }
  }
  segments.resize(kept);
}

/// Counts the visible pairs of one query block with every key block.
class BlockCounter {
 public:
  BlockCounter(const Plan& plan, int64_t key_block)
      : plan_(plan),
        key_block_(key_block),
        mask_pairs_(pairs_of_masks(plan)),
        pairs_(static_cast<size_t>((plan.key.tokens() + key_block - 1) / key_block)) {}

  BlockCounts count(std::span<const Segment> segments) {
    int64_t queries = 0;
    for (const Segment& segment : segments) {
      queries += int64_t{segment.last - segment.first} * segment.tiles;
      for (int64_t entry = plan_.row_first(segment.row); entry < plan_.row_last(segment.row); ++entry) add(segment, entry);
    }
    BlockCounts counts;
    for (const size_t block : touched_) {
      const int64_t first = static_cast<int64_t>(block) * key_block_, keys = std::min(key_block_, plan_.key.tokens() - first);
      ++(pairs_[block] == queries * keys ? counts.full : counts.partial);
      pairs_[block] = 0;
    }
    counts.empty = static_cast<int64_t>(pairs_.size() - touched_.size());
    touched_.clear();
    return counts;
  }

 private:
  void add(const Segment& segment, int64_t entry) {
    const int32_t tile = plan_.key_tile[static_cast<size_t>(entry)], begin = plan_.key.tile_begin[static_cast<size_t>(tile)];
    const int64_t end = begin + plan_.key.tile_size(tile);
    for (int64_t block = begin / key_block_; block * key_block_ < end; ++block) {
      const int64_t first = std::max(block * key_block_, int64_t{begin}) - begin, last = std::min((block + 1) * key_block_, end) - begin;
      const int32_t mask = plan_.mask(entry);
      const int64_t queries = segment.last - segment.first;
      const int64_t more = mask < 0 ? queries * (last - first) : masked_pairs(mask, segment, {first, last}, end - begin);
      if (more == 0) continue;
      int64_t& pairs = pairs_[static_cast<size_t>(block)];
      if (pairs == 0) touched_.push_back(static_cast<size_t>(block));
      pairs += more * segment.tiles;
    }
  }

  int64_t masked_pairs(int32_t mask, const Segment& segment, std::array<int64_t, 2> keys, int64_t key_size) const {
    const int64_t begin = plan_.mask_begin[static_cast<size_t>(mask)], end = plan_.mask_begin[static_cast<size_t>(mask) + 1];
    const int64_t row_words = (key_size + 63) / 64;
    if (keys[1] - keys[0] == key_size && segment.first == 0 && segment.last * row_words == end - begin) {
      return mask_pairs_[static_cast<size_t>(mask)];
    }
    int64_t pairs = 0;
    for (int64_t query = segment.first; query < segment.last; ++query) {
      for (int64_t word = keys[0] / 64; word * 64 < keys[1]; ++word) {
        uint64_t bits = plan_.mask_words[static_cast<size_t>(begin + query * row_words + word)];
        if (word * 64 < keys[0]) bits = bits >> (keys[0] - word * 64) << (keys[0] - word * 64);
        if (keys[1] < (word + 1) * 64) bits &= (uint64_t{1} << (keys[1] - word * 64)) - 1;
        pairs += std::popcount(bits);
      }
    }
    return pairs;
  }

  const Plan& plan_;
  int64_t key_block_;
  std::vector<int64_t> mask_pairs_;
  std::vector<int64_t> pairs_;   // [key blocks] of the current query block
  std::vector<size_t> touched_;  // key blocks with pairs
};

}  // namespace

int64_t visible_pairs(const Plan& plan, int64_t heads) {
  require(heads > 0 && (plan.heads() == 1 || plan.heads() == heads), "visible pairs: got ", heads, " heads, the plan has ", plan.heads());
  const std::vector<int64_t> of_class = pairs_of_classes(plan);
  int64_t pairs = 0;
  bool overflow = false;
  for (const int32_t c : plan.head_class) overflow |= __builtin_add_overflow(pairs, of_class[static_cast<size_t>(c)], &pairs);
  if (plan.heads() == 1) overflow |= __builtin_mul_overflow(pairs, heads, &pairs);
  require(!overflow, "visible pairs: ", plan.query.tokens(), " x ", plan.key.tokens(), " tokens and ", heads, " heads have 2^63 or more");
  return pairs;
}

double density(const Plan& plan) {
  const std::vector<int64_t> of_class = pairs_of_classes(plan);
  double pairs = 0;
  for (const int32_t c : plan.head_class) pairs += static_cast<double>(of_class[static_cast<size_t>(c)]);
  const double all = static_cast<double>(plan.query.tokens()) * static_cast<double>(plan.key.tokens()) * plan.heads();
  return all > 0 ? pairs / all : 0;
}

double forward_flops(const Plan& plan, int64_t heads, int64_t head_dim) {
  require(head_dim > 0, "FLOPs: head_dim ", head_dim, " must be positive");
  return 4.0 * static_cast<double>(visible_pairs(plan, heads)) * static_cast<double>(head_dim);
}

double backward_flops(const Plan& plan, int64_t heads, int64_t head_dim) { return 2.5 * forward_flops(plan, heads, head_dim); }

BlockCounts count_blocks(const Plan& plan, int64_t query_block, int64_t key_block) {
  require(query_block > 0 && key_block > 0, "count blocks: blocks of ", query_block, " x ", key_block, " slots must be positive");
  // Larger blocks are one block.
  query_block = std::min(query_block, std::max<int64_t>(plan.query.tokens(), 1));
  key_block = std::min(key_block, std::max<int64_t>(plan.key.tokens(), 1));
  BlockCounter counter(plan, key_block);
  std::map<std::vector<Segment>, BlockCounts> known;
  std::vector<BlockCounts> of_class(static_cast<size_t>(plan.classes()));
  for (int32_t c = 0; c < plan.classes(); ++c) {
    int32_t tile = 0;
    for (int64_t begin = 0; begin < plan.query.tokens(); begin += query_block) {
      const int64_t end = std::min(begin + query_block, plan.query.tokens());
      std::vector<Segment> segments;
      for (int64_t slot = begin; slot < end;) {
        while (plan.query.tile_begin[static_cast<size_t>(tile) + 1] <= slot) ++tile;
        const int64_t first = plan.query.tile_begin[static_cast<size_t>(tile)], last = std::min(end, first + plan.query.tile_size(tile));
        segments.push_back({plan.row_of[static_cast<size_t>(int64_t{c} * plan.query.tiles() + tile)], static_cast<int32_t>(slot - first),
                            static_cast<int32_t>(last - first), 1});
        slot = last;
      }
      join_equal(segments);
      const auto [at, is_new] = known.try_emplace(std::move(segments));
      if (is_new) at->second = counter.count(at->first);
      BlockCounts& sum = of_class[static_cast<size_t>(c)];
      sum.full += at->second.full;
      sum.partial += at->second.partial;
      sum.empty += at->second.empty;
    }
  }
  BlockCounts sum;
  for (const int32_t c : plan.head_class) {
    sum.full += of_class[static_cast<size_t>(c)].full;
    sum.partial += of_class[static_cast<size_t>(c)].partial;
    sum.empty += of_class[static_cast<size_t>(c)].empty;
  }
  return sum;
}

}  // namespace slidetile
