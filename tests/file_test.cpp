// Files: what can't be written is said before the work, and what was there stays. Mappings: safetensors_test.cpp.
#include "slidetile/file.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "slidetile/error.h"
#include "temporary_folder.h"

using namespace slidetile;
namespace fs = std::filesystem;

namespace {

void check_refused(const std::string& path, const std::string& reason) {
  const std::string expected = "cannot write '" + path + "': " + reason;
  CHECK_THROWS_WITH_AS(require_writable(path), expected.c_str(), Error);
  CHECK_THROWS_WITH_AS(write_file(path, std::string("new")), expected.c_str(), Error);
}

}  // namespace

TEST_CASE("a file that can be written") {
  const TemporaryFolder folder;
  const std::string path = folder / "file";
  require_writable(path);
  CHECK(folder.files().empty());
  write_file(path, std::string("old"));
  require_writable(path);
  CHECK(read_text(path) == "old");
  write_file(path, std::string("new"));
  CHECK(read_text(path) == "new");
  CHECK(folder.files().size() == 1);
}

TEST_CASE("files that can't be written") {
  const TemporaryFolder folder;
  check_refused(folder / "no/file", "No such file or directory");
  check_refused(folder / "", "it is not a regular file");
  check_refused("/dev/full", "it is not a regular file");
  check_refused(folder / std::string(300, 'x'), "File name too long");
  check_refused("", "No such file or directory");
  if (geteuid() != 0) {
    fs::permissions(folder / "", fs::perms::owner_read | fs::perms::owner_exec);
    check_refused(folder / "file", "Permission denied");
    fs::permissions(folder / "", fs::perms::owner_all);
  }
  CHECK(folder.files().empty());
}
