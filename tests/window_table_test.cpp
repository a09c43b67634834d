// Tables of windows: the published strategy, both forms of file, and errors.
#include "slidetile/window_table.h"

#include <doctest/doctest.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "temporary_folder.h"

using namespace slidetile;
namespace fs = std::filesystem;

namespace {

std::string error_of(const std::string& text) {
  try {
    WindowTable::from_json(text, "t");
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidArgument);
    return error.what();
  }
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text);
  return false;
}

}  // namespace

TEST_CASE("the strategy for HunyuanVideo is the published one") {
  const WindowTable& table = hunyuan_strategy();
  CHECK(table.steps() == 50);
  CHECK(table.layers() == 60);
  CHECK(table.heads() == 24);
  std::map<std::string, int> counts;
  for (int32_t step = 0; step < 50; ++step) {
    for (int32_t layer = 0; layer < 60; ++layer) {
      for (const Window& window : table.windows(step, layer)) ++counts[to_string(window)];
    }
  }
  CHECK(counts == std::map<std::string, int>{
                      {"5x6x10", 21600}, {"5x3x3", 20380}, {"1x6x10", 15916}, {"3x3x5", 7396}, {"5x1x10", 5244}, {"5x6x1", 1464}});
  const Grid grid({30, 48, 80}, {6, 8, 8});
  REQUIRE(grid.tiles() == Dim3{5, 6, 10});
  CHECK(std::abs(table.sparsity(grid) - 0.58375) < 5e-6);
  for (const int32_t step : {0, 14}) CHECK(std::abs(table.sparsity(grid, step)) < 1e-12);
  for (const int32_t step : {15, 49}) {
    CHECK(table.sparsity(grid, step) > 0.832);
    CHECK(table.sparsity(grid, step) < 0.836);
  }
  for (int32_t step = 0; step < 50; ++step) {
    for (int32_t layer = 0; layer < 60; ++layer) {
      const std::span<const Window> windows = table.windows(step, layer);
      const bool dense = std::all_of(windows.begin(), windows.end(), [](const Window& window) { return window == Window{5, 6, 10}; });
      CHECK(dense == (step < 15));
    }
  }
  CHECK(table.at(0, 0, 0) == Window{5, 6, 10});
  CHECK(table.at(49, 59, 23) == Window{1, 6, 10});
  CHECK_THROWS_WITH_AS(table.at(50, 0, 0), "window table: step 50, expected 0 to 49", Error);
  CHECK_THROWS_WITH_AS(table.at(0, -1, 0), "window table: layer -1, expected 0 to 59", Error);
  CHECK_THROWS_WITH_AS(table.at(0, 0, 24), "window table: head 24, expected 0 to 23", Error);
}

TEST_CASE("both forms and gzip give the table back") {
  const WindowTable small(2, 1, 3, {{1, 2, 3}, {3, 2, 1}, {1, 2, 3}, {4, 4, 4}, {1, 1, 2147483647}, {3, 2, 1}});
  const TemporaryFolder folder;
  for (const WindowTable* table : {&small, &hunyuan_strategy()}) {
    for (const TableForm form : {TableForm::kPublished, TableForm::kCompact}) {
      CHECK(WindowTable::from_json(table->to_json(form)) == *table);
      for (const char* name : {"t.json", "t.json.gz"}) {
        table->save(folder / name, form);
        CHECK(WindowTable::load(folder / name) == *table);
      }
      CHECK(fs::file_size(folder / "t.json.gz") < fs::file_size(folder / "t.json"));
    }
  }
  CHECK(small.to_json(TableForm::kPublished) ==
        "{\n\"0_0_0\": [1, 2, 3],\n\"0_0_1\": [3, 2, 1],\n\"0_0_2\": [1, 2, 3],\n\"1_0_0\": [4, 4, 4],\n\"1_0_1\": [1, 1, "
        "2147483647],\n\"1_0_2\": [3, 2, 1]\n}\n");
  CHECK(WindowTable::from_json(R"({"0_0_1": [1,1,1], "0_0_0": [2,2,2]})").at(0, 0, 0) == Window{2, 2, 2});
}

