// Every CUDA kernel that this machine can run, against double precision: the shared problems, random ones, repeats, graphs, streams, bad
// input. Exits 77, which ctest reports as skipped, where there is no GPU.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>

#include "cuda_reference.h"
#include "gradient_cases.h"
#include "slidetile/device_plan.h"
#include "slidetile/error.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr DType kDtypes[] = {DType::kBf16, DType::kF16, DType::kF32};
constexpr uint64_t kRandomProblems = 1000;
constexpr int kRepeats = 100;
const Device kDevice{DeviceType::kCuda, 0};

void check_cuda(cudaError_t status) { REQUIRE_MESSAGE(status == cudaSuccess, std::string(cudaGetErrorString(status))); }

std::vector<std::string> runnable(const std::vector<KernelInfo>& kernels) {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : kernels) {
    if (kernel.reason.empty()) names.push_back(kernel.name);
  }
  return names;
}

double scale_of(const AttentionCase& c) { return 1 / std::sqrt(static_cast<double>(c.head_dim)); }

/// Tensors of a case on the device: random inputs, poisoned outputs, NaN around all of them and in k and v past the lengths.
struct DeviceProblem {
  AttentionCase c;
  Plan host, host_transposed;
  DevicePlan plan;
  DeviceTensor q, k, v, out, lse, dout, dq, dk, dv;
  DeviceMemory lengths, workspace;

  DeviceProblem(const AttentionCase& of, DType dtype, int64_t shift = 0) : c(of), host(make_plan(of)), host_transposed(transpose(host)) {
    plan = DevicePlan(host, host_transposed, kDevice);
    const std::array<int64_t, 4> queries{c.batch, c.heads, host.query.tokens(), c.head_dim},
        keys{c.batch, c.heads, host.key.tokens(), c.head_dim};
    for (DeviceTensor* tensor : {&q, &out, &dout, &dq}) *tensor = DeviceTensor(dtype, queries, c.layout, shift);
    for (DeviceTensor* tensor : {&k, &v, &dk, &dv}) *tensor = DeviceTensor(dtype, keys, c.layout, shift);
    lse = DeviceTensor(DType::kF32, {c.batch, c.heads, queries[2], 1}, Layout::kBhsd);
    const int32_t* unused_from = c.key_lengths.empty() ? nullptr : c.key_lengths.data();
    q.fill(1, c.logit_scale, nullptr);
    k.fill(2, 1, unused_from);
    v.fill(3, 1, unused_from);
    dout.fill(4, 1, nullptr);
    if (!c.key_lengths.empty()) {
      lengths = DeviceMemory(static_cast<int64_t>(c.key_lengths.size() * sizeof(int32_t)));
      check_cuda(cudaMemcpy(lengths.data(), c.key_lengths.data(), static_cast<size_t>(lengths.bytes()), cudaMemcpyHostToDevice));
    }
  }

  ForwardTensors forward() const { return {q.view, k.view, v.view, out.view, lse.view}; }
  BackwardTensors backward() const { return {q.view, k.view, v.view, out.view, lse.view, dout.view, dq.view, dk.view, dv.view}; }
  AttentionOptions options(std::string_view kernel = {}) const {
    return {.key_lengths = {static_cast<const int32_t*>(lengths.data()), c.key_lengths.size()},
            .kernel = kernel,
            .workspace = {static_cast<std::byte*>(workspace.data()), static_cast<size_t>(workspace.bytes())}};
  }
  void run_forward(std::string_view kernel = {}, void* stream = nullptr) {
    reserve(forward_workspace_bytes(forward(), plan.view(), options(kernel)));
    AttentionOptions o = options(kernel);
    o.stream = stream;
    attention_forward(forward(), plan.view(), o);
  }
  void run_backward(std::string_view kernel = {}, void* stream = nullptr) {
    reserve(backward_workspace_bytes(backward(), plan.view(), plan.transposed(), options(kernel)));
    AttentionOptions o = options(kernel);
    o.stream = stream;
    attention_backward(backward(), plan.view(), plan.transposed(), o);
  }
  void reserve(int64_t bytes) {
    if (bytes <= workspace.bytes()) return;
    workspace = DeviceMemory(bytes);
    check_cuda(cudaMemset(workspace.data(), 0xff, static_cast<size_t>(bytes)));
  }
  ReferenceArgs reference() const {
    const auto* on_device = static_cast<const int32_t*>(lengths.data());
    const bool same = host.query == host.key;
    return {.q = q.view,
            .k = k.view,
            .v = v.view,
            .dout = dout.view,
            .plan = plan.view(),
            .transposed = plan.transposed(),
            .query_lengths = same ? on_device : nullptr,
            .key_lengths = on_device,
            .scale = scale_of(c)};
  }
};

