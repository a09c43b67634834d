// The program from outside: exit codes, one line for each error, help texts, and attend against the library.
#include "program.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "slidetile/attention.h"
#include "slidetile/file.h"
#include "slidetile/safetensors.h"
#include "slidetile/window.h"
#include "slidetile/window_table.h"

using namespace slidetile;
namespace fs = std::filesystem;

namespace {

constexpr std::array<int64_t, 4> kShape{2, 3, 127, 8};  // 120 tokens of canvas 4x6x5, 3 before and 4 after

Tensor random_tensor(DType dtype, unsigned seed) {
  Tensor tensor(dtype, kShape);
  std::mt19937 generator(seed);
  for (int64_t i = 0; i < tensor.elements(); ++i) {
    store_element(tensor.view().data, dtype, i, static_cast<float>(generator()) / 0x1p31f - 1);
  }
  return tensor;
}

struct Qkv {
  explicit Qkv(DType dtype) : q(random_tensor(dtype, 1)), k(random_tensor(dtype, 2)), v(random_tensor(dtype, 3)) {}
  void write(const std::string& path) const {
    const SafetensorsTensor tensors[] = {safetensors_tensor("q", q.view()), safetensors_tensor("k", k.view()),
                                         safetensors_tensor("v", v.view())};
    write_safetensors(path, tensors);
  }
  Tensor q, k, v;
};

bool same_bytes(const SafetensorsTensor& read, const Tensor& expected) {
  return read.data.size() == static_cast<size_t>(expected.elements() * size_of(expected.view().dtype)) &&
         std::memcmp(read.data.data(), expected.view().data, read.data.size()) == 0;
}

// What attend wrote is what the library computes from these tensors.
void check_attended(const Folder& folder, const Qkv& in, std::span<const Window> windows, AttentionOptions options) {
  const Plan plan = sliding_tile_plan(Grid({4, 6, 5}, {2, 3, 2}), windows, {3, 4});
  const Tensor out(in.q.view().dtype, kShape), lse(DType::kF32, {2, 3, 127, 1});
  options.kernel = "reference";
  attention_forward({in.q.view(), in.k.view(), in.v.view(), out.view(), lse.view()}, plan, options);
  const SafetensorsFile file(folder / "out");
  CHECK(file.tensors().size() == 2);
  CHECK(file.at("out").shape == std::vector<int64_t>(kShape.begin(), kShape.end()));
  CHECK(file.at("out").dtype == safetensors_dtype(out.view().dtype));
  CHECK(same_bytes(file.at("out"), out));
  CHECK(file.at("lse").shape == std::vector<int64_t>{2, 3, 127});
  CHECK(same_bytes(file.at("lse"), lse));
  CHECK(file.metadata().at("kernel") == "reference");
  fs::remove(folder / "out");
}

const std::string kAttend = "attend in out --canvas 4x6x5 --tile 2x3x2 --before 3 --after 4 --kernel reference ";

}  // namespace

TEST_CASE("help and version") {
  const Folder folder;
  const Outcome all = folder.run("--help");
  CHECK(all.code == 0);
  CHECK(all.err.empty());
  for (const char* command : {"attend", "bench", "generate", "judge", "kernels", "plan", "train"}) {
    CHECK(contains(all.out, command));
    const Outcome help = folder.run(std::string(command) + " --help");
    CHECK(help.code == 0);
    CHECK(help.err.empty());
    CHECK(contains(help.out, std::string("Usage: slidetile ") + command));
    CHECK(contains(help.out, "Example"));
  }
  CHECK(folder.run("--version").out == "slidetile " SLIDETILE_VERSION "\n");
}

