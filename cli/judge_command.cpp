// slidetile judge: generates from held-out sentences and counts what the checker reads back.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "commands.h"
#include "options.h"
#include "progress.h"
#include "slidetile/error.h"
#include "slidetile/file.h"
#include "video/judge.h"

namespace {

using namespace slidetile;
using namespace slidetile::video;
using Json = nlohmann::ordered_json;

struct JudgeArguments {
  JudgeRequest request;
  std::string captions = "data/held_out_captions.txt", extent = "16x64x64", tile = "4x4x4", window, json;
  int64_t clips = 0;
};

Json json_of(const JudgeArguments& arguments, const Judgement& judgement) {
  const Judgement::Shares shares = judgement.shares();
  Json json;
  json["clips"] = judgement.verdicts.size();
  json["steps"] = arguments.request.steps;
  json["guidance"] = arguments.request.guidance;
  json["seed"] = arguments.request.seed;
  json["extent"] = arguments.extent;
  json["tile"] = arguments.tile;
  json["window"] = arguments.window.empty() ? Json() : Json(arguments.window);
  json["density"] = judgement.density;
  json["kernel"] = judgement.kernel;
  json["seconds"] = judgement.seconds;
  json["shape"] = shares.shape;
  json["colour"] = shares.colour;
  json["motion"] = shares.motion;
  json["all"] = shares.all;
  json["motions"] = judgement.motions();
  json["wrong"] = Json::array();
  for (const Verdict& verdict : judgement.verdicts) {
    if (verdict.score.all()) continue;
    std::string seen;
    for (const Sighting& sighting : verdict.seen) {
      seen += (seen.empty() ? "" : " and ") + std::string(to_string(sighting.colour)) + " " + std::string(to_string(sighting.shape)) + " " +
              std::string(to_string(sighting.motion));
    }
    json["wrong"].push_back({{"sentence", verdict.sentence}, {"seen", seen}});
  }
  return json;
}

void print(const Judgement& judgement) {
  const Judgement::Shares shares = judgement.shares();
  std::printf("%zu clips: shape %.1f %%, colour %.1f %%, motion %.1f %%, all right %.1f %%\n", judgement.verdicts.size(),
              100 * shares.shape, 100 * shares.colour, 100 * shares.motion, 100 * shares.all);
  std::printf("%.1f s, sparsity %.1f %%, %s\n", judgement.seconds, 100 * (1 - judgement.density), judgement.kernel.c_str());
  const auto motions = judgement.motions();
  std::printf("asked for, seen:");
  for (int motion = 0; motion < kMotions; ++motion) std::printf(" %d", motion);
  std::printf(" none\n");
  for (int asked = 0; asked < kMotions; ++asked) {
    std::printf("%d %-17s", asked, std::string(to_string(static_cast<Motion>(asked))).c_str());
    for (const int count : motions[static_cast<size_t>(asked)]) std::printf(" %d", count);
    std::printf("\n");
  }
}

void run(JudgeArguments& arguments) {
  JudgeRequest& request = arguments.request;
  request.sentences = read_sentences(arguments.captions);
  if (!arguments.json.empty()) require_writable(arguments.json);
  require(arguments.clips >= 0, "judge: ", arguments.clips, " clips, expected 1 or more, or 0 for all");
  if (arguments.clips > 0 && static_cast<size_t>(arguments.clips) < request.sentences.size()) {
    request.sentences.resize(static_cast<size_t>(arguments.clips));
  }
  request.extent = extents("--extent", arguments.extent);
  request.pattern.tile = extents("--tile", arguments.tile);
  if (!arguments.window.empty()) request.pattern.window = extents("--window", arguments.window);
  Judgement judgement;
  {
    Progress progress("judge");
    request.on_batch = [&](int64_t done, int64_t clips) {
      progress.update(done, clips);
    };
    judgement = judge(request);
  }
  print(judgement);
  if (!arguments.json.empty()) write_file(arguments.json, json_of(arguments, judgement).dump(1) + "\n");
}

constexpr const char* kFooter =
    "Every sentence becomes a clip; plain image processing reads shape, colour and motion back. The held-out sentences name shape, colour\n"
    "and motion in combinations that training never shows.\n\n"
    "Example: slidetile judge --model run/model --device cuda --window 2x3x3 --json score.json";

}  // namespace

void add_judge_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("judge", "Score a text-to-video model on held-out sentences");
  const auto arguments = std::make_shared<JudgeArguments>();
  JudgeRequest& request = arguments->request;
  command->add_option("--model", request.model, "The model's folder")->required()->type_name("FOLDER");
  command->add_option("--captions", arguments->captions, "File of sentences, one a line")->capture_default_str()->type_name("FILE");
  command->add_option("--clips", arguments->clips, "Only so many of the sentences, 0 for all")->capture_default_str()->type_name("N");
  command->add_option("--extent", arguments->extent, "Frames, height and width in pixels")->capture_default_str()->type_name("TxHxW");
  command->add_option("--steps", request.steps, "Sampling steps")->capture_default_str()->type_name("N");
  command->add_option("--guidance", request.guidance, "Weight of the sentence, 1 for none beyond the model's own")
      ->capture_default_str()
      ->type_name("X");
  command->add_option("--seed", request.seed, "Seed of the first clip; each next has the next")
      ->capture_default_str()
      ->type_name("N")
      ->check(not_negative);
  command->add_option("--tile", arguments->tile, "Extent of a tile in tokens")->capture_default_str()->type_name("TxHxW");
  command->add_option("--window", arguments->window, "Window of all heads, in tiles (default: dense)")->type_name("TxHxW");
  command->add_option("--batch", request.batch, "Clips at once")->capture_default_str()->type_name("N");
  command->add_option("--device", request.device, "cpu, cuda or cuda:N")->capture_default_str()->type_name("NAME");
  command->add_option("--threads", request.threads, "Threads, 0 for all that this process may use")->capture_default_str()->type_name("N");
  command->add_option("--json", arguments->json, "Write the score to this file too")->type_name("FILE");
  command->footer(kFooter);
  command->callback([arguments] { run(*arguments); });
}
