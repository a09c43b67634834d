// Grids, plans and planners for Python.
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <tuple>

#include "convert.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"
#include "slidetile/plan.h"
#include "slidetile/window.h"
#include "slidetile/window_clear.h"
#include "slidetile/window_natten.h"
#include "slidetile/window_swin.h"

namespace slidetile::python {

// Uploads happen once a device: forward reads the plan, backward also the transposed one.
struct SharedPlan::DeviceCopies {
  std::map<int, DevicePlan> forward, both;
};

SharedPlan::SharedPlan(Plan plan) : plan_(std::move(plan)), host_(view_of(plan_)), copies_(std::make_unique<DeviceCopies>()) {}
SharedPlan::~SharedPlan() = default;

const Plan& SharedPlan::transposed() {
  const std::lock_guard lock(mutex_);
  if (transposed_ == nullptr) {
    transposed_ = std::make_unique<Plan>(transpose(plan_));
    host_transposed_ = view_of(*transposed_);
  }
  return *transposed_;
}

PlanView SharedPlan::view(const Device& device) {
  if (device.type == DeviceType::kCpu) return host_;
  const std::lock_guard lock(mutex_);
  if (const auto known = copies_->both.find(device.index); known != copies_->both.end()) return known->second.view();
  auto known = copies_->forward.find(device.index);
  if (known == copies_->forward.end()) known = copies_->forward.emplace(device.index, DevicePlan(plan_, device)).first;
  return known->second.view();
}

PlanView SharedPlan::transposed_view(const Device& device) {
  const Plan& transposed = this->transposed();
  if (device.type == DeviceType::kCpu) return host_transposed_;
  const std::lock_guard lock(mutex_);
  auto known = copies_->both.find(device.index);
  if (known == copies_->both.end()) known = copies_->both.emplace(device.index, DevicePlan(plan_, transposed, device)).first;
  return known->second.transposed();
}

namespace {

using Windows = std::vector<Extents>;

Grid grid_of(const Extents& canvas, const Extents& tile) { return Grid(dim3_of(canvas), dim3_of(tile)); }

std::vector<Window> windows_of(const Windows& windows) {
  std::vector<Window> result;
  for (const Extents& window : windows) result.push_back(dim3_of(window));
  return result;
}

template <typename T>
nb::object numpy_of(std::vector<T> values, std::vector<size_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  const nb::capsule owner(owned, [](void* memory) noexcept { delete static_cast<std::vector<T>*>(memory); });
  return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), shape.size(), shape.data(), owner));
}

PlanPtr sliding(const Extents& canvas, const Extents& tile, const Windows& windows, std::pair<int64_t, int64_t> extra) {
  return remember(sliding_tile_plan(grid_of(canvas, tile), windows_of(windows), {extra.first, extra.second}));
}

PlanPtr full(const Extents& canvas, const Extents& tile, std::pair<int64_t, int64_t> extra) {
  return remember(full_plan(grid_of(canvas, tile), {extra.first, extra.second}));
}

// (window, stride, dilation, causal) of one head.
using Natten = std::tuple<Extents, Extents, Extents, std::array<bool, 3>>;

PlanPtr natten(const Extents& canvas, const Extents& tile, const std::vector<Natten>& heads, std::pair<int64_t, int64_t> extra) {
  std::vector<NattenWindow> windows;
  for (const auto& [window, stride, dilation, causal] : heads) {
    windows.push_back({.window = dim3_of(window), .stride = dim3_of(stride), .dilation = dim3_of(dilation), .causal = causal});
  }
  return remember(natten_plan(grid_of(canvas, tile), windows, {extra.first, extra.second}));
}

PlanPtr clear(const Extents& canvas, const Extents& tile, int32_t radius, std::pair<int64_t, int64_t> extra) {
  return remember(clear_plan(grid_of(canvas, tile), radius, {extra.first, extra.second}));
}

