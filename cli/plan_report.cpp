#include "plan_report.h"

#include <algorithm>
#include <vector>

using namespace slidetile;

namespace {

int64_t bytes_of(const Plan& plan) {
  const auto bytes = [](const auto& values) {
    return static_cast<int64_t>(values.size() * sizeof(values[0]));
  };
  const auto of_tiling = [&](const Tiling& tiling) {
    return bytes(tiling.tile_begin) + bytes(tiling.token);
  };
  return of_tiling(plan.query) + of_tiling(plan.key) + bytes(plan.head_class) + bytes(plan.row_of) + bytes(plan.row_begin) +
         bytes(plan.key_tile) + bytes(plan.mask_of) + bytes(plan.mask_begin) + bytes(plan.mask_words);
}

}  // namespace

PlanReport report_on(const Plan& plan, int64_t heads, int64_t head_dim) {
  PlanReport report;
  const Grid& grid = plan.query.grid;
  report.heads = heads > 0 ? heads : plan.heads();
  report.density = density(plan);
  report.flops = forward_flops(plan, report.heads, head_dim);
  report.backward_flops = backward_flops(plan, report.heads, head_dim);
  report.dense_flops = report.flops / std::max(report.density, 1e-300);
  report.bytes = bytes_of(plan);
  report.on_hopper = device_blocks(plan);
  report.hopper_waste = report.on_hopper.pairs / std::max(static_cast<double>(visible_pairs(plan, plan.heads())), 1.0);

  struct Row {
    double entries = 0, masked = 0, tokens = 0;
  };
  std::vector<Row> rows(static_cast<size_t>(plan.rows()));
  for (int32_t row = 0; row < plan.rows(); ++row) {
    Row& sums = rows[static_cast<size_t>(row)];
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      ++sums.entries;
      sums.masked += plan.mask(entry) >= 0;
      sums.tokens += plan.key.tile_size(plan.key_tile[static_cast<size_t>(entry)]);
    }
  }
  const Dim3 n = grid.tiles();
  const int32_t centre = grid.tile_index({n.t / 2, n.h / 2, n.w / 2});
  report.keys_least = plan.key.tiles();
  const auto tiles = static_cast<double>(plan.key.tiles());
  for (int32_t head = 0; head < plan.heads(); ++head) {
    for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
      const Row& row = rows[static_cast<size_t>(plan.row(head, tile))];
      const auto add_to = [&](TilePairs& pairs) {
        pairs.full += row.entries - row.masked;
        pairs.mixed += row.masked;
        pairs.all += tiles;
      };
      add_to(report.canvas);
      if (tile == centre) add_to(report.centre);
      report.touched += row.tokens * plan.query.tile_size(tile);
      if (tile >= grid.tile_count()) continue;
      report.keys_mean += row.entries / (static_cast<double>(plan.heads()) * grid.tile_count());
      report.keys_least = std::min(report.keys_least, static_cast<int64_t>(row.entries));
      report.keys_most = std::max(report.keys_most, static_cast<int64_t>(row.entries));
    }
  }
  report.touched /= static_cast<double>(plan.heads()) * static_cast<double>(plan.query.tokens()) * static_cast<double>(plan.key.tokens());
  return report;
}
