#include "video/train_config.h"

#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

std::string message_of(const std::string& text) {
  try {
    train_config_from_json(text, "c.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a config goes out and in; what is absent keeps its default") {
  const TrainConfig standard = default_train_config();
  CHECK(to_json(train_config_from_json(to_json(standard), "c.json")) == to_json(standard));
  CHECK(to_json(train_config_from_json("{}", "c.json")) == to_json(standard));
  const TrainConfig own = train_config_from_json(
      R"({"seed": 7, "cooldown": 0, "stages": [{"extent": "8x16x16", "batch": 3, "steps": 5, "window": "2x1x1", "directed": 0.5}]})",
      "c.json");
  CHECK(own.seed == 7);
  REQUIRE(own.stages.size() == 1);
  CHECK(own.stages[0].extent == Dim3{8, 16, 16});
  CHECK(own.stages[0].window == Window{2, 1, 1});
  CHECK(own.stages[0].mix.directed == 0.5);
  CHECK(standard.model.parameters() < 9500000);  // 24 MB in bf16 at most
}

TEST_CASE("the tuning that the shipped model went through") {
  const std::string path = SLIDETILE_DATA "/sprites_tuning.json";
  std::ifstream file(path);
  const TrainConfig config = train_config_from_json({std::istreambuf_iterator<char>(file), {}}, path);
  REQUIRE(config.stages.size() == 1);
  CHECK(config.stages[0].window == Window{2, 3, 3});  // generate's default
  CHECK(config.stages[0].sparse == 0.6);
  CHECK(config.model == default_train_config().model);
}

TEST_CASE("mistakes are named") {
  CHECK(message_of(R"({"sed": 1})").find("c.json: the key 'sed' is not known; known keys: adam_rate, caption_dropout") == 0);
  CHECK(message_of(R"({"stages": [{"steps": 1, "bach": 2}]})").find("c.json: stages 1: the key 'bach' is not known") == 0);
  CHECK(message_of(R"({"model": {"num_layrs": 2}})").find("num_layrs") != std::string::npos);
  CHECK(message_of(R"({"caption_dropout": 2})") == "c.json: caption_dropout is 2, expected 0 to 1");
  CHECK(message_of(R"({"stages": [{"steps": 1.5}]})").find("steps is 1.5, expected a whole number") != std::string::npos);
  CHECK(message_of(R"({"stages": [{"extent": "axb", "steps": 1}]})").find("c.json: stages 1: extent: ") == 0);
  CHECK(message_of(R"({"stages": [{"batch": 2}]})").find("expected one of them to be positive") != std::string::npos);
  CHECK(message_of(R"({"stages": [{"steps": 1}, {"minutes": 1}]})").find("some stages are given in steps") != std::string::npos);
  CHECK(message_of(R"({"stages": []})") == "c.json: no stages, expected at least one");
  CHECK_FALSE(message_of("[1").empty());
}

TEST_CASE("minutes stretch") {
  TrainConfig config = default_train_config();
  set_minutes(config, 18);
  double sum = 0;
  for (const TrainStage& stage : config.stages) sum += stage.minutes;
  CHECK(sum == doctest::Approx(18));
  CHECK_THROWS_AS(set_minutes(config, 0), Error);
  config.stages[0].minutes = 0;
  CHECK_THROWS_AS(set_minutes(config, 1), Error);
}
