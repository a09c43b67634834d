// Attention backward on Hopper: what its translation units share.
#pragma once

namespace slidetile::cuda {

struct BackwardParams;

/// How key blocks add to dq.
enum class DqOrder {
  kInTurn,  // in the order of work: equal inputs give equal bits
  kAny,     // as they come
};

struct BackwardLaunch {
  int head_dim = 0;
  int ctas = 0;
  DqOrder order = DqOrder::kInTurn;
  void* stream = nullptr;  // cudaStream_t
};

/// All kernels of a call, one after the other.
void launch_backward_sm90_bf16(const BackwardParams& params, const BackwardLaunch& how);
void launch_backward_sm90_f16(const BackwardParams& params, const BackwardLaunch& how);

}  // namespace slidetile::cuda
