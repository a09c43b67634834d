#include "video/sample.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "slidetile/error.h"
#include "video/noise.h"
#include "video_fill.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

constexpr Dim3 kExtent{4, 16, 24};  // canvas 4x4x6 in tokens

// Reads as many channels as it writes, three, and `more`.
Model small_model(int64_t more = 0) {
  DitConfig config;
  config.patch_size = {1, 4, 4};
  config.num_attention_heads = 2;
  config.attention_head_dim = 16;
  config.out_channels = 3;
  config.in_channels = 3 + more;
  config.text_dim = 24;
  config.freq_dim = 32;
  config.ffn_dim = 64;
  config.num_layers = 2;
  const torch::NoGradGuard no_gradients;
  Model model{std::make_shared<Dit>(config), std::make_shared<TextEncoder>(config.text_dim), SchedulerConfig{.shift = 3}};
  fill_parameters(*model.transformer);
  fill_parameters(*model.text_encoder);
  return model;
}

SampleRequest small_request() {
  SampleRequest request;
  request.sentences = {"a small red circle moves left", "a large blue star spins on checks"};
  request.seeds = {7, 8};
  request.extent = kExtent;
  request.steps = 3;
  request.guidance = 3;
  request.pattern.tile = {2, 2, 2};
  request.pattern.window = Window{2, 1, 2};
  return request;
}

