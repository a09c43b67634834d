// A text-to-video model as a folder, laid out as diffusers does: transformer, text encoder, scheduler.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "video/dit.h"
#include "video/scheduler.h"

namespace slidetile::video {

/// Learned embeddings of the words of vocabulary() (video/sprites.h) and of their places. A sentence is padded to `max_words` with the
/// null word, whose token is the vocabulary's size; the empty prompt is nothing but null words.
class TextEncoder : public torch::nn::Module {
 public:
  explicit TextEncoder(int64_t text_dim, const torch::TensorOptions& options = {});

  static constexpr int64_t kMaxWords = 32;
  static int64_t null_token();

  /// Tokens of sentences, int64 [sentences, max_words] on the CPU; throws on unknown words and on too many.
  static torch::Tensor tokens(const std::vector<std::string>& sentences);
  /// [b, max_words] -> [b, max_words, text_dim]
  torch::Tensor forward(const torch::Tensor& tokens);
  int64_t text_dim() const { return words_.size(1); }

 private:
  torch::Tensor words_;      // [vocabulary + 1, text_dim]
  torch::Tensor positions_;  // [max_words, text_dim]
};

struct Model {
  std::shared_ptr<Dit> transformer;
  std::shared_ptr<TextEncoder> text_encoder;
  SchedulerConfig scheduler;
};

/// Reads a folder that save_model or diffusers wrote (then with our text encoder). Weights come to `device` in `dtype`, but for those
/// kept in f32. Throws Error that names file and tensor, what was found and what was expected.
Model load_model(const std::string& folder, const torch::Device& device, torch::ScalarType dtype = torch::kFloat32);
/// Writes the folder, with matrices in `dtype`; every file appears whole or not at all, model_index.json last.
void save_model(const std::string& folder, const Model& model, torch::ScalarType dtype = torch::kFloat32);

/// A transformer alone: a folder with config.json and diffusion_pytorch_model.safetensors, or its shards and their index.
std::shared_ptr<Dit> load_dit(const std::string& folder, const torch::Device& device, torch::ScalarType dtype = torch::kFloat32);

}  // namespace slidetile::video
