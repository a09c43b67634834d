// Writes a model's folder with random weights, for tests and timings that need a model but not its sense.
//   random_model FOLDER [tiny|sprites]     sprites: the extents of the model that comes with the project
#include <torch/torch.h>

#include <cstdio>
#include <cstring>
#include <exception>

#include "video/model.h"

using namespace slidetile::video;

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const bool tiny = argc < 3 || std::strcmp(argv[2], "sprites") != 0;
  DitConfig config;
  config.patch_size = {1, 4, 4};
  config.num_attention_heads = tiny ? 2 : 4;
  config.attention_head_dim = tiny ? 16 : 64;
  config.in_channels = config.out_channels = 3;
  config.text_dim = tiny ? 24 : 256;
  config.freq_dim = tiny ? 32 : 256;
  config.ffn_dim = tiny ? 64 : 1024;
  config.num_layers = tiny ? 2 : 8;
  try {
    torch::manual_seed(1);
    save_model(argv[1], {std::make_shared<Dit>(config), std::make_shared<TextEncoder>(config.text_dim), SchedulerConfig{.shift = 5}});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "random_model: %s\n", error.what());
    return 1;
  }
  return 0;
}
