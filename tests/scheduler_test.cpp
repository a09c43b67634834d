// Tests of video/scheduler.h against the samples of diffusers' schedulers (tests/data/scheduler.safetensors).
#include "video/scheduler.h"

#include <doctest/doctest.h>

#include "slidetile/error.h"
#include "slidetile/safetensors.h"
#include "video_fill.h"

namespace slidetile::video {
namespace {

using torch::Tensor;

const SafetensorsFile& goldens() {
  static const SafetensorsFile file(std::string(SLIDETILE_TEST_DATA) + "/scheduler.safetensors");
  return file;
}

Tensor golden(const std::string& name) {
  const SafetensorsTensor& tensor = goldens().at(name);
  return torch::from_blob(const_cast<std::byte*>(tensor.data.data()), tensor.shape, torch::kFloat32).clone();
}

}  // namespace

TEST_CASE("both schedulers take diffusers' steps") {
  for (const char* kind : {"euler", "unipc"}) {
    for (const int shift : {1, 3, 5}) {
      for (const int64_t steps : {1, 2, 3, 10, 30}) {
        const std::string key = std::string(kind) + "." + std::to_string(shift) + "." + std::to_string(steps);
        CAPTURE(key);
        SchedulerConfig config = scheduler_config_from_json(goldens().metadata().at(kind), key);
        CHECK(config.shift == 3);
        config.shift = shift;
        const auto scheduler = make_scheduler(config, steps);
        REQUIRE(scheduler->steps() == steps);
        const Tensor sigmas = golden(key + ".sigmas"), timesteps = golden(key + ".timesteps"), samples = golden(key);
        Tensor sample = fill("sample", {1, 3, 2, 4, 4});
        for (int64_t i = 0; i < steps; ++i) {
          CAPTURE(i);
          CHECK(scheduler->sigmas()[static_cast<size_t>(i)] == doctest::Approx(sigmas[i].item<double>()).epsilon(1e-7));
          CHECK(scheduler->timestep(i) == doctest::Approx(timesteps[i].item<double>()).epsilon(1e-6));
          const Tensor velocity =
              torch::tanh(sample * 1.5) * (0.3 + scheduler->timestep(i) / 1000) - 0.25 * fill("drift" + std::to_string(i), sample.sizes());
          sample = scheduler->step(velocity, sample);
          CHECK(relative_error(sample, samples[i].unsqueeze(0)) <= 1e-5);
        }
        CHECK(scheduler->sigmas().back() == 0);
        CHECK_THROWS_AS(scheduler->step(sample, sample), Error);
      }
    }
  }
}

TEST_CASE("samples are f32 whatever the model's type") {
  for (const auto kind : {SchedulerKind::kEuler, SchedulerKind::kUniPc}) {
    const auto scheduler = make_scheduler({.kind = kind, .shift = 3}, 4);
    Tensor sample = fill("sample", {1, 2, 3});
    for (int64_t i = 0; i < 4; ++i) sample = scheduler->step(torch::tanh(sample).to(torch::kBFloat16), sample);
    CHECK((sample.scalar_type() == torch::kFloat32));
    CHECK(sample.isfinite().all().item<bool>());
  }
}

TEST_CASE("guidance moves away from the answer without the prompt") {
  const Tensor with = fill("with", {2, 3}), without = fill("without", {2, 3});
  CHECK(relative_error(guide(with, without, 1), with) <= 1e-6);
  CHECK(torch::equal(guide(with, without, 0), without));
  CHECK(relative_error(guide(with, without, 4), without + 4 * (with - without)) <= 1e-6);
}

TEST_CASE("configurations are read back, and what is not here is an error") {
  for (const auto kind : {SchedulerKind::kEuler, SchedulerKind::kUniPc}) {
    const SchedulerConfig config{.kind = kind, .num_train_timesteps = 500, .shift = 2.5};
    const SchedulerConfig back = scheduler_config_from_json(to_json(config), "config");
    CHECK(back.kind == kind);
    CHECK(back.num_train_timesteps == 500);
    CHECK(back.shift == 2.5);
  }
  const auto reading = [](const std::string& text) {
    scheduler_config_from_json(text, "scheduler_config.json");
  };
  CHECK_THROWS_WITH_AS(
      reading(R"({"_class_name": "DDPMScheduler"})"),
      "scheduler_config.json: _class_name is 'DDPMScheduler', expected FlowMatchEulerDiscreteScheduler or UniPCMultistepScheduler", Error);
  CHECK_THROWS_WITH_AS(reading(R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_beta_sigmas": true})"),
                       "scheduler_config.json: use_beta_sigmas is true, expected false", Error);
  for (const char* rest : {R"("shift": 0)", R"("shift": "3")", R"("num_train_timesteps": 1)", R"("flow_shift": 3)", R"("cfg": 3)"}) {
    CAPTURE(rest);
    CHECK_THROWS_AS(reading(std::string(R"({"_class_name": "FlowMatchEulerDiscreteScheduler", )") + rest + "}"), Error);
  }
  const std::string unipc = R"({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true, "prediction_type": )";
  CHECK_NOTHROW(reading(unipc + R"("flow_prediction"})"));
  CHECK_THROWS_AS(reading(unipc + R"("epsilon"})"), Error);
  CHECK_THROWS_AS(reading(unipc + R"("flow_prediction", "solver_order": 3})"), Error);
  CHECK_THROWS_AS(reading(R"({"_class_name": "UniPCMultistepScheduler"})"), Error);
  CHECK_THROWS_AS(reading("[]"), Error);
  CHECK_THROWS_AS(make_scheduler({}, 0), Error);
  CHECK_THROWS_AS(make_scheduler({}, 1001), Error);
}

}  // namespace slidetile::video
