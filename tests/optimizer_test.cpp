#include "video/optimizer.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include <map>

#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::video;
using torch::Tensor;

namespace {

Tensor parameter(std::vector<int64_t> shape) { return torch::randn(shape).requires_grad_(); }

NamedTensors parameters() {
  torch::manual_seed(3);
  return {{"blocks.0.to_q.weight", parameter({8, 8})},
          {"blocks.1.to_q.weight", parameter({8, 8})},
          {"blocks.0.up.weight", parameter({16, 8})},
          {"blocks.0.bias", parameter({8})},
          {"proj.weight", parameter({4, 8})}};
}

Tensor loss_of(const NamedTensors& all) {
  Tensor x = torch::linspace(-1, 1, 24).view({3, 8});
  x = torch::tanh(x.matmul(all[0].second) + all[3].second).matmul(all[1].second);
  return (x.matmul(all[2].second.t()).slice(1, 0, 8).matmul(all[4].second.t()) - 1).square().mean();
}

void step(NamedTensors& all, Optimizer& optimizer) {
  loss_of(all).backward();
  optimizer.step(1);
}

}  // namespace

TEST_CASE("orthogonalized matrices have singular values near 1") {
  torch::manual_seed(1);
  for (const auto& shape : {std::vector<int64_t>{3, 12, 12}, {2, 24, 8}, {2, 8, 24}}) {
    const Tensor values = std::get<1>(torch::linalg_svd(orthogonalized(torch::randn(shape))));
    CHECK(values.min().item<double>() > 0.3);
    CHECK(values.max().item<double>() < 1.3);
  }
  CHECK(torch::isfinite(orthogonalized(torch::zeros({1, 4, 4}))).all().item<bool>());
}

TEST_CASE("matrices of blocks go to Muon, all else to AdamW") {
  CHECK(is_muon_parameter("transformer.blocks.3.attn1.to_q.weight", torch::zeros({2, 2})));
  CHECK_FALSE(is_muon_parameter("transformer.blocks.3.attn1.norm_q.weight", torch::zeros({2})));
  CHECK_FALSE(is_muon_parameter("transformer.proj_out.weight", torch::zeros({2, 2})));
}

TEST_CASE("the loss falls, the mean follows, and parameters show either") {
  NamedTensors all = parameters();
  Optimizer optimizer(all, {.muon_rate = 0.02, .adam_rate = 0.01, .mean_decay = 0.9});
  const double before = loss_of(all).item<double>();
  for (int i = 0; i < 60; ++i) step(all, optimizer);
  const double after = loss_of(all).item<double>();
  CHECK(after < before / 5);
  CHECK(optimizer.steps() == 60);
  const Tensor masters = all[0].second.detach().clone();
  optimizer.show_mean();
  CHECK_FALSE(all[0].second.equal(masters));
  CHECK(loss_of(all).item<double>() < before / 3);
  optimizer.show_masters();
  CHECK(all[0].second.equal(masters));
}

TEST_CASE("a loaded state goes on to the same bits") {
  NamedTensors all = parameters();
  Optimizer optimizer(all, {});
  for (int i = 0; i < 3; ++i) step(all, optimizer);
  std::map<std::string, Tensor> saved;
  for (const auto& [name, tensor] : optimizer.state()) saved[name] = tensor.clone();

  NamedTensors again = parameters();
  Optimizer resumed(again, {});
  resumed.load([&](const std::string& name, const Tensor&) { return saved.at(name); }, 3);
  for (int i = 0; i < 3; ++i) step(all, optimizer), step(again, resumed);
  for (size_t i = 0; i < all.size(); ++i) CHECK(all[i].second.equal(again[i].second));
}

TEST_CASE("less exact parameters are held in f32") {
  NamedTensors all{{"blocks.0.a.weight", torch::zeros({4, 4}, torch::kBFloat16).requires_grad_()},
                   {"b", torch::zeros({4}, torch::kBFloat16).requires_grad_()}};
  Optimizer optimizer(all, {.muon_rate = 1e-4, .adam_rate = 1e-4});
  for (int i = 0; i < 10; ++i) {
    for (auto& [name, tensor] : all) tensor.mutable_grad() = torch::ones_like(tensor);
    optimizer.step(1);
  }
  for (const auto& [name, tensor] : optimizer.state()) CHECK((tensor.scalar_type() == torch::kFloat32));
  CHECK(all[1].second[0].item<double>() == doctest::Approx(-1e-3).epsilon(0.02));
  CHECK_THROWS_WITH_AS(optimizer.step(1), "optimizer: blocks.0.a.weight has no gradient", Error);
}
