// DeviceBuffer: allocation, and copies on the default stream.
#include "slidetile/device_buffer.h"

#include <cuda_runtime_api.h>

#include <utility>

#include "slidetile/cuda/device.h"
#include "slidetile/error.h"

namespace slidetile {
namespace {

void require_device(const char* where, const Device& device) {
  require(device.type == DeviceType::kCuda, where, ": the device is ", to_string(device), ", expected a CUDA device");
  cuda::properties_of(device.index);  // throws where there is no such device
}

void require_within(const char* where, size_t bytes, int64_t most) {
  require(bytes <= static_cast<size_t>(most), where, ": got ", bytes, " bytes, the buffer has ", most);
}

}  // namespace

DeviceBuffer::DeviceBuffer(int64_t bytes, const Device& device) : bytes_(bytes), device_(device) {
  require(bytes >= 0, "device buffer: got ", bytes, " bytes, expected 0 or more");
  require_device("device buffer", device);
  if (bytes == 0) return;
  const cuda::CurrentDevice current(device.index);
  cuda::check(cudaMalloc(&data_, static_cast<size_t>(bytes)), "device buffer: cudaMalloc");
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), device_(other.device_) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);  // of whichever device it is
}

void DeviceBuffer::upload(std::span<const std::byte> from) const {
  require_within("device buffer: upload", from.size(), bytes_);
  if (from.empty()) return;
  const cuda::CurrentDevice current(device_.index);
  cuda::check(cudaMemcpy(data_, from.data(), from.size(), cudaMemcpyHostToDevice), "device buffer: upload");
  cuda::check(cudaStreamSynchronize(nullptr), "device buffer: upload");  // a small copy from pageable memory returns before it arrived
}

void DeviceBuffer::download(std::span<std::byte> to) const {
  require_within("device buffer: download", to.size(), bytes_);
  if (to.empty()) return;
  const cuda::CurrentDevice current(device_.index);
  cuda::check(cudaMemcpy(to.data(), data_, to.size(), cudaMemcpyDeviceToHost), "device buffer: download");
}

void synchronize(const Device& device) {
  require_device("synchronize", device);
  const cuda::CurrentDevice current(device.index);
  cuda::check(cudaDeviceSynchronize(), "synchronize");
}

}  // namespace slidetile
