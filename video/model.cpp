#include "video/model.h"

#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/json_guard.h"
#include "video/model_files.h"
#include "video/sprites.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 8;
constexpr const char *kTransformer = "/transformer", *kTextEncoder = "/text_encoder", *kScheduler = "/scheduler";
constexpr const char *kWeights = "diffusion_pytorch_model", *kTextWeights = "model";
constexpr const char* kEncoderClass = "WordEmbedding";

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail(ErrorCode::kIo, folder, ": cannot be made: ", error.message());
}

int64_t null_word() { return static_cast<int64_t>(vocabulary().size()); }

std::string text_config(int64_t text_dim) {
  Json json;
  json["_class_name"] = kEncoderClass;
  json["text_dim"] = text_dim;
  json["max_words"] = TextEncoder::kMaxWords;
  json["vocabulary"] = vocabulary();
  return json.dump(2) + "\n";
}

// Checks a text encoder's config.json and returns its text_dim.
int64_t text_dim_from(const std::string& path) {
  const Json json = parse_json<Json>(read_text(path), path + ": ", kDeepest);
  const auto at = [&](const char* key) {
    require(json.is_object() && json.contains(key), path, ": ", key, " is absent");
    return json[key];
  };
  for (const auto& [key, _] : json.items()) {
    constexpr std::string_view kKeys[] = {"_class_name", "text_dim", "max_words", "vocabulary"};
    require(std::ranges::find(kKeys, key) != std::end(kKeys), path, ": ", in_quotes(key), " is no key of ", kEncoderClass);
  }
  require(at("_class_name") == kEncoderClass, path, ": _class_name is ", shown(at("_class_name")), ", expected \"", kEncoderClass, "\"");
  require(at("max_words") == TextEncoder::kMaxWords, path, ": max_words is ", shown(at("max_words")), ", expected ",
          TextEncoder::kMaxWords);
  require(at("vocabulary") == Json(vocabulary()), path, ": its vocabulary is not that of this program, expected its ", null_word(),
          " words");
  const Json dim = at("text_dim");
  require(dim.is_number_integer() && dim.get<int64_t>() > 0 && dim.get<int64_t>() <= 65536, path, ": text_dim is ", shown(dim),
          ", expected 1 to 65536");
  return dim.get<int64_t>();
}

// The parameter `name`.weight
Tensor add_table(torch::nn::Module& parent, const std::string& name, const Tensor& values) {
  return parent.register_module(name, std::make_shared<torch::nn::Module>(name))->register_parameter("weight", values);
}

const char* scheduler_class(const SchedulerConfig& config) {
  return config.kind == SchedulerKind::kEuler ? "FlowMatchEulerDiscreteScheduler" : "UniPCMultistepScheduler";
}

std::string model_index(const SchedulerConfig& config) {
  Json json;
  json["_class_name"] = "SlidetilePipeline";  // diffusers has no pipeline with this text encoder
  json["scheduler"] = {"diffusers", scheduler_class(config)};
  json["text_encoder"] = {"slidetile", kEncoderClass};
  json["transformer"] = {"diffusers", "WanTransformer3DModel"};
  return json.dump(2) + "\n";
}

}  // namespace

TextEncoder::TextEncoder(int64_t text_dim, const torch::TensorOptions& options)
    : words_(add_table(*this, "words", torch::randn({null_word() + 1, text_dim}, options))),
      positions_(add_table(*this, "positions", torch::randn({kMaxWords, text_dim}, options) * 0.1)) {}

int64_t TextEncoder::null_token() { return null_word(); }

Tensor TextEncoder::tokens(const std::vector<std::string>& sentences) {
  const auto count = static_cast<int64_t>(sentences.size());
  Tensor tokens = torch::full({count, kMaxWords}, null_word(), torch::kInt64);
  auto to = tokens.accessor<int64_t, 2>();
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<int32_t> words = tokenize(sentences[static_cast<size_t>(i)]);
    const auto length = static_cast<int64_t>(words.size());
    require(length <= kMaxWords, "prompt: ", length, " words, expected at most ", kMaxWords);
    for (int64_t place = 0; place < length; ++place) to[i][place] = words[static_cast<size_t>(place)];
  }
  return tokens;
}

Tensor TextEncoder::forward(const Tensor& tokens) { return torch::embedding(words_, tokens) + positions_; }

std::shared_ptr<Dit> load_dit(const std::string& folder, const torch::Device& device, torch::ScalarType dtype) {
  const std::string config = folder + "/config.json";
  auto dit = std::make_shared<Dit>(dit_config_from_json(read_text(config), config), torch::TensorOptions().device(device).dtype(dtype));
  load_parameters(*dit, folder, kWeights);
  return dit;
}

Model load_model(const std::string& folder, const torch::Device& device, torch::ScalarType dtype) {
  const std::string index = folder + "/model_index.json";
  const Json json = parse_json<Json>(read_text(index), index + ": ", kDeepest);
  for (const char* part : {"transformer", "text_encoder", "scheduler"})
    require(json.is_object() && json.contains(part), index, ": ", part, " is absent");
  require(json["text_encoder"] == Json({"slidetile", kEncoderClass}), index, ": text_encoder is ", shown(json["text_encoder"]),
          ", expected [\"slidetile\",\"", kEncoderClass, "\"]: other text encoders are not supported");
  Model model;
  const std::string scheduler = folder + kScheduler + "/scheduler_config.json";
  model.scheduler = scheduler_config_from_json(read_text(scheduler), scheduler);
  const std::string text_folder = folder + kTextEncoder, text_json = text_folder + "/config.json";
  model.text_encoder = std::make_shared<TextEncoder>(text_dim_from(text_json), torch::TensorOptions().device(device).dtype(dtype));
  load_parameters(*model.text_encoder, text_folder, kTextWeights);
  model.transformer = load_dit(folder + kTransformer, device, dtype);
  require(model.text_encoder->text_dim() == model.transformer->config().text_dim, text_json, ": text_dim is ",
          model.text_encoder->text_dim(), ", the transformer expects ", model.transformer->config().text_dim);
  return model;
}

void save_model(const std::string& folder, const Model& model, torch::ScalarType dtype) {
  for (const char* part : {kTransformer, kTextEncoder, kScheduler}) make_folder(folder + part);
  save_parameters(*model.transformer, folder + kTransformer + "/" + kWeights + ".safetensors", dtype);
  write_file(folder + kTransformer + "/config.json", to_json(model.transformer->config()));
  save_parameters(*model.text_encoder, folder + kTextEncoder + "/" + kTextWeights + ".safetensors", dtype);
  write_file(folder + kTextEncoder + "/config.json", text_config(model.text_encoder->text_dim()));
  write_file(folder + kScheduler + "/scheduler_config.json", to_json(model.scheduler));
  write_file(folder + "/model_index.json", model_index(model.scheduler));
}

}  // namespace slidetile::video