TEST_CASE("tables that do not fit are errors that name what is wrong") {
  const auto entries = [](const std::string& list) {
    return "{\"0_0_0\": [1, 1, 1], " + list + "}";
  };
  const std::string steps = R"({"windows": {"a": [1, 1, 1]}, "steps": )";
  const std::pair<std::string, std::string> cases[] = {
      {"", "it is no JSON"},
      {"{", "it is no JSON"},
      {"{}", "it is {}, expected an object"},
      {"[1]", "it is [1], expected an object"},
      {"7", "it is 7, expected an object"},
      {entries("\"0_0_2\": [1, 1, 1]"), "it has no 0_0_1, expected all of 1 steps x 1 layers x 3 heads"},
      {entries("\"1_1_1\": [1, 1, 1]"), "it has no 0_0_1"},
      {entries("\"999999_999999_999999\": [1, 1, 1]"), "it has no 0_0_1"},
      {entries("\"1000000_0_0\": [1, 1, 1]"), "key '1000000_0_0', expected step_layer_head"},
      {entries("\"0_0_0\": [1, 1, 1]"), "has '0_0_0' twice"},
      {entries("\"0_0_00\": [1, 1, 1]"), "key '0_0_00'"},
      {entries("\"0_0\": [1, 1, 1]"), "key '0_0'"},
      {entries("\"0_0_1_2\": [1, 1, 1]"), "key '0_0_1_2'"},
      {entries("\"0_0_-1\": [1, 1, 1]"), "key '0_0_-1'"},
      {entries("\"0_0_\": [1, 1, 1]"), "key '0_0_'"},
      {entries("\"\": [1, 1, 1]"), "key ''"},
      {entries("\"0_0_1\": [1, 1]"), "'0_0_1' is [1,1], expected [t, h, w] in tiles, each at least 1"},
      {entries("\"0_0_1\": [1, 1, 0]"), "'0_0_1' is [1,1,0]"},
      {entries("\"0_0_1\": [1, 1, -1]"), "'0_0_1' is [1,1,-1]"},
      {entries("\"0_0_1\": [1, 1, 1.0]"), "'0_0_1' is [1,1,1.0]"},
      {entries("\"0_0_1\": [1, 1, 2147483648]"), "'0_0_1' is [1,1,2147483648]"},
      {entries("\"0_0_1\": [1, 1, \"1\"]"), "'0_0_1' is [1,1,\"1\"]"},
      {entries("\"0_0_1\": null"), "'0_0_1' is null"},
      {entries("\"0_0_1\": {\"t\": 1}"), "'0_0_1' is {\"t\":1}"},
      {entries("\"0_0_1\": [[[[1]]]]"), "nested deeper"},
      {steps + "7}", "steps is 7"},
      {steps + "[]}", "steps is []"},
      {steps + "[7]}", "step 0 is 7"},
      {steps + "[[7]]}", "step 0, layer 0 is 7"},
      {steps + "[[\"\"]]}", "step 0, layer 0 has 0 heads"},
      {steps + "[[]]}", "1 steps x 0 layers x 0 heads"},
      {steps + "[[\"a\"], []]}", "step 1 has 0 layers, step 0 has 1"},
      {steps + "[[\"a\", \"aa\"]]}", "step 0, layer 1 has 2 heads, expected 1"},
      {steps + "[[\"ab\"]]}", "step 0, layer 0 has 'b', which windows does not name"},
      {R"({"windows": {"ab": [1, 1, 1]}, "steps": [["a"]]})", "windows has 'ab', expected one letter"},
      {R"({"windows": [], "steps": [["a"]]})", "windows is []"},
      {"\x1f\x8b", "truncated"},
      {std::string("\x1f\x8b\x08\0\0\0\0\0\0\x03", 10) + "\xff\xff\xff\xff", "damaged"},
  };
  for (const auto& [text, expected] : cases) {
    CHECK(contains(error_of(text), expected));
    CHECK(error_of(text).starts_with("window table"));
  }
  CHECK_THROWS_AS(WindowTable(1, 1, 1, {{0, 1, 1}}), Error);
  CHECK_THROWS_AS(WindowTable(1, 1, 2, {{1, 1, 1}}), Error);
  CHECK_THROWS_AS(WindowTable(0, 1, 1, {}), Error);
  CHECK_THROWS_AS(WindowTable::load("/nowhere/at/all.json"), Error);
}

TEST_CASE("files cut anywhere are errors") {
  const WindowTable table(1, 2, 2, {{1, 2, 3}, {3, 2, 1}, {1, 2, 3}, {4, 4, 4}});
  const TemporaryFolder folder;
  for (const TableForm form : {TableForm::kPublished, TableForm::kCompact}) {
    table.save(folder / "t.gz", form);
    const MappedFile file(folder / "t.gz");
    const std::string gzip(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()), plain = table.to_json(form);
    for (size_t length = 0; length < gzip.size(); ++length) CHECK_FALSE(error_of(gzip.substr(0, length)).empty());
    for (size_t length = 0; length + 2 < plain.size(); ++length) CHECK_FALSE(error_of(plain.substr(0, length)).empty());
    CHECK(contains(error_of(gzip + "x"), "1 bytes after the end of its gzip data"));
  }
}

TEST_CASE("a small file that decompresses to a huge one is an error") {
  const std::string blanks(size_t{1} << 20, ' ');
  const TemporaryFolder folder;
  const std::string path = folder / "t.gz";
  gzFile out = gzopen(path.c_str(), "wb1");
  for (int i = 0; i < 65; ++i) REQUIRE(gzwrite(out, blanks.data(), static_cast<unsigned>(blanks.size())) > 0);
  REQUIRE(gzclose(out) == Z_OK);
  CHECK_THROWS_WITH_AS(WindowTable::load(path), ("window table '" + path + "': it decompresses to more than 67108864 bytes").c_str(),
                       Error);
}
