// What the drivers of the CPU kernels share: memory, where key tiles lie once packed, and the units of work.
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

}  // namespace slidetile::cpu
