// The order of the CPU kernels' work: everything once, and nothing waits for what comes later.
#include "slidetile/cpu/schedule.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

using slidetile::cpu::Schedule;

namespace {

// Takes the items in order as one thread would: with the counts of what is done before it, no item would wait.
void check_schedule(const Schedule::Extent& extent) {
  CAPTURE(extent.units);
  CAPTURE(extent.chunks);
  CAPTURE(extent.groups);
  CAPTURE(extent.workers);
  const Schedule schedule(extent);
  std::vector<int64_t> packed(static_cast<size_t>(extent.units)), attended(packed);
  std::vector<char> seen_groups(static_cast<size_t>(extent.units * extent.groups)),
      seen_chunks(static_cast<size_t>(extent.units * extent.chunks));
  CHECK(schedule.items() == extent.units * (extent.groups + extent.chunks));
  CHECK(schedule.slots() <= extent.units);
  bool right = true;
  for (int64_t index = 0; index < schedule.items(); ++index) {
    const Schedule::Item item = schedule.item(index);
    const bool packs = item.kind == Schedule::Item::Kind::kPack;
    const auto unit = static_cast<size_t>(item.unit);
    right = right && item.unit >= 0 && item.unit < extent.units && item.place >= 0 && item.place < (packs ? extent.groups : extent.chunks);
    REQUIRE(right);
    right = right && (packs || index >= schedule.prologue());
    char& seen = packs ? seen_groups[static_cast<size_t>(item.unit * extent.groups + item.place)]
                       : seen_chunks[static_cast<size_t>(item.unit * extent.chunks + item.place)];
    right = right && seen == 0;
    seen = 1;
    if (packs) {
      if (item.unit >= schedule.slots()) right = right && attended[static_cast<size_t>(item.unit - schedule.slots())] == extent.chunks;
      ++packed[unit];
    } else {
      right = right && packed[unit] == extent.groups;
      ++attended[unit];
    }
  }
  CHECK(right);
}

}  // namespace

TEST_CASE("every item once, in an order without waiting") {
  check_schedule({1, 1, 1, 1});
  check_schedule({24, 600, 113, 16});
  check_schedule({24, 1, 1, 128});
  check_schedule({3, 0, 2, 4});
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    const auto up_to = [&](uint32_t most) {
      return static_cast<int64_t>(1 + random() % most);
    };
    check_schedule({up_to(30), up_to(40), up_to(10), up_to(64)});
  }
}
