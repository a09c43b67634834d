// What the Hopper kernels read beside a plan: tiles as boxes that the copy engine loads, and the order of work. Made once, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "slidetile/plan.h"

namespace slidetile::cuda {

/// Rows of a tile that one box of a tensor map brings. On the canvas a row is a token of the box in raster order; off it, one of a run
/// of consecutive tokens.
struct alignas(16) Block {
  int32_t w = 0, h = 0, t = 0;  // origin on the canvas, or {first token of the sequence, 0, 0}
  uint32_t flags = 0;           // of BlockFlag; 0: no such block, the tile has fewer
  uint32_t valid[4] = {};       // rows that are tokens of the tile
};
static_assert(sizeof(Block) == 32);

enum BlockFlag : uint32_t {
  kBlockPresent = 1,
  kBlockExtra = 2,    // tokens off the canvas
  kBlockFull = 4,     // every row of the slot is valid
  kBlockForeign = 8,  // brings rows of other tiles too, which are not zeros
};

/// How the tiles of a tiling are cut into blocks. `box` is the extent of a canvas block, `slot_rows` (a power of two, 8 to 128) the rows
/// that a block is given in shared memory; a block off the canvas has slot_rows tokens.
struct BlockShape {
  Dim3 box{1, 1, 1};
  int32_t box_rows = 1;  // its volume
  int32_t slot_rows = 0;
  int32_t per_tile = 0;  // blocks of tile i are i * per_tile and on, absent ones last
};

struct BlockTable {
  BlockShape shape;
  std::vector<Block> blocks;  // [tiles * per_tile]
};

/// Largest and smallest rows of a slot, powers of two.
struct SlotLimits {
  int32_t largest = 128, smallest = 8;
};

/// Why the tiles can't be cut into blocks; null: they can.
const char* blocks_why_not(const Tiling& tiling);
/// The cut that wastes the fewest rows; larger slots where two are near.
BlockTable make_block_table(const Tiling& tiling, SlotLimits limits);

/// Work of equal kind and similar length: `items` of the order from `first_item` on, for every batch item and for heads
/// `first_head` .. + heads of the head order (heads = 0: for all heads of the tensors).
struct WorkGroup {
  int32_t first_item = 0, items = 0, first_head = 0, heads = 0;
};
inline constexpr int32_t kMaxWorkGroups = 16;
inline constexpr int32_t kUnitRows = 64;    // query rows of a warpgroup
inline constexpr int32_t kUnitsPerCta = 3;  // consumer warpgroups of a CTA
inline constexpr int32_t kMaxUnits = 2 * kUnitsPerCta;

/// The forward kernel's part. An item is what a cluster works on at a time: up to three units of query rows for each of its CTAs, from
/// tiles that are near each other. Longest rows come first, so that they don't trail; the order is a schedule only, and serves other rows
/// over the same tilings too.
struct ForwardLowering {
  const char* why_not = nullptr;  // null: the tables are there
  int32_t cluster = 0;            // CTAs that share keys: 1 or 2
  int32_t step_rows = 0;          // key rows that a warpgroup multiplies at a time: 64 or 128
  BlockShape query, key;          // query blocks are units
  int32_t items = 0, groups = 0;
  WorkGroup group[kMaxWorkGroups];
  const Block* query_blocks = nullptr;
  const Block* key_blocks = nullptr;
  const int32_t* item_units = nullptr;  // [items][cluster * kUnitsPerCta] query block, -1: none
  const int32_t* item_order = nullptr;  // [classes][items]
  const int32_t* head_order = nullptr;  // heads by class
};

struct BackwardLowering;

/// What PlanView::lowering points to.
struct Lowering {
  ForwardLowering forward;
  const BackwardLowering* backward = nullptr;  // of a transposed plan: see backward_lowering.h
};

/// Tables on the host. Pointers of `lowering` are offsets into `bytes` until relocated to where the bytes have been copied.
struct LoweringImage {
  Lowering lowering;
  std::vector<std::byte> bytes;
};
LoweringImage lower(const Plan& plan);
Lowering relocated(const LoweringImage& image, const void* base);

}  // namespace slidetile::cuda
