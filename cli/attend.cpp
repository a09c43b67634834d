// slidetile attend: attention over q, k and v of a safetensors file.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "commands.h"
#include "options.h"
#include "progress.h"
#include "slidetile/attention.h"
#include "slidetile/device_buffer.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/safetensors.h"
#include "slidetile/window.h"
#include "slidetile/window_table.h"

namespace {

using namespace slidetile;

constexpr Device kCuda{DeviceType::kCuda, 0};

struct AttendArguments {
  std::string in, out, canvas, tile = to_string(kDefaultTile), window, strategy, dtype, kernel, device = "cpu";
  std::optional<int32_t> step, layer;
  ExtraTokens extra;
  std::vector<int32_t> key_lengths;
  std::optional<float> scale;
  int threads = 0;
  bool json = false;
};

// q, k or v: where the file's own bytes serve, a view of them, else a copy.
struct Input {
  Tensor copy;
  TensorView view;
};

struct Inputs {
  Input q, k, v;
  DType dtype = DType::kF32;
};

struct Result {
  std::string kernel;
  double seconds = 0, flops = 0, sparsity = 0;
  int64_t batch = 0, heads = 0, tokens = 0, head_dim = 0;
  DType dtype = DType::kF32;
};

Input load_input(const SafetensorsFile& file, const std::string& name, const AttendArguments& arguments, DType dtype) {
  const SafetensorsTensor& tensor = file.at(name);
  const std::string where = "attend: " + name + " of '" + arguments.in + "'";
  require(tensor.shape.size() == 4, where, " has ", tensor.shape.size(), " axes, expected 4: [batch, heads, tokens, head_dim]");
  require(!arguments.dtype.empty() || tensor.dtype == file.at("q").dtype, where, " is ", tensor.dtype, ", q is ", file.at("q").dtype,
          ": expected one type, or --dtype to convert to");
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.data.data()) % static_cast<uintptr_t>(size_of(dtype)) == 0;
  Input input;
  if (aligned && file.dtype(name) == dtype && !tensor.data.empty()) {
    input.view = file.view(name);
  } else {
    input.copy = file.load(name, dtype);
    input.view = input.copy.view();
  }
  return input;
}

Inputs load_inputs(const SafetensorsFile& file, const AttendArguments& arguments) {
  Inputs inputs;
  inputs.dtype = arguments.dtype.empty() ? file.dtype("q") : dtype_from_string(arguments.dtype);
  inputs.q = load_input(file, "q", arguments, inputs.dtype);
  inputs.k = load_input(file, "k", arguments, inputs.dtype);
  inputs.v = load_input(file, "v", arguments, inputs.dtype);
  return inputs;
}

// One window for all heads, or one per head.
std::vector<Window> windows_for(const AttendArguments& arguments) {
  require(arguments.window.empty() != arguments.strategy.empty(), "attend: expected one of --window and --strategy");
  if (!arguments.window.empty()) {
    require(!arguments.step && !arguments.layer, "attend: --step and --layer belong to --strategy");
    return {extents("--window", arguments.window)};
  }
  require(arguments.step && arguments.layer, "attend: --strategy needs --step and --layer");
  const auto windows_of = [&](const WindowTable& table) {
    const std::span<const Window> windows = table.windows(*arguments.step, *arguments.layer);
    return std::vector<Window>(windows.begin(), windows.end());
  };
  return arguments.strategy == "hunyuan" ? windows_of(hunyuan_strategy()) : windows_of(WindowTable::load(arguments.strategy));
}

SafetensorsMetadata metadata_of(const AttendArguments& arguments, const Result& result) {
  SafetensorsMetadata metadata{{"program", "slidetile " SLIDETILE_VERSION},
                               {"kernel", result.kernel},
                               {"canvas", arguments.canvas},
                               {"tile", arguments.tile},
                               {"before", std::to_string(arguments.extra.before)},
                               {"after", std::to_string(arguments.extra.after)}};
  if (!arguments.window.empty()) {
    metadata["window"] = arguments.window;
  } else {
    metadata["strategy"] = arguments.strategy + ", step " + std::to_string(*arguments.step) + ", layer " + std::to_string(*arguments.layer);
  }
  return metadata;
}

void print_summary(const Result& result) {
  std::fprintf(stderr, "%s: batch %lld, %lld heads, %lld tokens, head_dim %lld, %s: %.3f s, sparsity %.2f %%, %.1f GFLOP/s\n",
               result.kernel.c_str(), static_cast<long long>(result.batch), static_cast<long long>(result.heads),
               static_cast<long long>(result.tokens), static_cast<long long>(result.head_dim), to_string(result.dtype), result.seconds,
               100 * result.sparsity, result.flops / result.seconds * 1e-9);
}

