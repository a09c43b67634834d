// How calls on a GPU behave: equal bits, graphs, streams, plans written there, lengths that nobody can check, the host's time.
#include <chrono>
#include <cstdio>

#include "cuda_problem.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr int kRepeats = 100;

bool is_deterministic(const std::string& kernel) { return !kernel.ends_with(".atomic"); }

DeviceMemory copy_of(const DeviceMemory& from) {
  DeviceMemory to(from.bytes());
  check_cuda(cudaMemcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()), cudaMemcpyDeviceToDevice));
  return to;
}

/// Runs, then runs again and again over poisoned results: how many runs gave other bits.
template <typename Run>
int differing_runs(const std::vector<DeviceTensor*>& results, int runs, const Run& run) {
  std::vector<DeviceMemory> want;
  for (const DeviceTensor* tensor : results) tensor->poison();
  run();
  for (const DeviceTensor* tensor : results) want.push_back(copy_of(tensor->memory));
  int different = 0;
  for (int i = 1; i < runs; ++i) {
    for (const DeviceTensor* tensor : results) tensor->poison();
    run();
    bool same = true;
    for (size_t t = 0; t < results.size(); ++t) same = same && same_bytes(results[t]->memory, want[t]);
    different += !same;
  }
  return different;
}

struct Problem {
  AttentionCase c;
  DType dtype;
};

/// Each lowering of the Hopper kernels, and what only the portable ones take.
std::vector<Problem> problems_of_every_kind() {
  std::vector<Problem> problems;
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const DType dtype : kDtypes) problems.push_back({video_case(head_dim), dtype});
  }
  AttentionCase small = video_case(128), sharp = video_case(64), masks = video_case(64), dense = video_case(128);
  small.tile = {4, 4, 4};
  sharp.logit_scale = 300;
  masks.pattern = Pattern::kRandom;
  masks.key_lengths.clear();
  dense.pattern = Pattern::kFull;
  for (const AttentionCase& c : {small, sharp, masks, dense}) problems.push_back({c, DType::kBf16});
  return problems;
}

}  // namespace

TEST_CASE("the same bits in 100 runs") {
  for (const auto& [c, dtype] : problems_of_every_kind()) {
    CAPTURE(c.head_dim);
    CAPTURE(c.tile.t);
    CAPTURE(c.logit_scale);
    CAPTURE(std::string(to_string(dtype)));
    DeviceProblem p(c, dtype);
    for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
      CAPTURE(kernel);
      if (!attempt([&] { p.run_forward(kernel); })) continue;
      CHECK(differing_runs({&p.out, &p.lse}, kRepeats, [&] { p.run_forward(kernel); }) == 0);
    }
    p.run_forward();
    for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
      CAPTURE(kernel);
      if (!is_deterministic(kernel) || !attempt([&] { p.run_backward(kernel); })) continue;
      CHECK(differing_runs({&p.dq, &p.dk, &p.dv}, kRepeats, [&] { p.run_backward(kernel); }) == 0);
    }
  }
}

// A capture fails where a call allocates or waits.
TEST_CASE("a captured graph of each kernel gives the same bits as the calls") {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreate(&stream));
  const auto replay = [&](const std::vector<DeviceTensor*>& results, bool compare, const auto& run) {
    run(nullptr);  // also loads the kernels
    std::vector<DeviceMemory> want;
    for (const DeviceTensor* tensor : results) want.push_back(copy_of(tensor->memory));
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    run(stream);
    check_cuda(cudaStreamEndCapture(stream, &graph));
    check_cuda(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 3; ++i) {
      for (const DeviceTensor* tensor : results) tensor->poison();
      check_cuda(cudaDeviceSynchronize());
      check_cuda(cudaGraphLaunch(executable, stream));
      check_cuda(cudaStreamSynchronize(stream));
      for (size_t t = 0; compare && t < results.size(); ++t) CHECK(same_bytes(results[t]->memory, want[t]));
    }
    check_cuda(cudaGraphExecDestroy(executable));
    check_cuda(cudaGraphDestroy(graph));
  };
  for (const auto& [c, dtype] : problems_of_every_kind()) {
    CAPTURE(c.head_dim);
    CAPTURE(std::string(to_string(dtype)));
    DeviceProblem p(c, dtype);
    for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
      CAPTURE(kernel);
      if (!attempt([&] { p.run_forward(kernel); })) continue;
      replay({&p.out, &p.lse}, true, [&](void* on) { p.run_forward(kernel, on); });
    }
    p.run_forward();
    for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
      CAPTURE(kernel);
      if (!attempt([&] { p.run_backward(kernel); })) continue;
      replay({&p.dq, &p.dk, &p.dv}, is_deterministic(kernel), [&](void* on) { p.run_backward(kernel, on); });
    }
  }
  check_cuda(cudaStreamDestroy(stream));
}

