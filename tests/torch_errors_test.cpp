#include "video/torch_errors.h"

#include <doctest/doctest.h>

#include <stdexcept>

using namespace slidetile;
using namespace slidetile::video;

namespace {

template <typename Function>
Error error_of(const Function& function) {
  try {
    with_torch_errors("generate", function);
  } catch (const Error& error) {
    return error;
  }
  throw std::runtime_error("no error");
}

}  // namespace

TEST_CASE("a GPU that is out of memory is one line") {
  const std::string paragraph =
      "CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 11.07 GiB is free. Including "
      "non-PyTorch memory, this process has 52.58 GiB memory in use. Of the allocated memory 43.05 GiB is allocated by PyTorch, and 8.72 "
      "GiB "
      "is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting ...";
  const Error error = error_of([&] { throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, paragraph); });
  CHECK(error.code() == ErrorCode::kOutOfMemory);
  CHECK(error.what() ==
        doctest::String("generate: the GPU is out of memory: 16.00 GiB more were asked for, 11.07 GiB of 79.18 GiB are free; "
                        "try a smaller extent or batch"));
  CHECK(gpu_memory_line("CUDA out of memory. Other words.") == "CUDA out of memory");
  CHECK(gpu_memory_line("") == "");
}

TEST_CASE("torch's other exceptions keep their first line; the library's own pass") {
  const Error error = error_of([] { throw c10::Error({__func__, __FILE__, __LINE__}, "first\nsecond"); });
  CHECK(error.code() == ErrorCode::kDevice);
  CHECK(error.what() == doctest::String("generate: first"));
  const Error memory = error_of([] {
    throw c10::Error({__func__, __FILE__, __LINE__}, "[enforce] DefaultCPUAllocator: can't allocate memory: 7 bytes");
  });
  CHECK(memory.code() == ErrorCode::kOutOfMemory);
  CHECK(memory.what() == doctest::String("generate: out of memory: can't allocate memory: 7 bytes"));
  CHECK(error_of([] { fail(ErrorCode::kIo, "own"); }).code() == ErrorCode::kIo);
  CHECK(with_torch_errors("x", [] { return 7; }) == 7);
}

TEST_CASE("devices") {
  CHECK(device_from_name("x", "cpu").is_cpu());
  for (const char* name : {"gpu", "cuda:", "cuda:x", "cuda:999", ""}) CHECK_THROWS_AS(device_from_name("x", name), Error);
}
