#include "slidetile/cpu/layout.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "slidetile/error.h"

namespace slidetile::cpu {
namespace {

constexpr int32_t kRowMultiple = 12;  // of every set's register tiles
constexpr int64_t kPackKeys = 1024;   // keys of one packing item, about
constexpr int64_t kHugePage = int64_t{1} << 21;

}  // namespace

Memory::Memory(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  data_.reset(static_cast<char*>(
      std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), alignment)))));
  if (!data_) fail(ErrorCode::kOutOfMemory, "attention: no memory for ", bytes, " bytes of packed keys and scratch");
  if (alignment == kHugePage) madvise(data_.get(), static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
}

void Memory::Free::operator()(char* memory) const noexcept { std::free(memory); }

Storage storage_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return Storage::kF32;
    case DType::kBf16: return Storage::kBf16;
    case DType::kF16: return Storage::kF16;
  }
  return Storage::kF32;
}

KeyLayout make_key_layout(const TilingView& key, const int32_t* lengths, int64_t batch, int32_t lanes) {
  KeyLayout layout{.padded_begin = {0}, .word_begin = {0}, .usable = {}, .group_begin = {0}};
  for (int32_t tile = 0; tile < key.tiles; ++tile) {
    const int64_t size = key.tile_begin[tile + 1] - key.tile_begin[tile];
    layout.padded_begin.push_back(layout.padded_begin.back() + round_up(size, lanes));
    layout.word_begin.push_back(layout.word_begin.back() + (size + 63) / 64);
    if (layout.padded_begin.back() - layout.padded_begin[static_cast<size_t>(layout.group_begin.back())] >= kPackKeys ||
        tile + 1 == key.tiles) {
      layout.group_begin.push_back(tile + 1);
    }
  }
  const int64_t items = lengths == nullptr ? 1 : batch;
  for (int64_t b = 0; b < items; ++b) {
    const int64_t length = lengths == nullptr ? key.tokens : lengths[b];
    std::vector<uint64_t> usable(static_cast<size_t>(layout.word_begin.back()));
    for (int32_t tile = 0; tile < key.tiles; ++tile) {
      const int32_t first = key.tile_begin[tile], size = key.tile_begin[tile + 1] - first;
      uint64_t* words = usable.data() + layout.word_begin[static_cast<size_t>(tile)];
      for (int32_t k = 0; k < size; ++k) words[k / 64] |= uint64_t{key.token[first + k] < length} << (k % 64);
    }
    layout.usable.push_back(std::move(usable));
  }
  return layout;
}

std::vector<Chunk> make_chunks(const TilingView& query, int32_t most_rows) {
  std::vector<Chunk> chunks;
  for (int32_t tile = 0; tile < query.tiles; ++tile) {
    const int32_t size = query.tile_begin[tile + 1] - query.tile_begin[tile], parts = (size + most_rows - 1) / most_rows;
    const int32_t step = static_cast<int32_t>(round_up(parts == 0 ? 1 : (size + parts - 1) / parts, kRowMultiple));
    for (int32_t first = 0; first < size; first += step) chunks.push_back({tile, first, std::min(step, size - first)});
  }
  return chunks;
}

std::vector<Unit> make_units(const TensorView& q, const PlanView& plan) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < q.batch(); ++b) {
    for (int64_t h = 0; h < q.heads(); ++h) units.push_back({b, h, plan.head_class[plan.heads == 1 ? 0 : h]});
  }
  return units;
}

char* head_data(const TensorView& view, const Unit& unit) {
  return static_cast<char*>(view.data) + (unit.batch * view.strides[0] + unit.head * view.strides[1]) * size_of(view.dtype);
}

}  // namespace slidetile::cpu