TEST_CASE("two streams at once") {
  DeviceProblem a(video_case(128), DType::kBf16), b(video_case(64), DType::kF16);
  for (DeviceProblem* p : {&a, &b}) {
    p->run_forward();
    p->run_backward();
  }
  const auto want_a = results_of(a), want_b = results_of(b);
  cudaStream_t streams[2] = {};
  for (cudaStream_t& stream : streams) check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  poison_results(a);
  poison_results(b);
  check_cuda(cudaDeviceSynchronize());
  for (int run = 0; run < 10; ++run) {
    a.run_forward({}, streams[0]);
    b.run_forward({}, streams[1]);
    a.run_backward({}, streams[0]);
    b.run_backward({}, streams[1]);
  }
  check_cuda(cudaDeviceSynchronize());
  CHECK(results_of(a) == want_a);
  CHECK(results_of(b) == want_b);
  for (cudaStream_t stream : streams) check_cuda(cudaStreamDestroy(stream));
}

TEST_CASE("a plan whose rows a kernel wrote on the device") {
  const AttentionCase c{.name = "own_rows", .heads = 2, .head_dim = 64, .canvas = {8, 16, 24}, .tile = {4, 8, 8}, .windows = {{1, 1, 1}}};
  DeviceProblem p(c, DType::kBf16);
  const int32_t tiles = p.host.query.tiles();
  PlanBuilder builder(p.host.query, p.host.key);
  for (int32_t q = 0; q < tiles; ++q) {
    std::vector<int32_t> row;
    for (int32_t k = q % 2; k < tiles; k += 2) row.push_back(k);
    builder.add_row(row);
  }
  const DeviceProblem like(c, builder.finish(std::vector<int32_t>{0, 0}), DType::kBf16);
  const ReferenceResult want = reference_backward_on_device(like.reference());

  const DeviceMemory row_of(tiles * 4), key_tile(tiles * tiles * 4), row_begin((tiles + 1) * 8);
  const DeviceRows rows{.tiles = tiles,
                        .row_of = static_cast<int32_t*>(row_of.data()),
                        .key_tile = static_cast<int32_t*>(key_tile.data()),
                        .row_begin = static_cast<int64_t*>(row_begin.data())};
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check_cuda(cudaDeviceSynchronize());
  const auto with_rows = [&](PlanView view) {
    view.rows = tiles;
    view.entries = int64_t{tiles} * tiles;  // an upper bound: the host does not see the rows
    view.longest_row = tiles;
    view.row_of = rows.row_of;
    view.key_tile = rows.key_tile;
    view.row_begin = rows.row_begin;
    return view;
  };
  const PlanView lowered = with_rows(p.plan.view());
  PlanView plain = lowered, transposed = with_rows(p.plan.transposed());  // even sums are even the other way round too
  plain.lowering = transposed.lowering = nullptr;
  // Nothing between the planner and the kernels but the stream.
  write_checkered_rows(rows, stream);
  AttentionOptions options = p.options();
  options.stream = stream;
  p.reserve(forward_workspace_bytes(p.forward(), lowered, options));
  p.reserve(backward_workspace_bytes(p.backward(), plain, transposed, options));
  check_cuda(cudaDeviceSynchronize());
  options.workspace = p.options().workspace;
  CHECK(forward_kernel_name(p.forward(), lowered, options) == forward_kernel_name(p.forward(), p.plan.view(), options));
  CHECK(forward_kernel_name(p.forward(), plain, options) == std::string("cuda.sm80"));
  for (const PlanView& view : {lowered, plain}) {
    p.out.poison();
    p.lse.poison();
    check_cuda(cudaDeviceSynchronize());
    attention_forward(p.forward(), view, options);
    check_cuda(cudaStreamSynchronize(stream));
    CHECK(off(p.out, want.out) <= tolerance(DType::kBf16));
    CHECK(lse_off(p.lse, want.lse) <= lse_tolerance(c));
  }
  attention_backward(p.backward(), plain, transposed, options);
  check_cuda(cudaStreamSynchronize(stream));
  CHECK(off(p.dq, want.dq) <= gradient_tolerance(DType::kBf16));
  CHECK(off(p.dk, want.dk) <= gradient_tolerance(DType::kBf16));
  CHECK(off(p.dv, want.dv) <= gradient_tolerance(DType::kBf16));
  check_cuda(cudaStreamDestroy(stream));
}

