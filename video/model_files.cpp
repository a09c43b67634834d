#include "video/model_files.h"

#include <torch/torch.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/json_guard.h"
#include "slidetile/safetensors.h"
#include "video/dit.h"

namespace slidetile::video {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 4;

torch::ScalarType torch_dtype(const SafetensorsTensor& tensor, const std::string& path) {
  if (tensor.dtype == "F32") return torch::kFloat32;
  if (tensor.dtype == "BF16") return torch::kBFloat16;
  if (tensor.dtype == "F16") return torch::kFloat16;
  fail(ErrorCode::kUnsupported, path, ": ", in_quotes(tensor.name), " is of type ", tensor.dtype, ", expected F32, BF16 or F16");
}

// The files of a model's weights, each with the tensors that it is to give; empty: all of them.
std::vector<std::string> weight_files(const std::string& folder, const std::string& stem) {
  const std::string single = folder + "/" + stem + ".safetensors", index = single + ".index.json";
  if (std::filesystem::exists(single)) return {single};
  if (!std::filesystem::exists(index))
    fail(ErrorCode::kIo, folder, ": neither ", stem, ".safetensors nor ", stem, ".safetensors.index.json is there");
  const Json json = parse_json<Json>(read_text(index), index + ": ", kDeepest);
  require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), index,
          ": no weight_map, expected an object of names");
  std::set<std::string> shards;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    require(shard.is_string(), index, ": ", in_quotes(name), " is in ", shown(shard), ", expected the name of a file");
    const std::string file = shard.get<std::string>();
    require(!file.empty() && file.find('/') == std::string::npos, index, ": ", in_quotes(name), " is in ", in_quotes(file),
            ", expected a file of the same folder");
    shards.insert(folder + "/" + file);
  }
  require(!shards.empty(), index, ": its weight_map is empty");
  return {shards.begin(), shards.end()};
}

}  // namespace

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  constexpr size_t kLargest = size_t{16} << 20;
  require(file.bytes().size() <= kLargest, path, ": ", file.bytes().size(), " bytes, expected at most ", kLargest);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void load_parameters(torch::nn::Module& module, const std::string& folder, const std::string& stem) {
  const torch::NoGradGuard no_grad;
  std::map<std::string, torch::Tensor> missing;
  for (const auto& parameter : module.named_parameters()) missing.emplace(parameter.key(), parameter.value());
  for (const std::string& path : weight_files(folder, stem)) {
    const SafetensorsFile file(path);
    for (const SafetensorsTensor& tensor : file.tensors()) {
      const auto found = missing.find(tensor.name);
      require(found != missing.end(), path, ": ", in_quotes(tensor.name), " ", c10::IntArrayRef(tensor.shape),
              " is no tensor of this model, or there twice");
      torch::Tensor& parameter = found->second;
      require(parameter.sizes() == c10::IntArrayRef(tensor.shape), path, ": ", in_quotes(tensor.name), " is ",
              c10::IntArrayRef(tensor.shape), ", expected ", parameter.sizes());
      const auto options = torch::TensorOptions().dtype(torch_dtype(tensor, path));
      // The file's bytes may lie at any address: where a word of the type may not, they are copied first.
      if (reinterpret_cast<uintptr_t>(tensor.data.data()) % options.dtype().itemsize() == 0) {
        parameter.copy_(torch::from_blob(const_cast<std::byte*>(tensor.data.data()), tensor.shape, options));
      } else {
        torch::Tensor copy = torch::empty(tensor.shape, options);
        std::memcpy(copy.data_ptr(), tensor.data.data(), tensor.data.size());
        parameter.copy_(copy);
      }
      missing.erase(found);
    }
  }
  if (missing.empty()) return;
  const auto& [name, parameter] = *missing.begin();
  fail(ErrorCode::kInvalidArgument, folder, "/", stem, ": ", in_quotes(name), " ", parameter.sizes(), " is missing",
       missing.size() > 1 ? ", and " + std::to_string(missing.size() - 1) + " more" : "");
}

void save_parameters(const torch::nn::Module& module, const std::string& path, torch::ScalarType dtype) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> held;  // the bytes that the list points to
  std::vector<SafetensorsTensor> tensors;
  for (const auto& parameter : module.named_parameters()) {
    const torch::ScalarType type = stays_f32(parameter.key()) ? torch::kFloat32 : dtype;
    held.push_back(parameter.value().detach().to(torch::kCPU, type).contiguous());
    const torch::Tensor& tensor = held.back();
    require(type == torch::kFloat32 || type == torch::kBFloat16 || type == torch::kFloat16, path, ": weights of type ", toString(type),
            ", expected f32, bf16 or f16");
    tensors.push_back({parameter.key(),
                       type == torch::kFloat32    ? "F32"
                       : type == torch::kBFloat16 ? "BF16"
                                                  : "F16",
                       tensor.sizes().vec(),
                       {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()}});
  }
  write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace slidetile::video
