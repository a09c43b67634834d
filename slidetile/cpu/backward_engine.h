// What an instruction set provides to the backward driver: pack a key tile, run some query rows of a head over their key tiles, write a
// key tile's gradients. Plain data and function pointers only, as in engine.h.
#pragma once

#include "slidetile/cpu/engine.h"

namespace slidetile::cpu {

/// Packs a tile of keys and values and clears its sums.
struct PackGradientsArgs {
  PackArgs tile;     // v_packed as k_packed: panels of vectors of keys
  uint32_t* k_rows;  // K as PackedKeys::v
  float *dk, *dv;
};

/// The key tiles of one head. Sums have as many floats for a key as there are padded columns, and lie as K in k_rows.
struct GradientKeys {
  const uint32_t *k, *v, *k_rows;
  float *dk, *dv;
  const int64_t* padded_begin;  // [tiles + 1] in keys
  const int32_t* tile_begin;    // [tiles + 1]
  const int64_t* word_begin;    // [tiles + 1] -> usable
  const uint64_t* usable;       // bit k % 64 of word k / 64 of a tile: the key exists and is in use
  const uint8_t* unsafe;        // [tiles] K holds an infinity or a NaN: a weight of zero does not hide it
};

/// Some query rows of one tile of one head, and the row of the plan that they read. The caller orders the additions to a key tile's sums:
/// they are made between enter(driver, entry) and leave(driver, entry), which are called once for every entry, in order.
struct GradientArgs {
  const char *q, *dout, *out;  // token 0 of the head
  char* dq;
  const float* lse;
  int64_t q_stride, dout_stride, out_stride, dq_stride, lse_stride;  // bytes between tokens
  Storage storage;
  int32_t head_dim;
  float scale;
  const int32_t* token;  // [rows]
  int32_t rows;
  int64_t query_length;  // tokens from here on are not in use: dq 0
  GradientKeys keys;
  const int32_t* key_tile;  // [entries]
  const int32_t* mask_of;   // [entries] or null
  int64_t entries;
  const int64_t* mask_begin;
  const uint64_t* mask_words;
  int32_t mask_row;  // row of the masks that belongs to the first query row
  void* driver;
  void (*enter)(void* driver, int64_t entry);
  void (*leave)(void* driver, int64_t entry);
  void* scratch;
};

/// Writes a key tile's sums to the caller's memory.
struct WriteGradientsArgs {
  const float *sums_k, *sums_v;  // of the tile
  char *dk, *dv;                 // token 0 of the head
  int64_t dk_stride, dv_stride;  // bytes between tokens
  Storage storage;
  int32_t head_dim;
  float scale;
  const int32_t* token;  // [tokens] of the tile
  int32_t tokens;
  int64_t length;  // tokens from here on are not in use: 0
};

struct BackwardEngine {
  int32_t lanes;  // tiles are padded to a multiple of it
  int32_t pair;   // elements in a packed word
  int64_t (*pack_scratch_bytes)(int32_t head_dim);
  int64_t (*attend_scratch_bytes)(int32_t rows, int32_t head_dim);
  bool (*pack)(const PackGradientsArgs&);  // true: K holds an infinity or a NaN
  void (*attend)(const GradientArgs&);
  void (*write)(const WriteGradientsArgs&);
};

/// An instruction set: the engine of each storage type.
struct BackwardSet {
  const BackwardEngine *f32, *bf16, *f16;
};

extern const BackwardSet kPortableBackward;
extern const BackwardSet kAvx2Backward;
extern const BackwardSet kAvx512Backward;
extern const BackwardSet kAvx512Bf16Backward;
extern const BackwardEngine kAvx512BackwardEngine;

}  // namespace slidetile::cpu