/// Relative to the tensor, or to elements of 0.01 where it is nearly zero (gradients of a row that sees one key are).
double relative(const Sums& sums) {
  constexpr double kFloor = 1e-4;  // of a square
  if (sums.wrong > 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(sums.error / std::max(sums.norm, kFloor * static_cast<double>(sums.count)));
}

double off(const DeviceTensor& got, const DeviceDoubles& want) { return relative(compare_on_device(got.view, want.data())); }

double lse_off(const DeviceTensor& got, const DeviceDoubles& want) {
  const Sums sums = compare_on_device(got.view, want.data());
  return sums.wrong > 0 ? std::numeric_limits<double>::infinity() : sums.largest;
}

/// The worst relative errors seen, printed at the end.
struct Worst {
  double out = 0, lse = 0, dq = 0, dk = 0, dv = 0;
};
std::map<std::string, Worst> worst_of;

void keep(double& worst, double error) { worst = std::max(worst, error); }

bool has_gradients(const AttentionCase& c) { return c.logit_scale <= 1; }  // else near zero, where a relative error says nothing

void check_case(const AttentionCase& c, DType dtype, int64_t shift = 0) {
  CAPTURE(c.name);
  CAPTURE(std::string(to_string(dtype)));
  CAPTURE(shift);
  DeviceProblem p(c, dtype, shift);
  const ReferenceResult want = reference_backward_on_device(p.reference());
  for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
    CAPTURE(kernel);
    p.out.poison();
    p.lse.poison();
    try {
      p.run_forward(kernel);
    } catch (const Error& error) {
      REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
      continue;
    }
    Worst& worst = worst_of[kernel + " " + to_string(dtype) + (c.logit_scale > 1 ? " sharp" : "")];
    const double out = off(p.out, want.out), lse = lse_off(p.lse, want.lse);
    CHECK(out <= tolerance(dtype));
    CHECK(lse <= lse_tolerance(c));
    CHECK(p.out.margins_hold());
    CHECK(p.lse.margins_hold());
    keep(worst.out, out);
    keep(worst.lse, lse);
  }
  p.run_forward();
  for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
    CAPTURE(kernel);
    for (const DeviceTensor* tensor : {&p.dq, &p.dk, &p.dv}) tensor->poison();
    try {
      p.run_backward(kernel);
    } catch (const Error& error) {
      REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
      continue;
    }
    for (const DeviceTensor* tensor : {&p.dq, &p.dk, &p.dv}) CHECK(tensor->margins_hold());
    const double dq = off(p.dq, want.dq), dk = off(p.dk, want.dk), dv = off(p.dv, want.dv);
    // At head_dim 1 dq's sums cancel: the root of their terms' squares is up to 5.4 times the sum (1.03 at head_dim 64). P and dS, each off
    // by 2^-9 / sqrt(3) on average in bf16, are then 5.4 * sqrt(2) * 1.1e-3 = 8.6e-3 of it, and out, rounded too, adds up to 6.8e-3.
    const double cancels = c.head_dim == 1 ? 2 : 1;
    const double limit = has_gradients(c) ? cancels * gradient_tolerance(dtype) : 0.5;
    CHECK(dq <= limit);
    CHECK(dk <= limit);
    CHECK(dv <= limit);
    Worst& worst = worst_of[kernel + " " + to_string(dtype) + (c.logit_scale > 1 ? " sharp" : "")];
    keep(worst.dq, dq);
    keep(worst.dk, dk);
    keep(worst.dv, dv);
  }
  check_cuda(cudaDeviceSynchronize());
}

