// The program: parses the command line, runs one command, and turns every error into one line and exit code 2.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <string>
#include <string_view>
#include <system_error>

#include "commands.h"

namespace {

constexpr int kFailed = 2;

int report(std::string_view message) {
  std::string line(message);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';  // names from files may hold anything
  }
  std::cerr << "slidetile: " << line << std::endl;
  return kFailed;
}

// Torch's OpenMP threads spin after each loop by default. Where others use the processors too, they spin away the time of the thread that
// they wait for: four times slower on two busy cores. OpenMP reads its setting when it is loaded, so that the program has to start once
// more.
void start_with_patient_threads(char** argv) {
  constexpr std::string_view kWithTorch[] = {"generate", "judge", "train"};
  if (argv[0] == nullptr || argv[1] == nullptr || std::ranges::find(kWithTorch, argv[1]) == std::end(kWithTorch)) return;
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || setenv("OMP_WAIT_POLICY", "passive", 0) != 0) return;
  std::error_code error;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  if (!error) execv(program.c_str(), argv);  // returns only where it fails: then spinning it is
}

void add_commands(CLI::App& app) {
  add_plan_command(app);
  add_kernels_command(app);
  add_attend_command(app);
  add_bench_command(app);
  add_generate_command(app);
  add_train_command(app);
  add_judge_command(app);
  for (CLI::App* command : app.get_subcommands({})) command->group("Commands");
}

std::string expectation(const CLI::ParseError& error) {
  return dynamic_cast<const CLI::ConversionError*>(&error) != nullptr ? ", expected a number" : "";
}

// " attend" where the command line names a command.
std::string command_of(const CLI::App& app, char** argv) {
  if (argv[0] == nullptr || argv[1] == nullptr) return "";
  const std::string name = argv[1];
  return app.get_subcommands([&](const CLI::App* command) { return command->get_name() == name; }).empty() ? "" : ' ' + name;
}

int run(int argc, char** argv) {
  start_with_patient_threads(argv);
  CLI::App app("Sliding tile attention for video diffusion transformers.", "slidetile");
  app.set_version_flag("--version", "slidetile " SLIDETILE_VERSION, "Print the version");
  app.set_help_flag("-h,--help", "Print this help");
  app.require_subcommand(0, 1);  // a missing command is told after unknown arguments
  app.get_formatter()->column_width(34);
  app.get_formatter()->label("SUBCOMMAND", "COMMAND");
  app.footer(
      "slidetile COMMAND --help says more. A mistake is one line on the standard error and exit code 2.\n\n"
      "Examples:\n"
      "  slidetile plan --canvas 30x48x80 --window 3x3x3\n"
      "  slidetile generate \"a small red circle moves left\" -o clip.mp4");
  try {
    add_commands(app);
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) return report("expected a command; see slidetile --help");
    return std::cout.flush() ? 0 : report("cannot write to the standard output");
  } catch (const CLI::RuntimeError& status) {
    return status.get_exit_code();  // of a command that has said all
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0)
      return report(error.what() + expectation(error) + "; see slidetile" + command_of(app, argv) + " --help");
    app.exit(error);  // prints the help or the version
    return std::cout.flush() ? 0 : report("cannot write to the standard output");
  }
}

}  // namespace

int main(int argc, char** argv) {
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is then an error like any other
#endif
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    return report("out of memory");
  } catch (const std::exception& error) {
    return report(error.what());
  } catch (...) {
    return report("unknown error");
  }
}
