// Files of tensors: what is written is read back, and whatever does not fit is an error that says so.
#include "slidetile/safetensors.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <array>
#include <bit>
#include <csignal>
#include <cstring>
#include <fstream>
#include <string>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "temporary_folder.h"

using namespace slidetile;

namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string file_with(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  return text + header + data;
}

// The message of the error that reading `text` gives, "" for none.
std::string error_of(const std::string& text) {
  try {
    const SafetensorsFile file(bytes_of(text), "f");
    return "";
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidArgument);
    CHECK(std::string(error.what()).starts_with("safetensors 'f': "));
    return error.what();
  }
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text);
  return false;
}

const std::string kTwo =
    R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},"__metadata__":{"k":"v"}})";
const std::string kTwoData = std::string("\0\0\x80\x3f\0\0\0\x40", 8) + "xyz";

}  // namespace

TEST_CASE("a file by hand is read") {
  const std::string text = file_with(kTwo + "   ", kTwoData);
  const SafetensorsFile file(bytes_of(text), "f");
  CHECK(file.names() == std::vector<std::string>{"a", "b"});
  CHECK(file.metadata() == SafetensorsMetadata{{"k", "v"}});
  CHECK(file.find("c") == nullptr);
  CHECK(file.at("b").shape == std::vector<int64_t>{3});
  CHECK(std::memcmp(file.at("b").data.data(), "xyz", 3) == 0);
  const Tensor a = file.load("a", DType::kF32);
  CHECK(a.view().shape == std::array<int64_t, 4>{1, 1, 1, 2});
  CHECK(a.data<float>()[0] == 1);
  CHECK(a.data<float>()[1] == 2);
  const Tensor half = file.load("a", DType::kBf16);
  CHECK(half.data<uint16_t>()[1] == f32_to_bf16(2));
  CHECK_THROWS_WITH_AS(file.view("b"), "safetensors 'f': tensor 'b' is U8, expected F32, BF16 or F16", Error);
  CHECK_THROWS_WITH_AS(file.at("c"), "safetensors 'f': it has no tensor 'c', it has 'a', 'b'", Error);
}

TEST_CASE("a file cut anywhere is an error") {
  const std::string text = file_with(kTwo, kTwoData);
  REQUIRE(error_of(text).empty());
  for (size_t length = 0; length < text.size(); ++length) {
    // A copy of just these bytes, so that a sanitizer sees any read past them.
    CHECK_FALSE(error_of(std::string(text.begin(), text.begin() + static_cast<ptrdiff_t>(length))).empty());
  }
  CHECK(contains(error_of(text + "x"), "its tensors end at byte 11 after the header, the file has 12"));
}

TEST_CASE("header lengths beyond the file are errors") {
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{100'000'001}}) {
    std::string text = file_with(kTwo, kTwoData);
    std::memcpy(text.data(), &length, 8);
    CHECK(contains(error_of(text), "its header claims " + std::to_string(length) + " bytes, expected at most 100000000"));
  }
  std::string text = file_with(kTwo, kTwoData);
  const uint64_t length = text.size() - 7;
  std::memcpy(text.data(), &length, 8);
  CHECK(contains(error_of(text), "its header claims " + std::to_string(length)));
}

