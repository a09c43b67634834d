// Trains a text-to-video model by flow matching on sprites. Needs none of torch's headers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "video/train_config.h"

namespace slidetile::video {

/// How much larger the loss on clips that move left, right, up or down gets when the sentence says the opposite, as a fraction, at three
/// shares of noise: 0 until the direction is learnt.
inline constexpr std::array<double, 3> kReversalNoise{0.95, 0.9, 0.85};
using Reversal = std::array<double, 3>;

/// A row of the log: means since the last one.
struct TrainRow {
  int64_t step = 0, stage = 0;  // steps done in all; stage from 1
  double loss = 0, seconds = 0;
  std::optional<Reversal> reversal;
};

struct TrainProgress {
  TrainRow row;
  int64_t stages = 0;
  double rate_factor = 0, clips_per_second = 0, seconds_left = 0;
  double waited = 0;      // for clips, in seconds of the stage so far
  double host_share = 0;  // of the time since the last row, in which the host launched work: near 1 where that is what bounds a step
};

enum class TrainStart : uint8_t { kNew, kResume };

struct TrainRequest {
  TrainConfig config;
  std::string out;   // folder: checkpoints, and with each of them log.csv and model/; train.json
  std::string from;  // folder of a model whose weights to start with; empty: random
  TrainStart start = TrainStart::kNew;
  std::string device = "cpu";                                            // or "cuda", "cuda:1"
  int threads = 0;                                                       // 0: all that this process may use
  int64_t log_every = 10, reversal_every = 100, checkpoint_every = 500;  // steps
  std::function<void(const TrainProgress&)> on_row;
  std::function<void(const std::vector<TrainRow>&)> on_checkpoint;
};

struct TrainSummary {
  std::vector<TrainRow> log;
  double seconds = 0;
  std::string model;  // folder
  int64_t parameters = 0;
  double peak_gpu_gib = 0;
};

/// nullptr where this build can train, else why it cannot.
const char* why_no_training() noexcept;

/// Runs or resumes the stages. A run that was killed at any moment resumes from its last checkpoint; on CPU with stages in steps, to the
/// bits that it would have come to. Throws Error: an unusable folder, a folder that holds a run already, parts of checkpoints that are
/// missing or do not fit, a loss that is no number, torch's failures.
TrainSummary train(const TrainRequest& request);

}  // namespace slidetile::video
