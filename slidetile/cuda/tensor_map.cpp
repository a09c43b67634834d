#include "slidetile/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstring>
#include <limits>
#include <numeric>

#include "slidetile/cuda/driver.h"
#include "slidetile/error.h"

namespace slidetile::cuda {
namespace {

constexpr int64_t kChannels = 64, kElementBytes = 2, kAlignment = 16;

// How far a sheet's number is moved by a batch item and by a head.
struct LongSteps {
  int64_t batch = 0, head = 0;
};

// Elements between sheets: what the strides of batch and head have in common. Axes of extent 1 are never stepped along.
int64_t sheet_stride(const TensorView& tensor) noexcept {
  const int64_t batch = tensor.batch() > 1 ? tensor.strides[0] : 0, head = tensor.heads() > 1 ? tensor.strides[1] : 0;
  const int64_t common = std::gcd(batch, head);
  return common == 0 ? kChannels : common;
}

LongSteps long_steps(const TensorView& tensor) noexcept {
  const int64_t stride = sheet_stride(tensor);
  return {.batch = tensor.batch() > 1 ? tensor.strides[0] / stride : 0, .head = tensor.heads() > 1 ? tensor.strides[1] / stride : 0};
}

}  // namespace

SheetSteps sheet_steps(const TensorView& tensor) noexcept {
  const LongSteps steps = long_steps(tensor);
  return {.batch_step = static_cast<int32_t>(steps.batch), .head_step = static_cast<int32_t>(steps.head)};
}

const char* tensor_map_why_not(const TensorView& tensor) noexcept {
  if (size_of(tensor.dtype) != kElementBytes) return "elements are not bf16 or f16";
  if (reinterpret_cast<uintptr_t>(tensor.data) % kAlignment != 0) return "a tensor does not start at a multiple of 16 bytes";
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t stride = tensor.strides[axis];
    if (tensor.shape[axis] <= 1) continue;
    if (stride <= 0) return "a tensor has strides of 0";
    if (stride * kElementBytes % kAlignment != 0) return "a tensor has strides that are not multiples of 16 bytes";
    if (stride >= int64_t{1} << 32) return "a tensor has strides of 2^32 elements or more";
  }
  const LongSteps steps = long_steps(tensor);
  if ((tensor.batch() - 1) * steps.batch + (tensor.heads() - 1) * steps.head > std::numeric_limits<int32_t>::max()) {
    return "a tensor's strides of batch and head have too little in common";
  }
  return nullptr;
}

CUtensorMap make_tensor_map(const TensorView& tensor, const MapExtent& extent) {
  static const auto encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(driver_function("cuTensorMapEncodeTiled", 12000));
  if (encode == nullptr) fail(ErrorCode::kDevice, "cuTensorMapEncodeTiled: the driver has no such function");
  CUtensorMap map;
  std::memset(&map, 0, sizeof map);
  const auto [t, h, w] = extent.extent;
  if (extent.extent.volume() == 0) return map;
  const SheetSteps steps = sheet_steps(tensor);
  const int64_t token = tensor.tokens() > 1 ? tensor.strides[2] : tensor.head_dim();
  const int64_t sheets = (tensor.batch() - 1) * steps.batch_step + (tensor.heads() - 1) * steps.head_step + 1;
  auto* const base = static_cast<std::byte*>(tensor.data) + extent.first_token * token * kElementBytes;
  const auto unsigned64 = [](int64_t value) {
    return static_cast<cuuint64_t>(value);
  };
  const auto unsigned32 = [](int32_t value) {
    return static_cast<cuuint32_t>(value);
  };
  const std::array<cuuint64_t, 5> dims{unsigned64(tensor.head_dim()), unsigned64(w), unsigned64(h), unsigned64(t), unsigned64(sheets)};
  const std::array<cuuint64_t, 4> strides{unsigned64(token * kElementBytes), unsigned64(token * w * kElementBytes),
                                          unsigned64(token * w * h * kElementBytes), unsigned64(sheet_stride(tensor) * kElementBytes)};
  const std::array<cuuint32_t, 5> box{unsigned32(kChannels), unsigned32(extent.box.w), unsigned32(extent.box.h), unsigned32(extent.box.t),
                                      1};
  const std::array<cuuint32_t, 5> element_strides{1, 1, 1, 1, 1};
  const CUresult status = encode(&map, tensor.dtype == DType::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5,
                                 base, dims.data(), strides.data(), box.data(), element_strides.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    // The runtime's errors have the driver's numbers.
    fail(ErrorCode::kDevice, "cuTensorMapEncodeTiled: ", cudaGetErrorName(static_cast<cudaError_t>(status)), " for ", extent.extent,
         " tokens in boxes of ", extent.box, ", ", token, " elements between tokens");
  }
  return map;
}

}  // namespace slidetile::cuda
