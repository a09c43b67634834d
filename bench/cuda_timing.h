// Steady state on a GPU: launches back to back until clocks and power have settled, then timed together.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace slidetile::bench {

struct SteadyOptions {
  double longest_round_seconds = 2;  // fewer launches where they would take longer, three at least
};

/// Seconds a launch of each of two rounds: 25 warm launches, then 40 timed together. `launch` works on the default stream.
std::vector<double> time_steady(const std::function<void()>& launch, const SteadyOptions& options);

/// What results are a fraction of: 8192^3 in bf16 by cuBLAS, which is looked for at run time.
class MatrixProduct {
 public:
  MatrixProduct();
  ~MatrixProduct();
  MatrixProduct(const MatrixProduct&) = delete;
  MatrixProduct& operator=(const MatrixProduct&) = delete;

  /// Operations per second in steady state; 0 without cuBLAS.
  double flops_per_s(const SteadyOptions& options) const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;  // null: there is no cuBLAS
};

}  // namespace slidetile::bench
