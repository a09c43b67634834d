// Tests of video/dit.h, video/attention_op.h and video/token_plans.h against what diffusers computes (tests/data/dit_*.safetensors).
#include "video/dit.h"

#include <doctest/doctest.h>

#include "slidetile/error.h"
#include "slidetile/safetensors.h"
#include "video/attention_op.h"
#include "video_fill.h"
#ifdef SLIDETILE_TORCH_CUDA
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace slidetile::video {
namespace {

using torch::Tensor;

struct Golden {
  std::string name;
  Dim3 extent, tile;
};
const Golden kGoldens[] = {{"128", {5, 14, 10}, {2, 4, 3}}, {"64", {7, 20, 12}, {3, 2, 2}}, {"12", {6, 7, 9}, {2, 3, 4}}};

std::vector<torch::Device> devices() {
  std::vector<torch::Device> all{torch::kCPU};
  if (torch::cuda::is_available()) all.emplace_back(torch::kCUDA, 0);
  return all;
}

Tensor tensor_of(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsTensor& tensor = file.at(name);
  return torch::from_blob(const_cast<std::byte*>(tensor.data.data()), tensor.shape, torch::kFloat32).clone();
}

// A golden case: its file, and the model and inputs that it is of.
struct Case {
  Case(const Golden& golden, torch::Device on)
      : file(std::string(SLIDETILE_TEST_DATA) + "/dit_" + golden.name + ".safetensors"),
        config(dit_config_from_json(file.metadata().at("config"), golden.name)),
        dit(std::make_shared<Dit>(config)),
        device(on) {
    fill_parameters(*dit);
    dit->to(device);
    latents = fill("latents", {2, config.in_channels, golden.extent.t, golden.extent.h, golden.extent.w}).to(device);
    text = fill("text", {2, 7, config.text_dim}).to(device);
    timestep = torch::tensor({637.5f, 12.0f}).to(device);
    canvas = dit->canvas_of(golden.extent);
  }
  TokenPlans dense(Dim3 tile) const { return PlanMaker(canvas, tile, device).dense(config.num_layers); }

  SafetensorsFile file;
  DitConfig config;
  std::shared_ptr<Dit> dit;
  torch::Device device;
  Tensor latents, text, timestep;
  Dim3 canvas;
};

TokenPlans of_one(Plan plan, Dim3 canvas, int64_t layers, const torch::Device& device) {
  return TokenPlans(canvas, std::vector(static_cast<size_t>(layers), std::make_shared<const LayerPlan>(std::move(plan), device)));
}

}  // namespace

TEST_CASE("outputs and gradients are those of diffusers") {
  for (const torch::Device& device : devices()) {
    for (const Golden& golden : kGoldens) {
      CAPTURE(golden.name);
      CAPTURE(device.str());
      Case test(golden, device);
      test.latents.requires_grad_();
      test.text.requires_grad_();
      const Tensor out = test.dit->forward(test.latents, test.timestep, test.text, test.dense(golden.tile));
      CHECK(relative_error(out, tensor_of(test.file, "out")) <= 1e-5);
      (out * fill("dout", out.sizes()).to(device)).sum().backward();
      CHECK(relative_error(test.latents.grad(), tensor_of(test.file, "dlatents")) <= 1e-5);
      CHECK(relative_error(test.text.grad(), tensor_of(test.file, "dtext")) <= 1e-5);
      for (const auto& item : test.dit->named_parameters()) {
        CAPTURE(item.key());
        const Tensor& grad = item.value().grad();
        REQUIRE(grad.defined());
        const double got = (grad.cpu() * fill(item.key() + ".probe", grad.sizes())).sum().item<double>();
        CHECK(std::abs(got - tensor_of(test.file, "grad." + item.key()).item<double>()) <= 1e-5 * grad.norm().item<double>() + 1e-6);
      }
    }
  }
}

TEST_CASE("a window of the whole canvas is dense attention, with and without gradients") {
  for (const torch::Device& device : devices()) {
    for (const Golden& golden : kGoldens) {
      CAPTURE(golden.name);
      const Case test(golden, device);
      const Grid grid(test.canvas, golden.tile);
      const std::vector<Window> windows(static_cast<size_t>(test.config.num_attention_heads), grid.tiles());
      const TokenPlans all = of_one(sliding_tile_plan(grid, windows), test.canvas, test.config.num_layers, device);
      const Tensor with_grad = test.dit->forward(test.latents, test.timestep, test.text, all);
      CHECK(with_grad.requires_grad());
      CHECK(relative_error(with_grad, tensor_of(test.file, "out")) <= 1e-5);
      const torch::NoGradGuard no_grad;
      CHECK(torch::equal(test.dit->forward(test.latents, test.timestep, test.text, all), with_grad));
    }
  }
}

TEST_CASE("windows of each head and layer reach the kernels") {
  for (const torch::Device& device : devices()) {
    const Case test(kGoldens[0], device);
    PlanMaker maker(test.canvas, {2, 3, 2}, device);
    const std::vector<std::vector<Window>> windows{{{1, 2, 2}, {3, 1, 1}}, {}};
    const TokenPlans plans = maker.sliding(windows);
    CHECK(plans.density() < 1);
    CHECK(plans.layer(1).density() == doctest::Approx(1));
    const Tensor sparse = test.dit->forward(test.latents, test.timestep, test.text, plans);
    const double error = relative_error(sparse, tensor_of(test.file, "out"));
    CHECK(error > 1e-3);
    CHECK(error < 1);
    CHECK((maker.sliding(windows).share(0) == plans.share(0)));  // made once
    CHECK((maker.sliding(Window{9, 9, 9}, 2).share(0) == plans.share(1)));
  }
}

TEST_CASE("attend is softmax attention over the visible pairs, and so are its gradients") {
  const Dim3 canvas{3, 5, 4};
  const Grid grid(canvas, {2, 2, 3});
  const std::vector<Window> windows{{1, 2, 1}, {2, 1, 2}};
  const Plan plan = sliding_tile_plan(grid, windows);
  const int64_t tokens = canvas.volume();
  Tensor mask = torch::zeros({2, tokens, tokens}, torch::kBool);
  for (int32_t head = 0; head < 2; ++head) {
    for (int32_t tile = 0; tile < plan.query.tiles(); ++tile) {
      const int32_t row = plan.row(head, tile);
      for (int64_t entry = plan.row_first(row); entry < plan.row_last(row); ++entry) {
        const int32_t key_tile = plan.key_tile[static_cast<size_t>(entry)];
        for (int32_t q = plan.query.tile_begin[tile]; q < plan.query.tile_begin[tile + 1]; ++q) {
          for (int32_t k = plan.key.tile_begin[key_tile]; k < plan.key.tile_begin[key_tile + 1]; ++k) {
            mask[head][plan.query.token[q]][plan.key.token[k]] = true;
          }
        }
      }
    }
  }
  for (const torch::Device& device : devices()) {
    const auto shared = std::make_shared<const LayerPlan>(plan, device);
    std::vector<Tensor> ours, theirs;
    for (const char* name : {"q", "k", "v"}) {
      // q, k and v lie between other numbers, as in one fused projection.
      const Tensor wide = fill(name, {2, tokens, 2, 48}).to(device);
      ours.push_back(wide.narrow(-1, 8, 32).detach().requires_grad_());
      theirs.push_back(ours.back().detach().clone().requires_grad_());
    }
    const Tensor out = attend(ours[0], ours[1], ours[2], shared);
    const auto heads_first = [](const Tensor& x) {
      return x.transpose(1, 2);
    };
    const Tensor scores = torch::matmul(heads_first(theirs[0]), heads_first(theirs[1]).transpose(-1, -2)) / std::sqrt(32.0);
    const Tensor weights = torch::softmax(scores.masked_fill(~mask.to(device), -INFINITY), -1);
    const Tensor want = heads_first(torch::matmul(weights, heads_first(theirs[2])));
    CHECK(relative_error(out, want) <= 1e-5);
    const Tensor dout = fill("dout", out.sizes()).to(device);
    (out * dout).sum().backward();
    (want * dout).sum().backward();
    for (size_t i = 0; i < 3; ++i) CHECK(relative_error(ours[i].grad(), theirs[i].grad()) <= 1e-5);
  }
}

TEST_CASE("bf16 keeps in f32 what diffusers keeps, and stays near") {
  for (const torch::Device& device : devices()) {
    for (const Golden& golden : kGoldens) {
      CAPTURE(golden.name);
      const Case test(golden, device);
      test.dit->set_dtype(torch::kBFloat16);
      CHECK((test.dit->dtype() == torch::kBFloat16));
      int64_t kept = 0;
      for (const auto& item : test.dit->named_parameters()) {
        kept += stays_f32(item.key());
        CHECK((item.value().scalar_type() == (stays_f32(item.key()) ? torch::kFloat32 : torch::kBFloat16)));
      }
      CHECK(kept == 5 + test.config.num_layers * (test.config.cross_attn_norm ? 3 : 1));
      const Tensor out = test.dit->forward(test.latents, test.timestep, test.text, test.dense(golden.tile));
      CHECK((out.scalar_type() == torch::kBFloat16));
      CHECK(relative_error(out, tensor_of(test.file, "out")) <= 2e-2);
      out.to(torch::kFloat32).square().sum().backward();
      for (const auto& item : test.dit->named_parameters()) CHECK(item.value().grad().isfinite().all().item<bool>());
    }
  }
}

TEST_CASE("positions can be scaled") {
  const Case test(kGoldens[2], torch::kCPU);
  const torch::NoGradGuard no_grad;
  const TokenPlans plans = test.dense({2, 3, 4});
  const auto run = [&](const Tensor& latents, const RopeScale& scale) {
    return test.dit->forward(latents, test.timestep, test.text, plans, scale);
  };
  CHECK(relative_error(run(test.latents, {2, 2, 2}), run(test.latents, kRopeAsIs)) > 1e-4);
  // Without positions, the order of tokens is all one; along one axis, if only its are off.
  const Tensor flipped = test.latents.flip(3);
  CHECK(relative_error(run(flipped, {1, 0, 1}), run(test.latents, {1, 0, 1}).flip(3)) <= 1e-5);
  CHECK(relative_error(run(flipped, kRopeAsIs), run(test.latents, kRopeAsIs).flip(3)) > 1e-4);
}

TEST_CASE("the released models have their parameters") {
  CHECK(released_config("wan2.1-1.3b").parameters() == 1418996800);
  CHECK(released_config("wan2.1-14b").parameters() == 14288491584);
  for (const char* name : {"wan2.1-1.3b", "wan2.1-14b"}) {
    const DitConfig config = released_config(name);
    const Dit dit(config, torch::TensorOptions().device(torch::kMeta).dtype(torch::kBFloat16));  // allocates nothing
    int64_t count = 0;
    for (const Tensor& parameter : dit.parameters()) count += parameter.numel();
    CHECK(count == config.parameters());
    CHECK(dit_config_from_json(to_json(config), name) == config);
  }
  CHECK_THROWS_WITH_AS(released_config("wan"), "model: 'wan', expected wan2.1-1.3b or wan2.1-14b", Error);
}

TEST_CASE("configurations that ask for something else are errors") {
  const auto reading = [](const std::string& text) {
    dit_config_from_json(text, "config.json");
  };
  CHECK_NOTHROW(reading(R"({"_diffusers_version": "0.42.1", "image_dim": null})"));
  CHECK_THROWS_WITH_AS(reading(R"({"heads": 3})"), "config.json: heads is no key of this model, expected those of WanTransformer3DModel",
                       Error);
  CHECK_THROWS_WITH_AS(reading(R"({"image_dim": 1280})"), "config.json: image_dim is 1280, expected null: image to video is not supported",
                       Error);
  for (const char* text : {"[]",
                           "{",
                           R"({"eps": 0})",
                           R"({"eps": "small"})",
                           R"({"num_layers": 0})",
                           R"({"num_layers": 3.5})",
                           R"({"num_layers": 2000})",
                           R"({"patch_size": [1, 2]})",
                           R"({"patch_size": 2})",
                           R"({"attention_head_dim": 7})",
                           R"({"attention_head_dim": 512})",
                           R"({"freq_dim": 33})",
                           R"({"qk_norm": "rms_norm"})",
                           R"({"cross_attn_norm": 1})",
                           R"({"ffn_dim": -4})",
                           R"({"ffn_dim": 99999999999})",
                           R"({"_class_name": "UNet"})",
                           R"({"ffn_dim": 1, "ffn_dim": 1})",
                           R"({"num_attention_heads": 1000000})",
                           R"({"added_kv_proj_dim": 4})",
                           R"({"pos_embed_seq_len": 4})"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(reading(text), Error);
  }
}

TEST_CASE("inputs that do not fit are errors") {
  const Case test(kGoldens[1], torch::kCPU);
  const TokenPlans plans = test.dense({2, 2, 2});
  const auto run = [&](const Tensor& latents, const Tensor& timestep, const Tensor& text) {
    test.dit->forward(latents, timestep, text, plans);
  };
  CHECK_THROWS_AS(run(test.latents.narrow(1, 0, 4), test.timestep, test.text), Error);
  CHECK_THROWS_AS(run(test.latents.narrow(3, 0, 18), test.timestep, test.text), Error);
  CHECK_THROWS_AS(run(test.latents.narrow(3, 0, 16), test.timestep, test.text), Error);  // another canvas than the plans'
  CHECK_THROWS_AS(run(test.latents, test.timestep.narrow(0, 0, 1), test.text), Error);
  CHECK_THROWS_AS(run(test.latents, test.timestep, test.text.narrow(2, 0, 8)), Error);
  CHECK_THROWS_AS(test.dit->forward(test.latents, test.timestep, test.text, PlanMaker(test.canvas, {2, 2, 2}, torch::kCPU).dense(1)),
                  Error);
  CHECK_THROWS_AS(test.dit->canvas_of({4, 20, 13}), Error);
  CHECK_THROWS_AS(device_of(torch::Device(torch::kMeta)), Error);
  const Tensor flat = torch::zeros({2, 3});
  CHECK_THROWS_AS(attend(flat, flat, flat, plans.share(0)), Error);
  const Tensor doubles = torch::zeros({1, test.canvas.volume(), 3, 64}, torch::kFloat64);
  CHECK_THROWS_AS(attend(doubles, doubles, doubles, plans.share(0)), Error);
  const Tensor short_q = torch::zeros({1, 5, 3, 64});
  CHECK_THROWS_AS(attend(short_q, short_q, short_q, plans.share(0)), Error);
}

TEST_CASE("the timer counts attention's share, of gradients too") {
  for (const torch::Device& device : devices()) {
    const Case test(kGoldens[1], device);
    const TokenPlans plans = test.dense({2, 2, 2});
    AttentionTimer timer;
    const Tensor out = test.dit->forward(test.latents, test.timestep, test.text, plans);
    CHECK(timer.calls() == test.config.num_layers);
    CHECK(timer.take_seconds() > 0);
    out.sum().backward();
    CHECK(timer.calls() == 2 * test.config.num_layers);
    CHECK(timer.take_seconds() > 0);
    CHECK(timer.take_seconds() == 0);
    CHECK_THROWS_AS(AttentionTimer(), Error);
    CHECK(std::string(last_attention_kernel()).starts_with(device.is_cuda() ? "cuda." : "cpu."));
  }
}

#ifdef SLIDETILE_TORCH_CUDA
TEST_CASE("a forward and backward pass is captured into a graph and replayed on other inputs" *
          doctest::skip(!torch::cuda::is_available())) {
  const torch::Device device(torch::kCUDA, 0);
  Case test(kGoldens[1], device);
  const TokenPlans plans = PlanMaker(test.canvas, {2, 2, 2}, device).sliding(Window{2, 2, 2}, test.config.num_layers);
  const auto pass = [&] {
    const Tensor out = test.dit->forward(test.latents, test.timestep, test.text, plans);
    return std::pair(out, torch::autograd::grad({out.square().sum()}, {test.dit->parameters()[0]})[0]);
  };
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  pass();
  at::cuda::CUDAGraph graph;
  graph.capture_begin();
  const auto [out, grad] = pass();
  graph.capture_end();
  test.latents.mul_(-0.5);
  graph.replay();
  const auto [want_out, want_grad] = pass();
  CHECK(torch::equal(out, want_out));
  CHECK(relative_error(grad, want_grad) <= 1e-6);
}
#endif

}  // namespace slidetile::video
