// Sentences to clips: seeded noise, the scheduler's steps, guidance, and attention by a plan for each step, layer and head.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

#include "video/attention_pattern.h"
#include "video/model.h"
#include "video/sprites.h"

namespace slidetile::video {

/// One clip for each sentence; a clip depends on its own sentence and seed, not on its neighbours in the batch.
struct SampleRequest {
  std::vector<std::string> sentences;
  std::vector<uint64_t> seeds;  // one for each sentence
  Dim3 extent{16, 64, 64};      // of the latents: frames, height, width
  int64_t steps = 20;
  double guidance = 4;  // 1: the sentence alone, without a second half of the batch
  AttentionPattern pattern;
  std::function<void(int64_t done, int64_t steps)> on_step;  // after each step, where given
};

struct SampleResult {
  torch::Tensor latents;             // f32 [sentences, out_channels, t, h, w] on the model's device
  std::vector<double> step_seconds;  // of each step
  double attention_seconds = 0;      // in self-attention, of the sum of these
  int64_t attention_calls = 0;       // of our kernels
  double density = 1;                // visible pairs as a fraction of all, mean over steps and layers
  std::string kernel;                // that ran last
};

/// Throws Error on unknown words, an extent that the patch does not divide, windows beyond the canvas, and a table for other steps,
/// layers or heads.
SampleResult sample(const Model& model, const SampleRequest& request);

/// The start of a clip: f32 [channels, t, h, w] on the CPU, whatever the device that it is for.
torch::Tensor noise_of(uint64_t seed, int64_t channels, Dim3 extent);

/// Models of pixels see 2 x - 1 of a clip's values x. [b, 3, t, h, w] of any type and device -> clips.
std::vector<Clip> clips_of(const torch::Tensor& latents);
/// f32 [b, 3, t, h, w] on the CPU; clips of one extent.
torch::Tensor latents_of(const std::vector<Clip>& clips);

}  // namespace slidetile::video
