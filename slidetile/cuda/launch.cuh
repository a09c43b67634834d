// The one place that launches kernels.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "slidetile/cuda/device.h"

namespace slidetile::cuda {

struct LaunchShape {
  const char* name = "";  // for errors
  dim3 grid, block;
  int shared_bytes = 0;
  void* stream = nullptr;  // cudaStream_t
  int cluster = 1;         // blocks of a cluster along x (Hopper)
  bool together = false;   // all blocks are on the device at once, or the launch fails
};

/// Launches kKernel on the current device; throws Error(device) if that fails. Allocates nothing and does not wait. What a kernel needs
/// once per device, its limit of shared memory, is set at its first launch there.
template <auto kKernel, typename... Args>
void launch(const LaunchShape& shape, const Args&... args) {
  static std::atomic<uint64_t> prepared{0};  // one bit a device
  constexpr int kBits = 64, kSharedWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kSharedWithoutAsking) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const uint64_t bit = device < kBits ? uint64_t{1} << device : 0;
    if ((prepared.load(std::memory_order_relaxed) & bit) == 0) {
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
            shape.name);
      prepared.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(shape.stream);
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.together) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kKernel, args...), shape.name);
}

}  // namespace slidetile::cuda