std::vector<uint8_t> bytes_of(const DeviceTensor& tensor) {
  std::vector<uint8_t> bytes(static_cast<size_t>(tensor.memory.bytes()));
  check_cuda(cudaMemcpy(bytes.data(), tensor.memory.data(), bytes.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

std::vector<std::vector<uint8_t>> results_of(const DeviceProblem& p) {
  std::vector<std::vector<uint8_t>> all;
  for (const DeviceTensor* tensor : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) all.push_back(bytes_of(*tensor));
  return all;
}

void poison_results(const DeviceProblem& p) {
  for (const DeviceTensor* tensor : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) tensor->poison();
}

AttentionCase video_case(int64_t head_dim) {
  return {.name = "video",
          .batch = 2,
          .heads = 3,
          .head_dim = head_dim,
          .canvas = {12, 16, 24},
          .tile = {6, 8, 8},
          .windows = {{1, 2, 1}, {2, 1, 3}, {1, 1, 1}},
          .extra = {0, 77},
          .key_lengths = {4608 + 50, 4608 + 77}};
}

std::string kernel_for(const std::vector<KernelInfo>& kernels) { return kernels.empty() ? "" : kernels.front().name; }

}  // namespace

TEST_CASE("the device reference agrees with reference/") {
  for (const AttentionCase& c : attention_cases()) {
    if (c.name != "random_masks" && c.name != "text_both_lengths" && c.name != "cross" && c.name != "windows_per_head") continue;
    CAPTURE(c.name);
    DeviceProblem p(c, DType::kF32);
    const ReferenceResult got = reference_backward_on_device(p.reference());
    // The host's reference on the same numbers.
    const auto to_host = [&](const DeviceTensor& from) {
      Guarded to = Guarded::make(DType::kF32, from.view.shape, from.view.shape[3] == 1 ? Layout::kBhsd : c.layout);
      check_cuda(cudaMemcpy(to.view.data, from.view.data, static_cast<size_t>(to.elements() * 4), cudaMemcpyDeviceToHost));
      return to;
    };
    const Guarded q = to_host(p.q), k = to_host(p.k), v = to_host(p.v), dout = to_host(p.dout), out = to_host(p.out), lse = to_host(p.lse),
                  dq = to_host(p.dq), dk = to_host(p.dk), dv = to_host(p.dv);
    const AttentionOptions options{.key_lengths = c.key_lengths, .kernel = "reference"};
    attention_forward({q.view, k.view, v.view, out.view, lse.view}, p.host, options);
    attention_backward({q.view, k.view, v.view, out.view, lse.view, dout.view, dq.view, dk.view, dv.view}, view_of(p.host),
                       view_of(p.host_transposed), options);
    const auto agrees = [&](const Guarded& want, const DeviceTensor& like, const DeviceDoubles& doubles) {
      check_cuda(cudaMemcpy(like.view.data, want.view.data, static_cast<size_t>(want.elements() * 4), cudaMemcpyHostToDevice));
      CHECK(off(like, doubles) <= 1e-6);
    };
    agrees(out, p.out, got.out);
    agrees(lse, p.lse, got.lse);
    agrees(dq, p.dq, got.dq);
    agrees(dk, p.dk, got.dk);
    agrees(dv, p.dv, got.dv);
  }
}

TEST_CASE("named problems") {
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : kDtypes) check_case(c, dtype);
  }
}

TEST_CASE("rows off alignment") {
  for (const AttentionCase& c : attention_cases()) {
    if (c.head_dim % 8 != 0 || c.head_dim == 256) continue;
    for (const DType dtype : kDtypes) check_case(c, dtype, 1);
  }
  for (const int64_t head_dim : {3, 33, 100, 127, 129, 255}) {
    AttentionCase c = video_case(head_dim);
    c.layout = Layout::kBshd;
    for (const DType dtype : kDtypes) check_case(c, dtype);
  }
}

