// Sliding tile attention over a small video: README's example.
#include <slidetile/attention.h>
#include <slidetile/window.h>

#include <cstdio>
#include <vector>

int main() {
  using namespace slidetile;
  const Grid grid({12, 48, 48}, {6, 8, 8});      // a video of 12x48x48 tokens, cut into 2x6x6 tiles
  const std::vector<Window> windows{{1, 3, 3}};  // a query reads the 9 tiles around its own; one window serves all heads
  const Plan plan = sliding_tile_plan(grid, windows);

  const int64_t heads = 2, head_dim = 64;
  std::vector<float> q(heads * grid.tokens() * head_dim, 0.1f), k = q, v = q, out = q;  // your memory, tokens in raster order
  const auto view = [&](std::vector<float>& x) {
    return view_of(x.data(), DType::kF32, {1, heads, grid.tokens(), head_dim});
  };
  attention_forward({view(q), view(k), view(v), view(out)}, plan);

  std::printf("density %.3f, out[0] %.3f\n", density(plan), out[0]);
}
