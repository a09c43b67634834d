// Tells a model where its tokens are: rotations see distances alone, so that in pure noise no token can know its frame or its place.
#pragma once

#include <torch/types.h>

#include "video/dit_config.h"

namespace slidetile::video {

inline constexpr int64_t kCoordinateChannels = 3;

/// Channels of latents that a model with this config denoises: all that it writes. Throws unless it reads just those, or those and the
/// coordinates.
int64_t latent_channels(const DitConfig& config);

/// What the model reads for latents [b, latent_channels, t, h, w]: themselves, and where the config has channels for them the coordinates
/// of each sample along t, h and w, from -1 for the first to 1 for the last.
torch::Tensor model_input(const torch::Tensor& latents, const DitConfig& config);

}  // namespace slidetile::video
