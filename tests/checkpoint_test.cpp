#include "video/checkpoint.h"

#include <doctest/doctest.h>
#include <torch/torch.h>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "temporary_folder.h"

using namespace slidetile;
using namespace slidetile::video;

namespace {

Optimizer optimizer_of(int64_t width) {
  return {{{"blocks.0.a.weight", torch::ones({width, width}).requires_grad_()}, {"b", torch::ones({width}).requires_grad_()}}, {}};
}

std::string message_of(const std::string& path, int64_t width) {
  Optimizer optimizer = optimizer_of(width);
  try {
    load_checkpoint(path, optimizer);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a position and a state come back; the last two files stay") {
  const TemporaryFolder folder;
  CHECK(newest_checkpoint(folder.path()).empty());
  Optimizer optimizer = optimizer_of(4);
  const TrainPosition position{.step = 90, .stage = 1, .stage_step = 7, .stage_seconds = 0.1, .seconds = 1.0 / 3, .log = "a\nb\n"};
  for (const int64_t step : {80, 9, 90}) {
    TrainPosition each = position;
    each.step = step;
    save_checkpoint(folder.path(), optimizer, each);
  }
  CHECK(folder.files().size() == 2);
  const std::string newest = newest_checkpoint(folder.path());
  CHECK(newest == folder.path() + "/checkpoint_0000000090.safetensors");
  Optimizer other = optimizer_of(4);
  const TrainPosition read = load_checkpoint(newest, other);
  CHECK(read.step == 90);
  CHECK(read.stage == 1);
  CHECK(read.stage_step == 7);
  CHECK(read.seconds == position.seconds);
  CHECK(read.log == position.log);
  CHECK(other.steps() == 90);
}

TEST_CASE("what is missing or does not fit is named") {
  const TemporaryFolder folder;
  Optimizer optimizer = optimizer_of(4);
  save_checkpoint(folder.path(), optimizer, {.step = 1, .log = "x"});
  const std::string path = newest_checkpoint(folder.path());
  CHECK(message_of(path, 5).find("master.blocks.0.a.weight does not fit the model") != std::string::npos);

  const SafetensorsFile file(path);
  std::vector<SafetensorsTensor> fewer(file.tensors().begin(), file.tensors().end() - 1);
  const std::string cut = folder.path() + "/cut.safetensors";
  write_safetensors(cut, fewer, file.metadata());
  CHECK(message_of(cut, 4).find("the tensor " + file.tensors().back().name + " is absent") != std::string::npos);
  SafetensorsMetadata metadata = file.metadata();
  metadata["step"] = "-3";
  write_safetensors(cut, file.tensors(), metadata);
  CHECK(message_of(cut, 4).find("step is '-3', expected a number of at least 0") != std::string::npos);
  metadata.erase("step");
  write_safetensors(cut, file.tensors(), metadata);
  CHECK(message_of(cut, 4).find("step is absent from its metadata") != std::string::npos);
  write_file(cut, std::string("nothing"));
  CHECK_FALSE(message_of(cut, 4).empty());
}
