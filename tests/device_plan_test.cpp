// Device plans where there is no GPU: refusals say what is missing. With one: cuda_test.cpp.
#include "slidetile/device_plan.h"

#include <doctest/doctest.h>

#include <vector>

#include "slidetile/attention.h"
#include "slidetile/error.h"
#include "slidetile/window.h"
#include "slidetile/window_natten.h"

using namespace slidetile;

TEST_CASE("a device plan is for CUDA devices") {
  const Plan plan = full_plan(Grid({4, 8, 8}, {2, 4, 4}));
  CHECK_THROWS_AS(DevicePlan(plan, Device{}), Error);
  try {
    DevicePlan(plan, Device{DeviceType::kCuda, 1000});
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() != ErrorCode::kOutOfMemory);
    MESSAGE(std::string(error.what()));
  }
}

TEST_CASE("an empty one has no views, and can be moved") {
  DevicePlan a;
  DevicePlan b = std::move(a);
  CHECK(b.bytes() == 0);
  CHECK_THROWS_AS(static_cast<void>(b.view()), Error);
  CHECK_THROWS_AS(static_cast<void>(b.transposed()), Error);
}

TEST_CASE("how Hopper cuts a plan") {
  const std::vector<Window> windows{{3, 3, 3}};
  const Plan whole = sliding_tile_plan(Grid({12, 24, 40}, {6, 8, 8}), windows),
             cut = sliding_tile_plan(Grid({13, 24, 40}, {6, 8, 8}), windows);
  const DeviceBlocks blocks = device_blocks(whole);
  if (!blocks.why_not.empty()) {
    CHECK(blocks.why_not == "this build has no CUDA back end");
    return;
  }
  CHECK(blocks.query_rows == 64);
  CHECK(blocks.key_rows == 128);
  CHECK(blocks.pairs == static_cast<double>(visible_pairs(whole, 1)));
  CHECK(device_blocks(cut).pairs > static_cast<double>(visible_pairs(cut, 1)));
  const Plan masked = natten_plan(Grid({4, 8, 8}, {2, 4, 4}), std::vector{NattenWindow{.window = {3, 3, 3}}});
  CHECK(device_blocks(masked).why_not == "token masks run on the portable kernels");
}

TEST_CASE("kernels say why this machine can't run them") {
  for (const KernelInfo& kernel : forward_kernels(DeviceType::kCuda))
    MESSAGE(kernel.name, ": ", kernel.reason.empty() ? "can run" : kernel.reason);
  for (const KernelInfo& kernel : backward_kernels(DeviceType::kCuda))
    MESSAGE(kernel.name, ": ", kernel.reason.empty() ? "can run" : kernel.reason);
}
