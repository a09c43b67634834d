// slidetile plan from outside: the paper's Table 1, every pattern, errors in one line, the picture.
#include <doctest/doctest.h>
#include <png.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.h"
#include "slidetile/device_plan.h"
#include "slidetile/window.h"

namespace slidetile {
namespace {

namespace fs = std::filesystem;

nlohmann::json json_of(const Folder& folder, const std::string& arguments) {
  const Outcome outcome = folder.run("plan " + arguments + " --json");
  CAPTURE(arguments);
  CHECK(outcome.code == 0);
  CHECK(outcome.err.empty());
  return nlohmann::json::parse(outcome.out);
}

TEST_CASE("the program prints the paper's Table 1") {
  const Folder folder;
  const std::string canvas = "--canvas 48x48x48 --tile 4x4x4 ";
  const auto natten = json_of(folder, canvas + "--pattern natten --window 11x11x11");
  CHECK(natten["dense_block_fraction"].get<double>() == doctest::Approx(1.0 / 1728));
  CHECK(natten["mixed_block_fraction"].get<double>() == doctest::Approx(124.0 / 1728));
  CHECK(natten["mean_dense_block_fraction"].get<double>() == doctest::Approx(14 * 14 * 14 / (1728.0 * 1728)));
  CHECK(natten["full_tile_pairs"].get<int64_t>() + natten["partial_tile_pairs"].get<int64_t>() == 54 * 54 * 54);
  CHECK(natten["sparsity"].get<double>() == doctest::Approx(1 - 1331.0 / 110592));
  for (const auto& [window, tiles] : {std::pair{"3x3x3", 27}, {"5x5x5", 125}}) {
    const auto sliding = json_of(folder, canvas + "--window " + window);
    CHECK(sliding["dense_block_fraction"].get<double>() == doctest::Approx(tiles / 1728.0));
    CHECK(sliding["mixed_block_fraction"].get<double>() == 0);
    CHECK(sliding["key_tiles_per_row"].get<double>() == doctest::Approx(tiles));
    CHECK(sliding["sparsity"].get<double>() == doctest::Approx(1 - tiles / 1728.0));
    CHECK(sliding["flops"].get<double>() == doctest::Approx(4.0 * 128 * 110592 * 64 * tiles));
    CHECK(sliding["expected_speedup"].get<double>() == doctest::Approx(1728.0 / tiles));
  }
}

TEST_CASE("JSON says what the library counts, for heads, extra tokens and blocks") {
  const Folder folder;
  const auto json = json_of(folder, "--canvas 13x30x52 --window 1x2x3,3x4x7 --before 5 --after 100 --head-dim 64 --block 96x64");
  const Window windows[] = {{1, 2, 3}, {3, 4, 7}};
  const Plan plan = sliding_tile_plan(Grid({13, 30, 52}, kDefaultTile), windows, {5, 100});
  CHECK(json["heads"] == 2);
  CHECK(json["tokens"] == plan.key.tokens());
  CHECK(json["tiles"] == plan.key.tiles());
  CHECK(json["flops"].get<double>() == doctest::Approx(forward_flops(plan, 2, 64)));
  CHECK(json["backward_flops"].get<double>() == doctest::Approx(backward_flops(plan, 2, 64)));
  CHECK(json["sparsity"].get<double>() == doctest::Approx(1 - density(plan)));
  const BlockCounts counts = count_blocks(plan, 96, 64);
  CHECK(json["blocks"]["full"] == counts.full);
  CHECK(json["blocks"]["partial"] == counts.partial);
  CHECK(json["blocks"]["empty"] == counts.empty);
  const DeviceBlocks hopper = device_blocks(plan);
  if (hopper.why_not.empty()) {
    CHECK(json["hopper"]["query_block"] == to_string(hopper.query));
    CHECK(json["hopper"]["key_rows"] == hopper.key_rows);
    CHECK(json["hopper"]["multiplied_over_visible"].get<double>() >= 1);
  } else {
    CHECK(json["hopper"]["why_not"] == hopper.why_not);
  }
  CHECK(json_of(folder, "--canvas 8x8 --tile 4x4 --pattern full")["sparsity"] == 0);
  CHECK(json_of(folder, "--canvas 8x8 --tile 4x4 --pattern clear --radius 1 --heads 7")["flops"].get<double>() == 4.0 * 64 * 128 * 7);
  CHECK(json_of(folder, "--canvas 8x8 --tile 4x4 --pattern swin --window 4x4 --shift 0,2,2")["density"].get<double>() == 0.375 * 0.375);
  CHECK(json_of(folder, "--canvas 8x8x8 --tile 4x4x4 --pattern natten --window 2x4x8 --stride 2x1x1 --dilation 4x2x1 --causal t")
            .contains("causal"));
}

TEST_CASE("the table and the help are for people") {
  const Folder folder;
  const Outcome table = folder.run("plan --canvas 30x48x80 --window 3x3x3 --after 256 --heads 24");
  CHECK(table.code == 0);
  for (const char* part : {"sliding tile attention", "115,456", "sparsity", "speed-up", "28", "on Hopper GPUs"})
    CHECK(table.out.find(part) != std::string::npos);
  const Outcome help = folder.run("plan --help");
  CHECK(help.code == 0);
  for (const char* part : {"--canvas", "--png", "--dilation", "Examples:", "dense_block_fraction"})
    CHECK(help.out.find(part) != std::string::npos);
}

TEST_CASE("mistakes are one line that names them, and exit code 2") {
  const Folder folder;
  const std::vector<std::pair<std::string, std::string>> mistakes{
      {"--window 1x1x1", "--canvas"},
      {"--canvas 8x8x8 --tile 4x4x4", "needs --window"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 0x1x1", "0x1x1"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 3x1x1", "1x1x1 to 2x2x2"},
      {"--canvas 4x4x4 --window 1x1x1", "tile 6x8x8 is larger than canvas 4x4x4"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern dense", "expected sta, full, natten, clear or swin"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern natten --window 9x1x1", "window 9"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern natten --window 4x4x4 --stride 5x1x1", "stride 5"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern natten --window 4x4x4 --causal x", "'x'"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern swin --window 9x8x8", "beyond canvas"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern swin --window 4x4x4 --shift 4,0,0", "shift 4"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern swin --window 4x4x4,2x2x2", "one window"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern clear", "--radius"},
      {"--canvas 8x8x8 --tile 4x4x4 --pattern clear --radius 3 --window 1x1x1", "takes no --window"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1,2x2x2 --heads 3", "got 3 and 2 windows"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --before -1", "before -1"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --query 1,2,3", "--png"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --png a.png --query 1,2,8", "1,2,8 lies outside canvas 8x8x8"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1,2x2x2 --png a.png --head 2", "head 2 of 2"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --png no/a.png", "no/a.png"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --block 0x8", "0x8"},
      {"--canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --head-dim 257", "257"},
  };
  for (const auto& [arguments, message] : mistakes) check_mistake(folder, "plan " + arguments, message);
}

TEST_CASE("the picture shows as many tokens as the query sees") {
  const Folder folder;
  const std::string size = "--canvas 1x8x8 --tile 1x4x4 ";  // drawn with 14 pixels a token
  for (const auto& [pattern, seen] : {std::pair{"--pattern full", 64}, {"--window 1x1x1", 16}, {"--window 1x1x2", 32}}) {
    CHECK(folder.run("plan " + size + pattern + " --png seen.png --query 0,5,2").code == 0);
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    REQUIRE(png_image_begin_read_from_file(&image, (folder / "seen.png").c_str()) != 0);
    image.format = PNG_FORMAT_RGB;
    std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
    REQUIRE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) != 0);
    int64_t blue = 0, red = 0;
    for (size_t i = 0; i < pixels.size(); i += 3) {
      blue += pixels[i] == 58 && pixels[i + 1] == 123 && pixels[i + 2] == 213;
      red += pixels[i] == 214 && pixels[i + 1] == 38 && pixels[i + 2] == 76;
    }
    const int64_t token = 13 * 13;  // within the fine lines
    CHECK(blue > (seen - 1) * token * 9 / 10);
    CHECK(blue < (seen + 1) * token);
    CHECK(red >= 14 * 14);
  }
  CHECK(folder.run("plan --canvas 30x48x80 --window 3x3x3 --png video.png").code == 0);
  CHECK(fs::file_size(folder / "video.png") > 1000);
  CHECK(!fs::exists(folder / "video.png.part"));
}

}  // namespace
}  // namespace slidetile
