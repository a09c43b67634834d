// Renders batches of training clips ahead of time, on threads of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "video/sprites.h"

namespace slidetile::video {

/// The clips of one training step, 8 bits a channel.
struct ClipBatch {
  std::vector<Scene> scenes;    // [clips]
  std::vector<uint8_t> pixels;  // [clips, t, h, w, 3]
};

struct ClipSourceOptions {
  uint64_t seed = 0;
  Dim3 extent{16, 32, 32};
  int clips = 1;  // in a batch; at most 4096
  SceneMix mix{};
  int threads = 0;  // 0: all that this process may use but one
};

/// The batch of a step, the same for the same options whatever the number of threads.
ClipBatch clip_batch(const ClipSourceOptions& options, uint64_t step);

/// Batches of the steps from `first_step` on, in order, a few of them rendered ahead.
class ClipSource {
 public:
  ClipSource(const ClipSourceOptions& options, uint64_t first_step);
  ~ClipSource();
  ClipSource(const ClipSource&) = delete;
  ClipSource& operator=(const ClipSource&) = delete;

  /// The next step's batch; waits where it is not ready. Throws what rendering threw.
  ClipBatch take();
  /// Seconds that take() has waited so far.
  double seconds_waited() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slidetile::video
