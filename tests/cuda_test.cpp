// Every CUDA kernel that this machine can run, against double precision: the shared problems, random ones, NaN, masks. Exits 77, which
// ctest reports as skipped, where there is no GPU. How calls behave: cuda_calls_test.cpp; what is refused: cuda_refusals_test.cpp.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>
#include <map>

#include "cuda_problem.h"
#include "slidetile/window_clear.h"
#include "slidetile/window_natten.h"

using namespace slidetile;
using namespace slidetile::test;

namespace {

constexpr uint64_t kRandomProblems = 1000;

/// The worst relative errors seen, printed at the end.
struct Worst {
  double out = 0, lse = 0, dq = 0, dk = 0, dv = 0;
};
std::map<std::string, Worst> worst_of;

void keep(double& worst, double error) { worst = std::max(worst, error); }

bool has_gradients(const AttentionCase& c) { return c.logit_scale <= 1; }  // else near zero, where a relative error says nothing

void check_problem(DeviceProblem& p, DType dtype) {
  const AttentionCase& c = p.c;
  CAPTURE(c.name);
  CAPTURE(std::string(to_string(dtype)));
  const ReferenceResult want = reference_backward_on_device(p.reference());
  for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
    CAPTURE(kernel);
    p.out.poison();
    p.lse.poison();
    if (!attempt([&] { p.run_forward(kernel); })) continue;
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
    if (!attempt([&] { p.run_backward(kernel); })) continue;
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

void check_case(const AttentionCase& c, DType dtype, int64_t shift = 0) {
  CAPTURE(shift);
  DeviceProblem p(c, dtype, shift);
  check_problem(p, dtype);
}

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

TEST_CASE("plans of other patterns: NATTEN and CLEAR") {
  const Grid grid({4, 12, 20}, {2, 4, 8});
  const AttentionCase c{.name = "pattern", .batch = 2, .heads = 2, .head_dim = 64, .canvas = grid.canvas(), .tile = grid.tile()};
  const std::vector<NattenWindow> windows{{.window = {3, 5, 7}}, {.window = {2, 6, 6}, .dilation = {1, 2, 2}}};
  for (const DType dtype : kDtypes) {
    DeviceProblem natten(c, natten_plan(grid, windows, {0, 13}), dtype), clear(c, clear_plan(grid, 4, {5, 0}), dtype);
    check_problem(natten, dtype);
    check_problem(clear, dtype);
  }
}

TEST_CASE("a scale below zero, and no lse") {
  for (const DType dtype : kDtypes) {
    DeviceProblem p(video_case(128), dtype);
    p.scale = -0.1f;
    check_problem(p, dtype);
    p.scale = 0;
    for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) {
      CAPTURE(kernel);
      if (!attempt([&] { p.run_forward(kernel); })) continue;
      const auto want = bytes_of(p.out), lse = bytes_of(p.lse);
      p.out.poison();
      ForwardTensors tensors = p.forward();
      tensors.lse = {};
      attention_forward(tensors, p.plan.view(), p.options(kernel));
      CHECK(bytes_of(p.out) == want);
      CHECK(bytes_of(p.lse) == lse);
    }
  }
}

// Batch items and heads lie along one axis of a launch, which has no limit of 65535.
TEST_CASE("70,000 heads") {
  for (const DType dtype : kDtypes) {
    check_case({.name = "heads", .heads = 70'000, .head_dim = 64, .canvas = {1, 2, 4}, .tile = {1, 2, 2}, .windows = {{1, 1, 1}}}, dtype);
  }
}

// One allocation of NaN holds all tensors, side by side, so that a step along one axis is far.
TEST_CASE("tensors of more than 2^31 elements") {
  constexpr int64_t kFar = (int64_t{1} << 31) + 64, kTensors = 8;
  for (const int64_t head_dim : {64, 128}) {
    const AttentionCase c = video_case(head_dim);
    const int64_t tokens = make_plan(c).query.tokens(), token_elements = c.batch * c.heads * head_dim,
                  step = (kFar / (tokens - 1) + 64) / 64 * 64;
    const std::array<std::array<int64_t, 4>, 3> strides{
        {{kFar, tokens * head_dim, head_dim, 1}, {tokens * head_dim, kFar / 2, head_dim, 1}, {c.heads * head_dim, head_dim, step, 1}}};
    const std::array<int64_t, 3> apart{c.heads * tokens * head_dim, c.batch * tokens * head_dim, token_elements};
    REQUIRE(kTensors * token_elements <= step);
    for (const DType dtype : kDtypes) {
      DeviceProblem p(c, dtype);
      const std::array<DeviceTensor*, kTensors> tensors{&p.q, &p.k, &p.v, &p.dout, &p.out, &p.dq, &p.dk, &p.dv};
      for (size_t axis = 0; axis < 3; ++axis) {
        CAPTURE(axis);
        CAPTURE(std::string(to_string(dtype)));
        const int64_t extent = axis == 0 ? c.batch : axis == 1 ? c.heads : tokens;
        const DeviceMemory memory(((extent - 1) * strides[axis][axis] + kTensors * apart[axis]) * size_of(dtype));
        check_cuda(cudaMemset(memory.data(), 0xff, static_cast<size_t>(memory.bytes())));
        for (size_t i = 0; i < kTensors; ++i) {
          tensors[i]->view.strides = strides[axis];
          tensors[i]->view.data = static_cast<char*>(memory.data()) + static_cast<int64_t>(i) * apart[axis] * size_of(dtype);
        }
        CHECK(span_of(p.q.view) > int64_t{1} << 31);
        p.q.fill(1, 1, nullptr);
        p.k.fill(2, 1, c.key_lengths.data());
        p.v.fill(3, 1, c.key_lengths.data());
        p.dout.fill(4, 1, nullptr);
        check_problem(p, dtype);
      }
    }
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
          if (!attempt([&] { p.run_backward(kernel); })) continue;
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
          if (!attempt([&] { p.run_forward(kernel); })) continue;
          CHECK(off(p.out, want.out) <= tolerance(dtype));
        }
        for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) {
          CAPTURE(kernel);
          poison_results(p);
          p.run_forward();
          if (!attempt([&] { p.run_backward(kernel); })) continue;
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
      for (const std::string& kernel : runnable(forward_kernels(DeviceType::kCuda))) attempt([&] { p.run_forward(kernel); });
      for (const std::string& kernel : runnable(backward_kernels(DeviceType::kCuda))) attempt([&] { p.run_backward(kernel); });
      check_cuda(cudaDeviceSynchronize());
    }
  }
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
