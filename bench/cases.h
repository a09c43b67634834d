// The benchmark's problems: plans on the canvases of video models.
#pragma once

#include <string>
#include <vector>

#include "slidetile/plan.h"
#include "slidetile/tensor.h"

namespace slidetile::bench {

enum class Extent {
  kQuick,  // fewer heads, and parts of the query tiles where a whole run takes long
  kFull,
};

enum class Pass { kForward, kBackward };

struct BenchCase {
  std::string name, title;
  DType dtype = DType::kBf16;
  int64_t heads = 1, model_heads = 1, head_dim = 128;
  Plan plan;
  int32_t every = 1;        // of so many query tiles one is run; the time of the rest follows from its pairs
  int32_t dense_every = 0;  // other than 0: dense attention on the same tensors is timed beside it, on one of so many query tiles
  Pass pass = Pass::kForward;
  bool every_kernel = false;  // the portable kernel too, where others can run
};

/// The names, in the order in which they run.
std::vector<std::string> case_names();
/// Throws on an unknown name.
BenchCase make_case(const std::string& name, Extent extent);

/// The plan where only one of `every` query tiles keeps its keys (0: none does); the other query tiles see nothing.
Plan part_of(const Plan& plan, int32_t every);

}  // namespace slidetile::bench
