// Forward attention on Hopper: what its translation units share.
#pragma once

namespace slidetile::cuda {

struct HopperForwardParams;

/// Which of the kernels to launch, and how.
struct ForwardLaunch {
  int head_dim = 0, step_rows = 0, cluster = 0;
  int ctas = 0;
  void* stream = nullptr;  // cudaStream_t
};

void launch_forward_sm90_bf16(const HopperForwardParams& params, const ForwardLaunch& launch);
void launch_forward_sm90_f16(const HopperForwardParams& params, const ForwardLaunch& launch);

}  // namespace slidetile::cuda