// `window` is (window, shift).
PlanPtr swin(const Extents& canvas, const Extents& tile, const std::pair<Extents, Extents>& window, std::pair<int64_t, int64_t> extra) {
  const SwinWindow given{.window = dim3_of(window.first), .shift = dim3_of(window.second)};
  return remember(swin_plan(grid_of(canvas, tile), given, {extra.first, extra.second}));
}

// A tiling of a sequence that holds the canvas in tile order, then `after` tokens. Where all tiles are whole this is a one-dimensional
// grid, which every kernel knows; else a list of runs.
Tiling tile_ordered(const Grid& grid, int64_t after) {
  const auto tile = static_cast<int32_t>(grid.tile().volume());
  const auto tokens = static_cast<int32_t>(grid.tokens());
  if (int64_t{tile} * grid.tile_count() == grid.tokens()) return make_tiling(Grid({1, 1, tokens}, {1, 1, tile}), {0, after});
  Tiling tiling = make_tiling(grid, {0, after});
  tiling.grid = Grid();
  tiling.extra = {0, after};
  std::iota(tiling.token.begin(), tiling.token.end(), 0);
  return tiling;
}

// Sliding tile attention for tokens in tile order. Queries have `text.first` text tokens after the canvas and keys `text.second`.
PlanPtr sliding_in_tile_order(const Extents& canvas, const Extents& tile, const Windows& windows, std::pair<int64_t, int64_t> text) {
  const Grid grid = grid_of(canvas, tile);
  const std::vector<Window> given = windows_of(windows);
  const Plan plan = sliding_tile_plan(grid, given);
  const Tiling query = tile_ordered(grid, text.first), key = tile_ordered(grid, text.second);
  PlanBuilder builder(query, key);
  std::vector<int32_t> all(static_cast<size_t>(key.tiles()));
  std::iota(all.begin(), all.end(), 0);
  std::vector<int32_t> row;
  for (int32_t head_class = 0; head_class < plan.classes(); ++head_class) {
    for (int32_t q = 0; q < query.tiles(); ++q) {
      if (q >= grid.tile_count()) {
        builder.add_row(all);
        continue;
      }
      const int32_t source = plan.row_of[static_cast<size_t>(head_class) * grid.tile_count() + q];
      row.assign(plan.key_tile.begin() + plan.row_first(source), plan.key_tile.begin() + plan.row_last(source));
      row.insert(row.end(), all.begin() + grid.tile_count(), all.end());
      builder.add_row(row);
    }
  }
  return remember(builder.finish(plan.head_class));
}

nb::object mask_of(SharedPlan& shared, int64_t head) {
  const Plan& plan = shared.plan();
  require(head >= 0 && (plan.heads() == 1 || head < plan.heads()), "mask: head ", head, ", the plan has ", plan.heads());
  const auto rows = static_cast<size_t>(plan.query.tokens()), columns = static_cast<size_t>(plan.key.tokens());
  require(columns == 0 || rows <= (size_t{1} << 33) / columns, "mask: ", rows, " x ", columns, " tokens are more than 2^33 pairs");
  std::vector<uint8_t> seen(rows * columns);
  for (int32_t q = 0; q < plan.query.tiles(); ++q) {
    const int32_t row = plan.row(head, q);
    for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
      const int32_t k = plan.key_tile[static_cast<size_t>(entry)], size = plan.key.tile_size(k), mask = plan.mask(entry);
      for (int32_t i = 0; i < plan.query.tile_size(q); ++i) {
        const uint64_t* words = mask < 0 ? nullptr : &plan.mask_words[static_cast<size_t>(plan.mask_begin[mask] + i * ((size + 63) / 64))];
        uint8_t* to = &seen[static_cast<size_t>(plan.query.token[plan.query.tile_begin[q] + i]) * columns];
        for (int32_t j = 0; j < size; ++j) {
          if (words == nullptr || (words[j / 64] >> (j % 64) & 1) != 0) to[plan.key.token[plan.key.tile_begin[k] + j]] = 1;
        }
      }
    }
  }
  return numpy_of(std::move(seen), {rows, columns});
}

