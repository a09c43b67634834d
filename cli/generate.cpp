// slidetile generate: a sentence to a video.
#include "video/generate.h"

#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "commands.h"
#include "options.h"
#include "picture.h"
#include "progress.h"
#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/window.h"
#include "slidetile/window_table.h"
#include "video/frame_writer.h"
#include "video/frames.h"

namespace {

using namespace slidetile;
namespace fs = std::filesystem;
using video::Frames;
using video::Generated;

constexpr const char* kDefaultTile = "4x4x4";
constexpr const char* kDefaultWindow = "2x3x3";
constexpr int kGap = 4, kCaptionHeight = 22, kCaptionText = 10, kNarrowestCaption = 120;

struct GenerateArguments {
  std::string sentence, out, tile = kDefaultTile, window, strategy, extent = "16x64x64", scaling = "nearest";
  video::GeneratorOptions generator;
  uint64_t seed = 1;
  int64_t steps = 20, dense_steps = 0;
  double guidance = 4, frames_per_second = 8;
  int scale = 4;
  bool dense = false, compare = false, json = false;
};

// So that minutes of work do not end at a file that can't be written.
void require_place_for(const std::string& path) {
  std::error_code ignored;
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  if (!fs::is_directory(folder, ignored)) fail(ErrorCode::kIo, "cannot write '", path, "': ", folder, " is no folder");
  require_writable(path);
}

// As training writes it, with its background. A sentence of known words that the grammar does not make goes on as it is, with a word about
// it.
std::string complete(const std::string& sentence) {
  try {
    return sentence_of(video::scene_from_sentence(sentence));
  } catch (const Error& error) {
    std::cerr << "slidetile: note: " << error.what() << "; the model has never seen such a sentence" << std::endl;
    return sentence;
  }
}

// The model that comes with the project: where it was built, or where it is installed.
std::string default_model() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (const fs::path& folder :
       {fs::path(SLIDETILE_SOURCE_FOLDER) / "data/sprites-model", program.parent_path().parent_path() / "share/slidetile/sprites-model"}) {
    if (fs::is_directory(folder, error)) return folder.string();
  }
  fail(ErrorCode::kIo, "generate: no model in ", SLIDETILE_SOURCE_FOLDER, "/data/sprites-model; name a folder by --model");
}

video::AttentionPattern pattern_of(const GenerateArguments& arguments) {
  require(arguments.dense + !arguments.window.empty() + !arguments.strategy.empty() <= 1,
          "generate: expected one of --window, --strategy and --dense");
  require(!(arguments.dense && arguments.compare), "generate: --compare compares with --dense; leave one of them out");
  video::AttentionPattern pattern;
  pattern.tile = extents("--tile", arguments.tile);
  pattern.dense_steps = arguments.dense_steps;
  if (arguments.dense) return pattern;
  if (!arguments.strategy.empty()) {
    pattern.table = std::make_shared<const WindowTable>(WindowTable::load(arguments.strategy));
  } else {
    pattern.window = extents("--window", arguments.window.empty() ? kDefaultWindow : arguments.window);
  }
  return pattern;
}

video::Scaling scaling_of(const std::string& name) {
  require(name == "nearest" || name == "lanczos", "--scaling: '", name, "', expected nearest or lanczos");
  return name == "nearest" ? video::Scaling::kNearest : video::Scaling::kLanczos;
}

