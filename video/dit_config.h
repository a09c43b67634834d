// Extents of a Wan transformer, as its config.json names them.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace slidetile::video {

/// The keys of diffusers' WanTransformer3DModel. Those that only matter for image to video (image_dim, added_kv_proj_dim,
/// pos_embed_seq_len) must be null in a file.
struct DitConfig {
  std::array<int64_t, 3> patch_size{1, 2, 2};  // frames, height, width
  int64_t num_attention_heads = 40;
  int64_t attention_head_dim = 128;
  int64_t in_channels = 16;
  int64_t out_channels = 16;
  int64_t text_dim = 4096;
  int64_t freq_dim = 256;
  int64_t ffn_dim = 13824;
  int64_t num_layers = 40;
  bool cross_attn_norm = true;
  double eps = 1e-6;
  int64_t rope_max_seq_len = 1024;

  int64_t width() const noexcept { return num_attention_heads * attention_head_dim; }
  int64_t patch_volume() const noexcept { return patch_size[0] * patch_size[1] * patch_size[2]; }
  /// Number of parameters, computed: nothing is allocated.
  int64_t parameters() const noexcept;
  friend bool operator==(const DitConfig&, const DitConfig&) = default;
};

/// Reads a config.json's text; `name` stands for it in messages. Absent keys take diffusers' defaults; an unknown key, one that asks for
/// what this model has not, or a wrong value throws Error naming key, value and what was expected.
DitConfig dit_config_from_json(const std::string& text, const std::string& name);
/// The same text as diffusers writes, all keys given.
std::string to_json(const DitConfig& config);

/// The released text-to-video models: "wan2.1-1.3b" and "wan2.1-14b". Throws on another name.
DitConfig released_config(const std::string& name);

}  // namespace slidetile::video