std::vector<int32_t> key_tiles(SharedPlan& shared, int64_t head, int32_t query_tile) {
  const Plan& plan = shared.plan();
  require(head >= 0 && (plan.heads() == 1 || head < plan.heads()), "key tiles: head ", head, ", the plan has ", plan.heads());
  require(query_tile >= 0 && query_tile < plan.query.tiles(), "key tiles: query tile ", query_tile, ", the plan has ", plan.query.tiles());
  const int32_t row = plan.row(head, query_tile);
  return {plan.key_tile.begin() + plan.row_first(row), plan.key_tile.begin() + plan.row_last(row)};
}

// Positions of the keys that one query sees, ascending.
nb::object keys_of(SharedPlan& shared, int64_t head, int64_t query_token) {
  const Plan& plan = shared.plan();
  require(head >= 0 && (plan.heads() == 1 || head < plan.heads()), "keys: head ", head, ", the plan has ", plan.heads());
  const auto found = std::find(plan.query.token.begin(), plan.query.token.end(), query_token);
  require(found != plan.query.token.end(), "keys: query token ", query_token, ", the plan has ", plan.query.tokens());
  const auto place = static_cast<int32_t>(found - plan.query.token.begin());
  const auto next = std::upper_bound(plan.query.tile_begin.begin(), plan.query.tile_begin.end(), place);
  const auto tile = static_cast<int32_t>(next - plan.query.tile_begin.begin()) - 1;
  const int32_t row = plan.row(head, tile), i = place - *std::prev(next);
  std::vector<int32_t> keys;
  for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
    const int32_t k = plan.key_tile[static_cast<size_t>(entry)], size = plan.key.tile_size(k), mask = plan.mask(entry);
    const uint64_t* words = mask < 0 ? nullptr : &plan.mask_words[static_cast<size_t>(plan.mask_begin[mask] + i * ((size + 63) / 64))];
    for (int32_t j = 0; j < size; ++j) {
      if (words == nullptr || (words[j / 64] >> (j % 64) & 1) != 0) keys.push_back(plan.key.token[plan.key.tile_begin[k] + j]);
    }
  }
  std::sort(keys.begin(), keys.end());
  const size_t size = keys.size();
  return numpy_of(std::move(keys), {size});
}

nb::object bytes_of(SharedPlan& shared) {
  std::vector<uint8_t> bytes = to_bytes(shared.plan());
  const size_t size = bytes.size();
  return numpy_of(std::move(bytes), {size});
}

template <Check check>
PlanPtr from_array(nb::handle object) {
  const ArrayArg array = array_from(object, "plan", Access::kRead);
  require(std::string(array.dtype) == "u8" && array.axes == 1 && array.device.type == DeviceType::kCpu,
          "plan: expected one axis of uint8 on the host");
  require(array.shape[0] <= 1 || array.strides[0] == 1, "plan: expected contiguous bytes");
  return plan_from_bytes({static_cast<const uint8_t*>(array.data), static_cast<size_t>(array.shape[0])}, check);
}

nb::object tile_order(const Extents& canvas, const Extents& tile) {
  std::vector<int32_t> token = make_tiling(grid_of(canvas, tile)).token;
  const size_t size = token.size();
  return numpy_of(std::move(token), {size});
}

void bind_statistics(nb::class_<SharedPlan>& plan) {
  plan.def_prop_ro("density", [](SharedPlan& p) { return density(p.plan()); })
      .def("visible_pairs", [](SharedPlan& p, int64_t heads) { return visible_pairs(p.plan(), heads); })
      .def("forward_flops", [](SharedPlan& p, int64_t heads, int64_t head_dim) { return forward_flops(p.plan(), heads, head_dim); })
      .def("backward_flops", [](SharedPlan& p, int64_t heads, int64_t head_dim) { return backward_flops(p.plan(), heads, head_dim); })
      .def("count_blocks", [](SharedPlan& p, int64_t query_block, int64_t key_block) {
        const BlockCounts counts = count_blocks(p.plan(), query_block, key_block);
        return std::tuple(counts.full, counts.partial, counts.empty);
      });
}

}  // namespace

