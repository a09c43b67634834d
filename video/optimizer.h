// Muon for the matrices of the blocks, AdamW for all else, with f32 masters and their running mean.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace slidetile::video {

struct OptimizerOptions {
  double muon_rate = 0.01;
  double adam_rate = 2e-3;
  double momentum = 0.95;  // Muon's, with Nesterov's look ahead
  double beta1 = 0.9, beta2 = 0.98;
  double mean_decay = 0.995;  // of the running mean, less in the first steps
};

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// The nearest matrices with orthonormal rows or columns, roughly: five Newton-Schulz steps (singular values come to 0.7 to 1.2).
/// [n, rows, columns] of any float type; computes in bf16 on CUDA.
torch::Tensor orthogonalized(const torch::Tensor& matrices);

/// True for what Muon trains: weights of attention and feed-forward in the blocks.
bool is_muon_parameter(const std::string& name, const torch::Tensor& parameter);

/// Equal matrices are held as one tensor, so that a step takes few launches.
class Optimizer {
 public:
  /// Parameters may be f32 or less exact; the optimizer holds them in f32 and writes them back after each step.
  Optimizer(NamedTensors parameters, const OptimizerOptions& options);

  /// Takes the parameters' gradients, and clears them. Both rates are multiplied by `factor`.
  void step(double factor);

  /// Gives the parameters the running mean or, again, the masters.
  void show_mean();
  void show_masters();

  /// All that a step depends on, by name: views, not copies.
  NamedTensors state() const;
  int64_t steps() const noexcept { return steps_; }
  /// Copies a saved state in; `find` returns the tensor of a name with the shape that is expected, or throws.
  void load(const std::function<torch::Tensor(const std::string& name, const torch::Tensor& like)>& find, int64_t steps);

 private:
  struct MuonGroup {
    std::vector<std::string> names;
    std::vector<torch::Tensor> parameters;
    torch::Tensor masters, mean, momentum;  // [n, rows, columns]
  };
  struct AdamGroup {
    std::vector<std::string> names;
    std::vector<torch::Tensor> parameters, masters, mean, first, second, counts;
  };

  OptimizerOptions options_;
  std::vector<MuonGroup> muon_;
  AdamGroup adam_;
  int64_t steps_ = 0;
};

}  // namespace slidetile::video
