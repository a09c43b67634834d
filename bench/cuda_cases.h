// The GPU benchmark's problems, by default HunyuanVideo's shape in bf16.
#pragma once

#include <string>
#include <vector>

#include "bench/cases.h"
#include "slidetile/window.h"

namespace slidetile::bench {

struct CudaCase {
  std::string name;
  Pass pass = Pass::kForward;
  Dim3 canvas{30, 48, 80}, tile = kDefaultTile;
  std::vector<Window> windows{{3, 3, 3}};  // none: dense
  int64_t text = 0, heads = 24, head_dim = 128;
  Layout layout = Layout::kBhsd;
  DType dtype = DType::kBf16;
  double to_reach = 0;  // of the matrix product, by the best kernel; 0: nothing is asked
};

/// In the order in which they run.
const std::vector<CudaCase>& cuda_cases();
std::string title_of(const CudaCase& c);
/// Those of the names, all where there is none; throws on an unknown name.
std::vector<CudaCase> cuda_cases_of(const std::vector<std::string>& names);
std::vector<std::string> cuda_case_names();

}  // namespace slidetile::bench
