#include "video/train_config.h"

#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "slidetile/error.h"
#include "slidetile/json_guard.h"

namespace slidetile::video {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 6;

/// Numbers that a key may take.
struct Range {
  double low, high;
};

double number_from(const Json& value, const std::string& where, Range range) {
  require(value.is_number(), where, " is ", shown(value), ", expected a number from ", range.low, " to ", range.high);
  const auto number = value.get<double>();
  require(number >= range.low && number <= range.high, where, " is ", number, ", expected ", range.low, " to ", range.high);
  return number;
}

int64_t whole_from(const Json& value, const std::string& where, Range range) {
  require(value.is_number_integer(), where, " is ", shown(value), ", expected a whole number from ", range.low, " to ", range.high);
  return static_cast<int64_t>(number_from(value, where, range));
}

Dim3 dim_from(const Json& value, const std::string& where) {
  require(value.is_string(), where, " is ", shown(value), ", expected extents such as \"16x64x64\"");
  try {
    return dim3_from_string(value.get<std::string>());
  } catch (const Error& error) {
    fail(ErrorCode::kInvalidArgument, where, ": ", error.what());
  }
}

using Reader = std::function<void(const Json& value, const std::string& where)>;

// Hands each value of an object to the reader of its key.
void read_object(const Json& json, const std::string& where, const std::map<std::string, Reader>& readers) {
  require(json.is_object(), where, " is ", shown(json), ", expected an object");
  for (const auto& [key, value] : json.items()) {
    const auto reader = readers.find(key);
    if (reader == readers.end()) {
      std::string known;
      for (const auto& [name, _] : readers) known += (known.empty() ? "" : ", ") + name;
      fail(ErrorCode::kInvalidArgument, where, ": the key ", in_quotes(key), " is not known; known keys: ", known);
    }
    reader->second(value, where + ": " + key);
  }
}

Reader into(double& target, Range range) {
  return [&target, range](const Json& value, const std::string& where) {
    target = number_from(value, where, range);
  };
}

Reader into(int64_t& target, Range range) {
  return [&target, range](const Json& value, const std::string& where) {
    target = whole_from(value, where, range);
  };
}

Reader into(Dim3& target) {
  return [&target](const Json& value, const std::string& where) {
    target = dim_from(value, where);
  };
}

TrainStage stage_from(const Json& json, const std::string& where) {
  TrainStage stage;
  int64_t batch = stage.batch;
  read_object(json, where,
              {{"extent", into(stage.extent)},
               {"batch", into(batch, {1, 4096})},
               {"steps", into(stage.steps, {0, 1e9})},
               {"minutes", into(stage.minutes, {0, 1e5})},
               {"shift", into(stage.shift, {0.01, 100})},
               {"rope_scale", into(stage.rope_scale, {0.01, 100})},
               {"tile", into(stage.tile)},
               {"sparse", into(stage.sparse, {0, 1})},
               {"two_objects", into(stage.mix.two_objects, {0, 1})},
               {"textured", into(stage.mix.textured, {0, 1})},
               {"directed", into(stage.mix.directed, {0, 1})},
               {"window", [&](const Json& value, const std::string& place) {
                  if (!value.is_null()) stage.window = dim_from(value, place);
                }}});
  stage.batch = static_cast<int>(batch);
  require((stage.steps > 0) != (stage.minutes > 0), where, ": ", stage.steps, " steps and ", stage.minutes,
          " minutes, expected one of them to be positive");
  return stage;
}

void check(const TrainConfig& config, const std::string& name) {
  require(!config.stages.empty(), name, ": no stages, expected at least one");
  for (const TrainStage& stage : config.stages) {
    require((stage.steps > 0) == (config.stages.front().steps > 0), name, ": some stages are given in steps, others in minutes");
  }
  require(config.model.out_channels == 3, name, ": model: out_channels is ", config.model.out_channels, ", expected 3: pixels");
}

Json json_of(const TrainStage& stage) {
  Json json;
  json["extent"] = to_string(stage.extent);
  json["batch"] = stage.batch;
  if (stage.steps > 0) json["steps"] = stage.steps;
  if (stage.minutes > 0) json["minutes"] = stage.minutes;
  json["shift"] = stage.shift;
  json["rope_scale"] = stage.rope_scale;
  json["window"] = stage.window ? Json(to_string(*stage.window)) : Json();
  json["tile"] = to_string(stage.tile);
  json["sparse"] = stage.sparse;
  json["two_objects"] = stage.mix.two_objects;
  json["textured"] = stage.mix.textured;
  json["directed"] = stage.mix.directed;
  return json;
}

}  // namespace

