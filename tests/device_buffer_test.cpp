// Memory of a GPU: refusals everywhere, copies there and back where there is a GPU.
#include "slidetile/device_buffer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "slidetile/attention.h"
#include "slidetile/error.h"

using namespace slidetile;

namespace {

constexpr Device kGpu{DeviceType::kCuda, 0};

bool has_gpu() {
  const std::vector<KernelInfo> kernels = forward_kernels(DeviceType::kCuda);
  return std::any_of(kernels.begin(), kernels.end(), [](const KernelInfo& kernel) { return kernel.reason.empty(); });
}

}  // namespace

TEST_CASE("an empty buffer") {
  DeviceBuffer a;
  const DeviceBuffer b = std::move(a);
  CHECK(b.data() == nullptr);
  CHECK(b.bytes() == 0);
}

TEST_CASE("devices that are not there") {
  CHECK_THROWS_AS(DeviceBuffer(16, Device{}), Error);
  CHECK_THROWS_AS(DeviceBuffer(16, Device{DeviceType::kCuda, 1000}), Error);
  CHECK_THROWS_AS(synchronize(Device{DeviceType::kCuda, 1000}), Error);
  CHECK_THROWS_AS(synchronize(Device{}), Error);
  if (!has_gpu()) CHECK_THROWS_AS(DeviceBuffer(16, kGpu), Error);
}

TEST_CASE("copies there and back" * doctest::skip(!has_gpu())) {
  std::vector<std::byte> there(1000, std::byte{7}), back(1000), longer(1001);
  DeviceBuffer buffer(1000, kGpu);
  buffer.upload(there);
  const DeviceBuffer moved = std::move(buffer);
  moved.download(back);
  CHECK(back == there);
  CHECK_THROWS_AS(moved.upload(longer), Error);
  CHECK_THROWS_AS(moved.download(longer), Error);
  CHECK_THROWS_AS(DeviceBuffer(-1, kGpu), Error);
  try {
    DeviceBuffer(int64_t{1} << 50, kGpu);
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kOutOfMemory);
  }
  synchronize(kGpu);
}
