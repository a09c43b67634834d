// Memory of a GPU, for callers that have no allocator of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "slidetile/tensor.h"

namespace slidetile {

/// Owns device memory, 256-byte aligned; what it holds is undefined until it is written.
class DeviceBuffer {
 public:
  DeviceBuffer() noexcept = default;
  /// Throws Error: invalid_argument for a negative size or a device that is no CUDA device, out_of_memory, device, and unsupported in a
  /// build without CUDA.
  DeviceBuffer(int64_t bytes, const Device& device);
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  void* data() const noexcept { return data_; }
  int64_t bytes() const noexcept { return bytes_; }

  /// Copies between the host and the first bytes of the buffer, after the work on the default stream, and waits until it is done.
  void upload(std::span<const std::byte> from) const;
  void download(std::span<std::byte> to) const;

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
};

/// Waits for all work that a CUDA device was given; the errors of that work come out here. Throws where there is no such device.
void synchronize(const Device& device);

}  // namespace slidetile