std::string message_of(const Model& model, const SampleRequest& request) {
  try {
    sample(model, request);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::shared_ptr<const WindowTable> table_of(std::vector<Window> windows) {
  return std::make_shared<const WindowTable>(3, 2, 2, std::move(windows));
}

}  // namespace

TEST_CASE("noise") {
  // The vectors that the authors of Philox publish.
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  std::vector<float> values(100001), fewer(6);
  fill_normal(values, 5);
  fill_normal(fewer, 5);
  CHECK(std::equal(fewer.begin(), fewer.end(), values.begin()));
  double sum = 0, squares = 0, fourth = 0;
  for (const float value : values) sum += value, squares += value * value, fourth += std::pow(value, 4);
  const auto n = static_cast<double>(values.size());
  CHECK(std::abs(sum / n) < 0.015);
  CHECK(std::abs(squares / n - 1) < 0.02);
  CHECK(std::abs(fourth / n - 3) < 0.2);
  CHECK_FALSE(torch::equal(noise_of(1, 3, kExtent), noise_of(2, 3, kExtent)));
}

TEST_CASE("clips and latents") {
  Clip clip{{2, 3, 4}, std::vector<float>(72)};
  for (size_t i = 0; i < 72; ++i) clip.pixels[i] = static_cast<float>(i) / 71;
  const torch::Tensor latents = latents_of({clip, clip});
  CHECK((latents.sizes() == torch::IntArrayRef{2, 3, 2, 3, 4}));
  CHECK(latents[1][2][1][2][3].item<float>() == doctest::Approx(1));
  CHECK(latents[0][0][0][0][0].item<float>() == doctest::Approx(-1));
  const std::vector<Clip> back = clips_of(latents);
  REQUIRE(back.size() == 2);
  CHECK(back[1].extent == clip.extent);
  for (size_t i = 0; i < 72; ++i) CHECK(back[1].pixels[i] == doctest::Approx(clip.pixels[i]).epsilon(1e-6));
}

TEST_CASE("a clip depends on its sentence and seed alone") {
  const Model model = small_model();
  const SampleRequest request = small_request();
  const SampleResult both = sample(model, request);
  CHECK((both.latents.sizes() == torch::IntArrayRef{2, 3, 4, 16, 24}));
  CHECK(both.step_seconds.size() == 3);
  CHECK(both.attention_calls == 3 * 2 * 4);  // on CPU one for each item, with and without its sentence
  CHECK(both.density == doctest::Approx(1.0 / 2 * 2 / 3));
  CHECK(both.latents.isfinite().all().item<bool>());
  CHECK(torch::equal(sample(model, request).latents, both.latents));

  SampleRequest one = request;
  one.sentences = {request.sentences[1]}, one.seeds = {request.seeds[1]};
  const torch::Tensor alone = sample(model, one).latents[0];
  CHECK(relative_error(alone, both.latents[1]) < 1e-5);
  one.seeds = {9};
  CHECK(relative_error(sample(model, one).latents[0], alone) > 0.1);
  one.seeds = request.seeds, one.seeds.resize(1), one.sentences = {request.sentences[0]};
  CHECK(relative_error(sample(model, one).latents[0], both.latents[0]) < 1e-5);

  std::vector<int64_t> done;
  one.on_step = [&](int64_t step, int64_t steps) {
    done.push_back(step * 10 + steps);
  };
  sample(model, one);
  CHECK(done == std::vector<int64_t>{13, 23, 33});
}

TEST_CASE("guidance goes from the empty sentence through the given one") {
  const Model model = small_model();
  SampleRequest request = small_request();
  request.steps = 1;
  const auto at = [&](double guidance) {
    request.guidance = guidance;
    return sample(model, request).latents;
  };
  const torch::Tensor none = at(0), with = at(1), beyond = at(3);
  CHECK(relative_error(beyond, none + 3 * (with - none)) < 1e-4);
  CHECK(relative_error(with, none) > 1e-3);
}

TEST_CASE("windows") {
  const Model model = small_model();
  SampleRequest request = small_request();
  request.pattern.window.reset();
  const torch::Tensor dense = sample(model, request).latents;
  request.pattern.window = Window{2, 2, 3};  // the whole canvas
  CHECK(relative_error(sample(model, request).latents, dense) < 1e-5);
  request.pattern.window = Window{1, 1, 1};
  const SampleResult sparse = sample(model, request);
  CHECK(relative_error(sparse.latents, dense) > 1e-3);
  request.pattern.dense_steps = 3;
  const SampleResult warm = sample(model, request);
  CHECK(relative_error(warm.latents, dense) < 1e-5);
  CHECK(warm.density == doctest::Approx(1));
  request.pattern.dense_steps = 1;
  CHECK(sample(model, request).density == doctest::Approx((1 + 2 * sparse.density) / 3));

  // A table that says the same as one window, and one that differs at one step, layer and head.
  request.pattern.dense_steps = 0;
  request.pattern.window.reset();
  std::vector<Window> windows(3 * 2 * 2, Window{1, 1, 1});
  request.pattern.table = table_of(windows);
  CHECK(relative_error(sample(model, request).latents, sparse.latents) < 1e-5);
  windows[2 * 4 + 1 * 2 + 1] = {2, 2, 3};
  request.pattern.table = table_of(windows);
  const SampleResult other = sample(model, request);
  CHECK(relative_error(other.latents, sparse.latents) > 1e-5);
  CHECK(other.density > sparse.density);
}

TEST_CASE("reduced precision stays near") {
  const Model model = small_model();
  const SampleRequest request = small_request();
  const torch::Tensor exact = sample(model, request).latents;
  model.transformer->set_dtype(torch::kBFloat16);
  const torch::Tensor rounded = sample(model, request).latents;
  CHECK((rounded.scalar_type() == torch::kFloat32));
  CHECK(relative_error(rounded, exact) < 0.05);
}

TEST_CASE("a GPU gives the CPU's clip") {
  if (!torch::cuda::is_available()) return;
  const Model model = small_model();
  const SampleRequest request = small_request();
  const torch::Tensor cpu = sample(model, request).latents;
  model.transformer->to(torch::kCUDA);
  model.text_encoder->to(torch::kCUDA);
  CHECK(relative_error(sample(model, request).latents.cpu(), cpu) < 1e-3);
}

TEST_CASE("what can't be sampled") {
  const Model model = small_model();
  const SampleRequest good = small_request();
  const auto message = [&](auto change) {
    SampleRequest request = good;
    change(request);
    return message_of(model, request);
  };
  const auto has = [](const std::string& text, const char* part) {
    if (text.find(part) != std::string::npos) return true;
    MESSAGE("'", text, "' has no: ", part);
    return false;
  };
  CHECK(has(message([](SampleRequest& r) { r.seeds.pop_back(); }), "2 sentences and 1 seeds"));
  CHECK(has(message([](SampleRequest& r) { r.steps = 0; }), "0 steps"));
  CHECK(has(message([](SampleRequest& r) { r.guidance = NAN; }), "guidance"));
  CHECK(has(message([](SampleRequest& r) { r.sentences[0] = "a small red dog moves left"; }), "dog"));
  CHECK(has(message([](SampleRequest& r) { r.extent.w = 22; }), "22"));
  CHECK(has(message([](SampleRequest& r) { r.pattern.window = Window{3, 1, 1}; }), "3x1x1"));
  CHECK(has(message([](SampleRequest& r) { r.pattern.dense_steps = 4; }), "4 dense steps"));
  const std::vector<Window> windows(12, Window{1, 1, 1});
  CHECK(has(message([&](SampleRequest& r) { r.pattern.table = table_of(windows); }), "not both"));
  CHECK(has(message([&](SampleRequest& r) { r.steps = 4, r.pattern.window.reset(), r.pattern.table = table_of(windows); }), "for 3 steps"));
  CHECK(has(message([&](SampleRequest& r) {
              r.pattern.window.reset();
              r.pattern.table = std::make_shared<const WindowTable>(3, 4, 1, windows);
            }),
            "4 layers of 1 heads"));
}

TEST_CASE("a model that reads coordinates is given them, and its clips have the channels that it writes") {
  const SampleResult result = sample(small_model(3), small_request());
  CHECK(result.latents.sizes().vec() == std::vector<int64_t>{2, 3, kExtent.t, kExtent.h, kExtent.w});
  CHECK(message_of(small_model(1), small_request()).find("expected as many, or 3 more") != std::string::npos);
}