TEST_CASE("kernels") {
  const Folder folder;
  const Outcome table = folder.run("kernels");
  CHECK(table.code == 0);
  CHECK(contains(table.out, "reference"));
  const Outcome json = folder.run("kernels --json --device cpu");
  CHECK(json.code == 0);
  const nlohmann::json parsed = nlohmann::json::parse(json.out);
  REQUIRE(parsed["kernels"].size() >= 2);
  for (const auto& kernel : parsed["kernels"]) {
    CHECK(kernel["device"] == "cpu");
    CHECK(kernel["can_run"] == kernel["reason"].get<std::string>().empty());
  }
  // On a GPU: those that the library lists, each with the reason where it can't run here.
  const Outcome cuda = folder.run("kernels --json --device cuda");
  CHECK(cuda.code == 0);
  std::vector<KernelInfo> listed = forward_kernels(DeviceType::kCuda);
  for (const KernelInfo& kernel : backward_kernels(DeviceType::kCuda)) listed.push_back(kernel);
  const nlohmann::json on_cuda = nlohmann::json::parse(cuda.out);
  REQUIRE(on_cuda["kernels"].size() == listed.size());
  const Outcome cuda_table = folder.run("kernels --device cuda");
  for (size_t i = 0; i < listed.size(); ++i) {
    CHECK(on_cuda["kernels"][i]["name"] == listed[i].name);
    CHECK(on_cuda["kernels"][i]["reason"] == listed[i].reason);
    CHECK(contains(cuda_table.out, listed[i].name));
    CHECK(contains(cuda_table.out, listed[i].reason.empty() ? "can run" : "cannot run: " + listed[i].reason));
  }
  if (listed.empty()) CHECK(contains(cuda_table.out, "this build has no CUDA back end"));
  check_mistake(folder, "kernels --device tpu", "tpu");
}

TEST_CASE("attend gives what the library gives") {
  const Folder folder;
  const Qkv f32(DType::kF32), bf16(DType::kBf16);
  f32.write(folder / "in");
  bf16.write(folder / "in16");
  const Window window{1, 2, 2};
  const Outcome plain = folder.run(kAttend + "--window 1x2x2");
  CHECK(plain.code == 0);
  CHECK(plain.out.empty());
  CHECK(contains(plain.err, "reference: batch 2, 3 heads, 127 tokens, head_dim 8, f32"));
  CHECK(plain.err.find('\r') == std::string::npos);  // no progress where there is no terminal
  CHECK(plain.err.find('\033') == std::string::npos);
  check_attended(folder, f32, {&window, 1}, {});

  const int32_t lengths[] = {125, 123};
  const Outcome all = folder.run(kAttend + "--window 1x2x2 --key-lengths 125,123 --scale 0.25 --threads 1 --json");
  CHECK(all.code == 0);
  const nlohmann::json summary = nlohmann::json::parse(all.out);
  CHECK(summary["kernel"] == "reference");
  CHECK(summary["tokens"] == 127);
  CHECK(summary["sparsity"] > 0.1);
  CHECK(summary["flops_per_s"] > 0);
  AttentionOptions options;
  options.scale = 0.25F;
  options.key_lengths = lengths;
  check_attended(folder, f32, {&window, 1}, options);

  const std::string in16 = "attend in16 out --canvas 4x6x5 --tile 2x3x2 --before 3 --after 4 --kernel reference --window 1x2x2 ";
  CHECK(folder.run(in16).code == 0);
  check_attended(folder, bf16, {&window, 1}, {});
  CHECK(folder.run(in16 + "--dtype f32").code == 0);
  Qkv widened(DType::kF32);
  const SafetensorsFile file16(folder / "in16");
  widened.q = file16.load("q", DType::kF32);
  widened.k = file16.load("k", DType::kF32);
  widened.v = file16.load("v", DType::kF32);
  check_attended(folder, widened, {&window, 1}, {});

  const WindowTable table(2, 1, 3, {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 2, 3}, {2, 1, 1}, {1, 2, 3}});
  table.save(folder / "table.json", TableForm::kPublished);
  CHECK(folder.run(kAttend + "--strategy table.json --step 1 --layer 0").code == 0);
  check_attended(folder, f32, table.windows(1, 0), {});
}

