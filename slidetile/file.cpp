#include "slidetile/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <system_error>
#include <utility>

#include "slidetile/error.h"

namespace slidetile {
namespace {

[[noreturn]] void fail_io(const char* what, const std::string& path, int error) {
  fail(ErrorCode::kIo, "cannot ", what, " '", path, "': ", std::generic_category().message(error));
}

class Descriptor {
 public:
  explicit Descriptor(int descriptor) noexcept : descriptor_(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }

  int get() const noexcept { return descriptor_; }
  int close() noexcept { return descriptor_ < 0 ? 0 : ::close(std::exchange(descriptor_, -1)); }

 private:
  int descriptor_;
};

// Beside `path`, so that it can be renamed to it; removed unless it was.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path), temporary_(name_beside(path)), descriptor_(create()) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!renamed_) ::unlink(temporary_.c_str());
  }

  int descriptor() const noexcept { return descriptor_.get(); }
  void rename() {
    if (::fsync(descriptor_.get()) != 0 || descriptor_.close() != 0) fail_io("write", path_, errno);
    if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_io("rename a temporary file to", path_, errno);
    renamed_ = true;
  }

 private:
  static std::string name_beside(const std::string& path) {
    static std::atomic<uint32_t> counter{0};
    return path + ".tmp" + std::to_string(::getpid()) + '.' + std::to_string(counter++);
  }
  int create() const {
    if (path_.empty()) fail_io("write", path_, ENOENT);
    struct stat status {};
    if (::stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      fail(ErrorCode::kIo, "cannot write '", path_, "': it is not a regular file");
    }
    const int descriptor = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) fail_io("write", path_, errno);
    return descriptor;
  }

  std::string path_, temporary_;
  Descriptor descriptor_;
  bool renamed_ = false;
};

void write_all(int descriptor, std::span<const std::byte> bytes, const std::string& path) {
  constexpr size_t kLargestWrite = size_t{1} << 30;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail_io("write", path, written < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

// So that the new name survives a power failure. Some file systems refuse to flush a folder: then the rename is as safe as they make it.
void flush_folder_of(const std::string& path) noexcept {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  // Without O_NONBLOCK opening a pipe would wait for its writer.
  const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (descriptor.get() < 0) fail_io("open", path, errno);
  struct stat status {};
  if (::fstat(descriptor.get(), &status) != 0) fail_io("read", path, errno);
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "cannot read '", path, "': it is not a regular file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size == 0) return;
  if (size > std::numeric_limits<size_t>::max() / 2) fail(ErrorCode::kIo, "cannot read '", path, "': its ", size, " bytes are too many");
  void* memory = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (memory == MAP_FAILED) fail_io("map", path, errno);
  bytes_ = {static_cast<const std::byte*>(memory), static_cast<size_t>(size)};
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void write_file(const std::string& path, std::span<const std::span<const std::byte>> parts) {
  TemporaryFile file(path);
  for (const std::span<const std::byte> part : parts) write_all(file.descriptor(), part, path);
  file.rename();
  flush_folder_of(path);
}

void write_file(const std::string& path, const std::string& text) {
  const std::span<const std::byte> part = std::as_bytes(std::span(text));
  write_file(path, std::span(&part, 1));
}

void require_writable(const std::string& path) { const TemporaryFile file(path); }

}  // namespace slidetile
