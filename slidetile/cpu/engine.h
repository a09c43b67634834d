// What an instruction set provides to the driver: pack a key tile, run some query rows of a head over their key tiles.
//
// Only plain data and function pointers: translation units built for one instruction set include this header, and nothing in it may be
// emitted there as a symbol that other units could link to.
#pragma once

#include <cstdint>

namespace slidetile::cpu {

enum class Storage : uint8_t { kF32, kBf16, kF16 };

/// One key tile of one head, in the caller's memory and packed.
struct PackArgs {
  const char *k, *v;           // token 0 of the head
  int64_t k_stride, v_stride;  // bytes between tokens
  Storage storage;
  int32_t head_dim;
  const int32_t* token;  // [tokens] of the tile
  int32_t tokens;
  int32_t listed;  // tokens from `token` on that may be looked at, those of later tiles included
  int64_t length;  // tokens from here on are not in use: packed as zeros
  uint32_t *k_packed, *v_packed;
  void* scratch;
};

/// The key tiles of one head. Packed words are 32 bits: one float or two bf16. Tiles are padded with zeros to a multiple of the engine's
/// lanes and cut into blocks of 64 keys, each contiguous. K: panels of some vectors of keys, each [depth][keys]. V: panels of as many
/// vectors of columns, each [keys / pair][columns].
struct PackedKeys {
  const uint32_t *k, *v;
  const int64_t* padded_begin;  // [tiles + 1] in keys
  const int32_t* tile_begin;    // [tiles + 1]
  const int64_t* word_begin;    // [tiles + 1] -> usable
  const uint64_t* usable;       // bit k % 64 of word k / 64 of a tile: the key exists and is in use
  const uint8_t* unsafe;        // [tiles] V holds an infinity or a NaN: a weight of zero does not hide it
};

/// Some query rows of one tile of one head, and the row of the plan that they read.
struct AttendArgs {
  const char* q;  // token 0 of the head
  char* out;
  int64_t q_stride, out_stride;  // bytes between tokens
  Storage storage;
  int32_t head_dim;
  float scale;
  const int32_t* token;  // [rows]
  int32_t rows;
  int64_t query_length;  // tokens from here on are not in use: out 0
  PackedKeys keys;
  const int32_t* key_tile;  // [entries]
  const int32_t* mask_of;   // [entries] or null
  int64_t entries;
  const int64_t* mask_begin;
  const uint64_t* mask_words;
  int32_t mask_row;    // row of the masks that belongs to the first query row
  float *shift, *sum;  // [rows] results: sum of exp2(scale log2(e) score + shift)
  void* scratch;
};

struct Engine {
  int32_t lanes;  // tiles are padded to a multiple of it
  int32_t pair;   // elements in a packed word
  int64_t (*pack_scratch_bytes)(int32_t head_dim);
  int64_t (*attend_scratch_bytes)(int32_t rows, int32_t head_dim);
  bool (*pack)(const PackArgs&);  // true: V holds an infinity or a NaN
  void (*attend)(const AttendArgs&);
};

/// An instruction set: the engine of each storage type.
struct EngineSet {
  const Engine *f32, *bf16, *f16;
};

extern const EngineSet kPortableSet;
extern const EngineSet kAvx2Set;
extern const EngineSet kAvx512Set;
extern const EngineSet kAvx512Bf16Set;
extern const Engine kAvx512Engine;

}  // namespace slidetile::cpu
