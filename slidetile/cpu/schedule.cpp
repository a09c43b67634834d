#include "slidetile/cpu/schedule.h"

#include <algorithm>

namespace slidetile::cpu {
namespace {

constexpr int64_t kItemsPerWorker = 4;  // that heads in flight keep ready

}  // namespace

Schedule::Schedule(const Extent& extent)
    : extent_(extent), packed_(static_cast<size_t>(extent.units)), attended_(static_cast<size_t>(extent.units)) {
  const int64_t chunks = std::max<int64_t>(1, extent.chunks), most = std::max<int64_t>(1, extent.units - 1);
  ahead_ = std::clamp<int64_t>((kItemsPerWorker * extent.workers + chunks - 1) / chunks, 1, most);
  slots_ = std::min(extent.units, ahead_ + 1);
  prologue_ = std::min(ahead_, extent.units) * extent.groups;
  with_packing_ = std::max<int64_t>(0, extent.units - ahead_);
}

Schedule::Item Schedule::item(int64_t index) const noexcept {
  if (index < prologue_) return {Item::Kind::kPack, index / extent_.groups, index % extent_.groups};
  index -= prologue_;
  if (index >= with_packing_ * segment()) {
    index -= with_packing_ * segment();
    return {Item::Kind::kAttend, with_packing_ + index / extent_.chunks, index % extent_.chunks};
  }
  const int64_t unit = index / segment(), within = index % segment(), half = extent_.chunks / 2;
  if (within >= half && within < half + extent_.groups) return {Item::Kind::kPack, unit + ahead_, within - half};
  return {Item::Kind::kAttend, unit, within < half ? within : within - extent_.groups};
}

}  // namespace slidetile::cpu
