// slidetile train and judge from outside: a run that is killed or whose disk is full loses nothing, and bad input is one line.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "program.h"
#include "slidetile/file.h"

namespace fs = std::filesystem;

namespace {

const std::string kProgram = "'" SLIDETILE_PROGRAM_PATH "' ";
constexpr const char* kConfig = R"({
  "model": {"patch_size": [1, 4, 4], "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 6, "out_channels": 3, "text_dim": 16,
            "freq_dim": 16, "ffn_dim": 48, "num_layers": 1},
  "stages": [{"extent": "4x16x16", "batch": 4, "steps": 240, "tile": "2x2x2", "window": "1x1x2", "sparse": 0.5}]})";
constexpr const char *kOften = " --checkpoint-every 8 --log-every 8 --threads 1",
                     *kWeights = "/model/transformer/diffusion_pytorch_model.safetensors";

void check_is_line(const Outcome& outcome, const std::string& message) {
  CHECK(outcome.code == 2);
  CHECK(outcome.err.starts_with("slidetile: "));
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  CHECK(contains(outcome.err, message));
}

bool holds_leftovers(const std::string& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.path().filename().string().find(".tmp") != std::string::npos) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("bad input") {
  const Folder folder;
  slidetile::write_file(folder / "c.json", std::string(kConfig));
  check_is_line(folder.run("train"), "--out is required");
  check_is_line(folder.run("train --out run --config none.json"), "none.json: cannot be read");
  slidetile::write_file(folder / "d.json", std::string(R"({"bach": 1})"));
  check_is_line(folder.run("train --out run --config d.json"), "d.json: the key 'bach' is not known");
  check_is_line(folder.run("train --out run --resume --minutes 3"), "--resume takes the run's own settings");
  check_is_line(folder.run("judge --model none --captions none.txt"), "none.txt");
  slidetile::write_file(folder / "s.txt", std::string("a small red circle moves left\n"));
  check_is_line(folder.run("judge --model none --captions s.txt --json no/a.json"), "cannot write 'no/a.json'");
  CHECK_FALSE(fs::exists(folder / "run"));
}

TEST_CASE("killed, and then on a full disk, a run comes to the same weights") {
  const Folder folder;
  slidetile::write_file(folder / "c.json", std::string(kConfig));
  const Outcome whole = folder.run("train --out whole --config c.json" + std::string(kOften));
  if (whole.err.find("LibTorch") != std::string::npos) return;
  REQUIRE(whole.code == 0);
  check_is_line(folder.run("train --out whole --config c.json"), "holds a run already");

  const Outcome full = folder.shell("ulimit -f 1; " + kProgram + "train --out full --config c.json" + kOften);
  check_is_line(full, "cannot write 'full/checkpoint_0000000000.safetensors'");
  CHECK_FALSE(fs::exists(folder / "full/train.json"));
  CHECK_FALSE(holds_leftovers(folder / "full"));

  const Outcome killed =
      folder.shell(kProgram + "train --out run --config c.json" + kOften +
                   " & for i in $(seq 2000); do ls run/checkpoint_000000001* && break; sleep 0.02; done; kill -9 $!; wait $!");
  REQUIRE(killed.code == 128 + 9);
  slidetile::write_file(folder / "run/checkpoint_0000000016.safetensors.tmp1.0", std::string("half of one"));
  check_is_line(folder.shell("ulimit -f 1; " + kProgram + "train --out run --resume" + kOften), "cannot write 'run/checkpoint_");
  REQUIRE(folder.run("train --out run --resume" + std::string(kOften)).code == 0);
  CHECK(read_text(folder / "run" + kWeights) == read_text(folder / "whole" + kWeights));
  CHECK_FALSE(holds_leftovers(folder / "run"));
  CHECK_FALSE(fs::exists(folder / "run/model.old"));
  CHECK_FALSE(fs::exists(folder / "run/model.new"));
}
