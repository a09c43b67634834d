// The state of a training run as one file, so that a kill at any moment leaves a whole one.
#pragma once

#include <cstdint>
#include <string>

#include "slidetile/safetensors.h"
#include "video/optimizer.h"

namespace slidetile::video {

/// Where a run stands.
struct TrainPosition {
  int64_t step = 0, stage = 0, stage_step = 0;  // steps done; stage from 0
  double stage_seconds = 0, seconds = 0;        // in the stage, in all
  std::string log;                              // rows so far, as log.csv has them
};

/// Writes `folder`/checkpoint_STEP.safetensors, then removes all but the last two.
void save_checkpoint(const std::string& folder, const Optimizer& optimizer, const TrainPosition& position);

/// The newest checkpoint's path, or "" where there is none.
std::string newest_checkpoint(const std::string& folder);

/// Throws Error that names the file and what is missing or does not fit.
TrainPosition load_checkpoint(const std::string& path, Optimizer& optimizer);

}  // namespace slidetile::video
