// slidetile bench: speed of the kernels against the machine's own.
#include "bench/bench.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "commands.h"
#include "options.h"
#include "slidetile/error.h"

namespace {

constexpr const char* kFooter =
    "\n\nEvery result is checked against double precision on sampled rows before it is timed. Counted work is 4 x visible pairs x "
    "head_dim,\n"
    "10 x for gradients; gathering, packing and scattering are inside the time.\n"
    "On cpu: medians of interleaved rounds, of the multiply-add peak that the same run measures.\n"
    "On cuda: steady state (25 warm launches back to back, then 40 timed together, twice), of the 8192^3 bf16 matrix product by cuBLAS\n"
    "(looked for at run time) right before and right after.\n\n"
    "Examples:\n"
    "  slidetile bench --case sta,sta_f32 --json bench.json\n"
    "  slidetile bench --device cuda --case 333,dense --kernel cuda.sm90 --json gpu.json";

}  // namespace

void add_bench_command(CLI::App& app) {
  using slidetile::bench::BenchOptions;
  using slidetile::bench::Extent;
  const auto options = std::make_shared<BenchOptions>();
  const auto full = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("bench", "Measure the kernels against the machine's own multiply-add rate");
  command->add_flag("--full", *full, "On cpu: all query tiles and more heads: half an hour or more. Without it: less than two minutes");
  command->add_option("--case", options->cases, "Only these cases, see below")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text("NAME[,..]");
  command->add_option("--kernel", options->kernel, "Only this kernel, see slidetile kernels")->type_name("NAME");
  command->add_option("--json", options->json, "Write the rows to this file too")->type_name("FILE");
  command->add_option("--device", options->device, "cpu or cuda")->capture_default_str()->type_name("DEVICE");
  command->add_option("--seconds", options->round_seconds, "On cuda: a round of launches is shorter than this")
      ->capture_default_str()
      ->type_name("S");
  command->footer("Cases on cpu:\n" + wrapped(slidetile::bench::case_names()) + "\nCases on cuda:\n" +
                  wrapped(slidetile::bench::cuda_case_names()) + kFooter);
  command->callback([options, full] {
    slidetile::require(options->round_seconds > 0, "bench: --seconds: ", options->round_seconds, ", expected more than 0");
    options->extent = *full ? Extent::kFull : Extent::kQuick;
    if (const int result = slidetile::bench::run_bench(*options); result != 0) throw CLI::RuntimeError(result);
  });
}
