// A folder for one test of the program, which runs in it from a shell.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

struct Outcome {
  int code;
  std::string out, err;
};

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "slidetile_test_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + '/' + name; }
  Outcome run(const std::string& arguments) const { return shell("'" SLIDETILE_PROGRAM_PATH "' " + arguments); }
  Outcome shell(const std::string& command) const {
    const std::string whole =
        "cd '" + path_ + "' && ( " + command + " ) > '" + *this / ".out" + "' 2> '" + *this / ".err" + "' < /dev/null";
    const int status = std::system(whole.c_str());
    REQUIRE(WIFEXITED(status));
    return {WEXITSTATUS(status), read_text(*this / ".out"), read_text(*this / ".err")};
  }

 private:
  std::string path_;
};

inline bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE(text, " has no: ", part);
  return false;
}