TEST_CASE("q, k and v packed in one tensor") {
  for (const int64_t head_dim : {64, 128}) {
    for (const Layout layout : {Layout::kBhsd, Layout::kBshd}) {
      AttentionCase c = video_case(head_dim);
      c.key_lengths.clear();
      DeviceProblem p(c, DType::kBf16);
      const DeviceTensor packed(DType::kBf16, {c.batch, 3 * c.heads, p.q.view.tokens(), head_dim}, layout);
      packed.fill(5, 1, nullptr);
      const auto part = [&](int64_t index) {
        TensorView view = packed.view;
        view.data = static_cast<char*>(view.data) + index * c.heads * view.strides[1] * size_of(view.dtype);
        view.shape[1] = c.heads;
        return view;
      };
      p.q.view = part(0);
      p.k.view = part(1);
      p.v.view = part(2);
      const ReferenceResult want = reference_forward_on_device(p.reference());
      for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
        if (kernel == "cuda.f32") continue;
        CAPTURE(kernel);
        p.out.poison();
        p.run_forward(kernel);
        CHECK(off(p.out, want.out) <= tolerance(DType::kBf16));
      }
    }
  }
}

TEST_CASE("scores far above those of the first keys") {
  for (const int64_t head_dim : {64, 128}) {
    for (const Dim3& tile : {Dim3{6, 8, 8}, Dim3{4, 4, 4}, Dim3{3, 5, 7}}) {
      AttentionCase c = video_case(head_dim);
      c.tile = tile;
      c.logit_scale = 300;
      DeviceProblem p(c, DType::kBf16);
      const ReferenceResult want = reference_forward_on_device(p.reference());
      for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
        if (kernel == "cuda.f32") continue;
        CAPTURE(kernel);
        p.out.poison();
        p.lse.poison();
        p.run_forward(kernel);
        CHECK(off(p.out, want.out) <= tolerance(DType::kBf16));
        CHECK(lse_off(p.lse, want.lse) <= lse_tolerance(c));
      }
    }
  }
}

TEST_CASE("random problems") {
  for (uint64_t seed = 1; seed <= kRandomProblems; ++seed) {
    const bool f32 = seed % 8 == 0;
    check_case(random_case(seed + 10000), f32 ? DType::kF32 : seed % 2 == 0 ? DType::kBf16 : DType::kF16);
  }
}