void print_json(const Result& result) {
  const nlohmann::json json{{"kernel", result.kernel},     {"dtype", to_string(result.dtype)},
                            {"batch", result.batch},       {"heads", result.heads},
                            {"tokens", result.tokens},     {"head_dim", result.head_dim},
                            {"sparsity", result.sparsity}, {"flops", result.flops},
                            {"seconds", result.seconds},   {"flops_per_s", result.flops / result.seconds}};
  std::cout << json.dump(2) << '\n';
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Problem {
  const ForwardTensors& tensors;  // on the host
  const Plan& plan;
  std::span<const int32_t> key_lengths;
};

void run_on_cpu(const Problem& problem, AttentionOptions options, int threads, Result& result) {
  ThreadPool pool(threads);
  Progress progress("attend");
  ProgressExecutor watched(pool, progress);
  options.key_lengths = problem.key_lengths;
  options.executor = progress.shown() ? static_cast<Executor*>(&watched) : &pool;
  result.kernel = forward_kernel_name(problem.tensors, view_of(problem.plan), options);
  const auto start = std::chrono::steady_clock::now();
  attention_forward(problem.tensors, problem.plan, options);
  result.seconds = seconds_since(start);
}

// A tensor's twin on the GPU.
struct OnDevice {
  explicit OnDevice(const TensorView& host) : buffer(span_of(host) * size_of(host.dtype), kCuda), view(host) {
    view.data = buffer.data();
    view.device = kCuda;
  }
  static std::span<std::byte> bytes_of(const TensorView& host) {
    return {static_cast<std::byte*>(host.data), static_cast<size_t>(span_of(host) * size_of(host.dtype))};
  }

  DeviceBuffer buffer;
  TensorView view;
};

void run_on_cuda(const Problem& problem, AttentionOptions options, Result& result) {
  const ForwardTensors& host = problem.tensors;
  const OnDevice q(host.q), k(host.k), v(host.v), out(host.out), lse(host.lse);
  for (const auto& [to, from] : {std::pair{&q, &host.q}, {&k, &host.k}, {&v, &host.v}}) to->buffer.upload(OnDevice::bytes_of(*from));
  const ForwardTensors tensors{.q = q.view, .k = k.view, .v = v.view, .out = out.view, .lse = lse.view};
  const DevicePlan plan(problem.plan, kCuda);
  const DeviceBuffer lengths(static_cast<int64_t>(problem.key_lengths.size_bytes()), kCuda);
  lengths.upload(std::as_bytes(problem.key_lengths));
  options.key_lengths = {static_cast<const int32_t*>(lengths.data()), problem.key_lengths.size()};
  result.kernel = forward_kernel_name(tensors, plan.view(), options);
  const DeviceBuffer workspace(forward_workspace_bytes(tensors, plan.view(), options), kCuda);
  options.workspace = {static_cast<std::byte*>(workspace.data()), static_cast<size_t>(workspace.bytes())};
  synchronize(kCuda);
  const auto start = std::chrono::steady_clock::now();
  attention_forward(tensors, plan.view(), options);
  synchronize(kCuda);
  result.seconds = seconds_since(start);
  out.buffer.download(OnDevice::bytes_of(host.out));
  lse.buffer.download(OnDevice::bytes_of(host.lse));
}

Result attend(const AttendArguments& arguments) {
  const Grid grid(extents("--canvas", arguments.canvas), extents("--tile", arguments.tile));
  const std::vector<Window> windows = windows_for(arguments);
  for (const Window& window : windows) require_fits(window, grid);
  const bool cuda = arguments.device == "cuda";
  require(cuda || arguments.device == "cpu", "attend: device '", arguments.device, "', expected cpu or cuda");
  require(!cuda || arguments.threads == 0, "attend: --threads is of device cpu");
  require(!arguments.scale || (std::isfinite(*arguments.scale) && *arguments.scale != 0), "attend: scale ", arguments.scale.value_or(0),
          ", expected a finite number other than 0");
  require(arguments.threads >= 0, "attend: ", arguments.threads, " threads, expected 1 or more, or 0 for all");
  require_writable(arguments.out);
  if (cuda) synchronize(kCuda);  // says so now if there is none

  const SafetensorsFile file(arguments.in);
  const Inputs inputs = load_inputs(file, arguments);
  const TensorView& q = inputs.q.view;
  require(windows.size() == 1 || static_cast<int64_t>(windows.size()) == q.heads(), "attend: q of '", arguments.in, "' has ", q.heads(),
          " heads, the strategy has ", windows.size());
  const Plan plan = sliding_tile_plan(grid, windows, arguments.extra);

  const Tensor out(inputs.dtype, q.shape), lse(DType::kF32, {q.batch(), q.heads(), q.tokens(), 1});
  const ForwardTensors tensors{.q = q, .k = inputs.k.view, .v = inputs.v.view, .out = out.view(), .lse = lse.view()};
  AttentionOptions options;
  options.scale = arguments.scale.value_or(0);
  options.kernel = arguments.kernel;
  Result result{.flops = forward_flops(plan, q.heads(), q.head_dim()) * static_cast<double>(q.batch()),
                .sparsity = 1 - density(plan),
                .batch = q.batch(),
                .heads = q.heads(),
                .tokens = q.tokens(),
                .head_dim = q.head_dim(),
                .dtype = inputs.dtype};
  const Problem problem{tensors, plan, arguments.key_lengths};
  AttentionOptions on_host = options;
  on_host.kernel = {};
  on_host.key_lengths = arguments.key_lengths;
  forward_kernel_name(tensors, view_of(plan), on_host);  // checks what a GPU would be asked to believe: the lengths
  if (cuda) {
    run_on_cuda(problem, options, result);
  } else {
    run_on_cpu(problem, options, arguments.threads, result);
  }

  SafetensorsTensor lse_tensor = safetensors_tensor("lse", lse.view());
  lse_tensor.shape.pop_back();
  const SafetensorsTensor written[] = {safetensors_tensor("out", out.view()), lse_tensor};
  write_safetensors(arguments.out, written, metadata_of(arguments, result));
  return result;
}

constexpr const char* kFooter =
    "IN holds q, k and v as [batch, heads, tokens, head_dim]; tokens are [before | canvas in raster order | after]. OUT gets out in that\n"
    "layout and lse (natural logarithm) as f32 [batch, heads, tokens]. Extents are TxHxW; windows count tiles. The seconds told are of "
    "the\n"
    "attention alone; on a GPU, of its first launch, which loads the kernel.\n\n"
    "Examples:\n"
    "  slidetile attend in.safetensors out.safetensors --canvas 30x48x80 --tile 6x8x8 --window 3x3x3\n"
    "  slidetile attend in.safetensors out.safetensors --canvas 30x48x80 --after 256 --key-lengths 115300 \\\n"
    "      --strategy hunyuan --step 20 --layer 7 --dtype bf16 --device cuda";

}  // namespace

