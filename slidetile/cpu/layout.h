// What the drivers of the CPU kernels share: memory, where key tiles lie once packed, the units of work, and what their arguments have in
// common.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "slidetile/cpu/engine.h"
#include "slidetile/plan.h"
#include "slidetile/tensor.h"

namespace slidetile::cpu {

constexpr int64_t kAlignment = 64;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

/// Memory for packed keys and scratch. Asks for huge pages where there is room for some: every block of keys lies on pages of its own.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  char* at(int64_t offset) const noexcept { return data_.get() + offset; }

 private:
  struct Free {
    void operator()(char* memory) const noexcept;
  };
  std::unique_ptr<char, Free> data_;
};

Storage storage_of(DType dtype);

/// Where key tiles lie once packed, and which of their keys exist and are in use, for each batch item that differs.
struct KeyLayout {
  std::vector<int64_t> padded_begin, word_begin;
  std::vector<std::vector<uint64_t>> usable;
  std::vector<int32_t> group_begin;  // [groups + 1] tiles of each packing item

  int64_t groups() const noexcept { return static_cast<int64_t>(group_begin.size()) - 1; }
  const uint64_t* usable_of(int64_t batch) const noexcept { return usable[usable.size() == 1 ? 0 : static_cast<size_t>(batch)].data(); }
};
/// `lengths` [batch] or null.
KeyLayout make_key_layout(const TilingView& key, const int32_t* lengths, int64_t batch, int32_t lanes);

/// Some rows of a query tile: the unit of work.
struct Chunk {
  int32_t tile, first, rows;
};
/// Tiles cut into chunks of at most `most_rows` rows, and of equal ones.
std::vector<Chunk> make_chunks(const TilingView& query, int32_t most_rows);

/// A (batch item, head).
struct Unit {
  int64_t batch, head;
  int32_t head_class;
};
std::vector<Unit> make_units(const TensorView& q, const PlanView& plan);

/// Token 0 of a unit.
char* head_data(const TensorView& view, const Unit& unit);

inline int32_t plan_row(const PlanView& plan, int32_t head_class, int32_t tile) {
  return plan.row_of[int64_t{head_class} * plan.query.tiles + tile];
}

/// The arguments of a call below are ForwardArgs or BackwardArgs. Tokens from the length on are not in use.
template <typename Args>
int64_t query_length(const Args& args, const Unit& unit) {
  return args.query_lengths == nullptr ? args.plan.query.tokens : args.query_lengths[unit.batch];
}
template <typename Args>
int64_t key_length(const Args& args, const Unit& unit) {
  return args.key_lengths == nullptr ? args.plan.key.tokens : args.key_lengths[unit.batch];
}

/// What packing a key tile reads; the caller says where it is written.
template <typename Args>
PackArgs pack_args(const Args& args, const Unit& unit, int32_t tile) {
  const TilingView& key = args.plan.key;
  const int64_t bytes = size_of(args.k.dtype);
  return {.k = head_data(args.k, unit),
          .v = head_data(args.v, unit),
          .k_stride = args.k.strides[2] * bytes,
          .v_stride = args.v.strides[2] * bytes,
          .storage = storage_of(args.k.dtype),
          .head_dim = static_cast<int32_t>(args.k.head_dim()),
          .token = key.token + key.tile_begin[tile],
          .tokens = key.tile_begin[tile + 1] - key.tile_begin[tile],
          .listed = static_cast<int32_t>(key.tokens) - key.tile_begin[tile],
          .length = key_length(args, unit),
          .k_packed = nullptr,
          .v_packed = nullptr,
          .scratch = nullptr};
}

/// The engine of a set for a storage type.
template <typename Set>
const auto& engine_of(const Set& set, DType dtype) {
  switch (dtype) {
    case DType::kF32: return *set.f32;
    case DType::kBf16: return *set.bf16;
    case DType::kF16: return *set.f16;
  }
  return *set.f32;
}

}  // namespace slidetile::cpu
