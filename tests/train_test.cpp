// Training of a tiny model: the loss falls, a run that was killed comes to the same bits, and mistakes are one line.
#include "video/train.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "slidetile/error.h"
#include "slidetile/safetensors.h"
#include "temporary_folder.h"
#include "video/train_log.h"

using namespace slidetile;
using namespace slidetile::video;
namespace fs = std::filesystem;

namespace {

TrainRequest tiny(const std::string& out) {
  TrainRequest request;
  request.config = train_config_from_json(
      R"({"model": {"patch_size": [1, 4, 4], "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 6, "out_channels": 3, "text_dim": 16,
                    "freq_dim": 16, "ffn_dim": 48, "num_layers": 1},
          "warmup_steps": 5,
          "stages": [{"extent": "4x16x16", "batch": 4, "steps": 24, "rope_scale": 2},
                     {"extent": "4x16x32", "batch": 2, "steps": 8, "tile": "2x2x2", "window": "1x2x3", "sparse": 0.5}]})",
      "tiny");
  request.out = out;
  request.log_every = 4;
  request.reversal_every = 8;
  request.checkpoint_every = 8;
  return request;
}

struct Killed {};

std::string message_of(const TrainRequest& request) {
  try {
    train(request);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string weights_of(const std::string& model) {
  return read_text(model + "/transformer/diffusion_pytorch_model.safetensors") + read_text(model + "/text_encoder/model.safetensors");
}

}  // namespace

TEST_CASE("the log goes out and in") {
  const std::vector<TrainRow> rows{{.step = 1, .stage = 1, .loss = 0.5, .seconds = 2, .reversal = {}},
                                   {.step = 2, .stage = 2, .loss = 1.0 / 3, .seconds = 3, .reversal = Reversal{0.1, 0.2, -0.3}}};
  CHECK(csv_of(rows_from_csv(csv_of(rows), "x")) == csv_of(rows));
  CHECK_THROWS_AS(rows_from_csv("", "x"), Error);
  CHECK_THROWS_AS(rows_from_csv(csv_of(rows) + "7,x\n", "x"), Error);
}

TEST_CASE("training") {
  if (why_no_training() != nullptr) {
    CHECK_THROWS_AS(train(tiny("x")), Error);
    return;
  }
  const TemporaryFolder folder;
  const TrainSummary whole = train(tiny(folder / "whole"));
  REQUIRE(whole.log.size() == 8);
  CHECK(whole.log[5].loss < 0.9 * whole.log[0].loss);
  CHECK(whole.log[1].reversal.has_value());
  CHECK(whole.log.back().stage == 2);
  CHECK(SafetensorsFile(whole.model + "/transformer/diffusion_pytorch_model.safetensors").dtype("proj_out.weight") == DType::kBf16);

  SUBCASE("a killed run resumes to the same bits") {
    TrainRequest request = tiny(folder / "killed");
    for (const int64_t at : {12, 20, 28}) {  // after the checkpoints of steps 8, 16 and 24
      request.on_row = [&](const TrainProgress& progress) {
        if (progress.row.step == at) throw Killed();
      };
      CHECK_THROWS_AS(train(request), Killed);
      request.start = TrainStart::kResume;
    }
    request.on_row = nullptr;
    request.config = {};  // the run's own settings count
    request.config.stages.resize(1);
    const TrainSummary resumed = train(request);
    REQUIRE(resumed.log.size() == whole.log.size());
    for (size_t i = 0; i < whole.log.size(); ++i) {
      CHECK(resumed.log[i].loss == doctest::Approx(whole.log[i].loss).epsilon(1e-8));  // the log has nine digits
      CHECK(resumed.log[i].step == whole.log[i].step);
    }
    CHECK(weights_of(resumed.model) == weights_of(whole.model));
  }
  SUBCASE("a run can start with a model's weights") {
    TrainRequest request = tiny(folder / "from");
    request.from = whole.model;
    CHECK(train(request).log[0].loss < 0.9 * whole.log[0].loss);
    request.out = folder / "other";
    request.config.model.ffn_dim = 32;
    CHECK(message_of(request).find("has another config than the run") != std::string::npos);
  }
  SUBCASE("mistakes are named") {
    CHECK(message_of(tiny(folder / "whole")).find("holds a run already") != std::string::npos);
    TrainRequest request = tiny(folder / "none");
    request.start = TrainStart::kResume;
    CHECK(message_of(request).find("holds no run to resume") != std::string::npos);
    CHECK_FALSE(fs::exists(folder / "none"));
    request = tiny("/proc/none");
    CHECK(message_of(request).find("/proc/none: cannot be made") == 0);
    request = tiny(folder / "device");
    request.device = "tpu";
    CHECK(message_of(request) == "train: device 'tpu', expected cpu, cuda or cuda:N");
    request = tiny(folder / "window");
    request.config.stages[1].window = Window{9, 9, 9};
    CHECK_FALSE(message_of(request).empty());
    request = tiny(folder / "patch");
    request.config.stages[0].extent = {4, 18, 16};
    CHECK(message_of(request).find("multiples of the patch") != std::string::npos);
    CHECK_FALSE(fs::exists(folder / "patch/train.json"));
    request = tiny(folder / "whole");
    request.start = TrainStart::kResume;
    for (const auto& entry : fs::directory_iterator(folder / "whole")) {
      if (entry.path().filename().string().starts_with("checkpoint_")) fs::resize_file(entry.path(), 2000);
    }
    CHECK(message_of(request).find("checkpoint_0000000032.safetensors") != std::string::npos);
  }
}
