// Torch's devices and exceptions, as the library names them.
#pragma once

#include <c10/util/Exception.h>
#include <torch/cuda.h>
#include <torch/types.h>

#include <string>

#include "slidetile/error.h"

namespace slidetile::video {

/// PyTorch's paragraph about a GPU that is out of memory as one line: what was asked for, what there is, what to try.
inline std::string gpu_memory_line(const std::string& message) {
  const auto between = [&](const std::string& before, const std::string& after) -> std::string {
    const size_t at = message.find(before), end = message.find(after, at == std::string::npos ? at : at + before.size());
    return at == std::string::npos || end == std::string::npos ? "" : message.substr(at + before.size(), end - at - before.size());
  };
  const std::string asked = between("Tried to allocate ", ". "), all = between("total capacity of ", " of which "),
                    free = between(" of which ", " is free");
  if (asked.empty() || all.empty() || free.empty()) return message.substr(0, message.find(". "));
  return asked + " more were asked for, " + free + " of " + all + " are free; try a smaller extent or batch";
}

/// Runs what calls torch. Its exceptions become Error in one line: their messages go on with advice and a trace.
template <typename Function>
auto with_torch_errors(const char* where, const Function& function) {
  const auto first_line = [](const std::string& message) {
    return message.substr(0, message.find('\n'));
  };
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const c10::OutOfMemoryError& error) {
    fail(ErrorCode::kOutOfMemory, where, ": the GPU is out of memory: ", gpu_memory_line(first_line(error.what_without_backtrace())));
  } catch (const c10::Error& error) {
    const std::string message = first_line(error.what_without_backtrace()), allocator = "DefaultCPUAllocator: ";
    const size_t at = message.find(allocator);
    if (at != std::string::npos) fail(ErrorCode::kOutOfMemory, where, ": out of memory: ", message.substr(at + allocator.size()));
    fail(ErrorCode::kDevice, where, ": ", message);
  }
}

/// "cpu", "cuda" or "cuda:N"; throws on others, and where there is no such GPU.
inline torch::Device device_from_name(const char* where, const std::string& name) {
  const bool cuda = name == "cuda" || (name.starts_with("cuda:") && name.size() > 5 && name.size() < 8 &&
                                       name.find_first_not_of("0123456789", 5) == std::string::npos);
  require(name == "cpu" || cuda, where, ": device '", name, "', expected cpu, cuda or cuda:N");
  if (!cuda) return torch::kCPU;
  const auto devices = static_cast<int>(torch::cuda::device_count());
  if (devices == 0) fail(ErrorCode::kDevice, where, ": device '", name, "': torch finds no GPU");
  const int index = name == "cuda" ? 0 : std::stoi(name.substr(5));
  require(index < devices, where, ": device '", name, "', expected an index below ", devices);
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

}  // namespace slidetile::video
