// Text to video for programs: a model's folder and a sentence give a clip. Needs none of torch's headers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "video/attention_pattern.h"
#include "video/sprites.h"

namespace slidetile::video {

/// nullptr where this build can generate, else why it cannot.
const char* why_no_generation() noexcept;

struct GeneratorOptions {
  std::string model;           // folder
  std::string device = "cpu";  // or "cuda", "cuda:1"
  std::string dtype = "auto";  // of weights and activations: f32, bf16, f16, or what is fastest on the device
  int threads = 0;             // on CPU; 0: all that this process may use
};

struct GenerateRequest {
  std::string sentence;
  uint64_t seed = 0;
  Dim3 extent{16, 64, 64};  // frames, height, width in pixels
  int64_t steps = 20;
  double guidance = 4;
  AttentionPattern pattern;
  std::function<void(int64_t done, int64_t steps)> on_step;
};

struct Generated {
  Clip clip;
  std::vector<double> step_seconds;
  double attention_seconds = 0;  // of the sum of these, in self-attention
  double density = 1;            // visible pairs as a fraction of all
  int64_t attention_calls = 0;
  std::string kernel, device, dtype;
  int64_t layers = 0, heads = 0, head_dim = 0, tokens = 0;

  double seconds() const noexcept;
};

/// A model in memory. Every failure of torch comes as Error in one line: out of memory as kOutOfMemory.
class Generator {
 public:
  explicit Generator(const GeneratorOptions& options);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  Generated generate(const GenerateRequest& request);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slidetile::video
