#include "video/dit_config.h"

#include <nlohmann/json.hpp>

#include "slidetile/error.h"
#include "slidetile/json_guard.h"

namespace slidetile::video {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kDeepest = 4;
constexpr int64_t kLargest = int64_t{1} << 20;  // of any extent: numbers of parameters stay far below 2^63

int64_t extent_from(const Json& value, const std::string& where) {
  require(value.is_number_integer(), where, " is ", shown(value), ", expected a positive integer");
  const auto number = value.get<int64_t>();
  require(number > 0 && number <= kLargest, where, " is ", number, ", expected 1 to ", kLargest);
  return number;
}

void require_null(const Json& value, const std::string& where) {
  require(value.is_null(), where, " is ", shown(value), ", expected null: image to video is not supported");
}

void read_key(DitConfig& config, const std::string& key, const Json& value, const std::string& where) {
  if (key == "patch_size") {
    require(value.is_array() && value.size() == 3, where, " is ", shown(value), ", expected three positive integers");
    for (size_t i = 0; i < 3; ++i) config.patch_size[i] = extent_from(value[i], where);
  } else if (key == "num_attention_heads") {
    config.num_attention_heads = extent_from(value, where);
  } else if (key == "attention_head_dim") {
    config.attention_head_dim = extent_from(value, where);
  } else if (key == "in_channels") {
    config.in_channels = extent_from(value, where);
  } else if (key == "out_channels") {
    config.out_channels = value.is_null() ? 0 : extent_from(value, where);  // null: as in_channels, set at the end
  } else if (key == "text_dim") {
    config.text_dim = extent_from(value, where);
  } else if (key == "freq_dim") {
    config.freq_dim = extent_from(value, where);
  } else if (key == "ffn_dim") {
    config.ffn_dim = extent_from(value, where);
  } else if (key == "num_layers") {
    config.num_layers = extent_from(value, where);
  } else if (key == "cross_attn_norm") {
    require(value.is_boolean(), where, " is ", shown(value), ", expected true or false");
    config.cross_attn_norm = value.get<bool>();
  } else if (key == "qk_norm") {
    require(value.is_string() && value.get<std::string>() == "rms_norm_across_heads", where, " is ", shown(value),
            ", expected \"rms_norm_across_heads\"");
  } else if (key == "eps") {
    require(value.is_number() && value.get<double>() > 0 && value.get<double>() < 1, where, " is ", shown(value),
            ", expected a number between 0 and 1");
    config.eps = value.get<double>();
  } else if (key == "rope_max_seq_len") {
    config.rope_max_seq_len = extent_from(value, where);
  } else if (key == "image_dim" || key == "added_kv_proj_dim" || key == "pos_embed_seq_len") {
    require_null(value, where);
  } else if (key == "_class_name") {
    require(value.is_string() && value.get<std::string>() == "WanTransformer3DModel", where, " is ", shown(value),
            ", expected \"WanTransformer3DModel\"");
  } else {
    // Other keys that start with an underscore are diffusers' own notes (_diffusers_version, _name_or_path).
    require(!key.empty() && key[0] == '_', where, " is no key of this model, expected those of WanTransformer3DModel");
  }
}

void validate(const DitConfig& config, const std::string& name) {
  require(config.attention_head_dim % 2 == 0 && config.attention_head_dim >= 6 && config.attention_head_dim <= 256, name,
          ": attention_head_dim is ", config.attention_head_dim, ", expected an even number from 6 to 256");
  require(config.freq_dim % 2 == 0, name, ": freq_dim is ", config.freq_dim, ", expected an even number");
  require(config.width() <= kLargest, name, ": num_attention_heads x attention_head_dim is ", config.width(), ", expected at most ",
          kLargest);
  const auto [t, h, w] = config.patch_size;
  require(t <= 64 && h <= 64 && w <= 64, name, ": patch_size is ", t, "x", h, "x", w, ", expected at most 64 on each axis");
  require(config.num_layers <= 1024, name, ": num_layers is ", config.num_layers, ", expected at most 1024");
}

}  // namespace

int64_t DitConfig::parameters() const noexcept {
  const auto linear = [](int64_t in, int64_t out) {
    return in * out + out;
  };
  const int64_t d = width();
  const int64_t attention = 4 * linear(d, d) + 2 * d;  // q, k, v, out, and the norms of q and k
  const int64_t block = 6 * d + 2 * attention + (cross_attn_norm ? 2 * d : 0) + linear(d, ffn_dim) + linear(ffn_dim, d);
  const int64_t conditions = linear(freq_dim, d) + linear(d, d) + linear(d, 6 * d) + linear(text_dim, d) + linear(d, d);
  return linear(in_channels * patch_volume(), d) + conditions + num_layers * block + 2 * d + linear(d, out_channels * patch_volume());
}

DitConfig dit_config_from_json(const std::string& text, const std::string& name) {
  const Json json = parse_json<Json>(text, name + ": ", kDeepest);
  require(json.is_object(), name, ": ", shown(json), ", expected an object");
  DitConfig config;
  for (const auto& [key, value] : json.items()) read_key(config, key, value, name + ": " + key);
  if (config.out_channels == 0) config.out_channels = config.in_channels;
  validate(config, name);
  return config;
}

std::string to_json(const DitConfig& config) {
  Json json;
  json["_class_name"] = "WanTransformer3DModel";
  json["added_kv_proj_dim"] = nullptr;
  json["attention_head_dim"] = config.attention_head_dim;
  json["cross_attn_norm"] = config.cross_attn_norm;
  json["eps"] = config.eps;
  json["ffn_dim"] = config.ffn_dim;
  json["freq_dim"] = config.freq_dim;
  json["image_dim"] = nullptr;
  json["in_channels"] = config.in_channels;
  json["num_attention_heads"] = config.num_attention_heads;
  json["num_layers"] = config.num_layers;
  json["out_channels"] = config.out_channels;
  json["patch_size"] = config.patch_size;
  json["pos_embed_seq_len"] = nullptr;
  json["qk_norm"] = "rms_norm_across_heads";
  json["rope_max_seq_len"] = config.rope_max_seq_len;
  json["text_dim"] = config.text_dim;
  return json.dump(2) + "\n";
}

DitConfig released_config(const std::string& name) {
  if (name == "wan2.1-1.3b") return {.num_attention_heads = 12, .ffn_dim = 8960, .num_layers = 30};
  require(name == "wan2.1-14b", "model: '", name, "', expected wan2.1-1.3b or wan2.1-14b");
  return {};
}

}  // namespace slidetile::video