// The lengths are in the device's memory, so no call can refuse them: they count as the nearest that may be.
TEST_CASE("lengths beyond the text, and before it") {
  for (const int64_t head_dim : {64, 128}) {
    for (const DType dtype : kDtypes) {
      CAPTURE(head_dim);
      CAPTURE(std::string(to_string(dtype)));
      AttentionCase c = video_case(head_dim);
      const auto tokens = static_cast<int32_t>(make_plan(c).key.tokens());
      c.key_lengths = {tokens, tokens - static_cast<int32_t>(c.extra.after)};
      DeviceProblem p(c, dtype);
      const auto set = [&](std::vector<int32_t> lengths) {
        check_cuda(cudaMemcpy(p.lengths.data(), lengths.data(), static_cast<size_t>(p.lengths.bytes()), cudaMemcpyHostToDevice));
      };
      const auto check_like = [&](const std::vector<DeviceTensor*>& results, const std::vector<int32_t>& lengths, const auto& run) {
        set(c.key_lengths);
        run();
        std::vector<DeviceMemory> want;
        for (const DeviceTensor* tensor : results) want.push_back(copy_of(tensor->memory));
        set(lengths);
        for (const DeviceTensor* tensor : results) tensor->poison();
        run();
        for (size_t t = 0; t < results.size(); ++t) CHECK(same_bytes(results[t]->memory, want[t]));
      };
      for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{tokens + 1, 1}, {std::numeric_limits<int32_t>::max(), -5}}) {
        for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          if (!attempt([&] { p.run_forward(kernel); })) continue;
          check_like({&p.out, &p.lse}, lengths, [&] { p.run_forward(kernel); });
        }
        set(c.key_lengths);
        p.run_forward();
        for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          if (!is_deterministic(kernel) || !attempt([&] { p.run_backward(kernel); })) continue;
          std::vector<int32_t> given = lengths;
          if (kernel == "cuda.sm90") given[1] = std::max(given[1], c.key_lengths[1]);  // it takes what is too short at its word
          check_like({&p.dq, &p.dk, &p.dv}, given, [&] { p.run_backward(kernel); });
        }
      }
    }
  }
}

TEST_CASE("a call costs the host little") {
  DeviceProblem p(video_case(128), DType::kBf16);
  p.run_forward();
  p.run_backward();
  const auto microseconds = [](const auto& call) {
    constexpr int kCalls = 200;
    check_cuda(cudaDeviceSynchronize());
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) call();
    const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
    check_cuda(cudaDeviceSynchronize());
    return spent.count() / kCalls;
  };
  const double forward = microseconds([&] { attention_forward(p.forward(), p.plan.view(), p.options()); }),
               backward = microseconds([&] { attention_backward(p.backward(), p.plan.view(), p.plan.transposed(), p.options()); });
  std::printf("host time of a call: forward %.1f us (%s), backward %.1f us (%s)\n", forward,
              kernel_for(forward_kernels(DeviceType::kCuda)).c_str(), backward, kernel_for(backward_kernels(DeviceType::kCuda)).c_str());
}
