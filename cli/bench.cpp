// slidetile bench: speed of the kernels against the machine's own.
#include "bench/bench.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "commands.h"

void add_bench_command(CLI::App& app) {
  using slidetile::bench::BenchOptions;
  using slidetile::bench::Extent;
  const auto options = std::make_shared<BenchOptions>();
  const auto full = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("bench", "Measure the kernels against the machine's own multiply-add rate");
  command->add_flag("--full", *full, "All query tiles and more heads: half an hour or more. Without it: less than two minutes");
  std::string names;
  for (const std::string& name : slidetile::bench::case_names()) names += (names.empty() ? "" : ", ") + name;
  command->add_option("--case", options->case_name, "Only this case: " + names);
  command->add_option("--json", options->json, "Write the rows to this file too");
  command->add_option("--device", options->device, "cpu or cuda")->capture_default_str();
  command->footer(
      "Every result is checked against double precision on sampled rows before it is timed; times are medians of interleaved\n"
      "rounds. Counted work is 4 x visible pairs x head_dim, 10 x for gradients; packing, gathering and scattering are inside the time.\n\n"
      "Example: slidetile bench --case sta --json bench.json");
  command->callback([options, full] {
    options->extent = *full ? Extent::kFull : Extent::kQuick;
    if (const int result = slidetile::bench::run_bench(*options); result != 0) throw CLI::RuntimeError(result);
  });
}
