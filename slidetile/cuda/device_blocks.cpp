// What the lowering of a plan comes to, for those who want to see it.
#include "slidetile/cuda/lowering.h"
#include "slidetile/device_plan.h"

namespace slidetile {
namespace {

std::vector<int64_t> blocks_of_tiles(const cuda::Block* blocks, const cuda::BlockShape& shape, int32_t tiles) {
  std::vector<int64_t> counts(static_cast<size_t>(tiles));
  for (int32_t tile = 0; tile < tiles; ++tile) {
    for (int32_t i = 0; i < shape.per_tile; ++i) counts[static_cast<size_t>(tile)] += blocks[int64_t{tile} * shape.per_tile + i].flags != 0;
  }
  return counts;
}

}  // namespace

DeviceBlocks device_blocks(const Plan& plan) {
  if (plan.masks() > 0) return {.why_not = "token masks run on the portable kernels"};
  const cuda::LoweringImage image = cuda::lower(plan);
  const cuda::ForwardLowering lowering = cuda::relocated(image, image.bytes.data()).forward;
  if (lowering.why_not != nullptr) return {.why_not = lowering.why_not};
  DeviceBlocks result{.why_not = {},
                      .query = lowering.query.box,
                      .key = lowering.key.box,
                      .query_rows = lowering.query.slot_rows,
                      .key_rows = lowering.key.slot_rows};
  const std::vector<int64_t> query_blocks = blocks_of_tiles(lowering.query_blocks, lowering.query, plan.query.tiles()),
                             key_blocks = blocks_of_tiles(lowering.key_blocks, lowering.key, plan.key.tiles());
  for (int32_t head = 0; head < plan.heads(); ++head) {
    for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
      const int32_t row = plan.row(head, tile);
      int64_t keys = 0;
      for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
        keys += key_blocks[static_cast<size_t>(plan.key_tile[static_cast<size_t>(entry)])] * result.key_rows;
      }
      // The last step of a row is filled up.
      keys = (keys + lowering.step_rows - 1) / lowering.step_rows * lowering.step_rows;
      result.pairs += static_cast<double>(query_blocks[static_cast<size_t>(tile)] * result.query_rows) * static_cast<double>(keys);
    }
  }
  return result;
}

}  // namespace slidetile