TrainConfig default_train_config() {
  TrainConfig config;
  config.model.patch_size = {1, 4, 4};
  config.model.num_attention_heads = 4;
  config.model.attention_head_dim = 64;
  config.model.in_channels = 6;  // pixels and coordinates
  config.model.out_channels = 3;
  config.model.text_dim = 128;
  config.model.ffn_dim = 1024;
  config.model.num_layers = 8;
  TrainStage coarse{.extent = {16, 32, 32}, .batch = 64, .minutes = 2.2, .shift = 4, .rope_scale = 2};
  coarse.mix.directed = 0.1;
  const TrainStage fine{.extent = {16, 64, 64}, .batch = 32, .minutes = 1.7};
  TrainStage sparse = fine;
  sparse.minutes = 0.9;
  sparse.window = Window{2, 3, 3};
  sparse.sparse = 0.5;
  config.stages = {coarse, fine, sparse};
  return config;
}

TrainConfig train_config_from_json(const std::string& text, const std::string& name) {
  const Json json = parse_json<Json>(text, name + ": ", kDeepest);
  TrainConfig config = default_train_config();
  int64_t seed = 1;
  read_object(json, name,
              {{"model",
                [&](const Json& value, const std::string& where) {
                  config.model = dit_config_from_json(value.dump(), where);
                }},
               {"seed", into(seed, {0, 1e15})},
               {"muon_rate", into(config.muon_rate, {0, 1})},
               {"adam_rate", into(config.adam_rate, {0, 1})},
               {"mean_decay", into(config.mean_decay, {0, 1})},
               {"caption_dropout", into(config.caption_dropout, {0, 1})},
               {"warmup_steps", into(config.warmup_steps, {0, 1e9})},
               {"cooldown", into(config.cooldown, {0, 1})},
               {"sampling_shift", into(config.sampling_shift, {0.01, 100})},
               {"stages", [&](const Json& value, const std::string& where) {
                  require(value.is_array(), where, " is ", shown(value), ", expected a list");
                  config.stages.clear();
                  for (size_t i = 0; i < value.size(); ++i) {
                    config.stages.push_back(stage_from(value[i], where + " " + std::to_string(i + 1)));
                  }
                }}});
  config.seed = static_cast<uint64_t>(seed);
  check(config, name);
  return config;
}

std::string to_json(const TrainConfig& config) {
  Json json;
  json["model"] = Json::parse(to_json(config.model));
  json["seed"] = config.seed;
  json["muon_rate"] = config.muon_rate;
  json["adam_rate"] = config.adam_rate;
  json["mean_decay"] = config.mean_decay;
  json["caption_dropout"] = config.caption_dropout;
  json["warmup_steps"] = config.warmup_steps;
  json["cooldown"] = config.cooldown;
  json["sampling_shift"] = config.sampling_shift;
  json["stages"] = Json::array();
  for (const TrainStage& stage : config.stages) json["stages"].push_back(json_of(stage));
  return json.dump(2) + "\n";
}

void set_minutes(TrainConfig& config, double minutes) {
  require(std::isfinite(minutes) && minutes > 0, "train: ", minutes, " minutes, expected more than 0");
  double sum = 0;
  for (const TrainStage& stage : config.stages) {
    require(stage.minutes > 0, "train: --minutes with stages that are given in steps, expected stages in minutes");
    sum += stage.minutes;
  }
  for (TrainStage& stage : config.stages) stage.minutes *= minutes / sum;
}

}  // namespace slidetile::video
