// Runs the program from outside, in a folder of the test's own. For tests that define SLIDETILE_PROGRAM_PATH.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "temporary_folder.h"

struct Outcome {
  int code;
  std::string out, err;
};

class Folder : public TemporaryFolder {
 public:
  Outcome run(const std::string& arguments) const { return shell("'" SLIDETILE_PROGRAM_PATH "' " + arguments); }

  /// A line of shell, with nothing on the standard input.
  Outcome shell(const std::string& command) const {
    const TemporaryFolder streams;  // elsewhere, so that this folder holds only what the command wrote
    const std::string whole =
        "cd '" + path() + "' && ( " + command + " ) > '" + streams / "out" + "' 2> '" + streams / "err" + "' < /dev/null";
    const int status = std::system(whole.c_str());
    REQUIRE(WIFEXITED(status));
    return {WEXITSTATUS(status), read_text(streams / "out"), read_text(streams / "err")};
  }
};

inline bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text, " has no: ", part);
  return false;
}

/// A mistake is one line on the standard error that says `message`, exit code 2, and not a file more than before.
inline void check_mistake(const Folder& folder, const std::string& arguments, const std::string& message) {
  CAPTURE(arguments);
  const auto before = folder.files();
  const Outcome outcome = folder.run(arguments);
  CHECK(outcome.code == 2);
  CHECK(outcome.out.empty());
  CHECK(outcome.err.starts_with("slidetile: "));
  CHECK(std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1);
  CHECK(outcome.err.ends_with('\n'));
  CHECK(contains(outcome.err, message));
  CHECK(folder.files() == before);
}