TEST_CASE("attend finds the strategy that the library carries") {
  const Folder folder;
  const std::array<int64_t, 4> shape{1, 24, 300, 4};
  const Tensor zeros(DType::kF32, shape);
  std::fill_n(static_cast<float*>(zeros.view().data), zeros.elements(), 0.0F);
  const SafetensorsTensor tensors[] = {safetensors_tensor("q", zeros.view()), safetensors_tensor("k", zeros.view()),
                                       safetensors_tensor("v", zeros.view())};
  write_safetensors(folder / "in", tensors);
  CHECK(folder.run("attend in out --canvas 5x6x10 --tile 1x1x1 --strategy hunyuan --step 15 --layer 3 --kernel reference").code == 0);
  // With zeros everywhere lse is the logarithm of the number of keys seen: the window's volume, whatever the query.
  const SafetensorsFile file(folder / "out");
  const auto* lse = static_cast<const float*>(file.view("lse").data);
  for (int32_t head = 0; head < 24; ++head) {
    const auto seen = static_cast<float>(hunyuan_strategy().at(15, 3, head).volume());
    for (int token = 0; token < 300; ++token) CHECK(std::exp(lse[head * 300 + token]) == doctest::Approx(seen));
  }
}

TEST_CASE("a GPU, or one line that says why there is none") {
  const Folder folder;
  const Qkv in(DType::kBf16);
  in.write(folder / "in");
  bool can_run = false;
  for (const KernelInfo& kernel : forward_kernels(DeviceType::kCuda)) can_run = can_run || kernel.reason.empty();
  const std::string attend = "attend in out --canvas 4x6x5 --tile 2x3x2 --before 3 --after 4 --window 1x2x2 --device cuda ";
  if (!can_run) {
    check_mistake(folder, attend, "cuda");
    check_mistake(folder, "bench --device cuda", "bench: ");
    return;
  }
  check_mistake(folder, attend + "--kernel reference", "no kernel is named 'reference' on cuda:0");
  check_mistake(folder, attend + "--key-lengths 125,122", "key length 122 must be 123 to 127");
  CHECK(folder.run(attend + "--key-lengths 125,123").code == 0);
  const Window window{1, 2, 2};
  const int32_t lengths[] = {125, 123};
  const Plan plan = sliding_tile_plan(Grid({4, 6, 5}, {2, 3, 2}), {&window, 1}, {3, 4});
  const Tensor out(DType::kBf16, kShape), lse(DType::kF32, {2, 3, 127, 1});
  attention_forward({in.q.view(), in.k.view(), in.v.view(), out.view(), lse.view()}, plan, {.key_lengths = lengths, .kernel = "reference"});
  const SafetensorsFile file(folder / "out");
  const TensorView got = file.view("out");
  for (int64_t i = 0; i < out.elements(); ++i) {
    CHECK(load_element(got.data, got.dtype, i) == doctest::Approx(load_element(out.view().data, DType::kBf16, i)).epsilon(0.02));
  }
}

