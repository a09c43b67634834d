// slidetile generate from outside: help, bad input, and clips of a model with random weights.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.h"
#include "slidetile/window_table.h"

namespace fs = std::filesystem;
using slidetile::Window;
using slidetile::WindowTable;

namespace {

void check_fails(const Folder& folder, const std::string& arguments, const std::string& message) {
  check_mistake(folder, "generate " + arguments, message);
}

const std::string kSentence = "'a small red circle moves left' ";
// 4 frames of 16 x 24 pixels: a canvas of 4x4x6 tokens.
const std::string kModel = kSentence + "--model model --tile 2x2x2 ";
const std::string kSmall = kModel + "--extent 4x16x24 --steps 2 --scale 1 ";

bool make_model(const Folder& folder) {
  const std::string program = SLIDETILE_RANDOM_MODEL_PATH;
  if (program.empty()) {
    MESSAGE("skipped: this build has no LibTorch");
    return false;
  }
  REQUIRE(folder.shell("'" + program + "' model tiny").code == 0);
  return true;
}

}  // namespace

TEST_CASE("help") {
  const Folder folder;
  const Outcome help = folder.run("generate --help");
  CHECK(help.code == 0);
  CHECK(help.err.empty());
  for (const char* part : {"Usage: slidetile generate", "--window", "--strategy", "--compare", "triangle", "Example"})
    CHECK(contains(help.out, part));
}

TEST_CASE("bad input, whether or not this build can generate") {
  const Folder folder;
  check_fails(folder, "'a small red dog moves left' -o a.gif", "'dog'");
  check_fails(folder, "'a small red dog moves left' -o a.gif", "triangle");
  check_fails(folder, kSentence, "--out");
  check_fails(folder, "-o a.gif", "SENTENCE");
  check_fails(folder, kSentence + "-o a.avi", "expected a name that ends in .mp4, .gif or .png");
  check_fails(folder, kSentence + "-o no/a.gif", "is no folder");
  check_fails(folder, kSentence + "-o a.gif --dense --window 1x1x1", "one of --window, --strategy and --dense");
  check_fails(folder, kSentence + "-o a.gif --dense --compare", "--compare");
  check_fails(folder, kSentence + "-o a.gif --window 0x1x1", "--window");
  check_fails(folder, kSentence + "-o a.gif --tile 4by4", "--tile");
  check_fails(folder, kSentence + "-o a.gif --strategy none.json", "none.json");
  check_fails(folder, kSentence + "-o a.gif --scale 0", "--scale");
  check_fails(folder, kSentence + "-o a.gif --scaling sharp", "nearest or lanczos");
  check_fails(folder, kSentence + "-o a.gif --fps 0", "--fps");
}

TEST_CASE("bad input to a model") {
  const Folder folder;
  if (!make_model(folder)) return;
  check_fails(folder, kSentence + "-o a.gif --model none", "none");
  check_fails(folder, kSmall + "-o a.gif --device gpu", "expected cpu, cuda or cuda:N");
  check_fails(folder, kSmall + "-o a.gif --dtype int8", "expected auto, f32, bf16 or f16");
  check_fails(folder, kModel + "--extent 4x16x24 -o a.gif --steps 0 --window 1x1x1", "0 steps");
  check_fails(folder, kSmall + "-o a.gif --window 3x3x3", "3x3x3");
  check_fails(folder, kModel + "-o a.gif --extent 4x16x23 --window 1x1x1", "23");
  WindowTable(3, 2, 2, std::vector<Window>(12, Window{1, 1, 1})).save(folder / "table.json", slidetile::TableForm::kCompact);
  check_fails(folder, kSmall + "-o a.gif --strategy table.json", "for 3 steps");
  const std::string window = kSmall + "-o a.gif --window 1x1x1", transformer = folder / "model/transformer/";
  check_fails(folder, kSmall + "-o /proc/a.gif --window 1x1x1", "cannot write '/proc/a.gif'");
  fs::resize_file(transformer + "diffusion_pytorch_model.safetensors", 5000);
  check_fails(folder, window, "model/transformer/diffusion_pytorch_model.safetensors");
  REQUIRE(folder.shell("sed -i 's/\"num_layers\": 2/\"num_layers\": 2, \"depth\": 2/' model/transformer/config.json").code == 0);
  check_fails(folder, window, "depth is no key of this model");
  fs::remove(transformer + "config.json");
  check_fails(folder, window, "config.json");
}

