#include "video/coordinates.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::video;
using torch::Tensor;

TEST_CASE("coordinates follow the latents, from -1 to 1 along each axis") {
  DitConfig config;
  config.in_channels = 6, config.out_channels = 3;
  const Tensor latents = torch::randn({2, 3, 3, 1, 5});
  const Tensor input = model_input(latents, config);
  REQUIRE(input.sizes().vec() == std::vector<int64_t>{2, 6, 3, 1, 5});
  CHECK(input.slice(1, 0, 3).equal(latents));
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t x = 0; x < 5; ++x) {
      CHECK(input[1][3][t][0][x].item<double>() == doctest::Approx(static_cast<double>(t) - 1));
      CHECK(input[1][4][t][0][x].item<double>() == 0);
      CHECK(input[1][5][t][0][x].item<double>() == doctest::Approx(static_cast<double>(x) / 2 - 1));
    }
  }
}

TEST_CASE("a model without channels for them reads the latents alone; any other number is an error") {
  DitConfig config;
  config.in_channels = config.out_channels = 3;
  const Tensor latents = torch::randn({1, 3, 2, 4, 4});
  CHECK(model_input(latents, config).is_same(latents));
  config.in_channels = 5;
  CHECK_THROWS_WITH_AS(latent_channels(config), "the model reads 5 channels and writes 3, expected as many, or 3 more to read: coordinates",
                       Error);
}
