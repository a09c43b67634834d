#include "slidetile/cuda/device.h"

#include <string>
#include <vector>

#include "slidetile/error.h"

namespace slidetile::cuda {
namespace {

struct Found {
  DeviceProperties properties;
  std::string too_old, not_hopper;  // empty: will do
};

// The machine's devices as they were at first use.
struct Inventory {
  std::string nothing;  // why there is no device at all
  std::vector<Found> devices;
};

std::string capability_text(int capability) { return std::to_string(capability / 10) + "." + std::to_string(capability % 10); }

Inventory take_inventory() {
  Inventory inventory;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;  // 0: none at all
    cudaDriverGetVersion(&driver);
    inventory.nothing = driver == 0 ? "no CUDA driver" : "the CUDA driver is too old";
  } else if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    inventory.nothing = "no CUDA device";
  } else if (status != cudaSuccess) {
    inventory.nothing = std::string("cudaGetDeviceCount: ") + cudaGetErrorString(status);
  }
  if (!inventory.nothing.empty()) return inventory;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    Found found;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&found.properties.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&found.properties.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const int capability = found.properties.capability = 10 * major + minor;
    if (capability < 80) found.too_old = "compute capability " + capability_text(capability) + ", needs 8.0";
    if (capability != 90) found.not_hopper = "compute capability " + capability_text(capability) + ", needs 9.0";
    inventory.devices.push_back(std::move(found));
  }
  return inventory;
}

const Inventory& inventory() {
  static const Inventory taken = take_inventory();
  return taken;
}

const char* reason(const Found& found, Needs needs) {
  const std::string& text = needs == Needs::kAmpere ? found.too_old : found.not_hopper;
  return text.empty() ? nullptr : text.c_str();
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  const int last = cudaGetLastError();  // leave no error behind for the caller's own checks; one that stays is the device's
  (void)last;
  fail(status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice, call, ": ", cudaGetErrorName(status), ", ",
       cudaGetErrorString(status));
}

const char* unavailable(Needs needs) noexcept {
  const Inventory& known = inventory();
  if (!known.nothing.empty()) return known.nothing.c_str();
  for (const Found& found : known.devices) {
    if (reason(found, needs) == nullptr) return nullptr;
  }
  return reason(known.devices.front(), needs);
}

const char* unavailable_on(int device, Needs needs) noexcept {
  const Inventory& known = inventory();
  if (!known.nothing.empty()) return known.nothing.c_str();
  if (device < 0 || device >= static_cast<int>(known.devices.size())) return "no such CUDA device";
  return reason(known.devices[static_cast<size_t>(device)], needs);
}

const DeviceProperties& properties_of(int device) {
  const Inventory& known = inventory();
  if (!known.nothing.empty()) fail(ErrorCode::kDevice, "cuda:", device, ": ", known.nothing);
  require(device >= 0 && device < static_cast<int>(known.devices.size()), "cuda:", device, ": this machine has ", known.devices.size(),
          " CUDA devices");
  return known.devices[static_cast<size_t>(device)].properties;
}

CurrentDevice::CurrentDevice(int device) : now_(device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != now_) check(cudaSetDevice(now_), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() {
  if (before_ != now_) cudaSetDevice(before_);
}

}  // namespace slidetile::cuda
