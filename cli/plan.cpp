// slidetile plan: what a window on a canvas costs, as a table, as JSON, and as a picture of what a token sees.
#include "slidetile/plan.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "commands.h"
#include "options.h"
#include "plan_picture.h"
#include "plan_report.h"
#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/window.h"
#include "slidetile/window_clear.h"
#include "slidetile/window_natten.h"
#include "slidetile/window_swin.h"

namespace {

using namespace slidetile;

struct PlanArguments {
  std::string canvas, tile = to_string(kDefaultTile), pattern = "sta";
  std::vector<std::string> windows;
  std::string stride, dilation, causal, block, png;
  std::vector<int32_t> shift, query;
  int32_t radius = 0, head = 0;
  ExtraTokens extra;
  int64_t heads = 0, head_dim = 128;
  bool json = false;
};

/// One value of "sta", "natten" and so on: what the pattern is called and takes.
struct Pattern {
  const char *name, *title;
  bool window, stride, radius, shift;
};

constexpr Pattern kPatterns[] = {
    {"sta", "sliding tile attention", true, false, false, false},
    {"full", "full attention", false, false, false, false},
    {"natten", "neighborhood attention (NATTEN)", true, true, false, false},
    {"clear", "circular windows (CLEAR)", false, false, true, false},
    {"swin", "shifted windows (Swin)", true, false, false, true},
};

const Pattern& pattern_of(const PlanArguments& arguments) {
  for (const Pattern& pattern : kPatterns) {
    if (arguments.pattern == pattern.name) return pattern;
  }
  fail(ErrorCode::kInvalidArgument, "--pattern: got '", arguments.pattern, "', expected sta, full, natten, clear or swin");
}

void check_options(const PlanArguments& arguments, const Pattern& pattern) {
  const auto only_for = [&](bool given, bool taken, const char* option) {
    require(!given || taken, "pattern ", pattern.name, " takes no ", option);
  };
  only_for(!arguments.windows.empty(), pattern.window, "--window");
  only_for(!arguments.stride.empty(), pattern.stride, "--stride");
  only_for(!arguments.dilation.empty(), pattern.stride, "--dilation");
  only_for(!arguments.causal.empty(), pattern.stride, "--causal");
  only_for(arguments.radius != 0, pattern.radius, "--radius");
  only_for(!arguments.shift.empty(), pattern.shift, "--shift");
  require(!pattern.window || !arguments.windows.empty(), "pattern ", pattern.name, " needs --window, for example 3x3x3");
  require(!pattern.radius || arguments.radius > 0, "pattern ", pattern.name, " needs a positive --radius, got ", arguments.radius);
  require(pattern.name != std::string("swin") || arguments.windows.size() == 1, "pattern swin takes one window for all heads, got ",
          arguments.windows.size());
  const auto windows = static_cast<int64_t>(std::max<size_t>(arguments.windows.size(), 1));
  require(arguments.heads >= 0 && (windows == 1 || arguments.heads == 0 || arguments.heads == windows), "--heads: got ", arguments.heads,
          " and ", windows, " windows, expected one window for all heads or one per head");
  require(arguments.head_dim >= 1 && arguments.head_dim <= 256, "--head-dim: got ", arguments.head_dim, ", expected 1 to 256");
}

std::array<bool, 3> causal_axes(const std::string& text) {
  std::array<bool, 3> causal{};
  for (const char axis : text) {
    const size_t at = std::string_view("thw").find(axis);
    require(at != std::string_view::npos, "--causal: got '", text, "', expected axes out of t, h and w, for example t or thw");
    causal[at] = true;
  }
  return causal;
}

/// Where a window is a mistake, says so: the planners themselves take larger ones.
Plan make_plan(const PlanArguments& arguments, const Grid& grid) {
  std::vector<Dim3> windows;
  for (const std::string& text : arguments.windows) windows.push_back(extents("--window", text));
  if (arguments.pattern == "sta") {
    for (const Window& window : windows) require_fits(window, grid);
    return sliding_tile_plan(grid, windows, arguments.extra);
  }
  if (arguments.pattern == "natten") {
    NattenWindow each{.causal = causal_axes(arguments.causal)};
    if (!arguments.stride.empty()) each.stride = extents("--stride", arguments.stride);
    if (!arguments.dilation.empty()) each.dilation = extents("--dilation", arguments.dilation);
    std::vector<NattenWindow> token_windows(windows.size(), each);
    for (size_t head = 0; head < windows.size(); ++head) token_windows[head].window = windows[head];
    return natten_plan(grid, token_windows, arguments.extra);
  }
  if (arguments.pattern == "swin") {
    const Dim3 canvas = grid.canvas(), window = windows[0];
    require(window.t <= canvas.t && window.h <= canvas.h && window.w <= canvas.w, "swin: window ", window, " is beyond canvas ", canvas);
    SwinWindow swin{.window = window};
    if (!arguments.shift.empty()) swin.shift = {arguments.shift[0], arguments.shift[1], arguments.shift[2]};
    return swin_plan(grid, swin, arguments.extra);
  }
  if (arguments.pattern == "clear") return clear_plan(grid, arguments.radius, arguments.extra);
  return full_plan(grid, arguments.extra);
}

std::optional<Blocks> blocks_of(const Plan& plan, const PlanArguments& arguments) {
  if (arguments.block.empty()) return std::nullopt;
  const Dim3 extent = extents("--block", arguments.block);
  require(extent.t == 1 && arguments.block.find('x') != std::string::npos, "--block: got '", arguments.block,
          "', expected query slots x key slots, for example 64x128");
  return Blocks{extent.h, extent.w, count_blocks(plan, extent.h, extent.w)};
}

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string percent(double fraction) { return printed("%.2f %%", 100 * fraction); }

/// 1.23e12 as "1.23 TFLOP".
std::string flop(double value) {
  constexpr const char* kUnits[] = {" FLOP", " KFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP"};
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return printed("%.4g", value) + kUnits[unit];
}

std::string size_text(int64_t bytes) {
  if (bytes < 1024 * 1024) return printed("%.1f KiB", static_cast<double>(bytes) / 1024);
  return printed("%.1f MiB", static_cast<double>(bytes) / (1024.0 * 1024));
}

std::string shift_text(const PlanArguments& arguments) {
  return std::to_string(arguments.shift[0]) + "," + std::to_string(arguments.shift[1]) + "," + std::to_string(arguments.shift[2]);
}

std::string title_of(const PlanArguments& arguments, const Grid& grid) {
  std::string title =
      std::string(pattern_of(arguments).title) + ": canvas " + to_string(grid.canvas()) + ", tile " + to_string(grid.tile());
  if (!arguments.windows.empty()) {
    const bool many = arguments.windows.size() > 4;
    title += ", window " + (many ? std::to_string(arguments.windows.size()) + " of them" : joined(arguments.windows)) +
             (arguments.pattern == "sta" ? " tiles" : " tokens");
  }
  if (!arguments.stride.empty()) title += ", stride " + arguments.stride;
  if (!arguments.dilation.empty()) title += ", dilation " + arguments.dilation;
  if (!arguments.causal.empty()) title += ", causal along " + arguments.causal;
  if (arguments.radius > 0) title += ", radius " + std::to_string(arguments.radius) + " tokens";
  if (!arguments.shift.empty()) title += ", shift " + shift_text(arguments);
  return title;
}

void print_table(const Plan& plan, const PlanArguments& arguments, const PlanReport& report) {
  const Grid& grid = plan.query.grid;
  const auto line = [](const char* name, const std::string& value) {
    std::printf("  %-26s%s\n", name, value.c_str());
  };
  std::printf("%s\n", title_of(arguments, grid).c_str());
  const int64_t extra = plan.key.extra.before + plan.key.extra.after;
  line("tokens",
       grouped(plan.key.tokens()) + (extra == 0 ? ""
                                                : " (canvas " + grouped(grid.tokens()) + ", before it " + grouped(plan.key.extra.before) +
                                                      ", after it " + grouped(plan.key.extra.after) + ")"));
  line("tiles", grouped(plan.key.tiles()) + " (" + to_string(grid.tiles()) + " of up to " + grouped(grid.tile().volume()) + " tokens" +
                    (extra == 0 ? "" : ", " + grouped(plan.key.tiles() - grid.tile_count()) + " of extra tokens") + ")");
  line("sparsity", percent(1 - report.density) + " (" + percent(report.density) + " of the pairs are visible)");
  const std::string each =
      " for " + grouped(report.heads) + (report.heads == 1 ? " head" : " heads") + " of " + grouped(arguments.head_dim);
  line("FLOPs forward", flop(report.flops) + each + " (dense " + flop(report.dense_flops) + ")");
  line("FLOPs backward", flop(report.backward_flops));
  line("expected speed-up", printed("%.2f x over dense", 1 / report.touched) + " (whole tiles are computed; by visible pairs " +
                                printed("%.2f x)", 1 / report.density));
  line("key tiles of a tile's row",
       printed("%.4g", report.keys_mean) +
           (report.keys_least == report.keys_most ? "" : " (" + grouped(report.keys_least) + " to " + grouped(report.keys_most) + ")"));
  const auto shares = [](const TilePairs& pairs) {
    return percent(pairs.full / pairs.all) + " full, " + percent(pairs.mixed / pairs.all) + " partial, " +
           percent(1 - (pairs.full + pairs.mixed) / pairs.all) + " empty";
  };
  const auto count = [](double pairs) {
    return grouped(static_cast<int64_t>(pairs));
  };
  line("pairs of tiles", count(report.canvas.full) + " full, " + count(report.canvas.mixed) + " partial, " +
                             count(report.canvas.all - report.canvas.full - report.canvas.mixed) + " empty");
  line("  over the canvas", shares(report.canvas));
  line("  of the centre tile", shares(report.centre));
  if (const std::optional<Blocks>& blocks = report.blocks) {
    line(("blocks of " + arguments.block).c_str(), grouped(blocks->counts.full) + " full, " + grouped(blocks->counts.partial) +
                                                       " partial, " + grouped(blocks->counts.empty) + " empty");
  }
  const DeviceBlocks& hopper = report.on_hopper;
  line("on Hopper GPUs", !hopper.why_not.empty() ? hopper.why_not
                                                 : "blocks of " + to_string(hopper.query) + " in " + grouped(hopper.query_rows) +
                                                       " query rows and " + to_string(hopper.key) + " in " + grouped(hopper.key_rows) +
                                                       " key rows, " + printed("%.3f x the visible pairs", report.hopper_waste));
  line("plan", size_text(report.bytes) + ": " + grouped(plan.rows()) + " distinct rows, " + grouped(plan.entries()) + " entries, " +
                   grouped(plan.masks()) + " masks");
}

void print_json(const Plan& plan, const PlanArguments& arguments, const PlanReport& report) {
  const Grid& grid = plan.query.grid;
  nlohmann::ordered_json json{{"pattern", arguments.pattern}, {"canvas", to_string(grid.canvas())}, {"tile", to_string(grid.tile())}};
  if (!arguments.windows.empty()) json["window"] = arguments.windows;
  if (!arguments.stride.empty()) json["stride"] = arguments.stride;
  if (!arguments.dilation.empty()) json["dilation"] = arguments.dilation;
  if (!arguments.causal.empty()) json["causal"] = arguments.causal;
  if (arguments.radius > 0) json["radius"] = arguments.radius;
  if (!arguments.shift.empty()) json["shift"] = arguments.shift;
  json["before"] = plan.key.extra.before;
  json["after"] = plan.key.extra.after;
  json["heads"] = report.heads;
  json["head_dim"] = arguments.head_dim;
  json["tokens"] = plan.key.tokens();
  json["tiles"] = plan.key.tiles();
  json["sparsity"] = 1 - report.density;
  json["density"] = report.density;
  json["flops"] = report.flops;
  json["backward_flops"] = report.backward_flops;
  json["dense_flops"] = report.dense_flops;
  json["expected_speedup"] = 1 / report.touched;
  json["speedup_by_pairs"] = 1 / report.density;
  json["dense_block_fraction"] = report.centre.full / report.centre.all;
  json["mixed_block_fraction"] = report.centre.mixed / report.centre.all;
  json["mean_dense_block_fraction"] = report.canvas.full / report.canvas.all;
  json["mean_mixed_block_fraction"] = report.canvas.mixed / report.canvas.all;
  json["full_tile_pairs"] = static_cast<int64_t>(report.canvas.full);
  json["partial_tile_pairs"] = static_cast<int64_t>(report.canvas.mixed);
  json["empty_tile_pairs"] = static_cast<int64_t>(report.canvas.all - report.canvas.full - report.canvas.mixed);
  if (const std::optional<Blocks>& blocks = report.blocks) {
    json["blocks"] = {{"query", blocks->query},
                      {"key", blocks->key},
                      {"full", blocks->counts.full},
                      {"partial", blocks->counts.partial},
                      {"empty", blocks->counts.empty}};
  }
  const DeviceBlocks& hopper = report.on_hopper;
  if (hopper.why_not.empty()) {
    json["hopper"] = {{"query_block", to_string(hopper.query)},
                      {"query_rows", hopper.query_rows},
                      {"key_block", to_string(hopper.key)},
                      {"key_rows", hopper.key_rows},
                      {"multiplied_over_visible", report.hopper_waste}};
  } else {
    json["hopper"] = {{"why_not", hopper.why_not}};
  }
  json["key_tiles_per_row"] = report.keys_mean;
  json["key_tiles_per_row_min"] = report.keys_least;
  json["key_tiles_per_row_max"] = report.keys_most;
  json["plan_bytes"] = report.bytes;
  json["plan_rows"] = plan.rows();
  json["plan_entries"] = plan.entries();
  json["plan_masks"] = plan.masks();
  std::cout << json.dump(2) << '\n';
}

void draw(const Plan& plan, const PlanArguments& arguments) {
  const Grid& grid = plan.query.grid;
  const Dim3 canvas = grid.canvas();
  SeenFrom from{.query = {canvas.t / 2, canvas.h / 2, canvas.w / 2}, .head = arguments.head, .title = title_of(arguments, grid)};
  if (arguments.windows.size() > 1) from.title += ", head " + std::to_string(arguments.head);
  if (!arguments.query.empty()) from.query = {arguments.query[0], arguments.query[1], arguments.query[2]};
  from.title[0] = static_cast<char>(std::toupper(from.title[0]));
  draw_seen(plan, from).write(arguments.png);
}

void run(const PlanArguments& arguments) {
  const Pattern& pattern = pattern_of(arguments);
  check_options(arguments, pattern);
  require(!arguments.png.empty() || arguments.query.empty(), "--query is of the picture: give --png too");
  require(!arguments.png.empty() || arguments.head == 0, "--head is of the picture: give --png too");
  if (!arguments.png.empty()) require_writable(arguments.png);
  const Grid grid(extents("--canvas", arguments.canvas), extents("--tile", arguments.tile));
  const Plan plan = make_plan(arguments, grid);
  PlanReport report = report_on(plan, arguments.heads, arguments.head_dim);
  report.blocks = blocks_of(plan, arguments);
  if (!arguments.png.empty()) draw(plan, arguments);
  if (arguments.json) {
    print_json(plan, arguments, report);
  } else {
    print_table(plan, arguments, report);
    if (!arguments.png.empty()) std::printf("  %-26s%s\n", "picture", arguments.png.c_str());
    std::fflush(stdout);
  }
}

constexpr const char* kFooter =
    R"(A block is a query tile with a key tile. dense_block_fraction and mixed_block_fraction are of the tile at the
canvas's centre, whose row no border cuts, as in Table 1 of arXiv 2502.04507; mean_dense_block_fraction and
mean_mixed_block_fraction are over the whole canvas (equal for sta). The expected speed-up counts partly
visible tiles as whole ones, which is what a kernel computes. The line on Hopper says into which boxes of
tokens cuda.sm90 cuts the tiles, and what the rows without a token cost.

Examples:
  slidetile plan --canvas 30x48x80 --window 3x3x3 --after 256 --heads 24
  slidetile plan --canvas 48x48x48 --tile 4x4x4 --window 3x3x3,5x5x5 --json
  slidetile plan --canvas 48x48x48 --tile 4x4x4 --pattern natten --window 11x11x11 --png seen.png --query 24,3,40
  slidetile plan --canvas 64x64 --tile 8x8 --pattern clear --radius 16
  slidetile plan --canvas 30x48x80 --pattern swin --window 24x32x32 --shift 12,16,16)";

}  // namespace

