#include "video/coordinates.h"

#include <torch/torch.h>

#include <array>

#include "slidetile/error.h"

namespace slidetile::video {

int64_t latent_channels(const DitConfig& config) {
  require(config.in_channels == config.out_channels || config.in_channels == config.out_channels + kCoordinateChannels, "the model reads ",
          config.in_channels, " channels and writes ", config.out_channels, ", expected as many, or ", kCoordinateChannels,
          " more to read: coordinates");
  return config.out_channels;
}

torch::Tensor model_input(const torch::Tensor& latents, const DitConfig& config) {
  if (config.in_channels == latent_channels(config)) return latents;
  const int64_t batch = latents.size(0);
  const std::array<int64_t, 3> extents{latents.size(2), latents.size(3), latents.size(4)};
  std::vector<torch::Tensor> parts{latents};
  for (size_t axis = 0; axis < 3; ++axis) {
    std::array<int64_t, 5> shape{1, 1, 1, 1, 1};
    shape[axis + 2] = extents[axis];
    // A lone sample lies in the middle.
    const torch::Tensor line =
        extents[axis] == 1 ? torch::zeros({1}, latents.options()) : torch::linspace(-1, 1, extents[axis], latents.options());
    parts.push_back(line.view(shape).expand({batch, 1, extents[0], extents[1], extents[2]}));
  }
  return torch::cat(parts, 1);
}

}  // namespace slidetile::video
