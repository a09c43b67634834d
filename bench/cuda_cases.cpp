#include "bench/cuda_cases.h"

#include <algorithm>

#include "slidetile/error.h"

namespace slidetile::bench {
namespace {

// The published strategy's five windows, in tiles of 6x8x8 on 5x6x10, in turn over the heads.
std::vector<Window> five_windows() {
  const Window five[] = {{5, 3, 3}, {3, 3, 5}, {1, 6, 10}, {5, 6, 1}, {5, 1, 10}};
  std::vector<Window> windows(24);
  for (size_t head = 0; head < windows.size(); ++head) windows[head] = five[head % 5];
  return windows;
}

std::vector<CudaCase> make_cases() {
  const auto hopper = [](double fraction) {
    return std::vector<Bar>{{"cuda.sm90", fraction}};
  };
  // The faster mode's; the deterministic one is to be within 10 % of it.
  const std::vector<Bar> backward{{"cuda.sm90.atomic", 0.83}, {"cuda.sm90", 0.747}, {"cuda.sm80.atomic", 0.42}, {"cuda.sm80", 0.378}};
  return {
      {.name = "333", .bars = {{"cuda.sm90", 1.03}, {"cuda.sm80", 0.50}}},
      {.name = "333_bshd", .layout = Layout::kBshd, .bars = hopper(1.03)},
      {.name = "555", .windows = {{5, 5, 5}}, .bars = hopper(1.06)},
      {.name = "dense", .windows = {}, .bars = hopper(1.03)},
      {.name = "text256_five_windows", .windows = five_windows(), .text = 256, .bars = hopper(0.98)},
      {.name = "33x45x80_text256", .canvas = {33, 45, 80}, .text = 256, .bars = hopper(0.82)},
      {.name = "21x30x52", .canvas = {21, 30, 52}, .bars = hopper(0.75)},
      {.name = "tile444_555", .tile = {4, 4, 4}, .windows = {{5, 5, 5}}, .bars = hopper(0.70)},
      {.name = "d64", .heads = 48, .head_dim = 64, .bars = hopper(0.75)},
      {.name = "333_f16", .dtype = DType::kF16},
      {.name = "333_backward", .pass = Pass::kBackward, .bars = backward},
      {.name = "d64_backward", .pass = Pass::kBackward, .heads = 48, .head_dim = 64},
      {.name = "333_bshd_backward", .pass = Pass::kBackward, .layout = Layout::kBshd},
  };
}

}  // namespace

double CudaCase::to_reach(const std::string& kernel) const {
  for (const Bar& bar : bars) {
    if (kernel.starts_with(bar.kernel)) return bar.fraction;
  }
  return 0;
}

const std::vector<CudaCase>& cuda_cases() {
  static const std::vector<CudaCase> cases = make_cases();
  return cases;
}

std::string title_of(const CudaCase& c) {
  std::string title = to_string(c.canvas) + ", tile " + to_string(c.tile);
  if (c.windows.empty()) title += ", all keys";
  if (c.windows.size() == 1) title += ", window " + to_string(c.windows[0]);
  if (c.windows.size() > 1) title += ", the strategy's 5 windows";
  if (c.text > 0) title += ", " + std::to_string(c.text) + " text tokens";
  if (c.head_dim != 128) title += ", head_dim " + std::to_string(c.head_dim);
  title += c.layout == Layout::kBhsd ? ", [b, h, s, d]" : ", [b, s, h, d]";
  return c.pass == Pass::kForward ? title : title + ", gradients";
}

std::vector<std::string> cuda_case_names() {
  std::vector<std::string> names;
  for (const CudaCase& c : cuda_cases()) names.push_back(c.name);
  return names;
}

std::vector<CudaCase> cuda_cases_of(const std::vector<std::string>& names) {
  if (names.empty()) return cuda_cases();
  std::vector<CudaCase> found;
  for (const std::string& name : names) {
    const auto at = std::find_if(cuda_cases().begin(), cuda_cases().end(), [&](const CudaCase& c) { return c.name == name; });
    std::string known;
    for (const CudaCase& c : cuda_cases()) known += (known.empty() ? "" : ", ") + c.name;
    require(at != cuda_cases().end(), "bench: no case on cuda is named '", name, "', expected one of ", known);
    found.push_back(*at);
  }
  return found;
}

}  // namespace slidetile::bench