std::string rounded(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

// A line of text above each half.
Frames captioned(const Frames& both, const std::string& left, const std::string& right) {
  const int half = (both.width - kGap) / 2;
  if (half < kNarrowestCaption) return both;
  constexpr Color kPaper{24, 24, 24}, kInk{235, 235, 235};
  Picture caption(both.width, kCaptionHeight, kPaper);
  const int top = (kCaptionHeight - kCaptionText) / 2;
  caption.text(6, top, left, kCaptionText, kInk);
  caption.text(half + kGap + 6, top, right, kCaptionText, kInk);
  Frames out = Frames::black(both.count, both.height + kCaptionHeight, both.width);
  for (int f = 0; f < both.count; ++f) {
    for (int y = 0; y < kCaptionHeight; ++y) {
      for (int x = 0; x < both.width; ++x) {
        const Color& color = caption.at(x, y);
        uint8_t* pixel = out.at(f, y, x);
        pixel[0] = color.red, pixel[1] = color.green, pixel[2] = color.blue;
      }
    }
    std::memcpy(out.at(f, kCaptionHeight, 0), both.at(f, 0, 0), static_cast<size_t>(both.height) * static_cast<size_t>(both.width) * 3);
  }
  return out;
}

struct Comparison {
  Generated dense;
  video::Difference difference;
  double speed_up = 0;
};

Generated run(video::Generator& generator, video::GenerateRequest request, const char* label) {
  Progress progress(label);
  request.on_step = [&](int64_t done, int64_t steps) {
    progress.update(done, steps);
  };
  return generator.generate(request);
}

void print_row(const char* label, const Generated& result) {
  const double seconds = result.seconds();
  std::printf("%-13s %8.2f s, %.4f s a step, attention %.0f %% of it, sparsity %.1f %%\n", label, seconds,
              seconds / static_cast<double>(result.step_seconds.size()), 100 * result.attention_seconds / seconds,
              100 * (1 - result.density));
}

void print_summary(const GenerateArguments& arguments, const Generated& result, const std::optional<Comparison>& comparison) {
  std::printf("%s (seed %llu): %s, %lld tokens, %lld steps, guidance %g, %s in %s on %s\n", arguments.sentence.c_str(),
              static_cast<unsigned long long>(arguments.seed), to_string(result.clip.extent).c_str(), static_cast<long long>(result.tokens),
              static_cast<long long>(arguments.steps), arguments.guidance, result.kernel.c_str(), result.dtype.c_str(),
              result.device.c_str());
  print_row(arguments.dense ? "dense" : "sliding tile", result);
  if (comparison) {
    print_row("dense", comparison->dense);
    std::printf("speed-up %.2f; PSNR %.1f dB and SSIM %.3f between the two\n", comparison->speed_up, comparison->difference.psnr,
                comparison->difference.ssim);
  }
  std::printf("%s\n", arguments.out.c_str());
}

nlohmann::json json_of(const Generated& result) {
  return {{"seconds", result.seconds()},
          {"step_seconds", result.step_seconds},
          {"attention_seconds", result.attention_seconds},
          {"attention_calls", result.attention_calls},
          {"sparsity", 1 - result.density}};
}

void print_json(const GenerateArguments& arguments, const Generated& result, const std::optional<Comparison>& comparison) {
  nlohmann::json json{{"sentence", arguments.sentence}, {"seed", arguments.seed},  {"steps", arguments.steps},
                      {"guidance", arguments.guidance}, {"out", arguments.out},    {"extent", to_string(result.clip.extent)},
                      {"tokens", result.tokens},        {"layers", result.layers}, {"heads", result.heads},
                      {"head_dim", result.head_dim},    {"kernel", result.kernel}, {"dtype", result.dtype},
                      {"device", result.device},        {"tile", arguments.tile},  {"result", json_of(result)}};
  if (comparison) {
    json["dense"] = json_of(comparison->dense);
    json["speed_up"] = comparison->speed_up;
    json["psnr"] = std::isfinite(comparison->difference.psnr) ? nlohmann::json(comparison->difference.psnr) : nlohmann::json("inf");
    json["ssim"] = comparison->difference.ssim;
  }
  std::cout << json.dump(2) << '\n';
}

// Tensors come and go in every layer: without this each goes back to the system, which has to clear its pages for the next one.
void keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 25);  // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 1 << 26);
#endif
}

