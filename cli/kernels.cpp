// slidetile kernels: which attention kernels there are, what can run here and why the rest can't.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.h"
#include "slidetile/attention.h"

namespace {

using slidetile::DeviceType;
using slidetile::KernelInfo;

struct KernelsArguments {
  std::string device;
  bool json = false;
};

struct Listed {
  std::string device, pass;
  KernelInfo kernel;
  bool by_name_only;
};

template <typename Kernel>
void append_reference(std::vector<Listed>& list, const char* pass, std::span<const Kernel> kernels) {
  for (const Kernel& kernel : kernels) list.push_back({"cpu", pass, {kernel.name, ""}, true});
}

std::vector<Listed> list_kernels(const std::string& device) {
  std::vector<Listed> list;
  for (const auto& [name, type] : {std::pair("cuda", DeviceType::kCuda), std::pair("cpu", DeviceType::kCpu)}) {
    if (!device.empty() && device != name) continue;
    const bool cpu = type == DeviceType::kCpu;
    for (const KernelInfo& kernel : slidetile::forward_kernels(type)) list.push_back({name, "forward", kernel, false});
    if (cpu) append_reference(list, "forward", slidetile::reference_forward_kernels());
    for (const KernelInfo& kernel : slidetile::backward_kernels(type)) list.push_back({name, "backward", kernel, false});
    if (cpu) append_reference(list, "backward", slidetile::reference_backward_kernels());
  }
  return list;
}

void print_json(const std::vector<Listed>& list) {
  nlohmann::json kernels = nlohmann::json::array();
  for (const auto& [device, pass, kernel, by_name_only] : list) {
    kernels.push_back({{"device", device},
                       {"pass", pass},
                       {"name", kernel.name},
                       {"can_run", kernel.reason.empty()},
                       {"reason", kernel.reason},
                       {"by_name_only", by_name_only}});
  }
  std::cout << nlohmann::json{{"kernels", kernels}}.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) << '\n';
}

void print_table(const std::vector<Listed>& list, const std::string& asked) {
  size_t width = 0;
  for (const Listed& entry : list) width = std::max(width, entry.kernel.name.size());
  std::string heading;
  for (const auto& [device, pass, kernel, by_name_only] : list) {
    if (const std::string next = device + ' ' + pass; next != heading) {
      std::cout << next << ", best first:\n";
      heading = next;
    }
    const std::string state = !kernel.reason.empty() ? "cannot run: " + kernel.reason
                              : by_name_only         ? "can run, chosen only by its name"
                                                     : "can run";
    std::cout << "  " << std::left << std::setw(static_cast<int>(width)) << kernel.name << "  " << state << '\n';
  }
  const bool any_cuda = std::any_of(list.begin(), list.end(), [](const Listed& entry) { return entry.device == "cuda"; });
  if (asked != "cpu" && !any_cuda) std::cout << "cuda: no kernels, this build has no CUDA back end\n";
}

}  // namespace

void add_kernels_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("kernels", "List the attention kernels: what can run here, and why the rest can't");
  const auto arguments = std::make_shared<KernelsArguments>();
  command->add_option("--device", arguments->device, "Only those of this device: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->option_text("NAME");
  command->add_flag("--json", arguments->json, "Print JSON: kernels, each with device, pass, name, can_run, reason, by_name_only");
  command->footer("Example: slidetile kernels --device cpu");
  command->callback([arguments] {
    const std::vector<Listed> list = list_kernels(arguments->device);
    if (arguments->json) {
      print_json(list);
    } else {
      print_table(list, arguments->device);
    }
  });
}