TEST_CASE("attend refuses what does not fit") {
  const Folder folder;
  Qkv(DType::kF32).write(folder / "in");
  write_file(folder / "cut", read_text(folder / "in").substr(0, 1000));
  write_file(folder / "text", std::string("this is no file of tensors at all"));
  write_file(folder / "table.json", std::string(R"({"0_0_0": [1, 1, 0]})"));
  const Tensor other(DType::kBf16, kShape), flat(DType::kF32, {1, 1, 4, 8});
  const Qkv in(DType::kF32);
  const SafetensorsTensor q = safetensors_tensor("q", in.q.view()), k = safetensors_tensor("k", in.k.view());
  SafetensorsTensor v = safetensors_tensor("v", other.view());
  const SafetensorsTensor two[] = {q, k}, mixed[] = {q, k, v};
  write_safetensors(folder / "two", two);
  write_safetensors(folder / "mixed", mixed);
  v = {"v", "F32", {2, 3 * 127, 8}, in.v.view().data == nullptr ? std::span<const std::byte>{} : safetensors_tensor("v", in.v.view()).data};
  const SafetensorsTensor axes[] = {q, k, v};
  write_safetensors(folder / "axes", axes);
  v = safetensors_tensor("v", flat.view());
  const SafetensorsTensor shapes[] = {q, k, v};
  write_safetensors(folder / "shapes", shapes);
  fs::create_directory(folder / "folder");

  const auto with = [](const std::string& in_file) {
    return "attend " + in_file + " out --canvas 4x6x5 --tile 2x3x2 --before 3 --after 4 --kernel reference ";
  };
  const std::string window = "--window 1x1x1 ";
  const std::pair<std::string, std::string> cases[] = {
      {"", "expected a command"},
      {"frobnicate", "frobnicate"},
      {"plan", "--canvas is required"},
      {"plan --canvas 0x1x1 --window 1x1x1", "0x1x1"},
      {"plan --canvas 8x8x8 --tile 9x1x1 --window 1x1x1", "tile 9x1x1 is larger than canvas 8x8x8"},
      {"plan --canvas 8x8x8 --tile 4x4x4 --window 0x1x1", "0x1x1"},
      {"attend", "IN is required"},
      {"train", "--out is required"},
      {"train --config none.json", "none.json: cannot be read"},
      {"train --out x --resume --minutes 3", "--resume takes the run's own settings"},
      {"train --minutes 0", "0 minutes, expected more than 0"},
      {"judge", "--model is required"},
      {"judge --model none --captions none.txt", "none.txt: cannot be read"},
      {"attend in out", "--canvas is required"},
      {kAttend + window + "--frobnicate", "--frobnicate"},
      {kAttend, "expected one of --window and --strategy"},
      {kAttend + window + "--strategy hunyuan --step 0 --layer 0", "expected one of --window and --strategy"},
      {kAttend + window + "--step 1", "--step and --layer belong to --strategy"},
      {kAttend + "--strategy hunyuan --step 1", "--strategy needs --step and --layer"},
      {kAttend + "--strategy hunyuan --step 50 --layer 0", "step 50, expected 0 to 49"},
      {kAttend + "--strategy hunyuan --step 0 --layer 60", "layer 60, expected 0 to 59"},
      {kAttend + "--strategy hunyuan --step 0 --layer 0", "window 5x6x10 must be 1x1x1 to 2x2x3 tiles"},
      {kAttend + "--strategy table.json --step 0 --layer 0", "'0_0_0' is [1,1,0]"},
      {kAttend + "--strategy absent.json --step 0 --layer 0", "cannot open 'absent.json'"},
      {kAttend + "--strategy text --step 0 --layer 0", "window table 'text': it is no JSON"},
      {kAttend + "--window 0x1x1", "--window: extents: got '0x1x1'"},
      {kAttend + "--window 3x1x1", "window 3x1x1 must be 1x1x1 to 2x2x3 tiles"},
      {kAttend + "--window 1x1x1x1", "got '1x1x1x1'"},
      {kAttend + "--window -1x1x1", "'-1x1x1'"},
      {kAttend + window + "--scale 0", "scale 0, expected a finite number other than 0"},
      {kAttend + window + "--scale nan", "scale nan"},
      {kAttend + window + "--threads -1", "-1 threads"},
      {kAttend + window + "--dtype f64", "got 'f64', expected f32, bf16 or f16"},
      {kAttend + window + "--device tpu", "device 'tpu', expected cpu or cuda"},
      {kAttend + window + "--device cuda --threads 2", "--threads is of device cpu"},
      {"attend in out --canvas 4x6x5 --tile 2x3x2 --before 3 --after 4 --kernel cpu.none " + window, "no kernel is named 'cpu.none'"},
      {kAttend + window + "--key-lengths 125", "key_lengths has 1 elements, expected batch = 2"},
      {kAttend + window + "--key-lengths 125,122", "key length 122 must be 123 to 127"},
      {kAttend + window + "--key-lengths 125,x", "x"},
      {with("in") + window + "--before 4", "--before"},
      {"attend in out --canvas 4x6x5 --tile 2x3x2 --kernel reference " + window, "q has 127 tokens, the plan covers 120"},
      {"attend in out --canvas 4x6x5 --tile 2x3x2 --kernel reference --before -1 " + window, "before -1"},
      {"attend in out --canvas 4x6x5 --tile 5x3x2 --kernel reference " + window, "tile 5x3x2 is larger than canvas 4x6x5"},
      {"attend in out --canvas 4x6x0 --tile 2x3x2 --kernel reference " + window, "--canvas: extents: got '4x6x0'"},
      {"attend in out --canvas 65536x65536x65536 --tile 2x3x2 --kernel reference " + window, "2^31 tokens or more"},
      {"attend in no/such/out --canvas 4x6x5 --tile 2x3x2 " + window, "cannot write 'no/such/out'"},
      {"attend in folder --canvas 4x6x5 --tile 2x3x2 " + window, "cannot write 'folder': it is not a regular file"},
      {"plan --canvas 8x8x8 --tile 4x4x4 --window 1x1x1 --png no/such/out", "cannot write 'no/such/out': No such file or directory"},
      {"bench --json no/such/out", "cannot write 'no/such/out': No such file or directory"},
      {"bench --json folder", "cannot write 'folder': it is not a regular file"},
      {"bench --json /dev/full", "cannot write '/dev/full': it is not a regular file"},
      {"bench --device cuda --json no/such/out", "cannot write 'no/such/out': No such file or directory"},
      {"bench --case none", "no case is named 'none', expected one of sta, sta_f32"},
      {"bench --case sta,none", "no case is named 'none'"},
      {"bench --kernel none", "no kernel on cpu is named 'none', expected one of cpu."},
      {"bench --device tpu", "device is 'tpu', expected cpu or cuda"},
      {"bench --seconds 0 --device cuda", "bench: --seconds: 0, expected more than 0"},
      {"plan --canvas 8x8x8 --heads x", "--heads = x, expected a number; see slidetile plan --help"},
      {"plan --canvas 8x8 --tile 4x4 --window 1x1 --block 64", "--block: got '64', expected query slots x key slots"},
      {"generate 'a small red circle moves left' -o out --seed -1", "--seed: got -1, expected 0 or more"},
      {with("absent") + window, "cannot open 'absent': No such file or directory"},
      {with("folder") + window, "not a regular file"},
      {with("cut") + window, "safetensors 'cut'"},
      {with("text") + window, "safetensors 'text': its header claims"},
      {with("two") + window, "it has no tensor 'v'"},
      {with("mixed") + window, "v of 'mixed' is BF16, q is F32"},
      {with("axes") + window, "v of 'axes' has 3 axes, expected 4"},
      {with("shapes") + window, "v is [1, 1, 4, 8], expected [2, 3, 127, 8]"},
  };
  for (const auto& [arguments, message] : cases) check_mistake(folder, arguments, message);

  // A disk that is full: nothing is left behind.
  const Outcome full = folder.shell("ulimit -f 1; '" SLIDETILE_PROGRAM_PATH "' " + kAttend + window);
  CHECK(full.code == 2);
  CHECK(full.err == "slidetile: cannot write 'out': File too large\n");
  const Outcome lost = folder.run("kernels > /dev/full");
  CHECK(lost.code == 2);
  CHECK(lost.err == "slidetile: cannot write to the standard output\n");
  for (const auto& entry : fs::directory_iterator(folder / "")) CHECK_FALSE(entry.path().filename().string().starts_with("out"));
}
