// Tests of video/model.h: folders are read back, in any type and in shards, and what does not fit is one clear error.
#include "video/model.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/safetensors.h"
#include "temporary_folder.h"
#include "video/model_files.h"
#include "video/sprites.h"
#include "video_fill.h"

namespace slidetile::video {
namespace {

using torch::Tensor;

namespace fs = std::filesystem;

DitConfig small_config() {
  return {.num_attention_heads = 2,
          .attention_head_dim = 12,
          .in_channels = 3,
          .out_channels = 3,
          .text_dim = 16,
          .freq_dim = 8,
          .ffn_dim = 20,
          .num_layers = 2,
          .rope_max_seq_len = 32};
}

Model small_model() {
  Model model{std::make_shared<Dit>(small_config()), std::make_shared<TextEncoder>(16), {.kind = SchedulerKind::kUniPc, .shift = 5}};
  fill_parameters(*model.transformer);
  fill_parameters(*model.text_encoder);
  return model;
}

bool same_parameters(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto of_a = a.named_parameters(), of_b = b.named_parameters();
  if (of_a.size() != of_b.size()) return false;
  for (const auto& item : of_a) {
    const Tensor* other = of_b.find(item.key());
    if (!other || !torch::equal(item.value().to(torch::kFloat32), other->to(torch::kFloat32))) return false;
  }
  return true;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

constexpr const char* kWeights = "transformer/diffusion_pytorch_model.safetensors";

// Writes the transformer's weights again, changed.
void change_weights(const TemporaryFolder& folder, const std::function<void(std::vector<SafetensorsTensor>&)>& change) {
  const SafetensorsFile file(folder / kWeights);
  std::vector<SafetensorsTensor> tensors = file.tensors();
  change(tensors);
  write_safetensors(folder / kWeights, tensors);
}

}  // namespace

TEST_CASE("a model is read back as it was saved") {
  const TemporaryFolder folder;
  const Model model = small_model();
  save_model(folder / "model", model);
  const Model back = load_model(folder / "model", torch::kCPU);
  CHECK(back.transformer->config() == model.transformer->config());
  CHECK(same_parameters(*back.transformer, *model.transformer));
  CHECK(same_parameters(*back.text_encoder, *model.text_encoder));
  CHECK(back.scheduler.kind == SchedulerKind::kUniPc);
  CHECK(back.scheduler.shift == 5);
  save_model(folder / "model", back);  // over itself
  CHECK(same_parameters(*load_model(folder / "model", torch::kCPU).transformer, *model.transformer));
}

TEST_CASE("bf16 on disk and in memory") {
  const TemporaryFolder folder;
  const Model model = small_model();
  save_model(folder / "model", model, torch::kBFloat16);
  const SafetensorsFile file(folder / ("model/" + std::string(kWeights)));
  CHECK(file.at("blocks.0.attn1.to_q.weight").dtype == "BF16");
  CHECK(file.at("blocks.0.scale_shift_table").dtype == "F32");
  const Model back = load_model(folder / "model", torch::kCPU, torch::kBFloat16);
  CHECK((back.transformer->dtype() == torch::kBFloat16));
  model.transformer->set_dtype(torch::kBFloat16);
  CHECK(same_parameters(*back.transformer, *model.transformer));
  const Model widened = load_model(folder / "model", torch::kCPU);
  CHECK((widened.transformer->dtype() == torch::kFloat32));
  CHECK(same_parameters(*widened.transformer, *model.transformer));
}

TEST_CASE("shards that an index names are read") {
  const TemporaryFolder folder;
  const Model model = small_model();
  save_model(folder.path(), model);
  nlohmann::json map;
  {
    const SafetensorsFile file(folder / kWeights);
    std::vector<SafetensorsTensor> shards[2];
    for (const SafetensorsTensor& tensor : file.tensors()) {
      const size_t shard = tensor.name < "blocks.1" ? 0 : 1;
      shards[shard].push_back(tensor);
      map[tensor.name] = "part" + std::to_string(shard) + ".safetensors";
    }
    for (size_t i = 0; i < 2; ++i) write_safetensors(folder / ("transformer/part" + std::to_string(i) + ".safetensors"), shards[i]);
  }
  fs::remove(folder / kWeights);
  const std::string index = folder / (std::string(kWeights) + ".index.json");
  const auto load = [&] {
    load_dit(folder / "transformer", torch::kCPU);
  };
  CHECK(error_of(load).find("neither diffusion_pytorch_model.safetensors nor") != std::string::npos);
  write_file(index, nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
  CHECK(same_parameters(*load_dit(folder / "transformer", torch::kCPU), *model.transformer));
  for (const char* text : {"{}", R"({"weight_map": {}})", R"({"weight_map": {"a": 3}})", R"({"weight_map": {"a": "../x"}})",
                           R"({"weight_map": {"a": "none.safetensors"}})"}) {
    CAPTURE(text);
    write_file(index, std::string(text));
    CHECK(error_of(load) != "");
  }
}

TEST_CASE("tensors that do not fit are named, with what was found and what was expected") {
  const TemporaryFolder folder;
  const auto load = [&] {
    load_model(folder.path(), torch::kCPU);
  };
  save_model(folder.path(), small_model());
  CHECK(error_of(load) == "");
  const auto without = [](const std::string& name) {
    return [name](std::vector<SafetensorsTensor>& tensors) {
      std::erase_if(tensors, [&](const auto& tensor) { return tensor.name == name; });
    };
  };
  change_weights(folder, without("blocks.1.ffn.net.0.proj.bias"));
  CHECK(error_of(load) == folder / "transformer/diffusion_pytorch_model" + ": 'blocks.1.ffn.net.0.proj.bias' [20] is missing");

  save_model(folder.path(), small_model());
  change_weights(folder, [](auto& tensors) {
    for (auto& tensor : tensors) {
      if (tensor.name == "proj_out.weight") tensor.shape = {24, 12};
    }
  });
  CHECK(error_of(load) == folder / kWeights + ": 'proj_out.weight' is [24, 12], expected [12, 24]");

  save_model(folder.path(), small_model());
  const std::vector<float> more(3);
  change_weights(folder, [&](auto& tensors) { tensors.push_back({"extra", "F32", {3}, std::as_bytes(std::span(more))}); });
  CHECK(error_of(load).find("'extra' [3] is no tensor of this model") != std::string::npos);

  save_model(folder.path(), small_model());
  change_weights(folder, [](auto& tensors) {
    for (auto& tensor : tensors) {
      if (tensor.name == "proj_out.bias") tensor.dtype = "I32";
    }
  });
  CHECK(error_of(load).find("'proj_out.bias' is of type I32, expected F32, BF16 or F16") != std::string::npos);
}

TEST_CASE("folders that are no model are errors") {
  const TemporaryFolder folder;
  const std::string model = folder.path();
  const auto load = [&] {
    load_model(model, torch::kCPU);
  };
  CHECK(error_of(load).find("model_index.json") != std::string::npos);
  const auto changed = [&](const std::string& name, const std::string& text) {
    save_model(model, small_model());
    write_file(folder / name, text);
    return error_of(load);
  };
  CHECK(changed("model_index.json", "{}").find("transformer is absent") != std::string::npos);
  CHECK(changed("model_index.json", R"({"transformer": 1, "scheduler": 1, "text_encoder": ["transformers", "UMT5EncoderModel"]})")
            .find("not supported") != std::string::npos);
  CHECK(changed("transformer/config.json", R"({"depth": 3})").find("depth is no key") != std::string::npos);
  CHECK(changed("scheduler/scheduler_config.json", "[]") != "");
  CHECK(changed("text_encoder/config.json", "{}").find("_class_name is absent") != std::string::npos);
  CHECK(changed("text_encoder/config.json", R"({"_class_name": "WordEmbedding", "max_words": 32, "vocabulary": ["a"], "text_dim": 16})")
            .find("vocabulary") != std::string::npos);
  CHECK(
      changed("text_encoder/config.json", R"({"_class_name": "WordEmbedding", "layers": 2})").find("'layers' is no key of WordEmbedding") !=
      std::string::npos);
  save_model(model, small_model());
  fs::remove(folder / "scheduler/scheduler_config.json");
  CHECK(error_of(load).find("scheduler_config.json") != std::string::npos);
  CHECK(error_of([&] { save_model("/proc/slidetile", small_model()); }) != "");
}

TEST_CASE("prompts become tokens, and the empty one is null words") {
  const Tensor tokens = TextEncoder::tokens({"a small red circle moves left", ""});
  CHECK((tokens.sizes() == torch::IntArrayRef({2, TextEncoder::kMaxWords})));
  CHECK(vocabulary()[static_cast<size_t>(tokens[0][2].item<int64_t>())] == "red");
  CHECK(tokens[0][6].item<int64_t>() == TextEncoder::null_token());
  CHECK((tokens[1] == TextEncoder::null_token()).all().item<bool>());
  TextEncoder encoder(16);
  const Tensor text = encoder.forward(tokens);
  CHECK((text.sizes() == torch::IntArrayRef({2, TextEncoder::kMaxWords, 16})));
  CHECK(torch::equal(text[0][31], text[1][31]));
  CHECK_THROWS_AS(TextEncoder::tokens({"a purple circle"}), Error);
  std::string longest;
  for (int i = 0; i < 33; ++i) longest += "a ";
  CHECK_THROWS_AS(TextEncoder::tokens({longest}), Error);
}

}  // namespace slidetile::video
