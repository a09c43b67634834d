// Linked instead of the CUDA back end where it is not built: no kernels, and neither plans nor memory on a device.
#include "slidetile/device_buffer.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"
#include "slidetile/kernel.h"

namespace slidetile {

std::span<const ForwardKernel> cuda_forward_kernels() noexcept { return {}; }
std::span<const BackwardKernel> cuda_backward_kernels() noexcept { return {}; }

namespace {

[[noreturn]] void fail_without_cuda(const char* where = "device plan") {
  fail(ErrorCode::kUnsupported, where, ": this build has no CUDA back end (SLIDETILE_CUDA)");
}

}  // namespace

struct DevicePlan::State {};

DevicePlan::DevicePlan() noexcept = default;
DevicePlan::DevicePlan(const Plan&, const Device&, void*) { fail_without_cuda(); }
DevicePlan::DevicePlan(const Plan&, const Plan&, const Device&, void*) { fail_without_cuda(); }
DevicePlan::~DevicePlan() = default;
DevicePlan::DevicePlan(DevicePlan&&) noexcept = default;
DevicePlan& DevicePlan::operator=(DevicePlan&&) noexcept = default;
const PlanView& DevicePlan::view() const { fail_without_cuda(); }
const PlanView& DevicePlan::transposed() const { fail_without_cuda(); }
int64_t DevicePlan::bytes() const noexcept { return 0; }

DeviceBlocks device_blocks(const Plan&) { return {.why_not = "this build has no CUDA back end"}; }

DeviceBuffer::DeviceBuffer(int64_t, const Device&) { fail_without_cuda("device buffer"); }
DeviceBuffer::DeviceBuffer(DeviceBuffer&&) noexcept = default;
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&&) noexcept = default;
DeviceBuffer::~DeviceBuffer() = default;
void DeviceBuffer::upload(std::span<const std::byte>) const { fail_without_cuda("device buffer"); }
void DeviceBuffer::download(std::span<std::byte>) const { fail_without_cuda("device buffer"); }
void synchronize(const Device& device) { fail_without_cuda(to_string(device).c_str()); }

}  // namespace slidetile
