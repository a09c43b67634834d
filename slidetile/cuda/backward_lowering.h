// What the Hopper backward reads beside a transposed plan: key blocks in the order of work, and the query blocks that each one visits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "slidetile/cuda/lowering.h"
#include "slidetile/plan.h"

namespace slidetile::cuda {

inline constexpr int32_t kBackwardQueryRows = 64, kBackwardKeyRows = 128;

/// Flag of query blocks beside those of BlockFlag: the slot has rows that are not the block's and may be anything, because its box brings
/// rows of other tiles, or because blocks of another size use the slot too.
inline constexpr uint32_t kBlockClear = 1u << 16;

/// What a CTA works on at a time: a key block and a run of the query tiles that read it.
struct BackwardItem {
  int32_t key_block, first_visit, visits;
  int32_t steps;         // query blocks in all
  int32_t partial = -1;  // of a key block whose row is cut up: where this item's sums go; -1: it is alone and writes dk and dv
  int32_t padding[3] = {};
};
static_assert(sizeof(BackwardItem) == 32);

/// A query tile in an item's list.
struct BackwardVisit {
  int32_t first_block, blocks;
  int32_t rank = 0;  // in turn: how many items add to these query blocks before this one does
  int32_t padding = 0;
};
static_assert(sizeof(BackwardVisit) == 16);

/// A key block whose row is cut up: the partial sums to add, consecutive.
struct BackwardSplit {
  int32_t key_block, first_partial, partials;
  int32_t padding = 0;
};
static_assert(sizeof(BackwardSplit) == 16);

struct BackwardLowering {
  const char* why_not = nullptr;  // null: the tables are there
  BlockShape query, key;
  int32_t query_blocks = 0;  // of all tiles, absent ones too
  int32_t items = 0;         // of a class
  int32_t splits = 0, partials = 0;
  const Block* query_block = nullptr;
  const Block* key_block = nullptr;
  const BackwardItem* item = nullptr;  // [classes][items]; an item of no key block (-1) pads a class that has fewer
  const BackwardVisit *visit = nullptr, *visit_in_turn = nullptr;  // items index both: the same tiles, in two orders
  const BackwardSplit* split = nullptr;                            // [classes][splits]; padded with partials = 0
  const int32_t* contributions = nullptr;                          // [classes][query_blocks] key blocks that add to each query block
};

struct BackwardLoweringImage {
  BackwardLowering lowering;  // pointers are offsets into `bytes` until relocated
  std::vector<std::byte> bytes;
};

/// Tables of transpose(plan): rows of query tiles for every key tile. In turn, items add to a query block in the order in which they would
/// come to it on `slots` multiprocessors, so that a kernel that keeps this order hardly waits. It can't deadlock if as many CTAs are
/// resident at once, take items in order, and finish a head's items before they take the next one's.
BackwardLoweringImage lower_backward(const Plan& transposed, int32_t slots);
BackwardLowering relocated(const BackwardLoweringImage& image, const void* base);

}  // namespace slidetile::cuda