TEST_CASE("headers that do not fit are errors that name what is wrong") {
  const auto tensor = [](const std::string& entry) {
    return file_with("{\"q\":" + entry + "}", std::string(16, 'x'));
  };
  const std::pair<std::string, std::string> cases[] = {
      {file_with(""), "does not start with '{'"},
      {file_with("[]"), "does not start with '{'"},
      {file_with("{} x"), "it is no JSON"},
      {file_with("{\"a\":\xff}"), "it is no JSON"},
      {file_with("{\"__metadata__\":1}"), "__metadata__ is 1, expected an object of strings"},
      {file_with("{\"__metadata__\":{\"a\":1}}"), "'a' is 1, expected a string"},
      {file_with("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), "has 'a' twice"},
      {file_with("{\"__metadata__\":{\"a\":[[[[1]]]]}}"), "nested deeper"},
      {tensor("3"), "tensor 'q': its entry is 3"},
      {tensor("[[]]"), "tensor 'q': its entry is [[]]"},
      {tensor(R"({"dtype":"F32","shape":[4]})"), "its entry has no data_offsets"},
      {tensor(R"({"dtype":"F32","data_offsets":[0,16]})"), "its entry has no shape"},
      {tensor(R"({"shape":[4],"data_offsets":[0,16]})"), "its entry has no dtype"},
      {tensor(R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})"), "dtype is 7, expected a string"},
      {tensor(R"({"dtype":"F33","shape":[4],"data_offsets":[0,16]})"), "dtype is 'F33'"},
      {tensor(R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})"), "shape is 4"},
      {tensor(R"({"dtype":"F32","shape":[4.0],"data_offsets":[0,16]})"), "shape is [4.0]"},
      {tensor(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})"), "shape is [-4]"},
      {tensor(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,16]})"), "shape is [18446744073709551615]"},
      {tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]})"), "overflows"},
      {tensor(R"({"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]})"), "overflows"},
      {tensor(R"({"dtype":"F32","shape":["4"],"data_offsets":[0,16]})"), "shape is [\"4\"]"},
      {tensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})"), "data_offsets is [0,16], expected 12 bytes for shape [3] in F32"},
      {tensor(R"({"dtype":"BF16","shape":[4],"data_offsets":[0,16]})"), "expected 8 bytes for shape [4] in BF16"},
      {tensor(R"({"dtype":"F4","shape":[3],"data_offsets":[0,16]})"), "no whole number of bytes"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0,17]})"), "within the 16 bytes after the header"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})"), "ascending pair"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[-1,15]})"), "expected two integers"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0,9223372036854775808]})"), "within the 16 bytes"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0]})"), "expected two integers"},
      {tensor(R"({"dtype":"F32","shape":[3],"data_offsets":[4,16]})"),
       "tensor 'q' starts at byte 4 after the header, expected 0: there is a gap"},
      {tensor(R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})"), "its tensors end at byte 12 after the header, the file has 16"},
      {tensor(R"({"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]})"), "has 'dtype' twice"},
      {tensor(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]},"q":{"dtype":"F32","shape":[4],"data_offsets":[0,16]})"),
       "has 'q' twice"},
      {tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]},"p":{"dtype":"F32","shape":[3],"data_offsets":[4,16]})"),
       "tensor 'p' starts at byte 4 after the header, expected 8: it overlaps tensor 'q'"},
      {tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]},"p":{"dtype":"F32","shape":[2],"data_offsets":[8,16]})"),
       "tensor 'p' starts at byte 8 after the header, expected 4: there is a gap after tensor 'q'"},
  };
  for (const auto& [text, expected] : cases) CHECK(contains(error_of(text), expected));
}

TEST_CASE("empty tensors, scalars, and tensors that start anywhere") {
  const std::string text =
      file_with(R"({"e":{"dtype":"F32","shape":[0,5],"data_offsets":[1,1]},"u":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                R"("h":{"dtype":"F16","shape":[1,1,1,1,2],"data_offsets":[1,5]},"f":{"dtype":"F32","shape":[],"data_offsets":[5,9]}})",
                std::string("u\0\x3c\0\x40\0\0\x80\x3f", 9));
  const SafetensorsFile file(bytes_of(text), "f");
  CHECK(file.at("e").data.empty());
  CHECK(file.load("e", DType::kF32).elements() == 0);
  CHECK(file.load("f", DType::kF16).data<uint16_t>()[0] == 0x3c00);
  CHECK_THROWS_WITH_AS(file.load("h", DType::kF32), "safetensors 'f': tensor 'h': it has 5 axes, expected at most 4", Error);
  const auto address = reinterpret_cast<uintptr_t>(file.at("f").data.data());
  if (address % 4 != 0) CHECK_THROWS_AS(file.view("f"), Error);
  CHECK(error_of(file_with("{}")).empty());
}

