// Which tensors the copy engine can read, and how it counts their batch items and heads. Needs CUDA's headers, but no GPU.
#include "slidetile/cuda/tensor_map.h"

#include <doctest/doctest.h>

#include <string>

using namespace slidetile;
using namespace slidetile::cuda;

namespace {

alignas(16) char memory[32];

TensorView tensor(std::array<int64_t, 4> shape, std::array<int64_t, 4> strides) {
  return {.data = memory, .dtype = DType::kBf16, .device = {DeviceType::kCuda, 0}, .shape = shape, .strides = strides};
}

void check_refused(const TensorView& view, const std::string& why) {
  const char* const reason = tensor_map_why_not(view);
  REQUIRE(reason != nullptr);
  CHECK(std::string(reason) == why);
}

}  // namespace

TEST_CASE("batch items and heads are sheets, in any layout") {
  for (const Layout layout : {Layout::kBhsd, Layout::kBshd}) {
    for (const int64_t gap : {0, 8, 128}) {
      TensorView view = view_of(memory, DType::kF16, {3, 5, 70, 64}, layout);
      view.strides[0] += gap;
      CHECK(tensor_map_why_not(view) == nullptr);
      const SheetSteps steps = sheet_steps(view);
      // A sheet's number times what lies between sheets is where it starts.
      const int64_t between = view.strides[1] / steps.head_step;
      CHECK(between % 8 == 0);
      for (int64_t b = 0; b < 3; ++b) {
        for (int64_t h = 0; h < 5; ++h) {
          CHECK((b * steps.batch_step + h * steps.head_step) * between == b * view.strides[0] + h * view.strides[1]);
        }
      }
    }
  }
}

TEST_CASE("axes of extent 1 are not stepped along, whatever their stride") {
  const TensorView view = tensor({1, 1, 100, 128}, {3, 0, 128, 1});
  CHECK(tensor_map_why_not(view) == nullptr);
  CHECK(sheet_steps(view).batch_step == 0);
  CHECK(sheet_steps(view).head_step == 0);
}

TEST_CASE("what the copy engine can't read") {
  const TensorView good = tensor({2, 3, 100, 64}, {19200, 6400, 64, 1});
  CHECK(tensor_map_why_not(good) == nullptr);
  TensorView view = good;
  view.data = memory + 8;
  check_refused(view, "a tensor does not start at a multiple of 16 bytes");
  view = good;
  view.dtype = DType::kF32;
  check_refused(view, "elements are not bf16 or f16");
  for (const size_t axis : {0, 1, 2}) {
    view = good;
    view.strides[axis] += 4;
    check_refused(view, "a tensor has strides that are not multiples of 16 bytes");
    view.strides[axis] = 0;
    check_refused(view, "a tensor has strides of 0");
    view.strides[axis] = int64_t{1} << 32;
    check_refused(view, "a tensor has strides of 2^32 elements or more");
  }
  // 8 elements between sheets: their numbers would pass 2^31.
  check_refused(tensor({16, 2, 4, 64}, {(int64_t{1} << 31) + 8, 1 << 20, 64, 1}),
                "a tensor's strides of batch and head have too little in common");
}
