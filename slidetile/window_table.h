// Which window each head of each layer uses at each sampling step, and the files that say so.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slidetile/window.h"

namespace slidetile {

/// How a table is written. kPublished is the form in which mask search results are published: {"0_0_0": [5, 6, 10], ...} with a
/// key "step_layer_head" for each window, in tiles. kCompact names each window by a letter:
/// {"windows": {"a": [5, 6, 10], "b": [5, 3, 3]}, "steps": [["aab", ...], ...]} with, for each step and layer, a letter for each head.
enum class TableForm { kPublished, kCompact };

/// A window for every (step, layer, head); steps are indices of the sampler's steps.
class WindowTable {
 public:
  /// windows: [steps, layers, heads]. Throws on extents below 1, another number of windows, and windows of zero or less.
  WindowTable(int32_t steps, int32_t layers, int32_t heads, std::vector<Window> windows);

  /// Reads either form, plain or compressed by gzip. Throws Error(kInvalidArgument) where an entry is missing, given twice, or no
  /// window; `name` stands for the table in the message.
  static WindowTable from_json(std::string_view text, const std::string& name = "text");
  static WindowTable load(const std::string& path);
  std::string to_json(TableForm form) const;
  /// Compressed by gzip where the path ends in ".gz".
  void save(const std::string& path, TableForm form) const;

  int32_t steps() const noexcept { return steps_; }
  int32_t layers() const noexcept { return layers_; }
  int32_t heads() const noexcept { return heads_; }

  const Window& at(int32_t step, int32_t layer, int32_t head) const;
  /// Of all heads; valid while the table lives.
  std::span<const Window> windows(int32_t step, int32_t layer) const;

  /// The fraction of pairs of canvas tokens that the windows hide on a grid, averaged over the table or over one of its steps.
  double sparsity(const Grid& grid) const;
  double sparsity(const Grid& grid, int32_t step) const;

  friend bool operator==(const WindowTable&, const WindowTable&) = default;

 private:
  double sparsity_of(const Grid& grid, std::span<const Window> windows) const;

  int32_t steps_, layers_, heads_;
  std::vector<Window> windows_;
};

/// The published result of the mask search for HunyuanVideo on canvas 30x48x80 with tile 6x8x8: 50 steps, 60 layers, 24 heads; steps 0 to
/// 14 are dense. Part of the library: it needs no file.
const WindowTable& hunyuan_strategy();

}  // namespace slidetile