void add_attend_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("attend", "Attention over q, k and v of a safetensors file");
  const auto arguments = std::make_shared<AttendArguments>();
  command->add_option("IN", arguments->in, "File with q, k and v")->required()->type_name("FILE");
  command->add_option("OUT", arguments->out, "File to write: out and lse")->required()->type_name("FILE");
  command->add_option("--canvas", arguments->canvas, "The video's extent in tokens, e.g. 30x48x80")->required()->type_name("TxHxW");
  command->add_option("--tile", arguments->tile, "Extent of a tile in tokens")->capture_default_str()->type_name("TxHxW");
  command->add_option("--window", arguments->window, "Window of all heads, in tiles, e.g. 3x3x3")->type_name("TxHxW");
  command->add_option("--strategy", arguments->strategy, "Windows per head: a strategy file, or 'hunyuan'; with --step and --layer")
      ->type_name("FILE");
  command->add_option("--step", arguments->step, "Sampling step of the strategy, from 0")->type_name("N");
  command->add_option("--layer", arguments->layer, "Layer of the strategy, from 0")->type_name("N");
  command->add_option("--before", arguments->extra.before, "Extra tokens before the canvas")->capture_default_str()->type_name("N");
  command->add_option("--after", arguments->extra.after, "Extra tokens after the canvas")->capture_default_str()->type_name("N");
  command->add_option("--key-lengths", arguments->key_lengths, "Tokens in use for each batch item, e.g. 115300,115264")
      ->delimiter(',')
      ->option_text("N[,..]");
  command->add_option("--dtype", arguments->dtype, "Convert q, k and v, and write out, as f32, bf16 or f16 (default: as in IN)")
      ->type_name("NAME");
  command->add_option("--kernel", arguments->kernel, "Kernel by name, see slidetile kernels (default: the best)")->type_name("NAME");
  command->add_option("--scale", arguments->scale, "Factor of the logits (default: 1 / sqrt(head_dim))")->type_name("X");
  command->add_option("--device", arguments->device, "Where to run: cpu or cuda")->capture_default_str()->type_name("NAME");
  command->add_option("--threads", arguments->threads, "Threads on cpu, 0 for all that this process may use")
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "Print the summary as JSON on the standard output");
  command->footer(kFooter);
  command->callback([arguments] {
    const Result result = attend(*arguments);
    if (arguments->json) {
      print_json(result);
    } else {
      print_summary(result);
    }
  });
}
