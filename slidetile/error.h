// The one exception of the library, and the check that throws it.
#pragma once

#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace slidetile {

enum class ErrorCode { kInvalidArgument, kUnsupported, kIo, kOutOfMemory, kDevice };

/// "invalid_argument", "unsupported", "io", "out_of_memory" or "device".
const char* to_string(ErrorCode code) noexcept;

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

/// Throws Error(code) with the parts joined as by operator<<.
template <typename... Parts>
[[noreturn]] void fail(ErrorCode code, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

/// Throws Error(kInvalidArgument) unless ok. A message says where, what was given and what was expected.
template <typename... Parts>
void require(bool ok, const Parts&... parts) {
  if (!ok) fail(ErrorCode::kInvalidArgument, parts...);
}

}  // namespace slidetile
