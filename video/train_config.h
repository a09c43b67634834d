// What a training run does: the model, the rates, and the stages that it goes through, as a JSON file says it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "slidetile/grid.h"
#include "slidetile/window.h"
#include "video/dit_config.h"
#include "video/sprites.h"

namespace slidetile::video {

/// Clips of one extent, for some steps or some minutes.
struct TrainStage {
  Dim3 extent{16, 64, 64};  // frames, height, width in pixels
  int batch = 32;
  int64_t steps = 0;  // of these two the one that is positive ends the stage
  double minutes = 0;
  double shift = 5;              // of the noise levels: as in sampling
  double rope_scale = 1;         // of rows and columns: 2 trains half the extent on the places of the whole
  std::optional<Window> window;  // in tiles; absent: dense
  Dim3 tile{4, 4, 4};            // in tokens
  double sparse = 1;             // share of the steps that use the window
  SceneMix mix{};
};

struct TrainConfig {
  DitConfig model;
  uint64_t seed = 1;
  double muon_rate = 0.01, adam_rate = 2e-3, mean_decay = 0.995;
  double caption_dropout = 0.1;
  int64_t warmup_steps = 100;
  double cooldown = 0.4;      // the last share of the run, in which rates fall to 0
  double sampling_shift = 5;  // goes to the model's scheduler
  std::vector<TrainStage> stages;
};

/// The model that ships: 9.1 million parameters; 32 x 32 pixels first, then 64 x 64 dense, then both dense and sparse.
TrainConfig default_train_config();

/// Absent keys keep the defaults; throws Error on unknown keys and on values out of range, naming key, value and what was expected.
TrainConfig train_config_from_json(const std::string& text, const std::string& name);
std::string to_json(const TrainConfig& config);

/// Minutes of all stages are stretched so that their sum is `minutes`; throws unless every stage is given in minutes.
void set_minutes(TrainConfig& config, double minutes);

}  // namespace slidetile::video
