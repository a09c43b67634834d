#include "video/checkpoint.h"

#include <torch/torch.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "slidetile/error.h"

namespace slidetile::video {

using torch::Tensor;

namespace {

constexpr std::string_view kPrefix = "checkpoint_", kSuffix = ".safetensors";
constexpr size_t kKept = 2;

// Checkpoints of a folder, oldest first: their names sort by step.
std::vector<std::string> checkpoints_in(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::string exact(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

template <typename Number>
Number number_from(const SafetensorsFile& file, const std::string& path, const char* key) {
  const auto entry = file.metadata().find(key);
  require(entry != file.metadata().end(), path, ": ", key, " is absent from its metadata: this is no checkpoint");
  Number number{};
  const std::string& text = entry->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  require(error == std::errc() && end == text.data() + text.size() && number >= 0, path, ": ", key, " is '", text,
          "', expected a number of at least 0");
  return number;
}

}  // namespace

void save_checkpoint(const std::string& folder, const Optimizer& optimizer, const TrainPosition& position) {
  std::vector<Tensor> copies;
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, tensor] : optimizer.state()) {
    copies.push_back(tensor.to(torch::kCPU).contiguous());
    const Tensor& copy = copies.back();
    tensors.push_back(
        {name, "F32", copy.sizes().vec(), std::as_bytes(std::span(copy.data_ptr<float>(), static_cast<size_t>(copy.numel())))});
  }
  char name[64];
  std::snprintf(name, sizeof name, "/checkpoint_%010lld.safetensors", static_cast<long long>(position.step));
  write_safetensors(folder + name, tensors,
                    {{"step", std::to_string(position.step)},
                     {"stage", std::to_string(position.stage)},
                     {"stage_step", std::to_string(position.stage_step)},
                     {"stage_seconds", exact(position.stage_seconds)},
                     {"seconds", exact(position.seconds)},
                     {"log", position.log}});
  std::vector<std::string> all = checkpoints_in(folder);
  for (size_t i = 0; i + kKept < all.size(); ++i) {
    std::error_code ignored;  // an old file that stays does no harm
    std::filesystem::remove(all[i], ignored);
  }
}

std::string newest_checkpoint(const std::string& folder) {
  const std::vector<std::string> all = checkpoints_in(folder);
  return all.empty() ? "" : all.back();
}

TrainPosition load_checkpoint(const std::string& path, Optimizer& optimizer) {
  const SafetensorsFile file(path);
  TrainPosition position{.step = number_from<int64_t>(file, path, "step"),
                         .stage = number_from<int64_t>(file, path, "stage"),
                         .stage_step = number_from<int64_t>(file, path, "stage_step"),
                         .stage_seconds = number_from<double>(file, path, "stage_seconds"),
                         .seconds = number_from<double>(file, path, "seconds"),
                         .log = ""};
  const auto log = file.metadata().find("log");
  require(log != file.metadata().end(), path, ": log is absent from its metadata: this is no checkpoint");
  position.log = log->second;
  const auto find = [&](const std::string& name, const Tensor& like) {
    const SafetensorsTensor* tensor = file.find(name);
    require(tensor != nullptr, path, ": the tensor ", name, " is absent");
    require(tensor->dtype == "F32" && tensor->shape == like.sizes().vec(), path, ": ", name, " does not fit the model: expected F32 of ",
            like.numel(), " elements");
    Tensor copy = torch::empty(like.sizes(), torch::kFloat32);
    std::copy(tensor->data.begin(), tensor->data.end(), reinterpret_cast<std::byte*>(copy.data_ptr<float>()));
    return copy;
  };
  optimizer.load(find, position.step);
  return position;
}

}  // namespace slidetile::video
