// Files: a read-only mapping of a whole file, and a write that leaves either the whole new file or the old one.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace slidetile {

/// A regular file mapped privately for reading. It must not be truncated while it is mapped.
class MappedFile {
 public:
  /// Throws Error(kIo) with the path and the system's reason.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// Writes the parts, one after another, to a temporary file in the folder of `path`, flushes it to the disk and renames it to `path`.
/// Where anything fails, throws Error(kIo), removes the temporary file and leaves what was at `path`.
void write_file(const std::string& path, std::span<const std::span<const std::byte>> parts);
void write_file(const std::string& path, const std::string& text);

/// Throws what write_file would throw now, before hours of work end at a file that can't be written. Leaves nothing behind.
void require_writable(const std::string& path);

}  // namespace slidetile
