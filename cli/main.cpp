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
  add_bench_command(app);
  add_plan_command(app);
  add_kernels_command(app);
  add_attend_command(app);
  add_generate_command(app);
  add_train_command(app);
  add_judge_command(app);
}

}  // namespace

int main(int argc, char** argv) {
  start_with_patient_threads(argv);
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is then an error like any other
#endif
  CLI::App app("Sliding tile attention for video diffusion transformers.", "slidetile");
  app.set_version_flag("--version", "slidetile " SLIDETILE_VERSION, "Print the version");
  app.set_help_flag("-h,--help", "Print this help");
  app.require_subcommand(0, 1);  // a missing command is told after unknown arguments
  app.get_formatter()->column_width(34);
  app.footer("Each command has its own help.\nExample: slidetile attend --help");
  try {
    add_commands(app);
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) return report("expected a command; see slidetile --help");
    if (!std::cout.flush()) return report("cannot write to the standard output");
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return report(error.what() + std::string("; see slidetile --help"));
    app.exit(error);  // prints the help or the version
    return std::cout.flush() ? 0 : report("cannot write to the standard output");
  } catch (const std::bad_alloc&) {
    return report("out of memory");
  } catch (const std::exception& error) {
    return report(error.what());
  } catch (...) {
    return report("unknown error");
  }
}