void bind_plans(nb::module_& module) {
  nb::class_<SharedPlan> plan(module, "Plan", "Which key tiles every query tile reads. Made by the planners; never changes.");
  plan.def_prop_ro("query_tokens", [](SharedPlan& p) { return p.plan().query.tokens(); })
      .def_prop_ro("key_tokens", [](SharedPlan& p) { return p.plan().key.tokens(); })
      .def_prop_ro("query_tiles", [](SharedPlan& p) { return p.plan().query.tiles(); })
      .def_prop_ro("key_tiles_count", [](SharedPlan& p) { return p.plan().key.tiles(); })
      .def_prop_ro("heads", [](SharedPlan& p) { return p.plan().heads(); })
      .def_prop_ro("classes", [](SharedPlan& p) { return p.plan().classes(); })
      .def_prop_ro("rows", [](SharedPlan& p) { return p.plan().rows(); })
      .def_prop_ro("entries", [](SharedPlan& p) { return p.plan().entries(); })
      .def_prop_ro("masks", [](SharedPlan& p) { return p.plan().masks(); })
      .def_prop_ro("canvas", [](SharedPlan& p) { return extents_of(p.plan().query.grid.canvas()); })
      .def_prop_ro("tile", [](SharedPlan& p) { return extents_of(p.plan().query.grid.tile()); })
      .def_prop_ro("grid_tiles", [](SharedPlan& p) { return extents_of(p.plan().query.grid.tiles()); })
      .def_prop_ro("extra", [](SharedPlan& p) { return std::pair(p.plan().query.extra.before, p.plan().query.extra.after); })
      .def("key_tiles", key_tiles, nb::arg("head"), nb::arg("query_tile"))
      .def("mask", mask_of, nb::arg("head"))
      .def("keys", keys_of, nb::arg("head"), nb::arg("query_token"))
      .def("bytes", bytes_of)
      .def("transpose", [](SharedPlan& p) { return remember(Plan(p.transposed())); })
      .def("union", [](SharedPlan& a, SharedPlan& b) { return remember(plan_union(a.plan(), b.plan())); });
  bind_statistics(plan);

  const auto released = nb::call_guard<nb::gil_scoped_release>();
  module.def("plan_from_bytes", from_array<Check::kAll>, nb::arg("bytes"));
  module.def("plan_of", from_array<Check::kUnknown>, nb::arg("bytes"));
  module.def("sliding_tile_plan", sliding, nb::arg("canvas"), nb::arg("tile"), nb::arg("windows"), nb::arg("extra"), released);
  module.def("full_plan", full, nb::arg("canvas"), nb::arg("tile"), nb::arg("extra"), released);
  module.def("natten_plan", natten, nb::arg("canvas"), nb::arg("tile"), nb::arg("windows"), nb::arg("extra"), released);
  module.def("clear_plan", clear, nb::arg("canvas"), nb::arg("tile"), nb::arg("radius"), nb::arg("extra"), released);
  module.def("swin_plan", swin, nb::arg("canvas"), nb::arg("tile"), nb::arg("window"), nb::arg("extra"), released);
  module.def("sliding_tile_plan_in_tile_order", sliding_in_tile_order, nb::arg("canvas"), nb::arg("tile"), nb::arg("windows"),
             nb::arg("text"), released);
  module.def(
      "grid_tiles", [](const Extents& canvas, const Extents& tile) { return extents_of(grid_of(canvas, tile).tiles()); }, nb::arg("canvas"),
      nb::arg("tile"));
  module.def("tile_order", tile_order, nb::arg("canvas"), nb::arg("tile"));
  module.def(
      "dim3", [](const std::string& text) { return extents_of(dim3_from_string(text)); }, nb::arg("text"));
  module.def("require_fits", [](const Extents& window, const Extents& canvas, const Extents& tile) {
    require_fits(dim3_of(window), grid_of(canvas, tile));
  });
}

}  // namespace slidetile::python