void add_plan_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("plan", "What a window costs: sparsity, FLOPs, blocks; and a picture of what a token sees");
  const auto arguments = std::make_shared<PlanArguments>();
  command->add_option("--canvas", arguments->canvas, "The video's extent in tokens: TxHxW, or HxW")->required()->type_name("TxHxW");
  command->add_option("--tile", arguments->tile, "Extent of a tile in tokens")->capture_default_str()->type_name("TxHxW");
  command->add_option("--pattern", arguments->pattern, "sta, full, natten, clear or swin")->capture_default_str()->type_name("NAME");
  command
      ->add_option("--window", arguments->windows,
                   "sta: in tiles; natten, swin: in tokens. One for all heads, or one per head: 3x3x3,1x6x10")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->option_text("TxHxW[,..]");
  command->add_option("--stride", arguments->stride, "natten: queries that share a window, in tokens")->type_name("TxHxW");
  command->add_option("--dilation", arguments->dilation, "natten: distance of the keys, in tokens")->type_name("TxHxW");
  command->add_option("--causal", arguments->causal, "natten: axes without later keys, e.g. t")->type_name("AXES");
  command->add_option("--radius", arguments->radius, "clear: a token sees those nearer than this, in tokens")->type_name("R");
  command->add_option("--shift", arguments->shift, "swin: shift of the windows in tokens")
      ->delimiter(',')
      ->expected(3)
      ->option_text("T,H,W");
  command->add_option("--before", arguments->extra.before, "Extra tokens before the canvas")->capture_default_str()->type_name("N");
  command->add_option("--after", arguments->extra.after, "Extra tokens after the canvas")->capture_default_str()->type_name("N");
  command->add_option("--heads", arguments->heads, "Heads that the FLOPs are of (default: one per window)")->type_name("N");
  command->add_option("--head-dim", arguments->head_dim, "Channels of a head")->capture_default_str()->type_name("N");
  command->add_option("--block", arguments->block, "Also count blocks of so many query and key slots in tile order, e.g. 64x128")
      ->type_name("QxK");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->add_option("--png", arguments->png, "Draw which tokens a query sees, as slices over t, into this file")->type_name("FILE");
  command->add_option("--query", arguments->query, "The query token of the picture (default: the centre)")
      ->delimiter(',')
      ->expected(3)
      ->option_text("T,H,W");
  command->add_option("--head", arguments->head, "The head of the picture, from 0")->capture_default_str()->type_name("N");
  command->footer(kFooter);
  command->callback([arguments] { run(*arguments); });
}