// Loads bring rows of neighbouring tiles where tiles are not boxes of a block: what is there must not matter.
TEST_CASE("NaN in a tile reaches no other tile's gradients") {
  const auto nan_at = [](const DeviceTensor& tensor, int64_t token) {
    const std::vector<uint8_t> nans(static_cast<size_t>(tensor.view.shape[3] * size_of(tensor.view.dtype)), 0xff);
    for (int64_t head = 0; head < tensor.view.shape[1]; ++head) {
      const int64_t at = head * tensor.view.strides[1] + token * tensor.view.strides[2];
      check_cuda(cudaMemcpy(static_cast<char*>(tensor.view.data) + at * size_of(tensor.view.dtype), nans.data(), nans.size(),
                            cudaMemcpyHostToDevice));
    }
  };
  // Elements of a [1, heads, tokens, head_dim] tensor that are NaN, by token.
  const auto nans_by_token = [](const DeviceTensor& tensor) {
    const auto [batch, heads, tokens, head_dim] = tensor.view.shape;
    const std::vector<uint8_t> bytes = bytes_of(tensor);
    const auto* const first = bytes.data() + (static_cast<char*>(tensor.view.data) - static_cast<char*>(tensor.memory.data()));
    std::vector<int64_t> counts(static_cast<size_t>(tokens));
    for (int64_t head = 0; head < batch * heads; ++head) {
      for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t i = 0; i < head_dim; ++i) {
          uint16_t bits = 0;
          std::memcpy(&bits, first + (head * tensor.view.strides[1] + token * tensor.view.strides[2] + i) * 2, 2);
          const uint16_t infinite = tensor.view.dtype == DType::kBf16 ? 0x7f80 : 0x7c00;
          counts[static_cast<size_t>(token)] += (bits & 0x7fff) > infinite;
        }
      }
    }
    return counts;
  };
  const auto with = [](Dim3 tile, ExtraTokens extra, Layout layout) {
    return AttentionCase{.name = "nan",
                         .heads = 2,
                         .canvas = {2 * tile.t, tile.h + 2, 2 * tile.w},
                         .tile = tile,
                         .windows = {{1, 1, 1}},
                         .extra = extra,
                         .layout = layout};
  };
  for (AttentionCase c : {with({5, 5, 5}, {}, Layout::kBhsd), with({3, 5, 7}, {}, Layout::kBshd), with({2, 5, 13}, {70, 9}, Layout::kBhsd),
                          with({6, 8, 8}, {}, Layout::kBhsd)}) {
    for (const int64_t head_dim : {64, 128}) {
      for (const DType dtype : {DType::kBf16, DType::kF16}) {
        c.head_dim = head_dim;
        CAPTURE(c.tile.h);
        CAPTURE(head_dim);
        DeviceProblem p(c, dtype);
        const Tiling& tiling = p.host.query;
        // In the first tile and the last of the canvas; every query's gradient reaches the keys of the extra tokens.
        std::vector<uint8_t> may(static_cast<size_t>(tiling.tokens()));
        for (int32_t tile = 0; tile < tiling.tiles(); ++tile) {
          const bool planted = tile == 0 || tile == tiling.grid.tile_count() - 1;
          if (!planted && tile < tiling.grid.tile_count()) continue;
          for (int32_t i = tiling.tile_begin[static_cast<size_t>(tile)]; i < tiling.tile_begin[static_cast<size_t>(tile) + 1]; ++i) {
            const int32_t token = tiling.token[static_cast<size_t>(i)];
            may[static_cast<size_t>(token)] = 1;
            if (!planted) continue;
            nan_at(p.q, token);
            nan_at(p.dout, token);
          }
        }
        p.run_forward();
        for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          for (const DeviceTensor* tensor : {&p.dq, &p.dk, &p.dv}) tensor->poison();
          try {
            p.run_backward(kernel);
          } catch (const Error& error) {
            REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
            continue;
          }
          for (const DeviceTensor* tensor : {&p.dq, &p.dk, &p.dv}) {
            const std::vector<int64_t> nans = nans_by_token(*tensor);
            int64_t stray = 0;
            for (size_t token = 0; token < nans.size(); ++token) stray += may[token] == 0 ? nans[token] : 0;
            CHECK(stray == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("a NaN that a mask hides stays where it is") {
  const auto masked = [](int64_t head_dim, Dim3 tile) {
    return AttentionCase{
        .name = "masked", .heads = 2, .head_dim = head_dim, .canvas = {6, 16, 16}, .tile = tile, .pattern = Pattern::kRandom};
  };
  for (const AttentionCase& c : {masked(128, {6, 8, 8}), masked(64, {2, 4, 4}), masked(20, {2, 8, 8})}) {
    for (const DType dtype : kDtypes) {
      DeviceProblem p(c, dtype);
      for (const auto& [name, tensor] : {std::pair{"q", &p.q}, {"k", &p.k}, {"v", &p.v}, {"dout", &p.dout}}) {
        CAPTURE(c.head_dim);
        CAPTURE(std::string(to_string(dtype)));
        CAPTURE(std::string(name));
        // One token of the first head; all ones is NaN in every type. What the reference has NaN is left out of the comparison.
        constexpr int64_t kToken = 700;
        const size_t bytes = static_cast<size_t>(c.head_dim * size_of(dtype));
        char* row = static_cast<char*>(tensor->view.data) + kToken * tensor->view.strides[2] * size_of(dtype);
        std::vector<char> before(bytes);
        check_cuda(cudaMemcpy(before.data(), row, bytes, cudaMemcpyDeviceToHost));
        check_cuda(cudaMemset(row, 0xff, bytes));
        const ReferenceResult want = reference_backward_on_device(p.reference());
        for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          p.out.poison();
          try {
            p.run_forward(kernel);
          } catch (const Error& error) {
            REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
            continue;
          }
          CHECK(off(p.out, want.out) <= tolerance(dtype));
        }
        for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          poison_results(p);
          p.run_forward();
          try {
            p.run_backward(kernel);
          } catch (const Error& error) {
            REQUIRE_MESSAGE(error.code() == ErrorCode::kUnsupported, std::string(error.what()));
            continue;
          }
          CHECK(off(p.dq, want.dq) <= gradient_tolerance(dtype));
          CHECK(off(p.dk, want.dk) <= gradient_tolerance(dtype));
          CHECK(off(p.dv, want.dv) <= gradient_tolerance(dtype));
        }
        check_cuda(cudaMemcpy(row, before.data(), bytes, cudaMemcpyHostToDevice));
      }
    }
  }
}

TEST_CASE("sanitizer: small problems on every path") {
  const Dim3 canvas{2, 5, 7}, tile{2, 4, 4};
  const std::vector<Window> windows{{1, 1, 2}, {1, 2, 1}};
  const ExtraTokens extra{3, 9};
  const auto with = [&](int64_t head_dim) {
    return AttentionCase{.name = "small",
                         .heads = 2,
                         .head_dim = head_dim,
                         .canvas = canvas,
                         .tile = tile,
                         .windows = windows,
                         .extra = extra,
                         .key_lengths = {77},
                         .layout = Layout::kBshd};
  };
  AttentionCase masks = with(128);
  masks.pattern = Pattern::kRandom;
  masks.key_lengths.clear();
  AttentionCase wide = with(128);
  wide.tile = {2, 5, 7};
  AttentionCase wide64 = with(64);
  wide64.tile = {2, 5, 7};
  for (const AttentionCase& c : {with(64), with(128), with(12), with(136), masks, wide, wide64}) {
    for (const DType dtype : kDtypes) {
      DeviceProblem p(c, dtype);
      const auto attempt = [&](auto run) {
        try {
          run();
        } catch (const Error& error) {
          REQUIRE(error.code() == ErrorCode::kUnsupported);
        }
      };
      for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) attempt([&] { p.run_forward(kernel); });
      for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) attempt([&] { p.run_backward(kernel); });
      check_cuda(cudaDeviceSynchronize());
    }
  }
}

TEST_CASE("the same bits in 100 runs") {
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const DType dtype : kDtypes) {
      DeviceProblem p(video_case(head_dim), dtype);
      std::vector<std::vector<uint8_t>> first;
      for (int run = 0; run < kRepeats; ++run) {
        poison_results(p);
        p.run_forward();
        p.run_backward();
        if (run == 0) first = results_of(p);
        if (run == 1 || run == kRepeats - 1) CHECK(results_of(p) == first);
        if (run % 10 == 5) CHECK(bytes_of(p.dk) == first[3]);
      }
    }
  }
}

