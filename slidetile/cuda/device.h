// CUDA devices: what they can do (read once), the current one, and the runtime's errors as Error.
#pragma once

#include <cuda_runtime_api.h>

namespace slidetile::cuda {

/// Throws Error unless status is cudaSuccess: out_of_memory or device, naming the call.
void check(cudaError_t status, const char* call);

struct DeviceProperties {
  int capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int shared_bytes = 0;  // most that a block can have
};

/// What a kernel needs of a device.
enum class Needs {
  kAmpere,  // compute capability 8.0 or later
  kHopper,  // 9.0 exactly: sm_90a code runs nowhere else
};

/// Why no device of this machine will do: "no CUDA driver", "no CUDA device", "compute capability 7.5, needs 8.0"; null: one will.
const char* unavailable(Needs needs) noexcept;
/// Why this device won't do; null: it will.
const char* unavailable_on(int device, Needs needs) noexcept;
/// Of a device that exists. Throws otherwise.
const DeviceProperties& properties_of(int device);

/// Makes a device current, and the one before it again at the end of the scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0, now_ = 0;
};

}  // namespace slidetile::cuda