TEST_CASE("what is written is read back, aligned, at once or not at all") {
  const TemporaryFolder folder;
  const std::string path = folder / "t.safetensors";
  Tensor f(DType::kF32, {1, 2, 3, 5}), h(DType::kBf16, {2, 1, 1, 1});
  for (int64_t i = 0; i < f.elements(); ++i) f.data<float>()[i] = static_cast<float>(i) / 7;
  for (int64_t i = 0; i < h.elements(); ++i) h.data<uint16_t>()[i] = f32_to_bf16(static_cast<float>(i) - 3);
  const std::string raw = "raw";
  const int64_t wide[] = {-1, 1};
  const SafetensorsTensor tensors[] = {{"r\n\"\xc3\xa9", "U8", {3, 1}, bytes_of(raw)},
                                       safetensors_tensor("h", h.view()),
                                       safetensors_tensor("f", f.view()),
                                       {"w", "I64", {2}, std::as_bytes(std::span(wide))},
                                       {"none", "F16", {3, 0}, {}}};
  write_safetensors(path, tensors, {{"a", "b"}});
  CHECK(folder.files().size() == 1);
  {
    const SafetensorsFile file(path);
    CHECK(file.tensors().size() == 5);
    CHECK(file.metadata() == SafetensorsMetadata{{"a", "b"}});
    for (const SafetensorsTensor& tensor : tensors) {
      const SafetensorsTensor& read = file.at(tensor.name);
      CHECK(read.dtype == tensor.dtype);
      CHECK(read.shape == tensor.shape);
      REQUIRE(read.data.size() == tensor.data.size());
      CHECK((read.data.empty() || std::memcmp(read.data.data(), tensor.data.data(), read.data.size()) == 0));
    }
    CHECK(reinterpret_cast<uintptr_t>(file.at("w").data.data()) % 64 == 0);
    CHECK(file.view("f").shape == f.view().shape);
    CHECK(static_cast<const float*>(file.view("f").data)[29] == f.data<float>()[29]);
    CHECK(file.load("h", DType::kF32).data<float>()[1] == -2);
    // The old file's bytes stay while it is mapped, though the name now means another file.
    write_safetensors(path, std::span(tensors, 1));
    CHECK(static_cast<const float*>(file.view("f").data)[29] == f.data<float>()[29]);
  }
  CHECK(SafetensorsFile(path).tensors().size() == 1);

  const auto refused = [&](std::vector<SafetensorsTensor> list, const std::string& expected, const SafetensorsMetadata& metadata = {}) {
    try {
      write_safetensors(path, list, metadata);
      FAIL("no error");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      CHECK(contains(error.what(), expected));
    }
    CHECK(SafetensorsFile(path).tensors().size() == 1);
    CHECK(folder.files().size() == 1);
  };
  refused({tensors[0], tensors[0]}, "is given twice");
  refused({{"x", "U8", {4}, bytes_of(raw)}}, "tensor 'x': it has 3 bytes, expected 4 for shape [4] in U8");
  refused({{"x", "U9", {3}, bytes_of(raw)}}, "dtype is 'U9'");
  refused({{"x", "U8", {-3}, bytes_of(raw)}}, "no negative extent");
  refused({{"x\xff", "U8", {3}, bytes_of(raw)}}, "no UTF-8");
  refused({{"__metadata__", "U8", {3}, bytes_of(raw)}}, "keeps this name");
  refused({}, "no UTF-8", {{"k", "\xff"}});
  const TensorView strided = view_of(f.view().data, DType::kF32, {1, 2, 3, 5}, Layout::kBshd);
  CHECK_THROWS_AS(safetensors_tensor("s", strided), Error);
}

TEST_CASE("files that can't be read or written") {
  const TemporaryFolder folder;
  const auto io_error = [](const auto& action, const std::string& expected) {
    try {
      action();
      FAIL("no error");
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kIo);
      CHECK(contains(error.what(), expected));
    }
  };
  const std::string absent = folder / "absent", path = folder / "t", raw(1 << 20, 'x');
  const SafetensorsTensor tensor{"x", "U8", {1 << 20}, bytes_of(raw)};
  const auto write_to = [&](const std::string& where) {
    return [&tensor, where] {
      write_safetensors(where, {&tensor, 1});
    };
  };
  io_error([&] { SafetensorsFile file(absent); }, "cannot open '" + absent + "': No such file or directory");
  io_error([&] { SafetensorsFile file(folder.path()); }, "not a regular file");
  io_error([&] { SafetensorsFile file("/dev/full"); }, "not a regular file");
  io_error(write_to("/dev/full"), "cannot write '/dev/full': it is not a regular file");
  io_error(write_to(folder / "no/such/folder"), "No such file or directory");
  io_error(write_to(folder.path()), "not a regular file");

  write_file(path, std::string("old"));
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{1 << 16, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  io_error(write_to(path), "cannot write '" + path + "': File too large");
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(read_text(path) == "old");
  CHECK(folder.files().size() == 1);
  write_to(path)();
  CHECK(folder.files().size() == 1);
  CHECK(SafetensorsFile(path).at("x").data.size() == raw.size());

  { std::ofstream empty(absent); }
  CHECK_THROWS_WITH_AS(SafetensorsFile{absent},
                       ("safetensors '" + absent + "': it has 0 bytes, expected at least the 8 of the header's length").c_str(), Error);
}