TEST_CASE("a captured graph gives the same bits as the calls") {
  for (const DType dtype : kDtypes) {
    DeviceProblem p(video_case(128), dtype);
    p.run_forward();
    p.run_backward();
    const auto want = results_of(p);
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    check_cuda(cudaStreamCreate(&stream));
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    p.run_forward({}, stream);
    p.run_backward({}, stream);
    check_cuda(cudaStreamEndCapture(stream, &graph));
    check_cuda(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 3; ++replay) {
      poison_results(p);
      check_cuda(cudaDeviceSynchronize());
      check_cuda(cudaGraphLaunch(executable, stream));
      check_cuda(cudaStreamSynchronize(stream));
      CHECK(results_of(p) == want);
    }
    check_cuda(cudaGraphExecDestroy(executable));
    check_cuda(cudaGraphDestroy(graph));
    check_cuda(cudaStreamDestroy(stream));
  }
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

TEST_CASE("a plan whose rows a caller wrote on the device") {
  const AttentionCase c{.name = "own_rows", .heads = 2, .head_dim = 64, .canvas = {4, 16, 16}, .tile = {4, 8, 8}, .windows = {{1, 1, 1}}};
  DeviceProblem p(c, DType::kBf16);
  AttentionCase dense = c;
  dense.pattern = Pattern::kFull;
  const DeviceProblem want(dense, DType::kBf16);
  const ReferenceResult expected = reference_forward_on_device(want.reference());
  const std::vector<int32_t> numbers{0, 0, 0, 0, 0, 1, 2, 3};  // row_of, then key_tile
  const std::vector<int64_t> row_begin{0, 4};
  DeviceMemory rows(8 * 4), begin(2 * 8);
  check_cuda(cudaMemcpy(rows.data(), numbers.data(), 8 * 4, cudaMemcpyHostToDevice));
  check_cuda(cudaMemcpy(begin.data(), row_begin.data(), 2 * 8, cudaMemcpyHostToDevice));
  PlanView view = p.plan.view();
  view.rows = 1;
  view.entries = 4;
  view.longest_row = 4;
  view.row_of = static_cast<const int32_t*>(rows.data());
  view.key_tile = view.row_of + 4;
  view.row_begin = static_cast<const int64_t*>(begin.data());
  view.lowering = nullptr;
  attention_forward(p.forward(), view, p.options());
  CHECK(off(p.out, expected.out) <= tolerance(DType::kBf16));
}

TEST_CASE("a call costs the host little") {
  DeviceProblem p(video_case(128), DType::kBf16);
  p.run_forward();
  p.run_backward();
  check_cuda(cudaDeviceSynchronize());
  constexpr int kCalls = 200;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kCalls; ++i) attention_forward(p.forward(), p.plan.view(), p.options());
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
  check_cuda(cudaDeviceSynchronize());
  std::printf("host time of a forward call: %.1f us (%s)\n", spent.count() / kCalls,
              kernel_for(forward_kernels(DeviceType::kCuda)).c_str());
}

