// Which tiles the tokens of a clip see while it is sampled, step by step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "slidetile/window_table.h"

namespace slidetile::video {

/// Dense where neither a window nor a table is given.
struct AttentionPattern {
  Dim3 tile{4, 4, 4};
  std::optional<Window> window;              // of every head of every layer
  std::shared_ptr<const WindowTable> table;  // or windows by (step, layer, head)
  int64_t dense_steps = 0;                   // so many first steps are dense whatever the rest says
};

}  // namespace slidetile::video
