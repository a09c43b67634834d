// The one place that launches kernels.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

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

/// Launches kKernel on the current device; throws Error(device) if that fails. Allocates nothing and does not wait. The kernel's limit of
/// shared memory is raised where a launch needs more than those before it.
template <auto kKernel, typename... Args>
void launch(const LaunchShape& shape, const Args&... args) {
  constexpr int kDevices = 64, kSharedWithoutAsking = 48 * 1024;
  static std::atomic<int> allowed[kDevices];  // bytes, of each device
  if (shape.shared_bytes > kSharedWithoutAsking) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    if (device >= kDevices || allowed[device].load(std::memory_order_relaxed) < shape.shared_bytes) {
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
            shape.name);
      if (device < kDevices) allowed[device].store(shape.shared_bytes, std::memory_order_relaxed);
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