TEST_CASE("bad input is refused with the value and what was expected") {
  const DeviceProblem p(video_case(128), DType::kBf16);
  const auto refused = [&](const ForwardTensors& tensors, const PlanView& plan, const AttentionOptions& options, ErrorCode code,
                           const std::string& message) {
    try {
      attention_forward(tensors, plan, options);
      FAIL("accepted, expected: ", message);
    } catch (const Error& error) {
      CHECK(error.code() == code);
      CHECK_MESSAGE(std::string(error.what()).find(message) != std::string::npos, std::string(error.what()));
    }
  };
  ForwardTensors tensors = p.forward();
  refused(tensors, view_of(p.host), p.options(), ErrorCode::kInvalidArgument, "the plan is on cpu, q is on cuda:0");
  tensors.k.device.index = 1;
  refused(tensors, p.plan.view(), p.options(), ErrorCode::kInvalidArgument, "k is on cuda:1, q is on cuda:0");
  tensors = p.forward();
  for (TensorView* view : {&tensors.q, &tensors.k, &tensors.v, &tensors.out, &tensors.lse}) view->device.index = 63;
  PlanView plan = p.plan.view();
  plan.device.index = 63;
  refused(tensors, plan, p.options(), ErrorCode::kUnsupported, "no such CUDA device");
  refused(p.forward(), p.plan.view(), p.options("reference"), ErrorCode::kUnsupported, "no kernel is named 'reference' on cuda:0");
  tensors = p.forward();
  tensors.q.shape[2] -= 1;
  refused(tensors, p.plan.view(), p.options(), ErrorCode::kInvalidArgument, "the plan covers 4685");
  try {
    AttentionOptions options = p.options();
    options.workspace = {};
    attention_backward(p.backward(), p.plan.view(), p.plan.transposed(), options);
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK_MESSAGE(std::string(error.what()).find("needs a workspace of") != std::string::npos, std::string(error.what()));
  }
  Plan fewer_heads = p.host;
  fewer_heads.head_class.pop_back();
  CHECK_THROWS_AS(DevicePlan(p.host, fewer_heads, kDevice), Error);
  CHECK_THROWS_AS(static_cast<void>(DevicePlan(p.host, kDevice).transposed()), Error);
}

int main(int argc, char** argv) {
  const std::vector<std::string> kernels = runnable(forward_kernels(DeviceType::kCuda));
  if (kernels.empty()) {
    for (const KernelInfo& kernel : forward_kernels(DeviceType::kCuda)) std::printf("%s: %s\n", kernel.name.c_str(), kernel.reason.c_str());
    std::printf("skipped: no CUDA kernel can run here\n");
    return 77;
  }
  doctest::Context context(argc, argv);
  const int result = context.run();
  std::printf("\nworst error            out      lse       dq       dk       dv\n");
  for (const auto& [name, worst] : worst_of) {
    std::printf("%-18s %.2e %.2e %.2e %.2e %.2e\n", name.c_str(), worst.out, worst.lse, worst.dq, worst.dk, worst.dv);
  }
  return result;
}
