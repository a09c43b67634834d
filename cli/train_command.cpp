// slidetile train: trains a text-to-video model on sprites.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "commands.h"
#include "loss_curve.h"
#include "slidetile/error.h"
#include "video/train.h"

namespace {

using namespace slidetile;
using namespace slidetile::video;

struct TrainArguments {
  TrainRequest request;
  std::string config;
  std::optional<double> minutes;
  bool resume = false, print_config = false;
};

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorCode::kIo, path, ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

void print_row(const TrainProgress& progress) {
  std::printf("stage %lld/%lld step %lld loss %.5f rate %.2f %.0f clips/s, launching %.0f %%,", static_cast<long long>(progress.row.stage),
              static_cast<long long>(progress.stages), static_cast<long long>(progress.row.step), progress.row.loss, progress.rate_factor,
              progress.clips_per_second, 100 * progress.host_share);
  std::printf(" %.0f s, %.0f s left", progress.row.seconds, progress.seconds_left);
  if (progress.waited > 1) std::printf(", waited %.0f s for clips", progress.waited);
  if (progress.row.reversal) {
    std::printf(", reversed word");
    for (const double grown : *progress.row.reversal) std::printf(" %+.1f %%", 100 * grown);
  }
  std::printf("\n");
  std::fflush(stdout);
}

void run(TrainArguments& arguments) {
  TrainRequest& request = arguments.request;
  if (!arguments.config.empty()) request.config = train_config_from_json(text_of(arguments.config), arguments.config);
  if (arguments.minutes) set_minutes(request.config, *arguments.minutes);
  if (arguments.print_config) {
    std::fputs(to_json(request.config).c_str(), stdout);
    return;
  }
  require(!request.out.empty(), "train: --out is required: the folder to write to");
  const bool settings = !arguments.config.empty() || arguments.minutes || !request.from.empty();
  require(!arguments.resume || !settings, "train: --resume takes the run's own settings, expected no --config, --minutes or --from");
  request.start = arguments.resume ? TrainStart::kResume : TrainStart::kNew;
  request.on_row = print_row;
  request.on_checkpoint = [&](const std::vector<TrainRow>& rows) {
    draw_loss_curve(rows).write(request.out + "/loss.png");
  };
  const TrainSummary summary = train(request);
  std::printf("%lld parameters, %.0f s", static_cast<long long>(summary.parameters), summary.seconds);
  if (summary.peak_gpu_gib > 0) std::printf(", at most %.1f GiB on the GPU", summary.peak_gpu_gib);
  std::printf("\nmodel: %s\n", summary.model.c_str());
}

constexpr const char* kFooter =
    "OUT gets train.json, checkpoints (the last two), and with each of them log.csv, loss.png and model/. Stages, sizes and rates are in "
    "the\n"
    "config file; --print-config shows the default one, which made the model that ships up to its tuning (data/sprites_tuning.json). The\n"
    "log's reversal is how much the loss on held-out clips grows when the sentence names the opposite direction: near 0 until directions "
    "are learnt.\n\n"
    "Examples:\n"
    "  slidetile train --out run --device cuda --minutes 9\n"
    "  slidetile train --out run --device cuda --resume\n"
    "  slidetile train --out tuned --device cuda --from run/model --config data/sprites_tuning.json";

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a text-to-video model on moving shapes");
  const auto arguments = std::make_shared<TrainArguments>();
  TrainRequest& request = arguments->request;
  request.config = default_train_config();
  command->add_option("--out", request.out, "Folder to write to")->type_name("FOLDER");
  command->add_option("--config", arguments->config, "JSON file with model, rates and stages (default: the model that ships)")
      ->type_name("FILE");
  command->add_option("--minutes", arguments->minutes, "Stretch the stages to so many minutes in all")->type_name("X");
  command->add_option("--from", request.from, "Folder of a model to start with (default: random weights)")->type_name("FOLDER");
  command->add_flag("--resume", arguments->resume, "Go on from the last checkpoint in OUT");
  command->add_flag("--print-config", arguments->print_config, "Print the config and stop");
  command->add_option("--device", request.device, "cpu, cuda or cuda:N")->capture_default_str()->type_name("NAME");
  command->add_option("--threads", request.threads, "Threads, 0 for all that this process may use")->capture_default_str()->type_name("N");
  command->add_option("--log-every", request.log_every, "Steps between rows of the log")->capture_default_str()->type_name("N");
  command->add_option("--reversal-every", request.reversal_every, "Steps between tests with the opposite direction")
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--checkpoint-every", request.checkpoint_every, "Steps between checkpoints")->capture_default_str()->type_name("N");
  command->footer(kFooter);
  command->callback([arguments] { run(*arguments); });
}
