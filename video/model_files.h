// Parameters of torch modules as safetensors files, sharded or not.
#pragma once

#include <torch/nn/module.h>

#include <string>

namespace slidetile::video {

/// Copies tensors into a module's parameters: from `folder`/`stem`.safetensors, or from the shards that
/// `folder`/`stem`.safetensors.index.json names. Each parameter must be there with its shape, and nothing else; Error names the tensor,
/// what was found and what was expected.
void load_parameters(torch::nn::Module& module, const std::string& folder, const std::string& stem);

/// Writes `path` whole or not at all: parameters in `dtype` (f32, bf16 or f16), but f32 for those that stay in it (stays_f32).
void save_parameters(const torch::nn::Module& module, const std::string& path, torch::ScalarType dtype);

/// The whole of a text file of at most a few MB.
std::string read_text(const std::string& path);

}  // namespace slidetile::video
