// Errors carry a code and a message made of parts.
#include "slidetile/error.h"

#include <doctest/doctest.h>

#include <string>

namespace slidetile {
namespace {

TEST_CASE("require throws only where it must, with its parts joined") {
  CHECK_NOTHROW(require(true, "unused"));
  try {
    require(false, "k has ", 4095, " tokens, the plan covers ", int64_t{4096}, " (", 0.5, ')');
    FAIL("expected an error");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kInvalidArgument);
    CHECK(std::string(error.what()) == "k has 4095 tokens, the plan covers 4096 (0.5)");
  }
}

TEST_CASE("fail throws the code it is given, as a std::runtime_error") {
  for (const auto& [code, name] : {std::pair{ErrorCode::kInvalidArgument, "invalid_argument"},
                                   {ErrorCode::kUnsupported, "unsupported"},
                                   {ErrorCode::kIo, "io"},
                                   {ErrorCode::kOutOfMemory, "out_of_memory"},
                                   {ErrorCode::kDevice, "device"}}) {
    CHECK(std::string(to_string(code)) == name);
    try {
      fail(code, name);
    } catch (const std::runtime_error& error) {
      CHECK(dynamic_cast<const Error&>(error).code() == code);
      CHECK(std::string(error.what()) == name);
    }
  }
}

}  // namespace
}  // namespace slidetile
