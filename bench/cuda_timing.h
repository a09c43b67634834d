// Steady state on a GPU: launches back to back until clocks and power have settled, then timed together.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace slidetile::bench {

struct SteadyOptions {
  double longest_round_seconds = 1.5;  // fewer launches where they would take longer, two at least
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

  /// Runs products for so long that the card's clock settles: a card that comes from idle runs faster at first.
  void settle() const;
  /// Operations per second of a short run; 0 without cuBLAS.
  double flops_per_s() const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;  // null: there is no cuBLAS
};

}  // namespace slidetile::bench