TEST_CASE("clips") {
  const Folder folder;
  if (!make_model(folder)) return;
  const Outcome first = folder.run("generate " + kSmall + "--window 1x1x2 -o a.gif");
  CHECK(first.code == 0);
  CHECK(first.err.empty());  // no progress line where there is no terminal
  CHECK(contains(first.out, "96 tokens"));
  CHECK(contains(first.out, "sparsity 83.3 %"));
  CHECK(read_text(folder / "a.gif").starts_with("GIF89a"));
  REQUIRE(folder.run("generate " + kSmall + "--window 1x1x2 -o b.gif").code == 0);
  CHECK(read_text(folder / "a.gif") == read_text(folder / "b.gif"));
  REQUIRE(folder.run("generate " + kSmall + "--window 1x1x2 -o b.gif --seed 2").code == 0);
  CHECK(read_text(folder / "a.gif") != read_text(folder / "b.gif"));

  const Outcome both = folder.run("generate " + kSmall + "--window 1x1x2 --dense-steps 1 --compare --json -o c.png");
  CHECK(both.code == 0);
  const auto json = nlohmann::json::parse(both.out);
  CHECK(json["result"]["step_seconds"].size() == 2);
  CHECK(json["result"]["attention_calls"] == 2 * 2 * 2);  // steps, layers, with and without the sentence
  CHECK(json["result"]["sparsity"].get<double>() == doctest::Approx(5.0 / 12));
  CHECK(json["dense"]["sparsity"].get<double>() == doctest::Approx(0));
  CHECK(json["speed_up"].get<double>() > 0);
  CHECK(json["ssim"].get<double>() > 0);
  CHECK(read_text(folder / "c.png").substr(1, 3) == "PNG");

  // The whole canvas as the window is dense attention, seen from outside too.
  WindowTable(2, 2, 2, std::vector<Window>(8, Window{2, 2, 3})).save(folder / "table.json", slidetile::TableForm::kPublished);
  const Outcome table = folder.run("generate " + kSmall + "--strategy table.json --compare --json -o d.gif");
  CHECK(table.code == 0);
  const auto psnr = nlohmann::json::parse(table.out)["psnr"];
  CHECK((psnr == "inf" || psnr.get<double>() > 50));
}

TEST_CASE("a sentence without a background gets the plain one; one that the grammar does not make gets a note") {
  const Folder folder;
  if (!make_model(folder)) return;
  REQUIRE(folder.run("generate " + kSmall + "--window 1x1x2 -o a.gif").code == 0);
  REQUIRE(folder
              .run("generate 'a small red circle moves left on plain' --model model --tile 2x2x2 --extent 4x16x24 --steps 2 --scale 1 "
                   "--window 1x1x2 -o b.gif")
              .code == 0);
  CHECK(read_text(folder / "a.gif") == read_text(folder / "b.gif"));
  const Outcome odd = folder.run("generate 'a circle' --model model --tile 2x2x2 --extent 4x16x24 --steps 1 --window 1x1x2 -o c.gif");
  CHECK(odd.code == 0);
  CHECK(contains(odd.err, "slidetile: note: prompt 'a circle': at 'circle', expected"));
  CHECK(std::count(odd.err.begin(), odd.err.end(), '\n') == 1);
}

TEST_CASE("what can't be written leaves nothing behind") {
  const Folder folder;
  if (!make_model(folder)) return;
  const Outcome full = folder.shell("ulimit -f 1; '" SLIDETILE_PROGRAM_PATH "' generate " + kModel +
                                    "--extent 4x16x24 --steps 1 --window 1x1x1 --scale 8 -o a.png");
  CHECK(full.code == 2);
  CHECK(contains(full.err, "cannot write 'a.png'"));
  for (const auto& entry : fs::directory_iterator(folder / "")) CHECK_FALSE(entry.path().filename().string().starts_with("a.png"));
}