void generate(GenerateArguments& arguments) {
  video::tokenize(arguments.sentence);  // names an unknown word before anything else is done
  video::frame_format_of(arguments.out);
  require_place_for(arguments.out);
  require(arguments.scale >= 1 && arguments.scale <= 64, "--scale: ", arguments.scale, ", expected 1 to 64");
  require(arguments.frames_per_second >= 0.1 && arguments.frames_per_second <= 100, "--fps: ", arguments.frames_per_second,
          ", expected 0.1 to 100");
  const video::Scaling scaling = scaling_of(arguments.scaling);
  video::GenerateRequest request;
  request.seed = arguments.seed;
  request.extent = extents("--extent", arguments.extent);
  request.steps = arguments.steps;
  request.guidance = arguments.guidance;
  request.pattern = pattern_of(arguments);
  if (const char* reason = video::why_no_generation()) fail(ErrorCode::kUnsupported, "generate: ", reason);
  request.sentence = complete(arguments.sentence);

  if (arguments.generator.model.empty()) arguments.generator.model = default_model();
  keep_memory();
  video::Generator generator(arguments.generator);
  if (arguments.generator.device != "cpu") {  // a GPU loads its code at the first use
    video::GenerateRequest first = request;
    first.steps = 1;
    first.pattern = {.tile = request.pattern.tile};
    generator.generate(first);
  }
  const Generated result = run(generator, request, arguments.dense ? "dense" : "sliding tile");
  const Frames frames = frames_of(result.clip);
  std::optional<Comparison> comparison;
  Frames shown = scaled(frames, arguments.scale, scaling);
  if (arguments.compare) {
    request.pattern = {.tile = request.pattern.tile};
    comparison.emplace(Comparison{.dense = run(generator, request, "dense")});
    const Frames dense = frames_of(comparison->dense.clip);
    comparison->difference = difference(frames, dense);
    comparison->speed_up = comparison->dense.seconds() / result.seconds();
    shown = captioned(side_by_side(scaled(dense, arguments.scale, scaling), shown, kGap),
                      "dense, " + rounded(comparison->dense.seconds(), 1) + " s", "sliding tile, " + rounded(result.seconds(), 1) + " s");
  }
  write_frames(arguments.out, shown, arguments.frames_per_second);
  if (arguments.json) {
    print_json(arguments, result, comparison);
  } else {
    print_summary(arguments, result, comparison);
  }
}

std::string footer() {
  return "Sentences are those of the model's grammar: a SIZE COLOUR SHAPE MOTION [and a ...] [on BACKGROUND]. The words are\n" +
         wrapped(video::vocabulary()) +
         ".\nThe same sentence, seed and options give the same clip. docs/video.md says what happens in between.\n\n"
         "Examples:\n"
         "  slidetile generate \"a small red circle moves left\" -o clip.mp4\n"
         "  slidetile generate \"a large green star spins on clouds\" -o both.gif --compare --seed 3";
}

}  // namespace

void add_generate_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "A sentence to a video");
  const auto arguments = std::make_shared<GenerateArguments>();
  command->add_option("SENTENCE", arguments->sentence, "What the clip shows")->required();
  command->add_option("-o,--out", arguments->out, "File to write: .mp4, .gif, or .png (a sheet of all frames)")
      ->required()
      ->type_name("FILE");
  command->add_option("--model", arguments->generator.model, "Folder of the model (default: the one that comes with the project)")
      ->type_name("FOLDER");
  command->add_option("--seed", arguments->seed, "Seed of the noise that the clip starts from")
      ->capture_default_str()
      ->type_name("N")
      ->check(not_negative);
  command->add_option("--steps", arguments->steps, "Sampling steps")->capture_default_str()->type_name("N");
  command->add_option("--guidance", arguments->guidance, "How strongly the sentence is followed; 1 halves the work")
      ->capture_default_str()
      ->type_name("X");
  command->add_option("--tile", arguments->tile, "Extent of a tile in tokens")->capture_default_str()->type_name("TxHxW");
  command->add_option("--window", arguments->window, std::string("Window of all heads, in tiles (default: ") + kDefaultWindow + ")")
      ->type_name("TxHxW");
  command->add_option("--strategy", arguments->strategy, "Windows for each step, layer and head: a strategy file")->type_name("FILE");
  command->add_flag("--dense", arguments->dense, "Every token reads every token");
  command->add_option("--dense-steps", arguments->dense_steps, "So many first steps are dense")->capture_default_str()->type_name("N");
  command->add_flag("--compare", arguments->compare, "Also dense from the same seed: both side by side, and how they differ");
  command->add_option("--extent", arguments->extent, "Frames, height and width in pixels")->capture_default_str()->type_name("TxHxW");
  command->add_option("--scale", arguments->scale, "Each pixel becomes so many, squared")->capture_default_str()->type_name("N");
  command->add_option("--scaling", arguments->scaling, "nearest or lanczos")->capture_default_str()->type_name("NAME");
  command->add_option("--fps", arguments->frames_per_second, "Frames a second")->capture_default_str()->type_name("X");
  command->add_option("--device", arguments->generator.device, "cpu, cuda or cuda:N")->capture_default_str()->type_name("NAME");
  command->add_option("--dtype", arguments->generator.dtype, "Weights and activations: f32, bf16, f16, or auto")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--threads", arguments->generator.threads, "Threads, 0 for all that this process may use")
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "Print the figures as JSON");
  command->footer(footer());
  command->callback([arguments] { generate(*arguments); });
}
