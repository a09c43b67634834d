// The order of a call's work: when which head's keys are packed, and who waits for whom.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace slidetile::cpu {

template <typename Count>
void wait_for(const std::atomic<Count>& count, Count wanted) {
  while (count.load(std::memory_order_acquire) < wanted) std::this_thread::yield();
}

/// Items in one sequence that workers take from in order: the keys of the first heads, then for every head its chunks of rows, with the
/// keys of a head some places later packed in their middle, into the slot of the head before. An item waits only for earlier items, and
/// those were taken long before, so waiting is rare and cannot lock up on any number of threads, even on one that runs all workers' tasks
/// one after the other.
class Schedule {
 public:
  /// Heads (of all batch items), chunks of rows and groups of key tiles of each, threads.
  struct Extent {
    int64_t units, chunks, groups, workers;
  };
  explicit Schedule(const Extent& extent);

  struct Item {
    enum class Kind { kPack, kAttend } kind;
    int64_t unit, place;  // place: of the group of key tiles, or of the chunk
  };
  int64_t items() const noexcept { return prologue_ + with_packing_ * segment() + (extent_.units - with_packing_) * extent_.chunks; }
  /// The first of them, which pack only: they are long, and nothing else can start before.
  int64_t prologue() const noexcept { return prologue_; }
  Item item(int64_t index) const noexcept;

  /// Heads that are in memory at a time, and where.
  int64_t slots() const noexcept { return slots_; }
  int64_t slot_of(int64_t unit) const noexcept { return unit % slots_; }

  void wait_for_slot(int64_t unit) const {
    if (unit >= slots_) wait_for(attended_[static_cast<size_t>(unit - slots_)], extent_.chunks);
  }
  void wait_for_keys(int64_t unit) const { wait_for(packed_[static_cast<size_t>(unit)], extent_.groups); }
  /// An item is done.
  void finish(const Item& item) {
    auto& count = item.kind == Item::Kind::kPack ? packed_ : attended_;
    count[static_cast<size_t>(item.unit)].fetch_add(1, std::memory_order_release);
  }

 private:
  int64_t segment() const noexcept { return extent_.chunks + extent_.groups; }

  Extent extent_;
  int64_t ahead_, slots_, prologue_, with_packing_;
  std::vector<std::atomic<int64_t>> packed_, attended_;  // [units] items done
};

}  // namespace slidetile::cpu
