// The GPU benchmark's problems, by default HunyuanVideo's shape in bf16.
#pragma once

#include <string>
#include <vector>

#include "bench/cases.h"
#include "slidetile/window.h"

namespace slidetile::bench {

/// What the kernels whose names start so are to reach, as a fraction of the matrix product.
struct Bar {
  std::string kernel;
  double fraction = 0;
};

struct CudaCase {
  std::string name;
  Pass pass = Pass::kForward;
  Dim3 canvas{30, 48, 80}, tile = kDefaultTile;
  std::vector<Window> windows{{3, 3, 3}};  // none: dense
  int64_t text = 0, heads = 24, head_dim = 128;
  Layout layout = Layout::kBhsd;
  DType dtype = DType::kBf16;
  std::vector<Bar> bars = {};  // the first that fits counts

  /// 0: nothing is asked of this kernel.
  double to_reach(const std::string& name) const;
};

/// In the order in which they run.
const std::vector<CudaCase>& cuda_cases();
std::string title_of(const CudaCase& c);
/// Those of the names, all where there is none; throws on an unknown name.
std::vector<CudaCase> cuda_cases_of(const std::vector<std::string>& names);
std::vector<std::string> cuda_case_names();

}  // namespace slidetile::bench
