#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_reference.h"

namespace slidetile::test {
namespace {

constexpr int kThreads = 128, kLargestColumns = 8;

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

struct View {
  char* data;
  DType dtype;
  int64_t stride_b, stride_h, stride_t, batch, heads, tokens, head_dim;
};

View view_of_device(const TensorView& v) {
  return {static_cast<char*>(v.data), v.dtype, v.strides[0], v.strides[1], v.strides[2], v.shape[0], v.shape[1], v.shape[2], v.shape[3]};
}

__device__ int64_t offset(const View& v, int64_t b, int64_t h, int64_t t) { return b * v.stride_b + h * v.stride_h + t * v.stride_t; }

__device__ double load(const View& v, int64_t at) {
  if (v.dtype == DType::kF32) return reinterpret_cast<const float*>(v.data)[at];
  if (v.dtype == DType::kBf16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(v.data)[at]);
  return __half2float(reinterpret_cast<const __half*>(v.data)[at]);
}

__device__ void store(const View& v, int64_t at, float value) {
  if (v.dtype == DType::kF32) {
    reinterpret_cast<float*>(v.data)[at] = value;
  } else if (v.dtype == DType::kBf16) {
    reinterpret_cast<__nv_bfloat16*>(v.data)[at] = __float2bfloat16(value);
  } else {
    reinterpret_cast<__half*>(v.data)[at] = __float2half(value);
  }
}

__device__ double dot(const View& a, int64_t a_at, const View& b, int64_t b_at) {
  double sum = 0;
  for (int64_t d = 0; d < a.head_dim; ++d) sum += load(a, a_at + d) * load(b, b_at + d);
  return sum;
}

__device__ double warp_sum(double x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Calls visit(token or -1) for the partners of one own row, 32 at a time: lane i gets one of them.
template <typename Visit>
__device__ void for_each_partner(const PlanView& plan, int head, int tile, int slot, int length, const Visit& visit) {
  const int lane = threadIdx.x % 32;
  const int c = plan.head_class[plan.heads == 1 ? 0 : head], row = plan.row_of[static_cast<int64_t>(c) * plan.query.tiles + tile];
  for (int64_t entry = plan.row_begin[row]; entry < plan.row_begin[row + 1]; ++entry) {
    const int key_tile = plan.key_tile[entry], first = plan.key.tile_begin[key_tile], size = plan.key.tile_begin[key_tile + 1] - first;
    const int mask = plan.mask_of == nullptr ? -1 : plan.mask_of[entry];
    for (int k = 0; k < size; k += 32) {
      int token = -1;
      if (k + lane < size) {
        token = plan.key.token[first + k + lane];
        if (mask >= 0) {
          const uint64_t word = plan.mask_words[plan.mask_begin[mask] + static_cast<int64_t>(slot) * ((size + 63) / 64) + (k + lane) / 64];
          if ((word >> ((k + lane) % 64) & 1) == 0) token = -1;
        }
        if (token >= length) token = -1;
      }
      visit(token);
    }
  }
}

struct Own {
  int b, h, tile, slot, token;
  int64_t dense;  // row of [batch][heads][tokens]
};

// One warp per (batch, head, slot in tile order) of the plan's query side.
__device__ bool own_row(const PlanView& plan, int64_t batch, int64_t heads, int64_t every, Own& own) {
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * every, tokens = plan.query.tokens;
  if (index >= batch * heads * tokens) return false;
  const int slot = static_cast<int>(index % tokens);
  own.h = static_cast<int>(index / tokens % heads);
  own.b = static_cast<int>(index / tokens / heads);
  int low = 0, high = plan.query.tiles;  // the last tile that begins at or before the slot and is not empty
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (plan.query.tile_begin[middle] <= slot ? low : high) = middle;
  }
  own.tile = low;
  own.slot = slot - plan.query.tile_begin[low];
  own.token = plan.query.token[slot];
  own.dense = (static_cast<int64_t>(own.b) * heads + own.h) * tokens + own.token;
  return true;
}

struct Params {
  View q, k, v, dout;
  PlanView plan, transposed;
  const int32_t *query_lengths, *key_lengths;
  double scale;
  int64_t every;
  double *out, *lse, *delta, *dq, *dk, *dv;
};

__device__ int length_of(const int32_t* lengths, int b, int64_t tokens) {
  return lengths == nullptr ? static_cast<int>(tokens) : lengths[b];
}

__global__ void __launch_bounds__(kThreads) forward(Params p) {
  Own own;
  if (!own_row(p.plan, p.q.batch, p.q.heads, p.every, own)) return;
  const int lane = threadIdx.x % 32, key_length = length_of(p.key_lengths, own.b, p.plan.key.tokens);
  const bool used = own.token < length_of(p.query_lengths, own.b, p.plan.query.tokens);
  const int64_t q_at = offset(p.q, own.b, own.h, own.token);
  double largest = -INFINITY, sum = 0;
  if (used) {
    for_each_partner(p.plan, own.h, own.tile, own.slot, key_length, [&](int key) {
      if (key < 0) return;
      const double s = p.scale * dot(p.q, q_at, p.k, offset(p.k, own.b, own.h, key));
      const double now = fmax(largest, s);
      sum = sum * (largest == -INFINITY ? 0 : exp(largest - now)) + exp(s - now);
      largest = now;
    });
  }
  double all = largest;
  for (int step = 16; step > 0; step /= 2) all = fmax(all, __shfl_xor_sync(~0u, all, step));
  sum = warp_sum(sum == 0 ? 0 : sum * exp(largest - all));
  const double lse = sum == 0 ? -INFINITY : all + log(sum);  // NaN where a logit is
  double out[kLargestColumns] = {};
  if (used && sum != 0) {
    for_each_partner(p.plan, own.h, own.tile, own.slot, key_length, [&](int key) {
      const double w = key < 0 ? 0 : exp(p.scale * dot(p.q, q_at, p.k, offset(p.k, own.b, own.h, key)) - lse);
      for (int j = 0; j < 32; ++j) {
        const double weight = __shfl_sync(~0u, w, j);
        const int token = __shfl_sync(~0u, key, j);
        if (token < 0) continue;
        const int64_t at = offset(p.v, own.b, own.h, token);
        for (int i = 0; i < kLargestColumns; ++i) {
          if (lane + 32 * i < p.v.head_dim) out[i] += weight * load(p.v, at + lane + 32 * i);
        }
      }
    });
  }
  for (int i = 0; i < kLargestColumns; ++i) {
    if (lane + 32 * i < p.q.head_dim) p.out[own.dense * p.q.head_dim + lane + 32 * i] = out[i];
  }
  if (lane == 0) p.lse[own.dense] = lse;
  if (p.delta == nullptr) return;
  double delta = 0;
  const int64_t dout_at = offset(p.dout, own.b, own.h, own.token);
  for (int i = 0; i < kLargestColumns; ++i) {
    if (lane + 32 * i < p.q.head_dim && used) delta += out[i] * load(p.dout, dout_at + lane + 32 * i);
  }
  delta = warp_sum(delta);
  if (lane == 0) p.delta[own.dense] = delta;
}

// lse and delta of a forward result that is given.
__global__ void __launch_bounds__(kThreads) given_terms(Params p, View out, View lse) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32, tokens = p.q.tokens;
  if (row >= p.q.batch * p.q.heads * tokens) return;
  const int64_t t = row % tokens, h = row / tokens % p.q.heads, b = row / tokens / p.q.heads;
  if (threadIdx.x % 32 != 0) return;
  p.lse[row] = load(lse, offset(lse, b, h, t));
  p.delta[row] = dot(out, offset(out, b, h, t), p.dout, offset(p.dout, b, h, t));
}

__global__ void __launch_bounds__(kThreads) backward_queries(Params p) {
  Own own;
  if (!own_row(p.plan, p.q.batch, p.q.heads, p.every, own)) return;
  const int lane = threadIdx.x % 32;
  const int64_t q_at = offset(p.q, own.b, own.h, own.token), dout_at = offset(p.dout, own.b, own.h, own.token);
  double dq[kLargestColumns] = {};
  if (own.token < length_of(p.query_lengths, own.b, p.plan.query.tokens)) {
    const double lse = p.lse[own.dense], delta = p.delta[own.dense];
    for_each_partner(p.plan, own.h, own.tile, own.slot, length_of(p.key_lengths, own.b, p.plan.key.tokens), [&](int key) {
      double ds = 0;
      if (key >= 0) {
        const int64_t k_at = offset(p.k, own.b, own.h, key), v_at = offset(p.v, own.b, own.h, key);
        ds = exp(p.scale * dot(p.q, q_at, p.k, k_at) - lse) * (dot(p.dout, dout_at, p.v, v_at) - delta);
      }
      for (int j = 0; j < 32; ++j) {
        const double weight = p.scale * __shfl_sync(~0u, ds, j);
        const int token = __shfl_sync(~0u, key, j);
        if (token < 0) continue;
        const int64_t at = offset(p.k, own.b, own.h, token);
        for (int i = 0; i < kLargestColumns; ++i) {
          if (lane + 32 * i < p.k.head_dim) dq[i] += weight * load(p.k, at + lane + 32 * i);
        }
      }
    });
  }
  for (int i = 0; i < kLargestColumns; ++i) {
    if (lane + 32 * i < p.q.head_dim) p.dq[own.dense * p.q.head_dim + lane + 32 * i] = dq[i];
  }
}

__global__ void __launch_bounds__(kThreads) backward_keys(Params p) {
  Own own;
  if (!own_row(p.transposed, p.q.batch, p.q.heads, p.every, own)) return;
  const int lane = threadIdx.x % 32;
  const int64_t k_at = offset(p.k, own.b, own.h, own.token), v_at = offset(p.v, own.b, own.h, own.token);
  double dk[kLargestColumns] = {}, dv[kLargestColumns] = {};
  if (own.token < length_of(p.key_lengths, own.b, p.plan.key.tokens)) {
    const int query_length = length_of(p.query_lengths, own.b, p.plan.query.tokens);
    for_each_partner(p.transposed, own.h, own.tile, own.slot, query_length, [&](int query) {
      double w = 0, ds = 0;
      if (query >= 0) {
        const int64_t row = (static_cast<int64_t>(own.b) * p.q.heads + own.h) * p.q.tokens + query;
        w = exp(p.scale * dot(p.q, offset(p.q, own.b, own.h, query), p.k, k_at) - p.lse[row]);
        ds = w * (dot(p.dout, offset(p.dout, own.b, own.h, query), p.v, v_at) - p.delta[row]);
      }
      for (int j = 0; j < 32; ++j) {
        const double weight = __shfl_sync(~0u, w, j), slope = p.scale * __shfl_sync(~0u, ds, j);
        const int token = __shfl_sync(~0u, query, j);
        if (token < 0) continue;
        const int64_t q_at = offset(p.q, own.b, own.h, token), dout_at = offset(p.dout, own.b, own.h, token);
        for (int i = 0; i < kLargestColumns; ++i) {
          const int d = lane + 32 * i;
          if (d >= p.k.head_dim) continue;
          dk[i] += slope * load(p.q, q_at + d);
          dv[i] += weight * load(p.dout, dout_at + d);
        }
      }
    });
  }
  for (int i = 0; i < kLargestColumns; ++i) {
    const int d = lane + 32 * i;
    if (d >= p.k.head_dim) continue;
    p.dk[own.dense * p.k.head_dim + d] = dk[i];
    p.dv[own.dense * p.k.head_dim + d] = dv[i];
  }
}

__device__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

__global__ void fill_kernel(View v, uint64_t seed, double spread, const int32_t* lengths) {
  const int64_t count = v.batch * v.heads * v.tokens * v.head_dim;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t d = i % v.head_dim, t = i / v.head_dim % v.tokens, h = i / v.head_dim / v.tokens % v.heads,
                  b = i / v.head_dim / v.tokens / v.heads;
    if (lengths != nullptr && t >= lengths[b]) continue;
    const uint64_t bits = mix(seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i) + 1);
    const float u = (static_cast<float>(bits >> 40) + 0.5f) / 16777216.0f, w = static_cast<float>(bits & 0xffffff) / 16777216.0f;
    const float normal = sqrtf(-2 * logf(u)) * cospif(2 * w);
    store(v, offset(v, b, h, t) + d, static_cast<float>(spread) * normal);
  }
}

__global__ void poison_kernel(View v) {
  const int64_t count = v.batch * v.heads * v.tokens * v.head_dim;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i / v.head_dim;
    store(v, offset(v, row / v.tokens / v.heads, row / v.tokens % v.heads, row % v.tokens) + i % v.head_dim, NAN);
  }
}

__global__ void count_different(const uint8_t* a, const uint8_t* b, int64_t count, unsigned long long* found) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (a[i] != b[i]) atomicAdd(found, 1ull);
  }
}

__global__ void checkered_rows(DeviceRows rows) {
  const int q = static_cast<int>(blockIdx.x), even = (rows.tiles + 1) / 2, odd = rows.tiles / 2;
  const int64_t first = static_cast<int64_t>((q + 1) / 2) * even + static_cast<int64_t>(q / 2) * odd;
  if (threadIdx.x == 0) {
    rows.row_begin[q] = first;
    if (q < rows.tiles) rows.row_of[q] = q;
  }
  for (int i = static_cast<int>(threadIdx.x); q < rows.tiles && i < (q % 2 == 0 ? even : odd); i += static_cast<int>(blockDim.x)) {
    rows.key_tile[first + i] = 2 * i + q % 2;
  }
}

__global__ void trap() { __trap(); }

__global__ void count_unpoisoned(const uint8_t* bytes, int64_t count, unsigned long long* found) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    if (bytes[i] != 0xff) atomicAdd(found, 1ull);
  }
}

struct DeviceSums {
  double error, norm;
  unsigned long long wrong, largest_bits;  // of a non-negative double: its bits are in its order
};

__global__ void compare_kernel(View got, const double* want, DeviceSums* sums) {
  const int64_t count = got.batch * got.heads * got.tokens * got.head_dim;
  double error = 0, norm = 0, largest = 0;
  unsigned long long wrong = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t d = i % got.head_dim, t = i / got.head_dim % got.tokens, h = i / got.head_dim / got.tokens % got.heads,
                  b = i / got.head_dim / got.tokens / got.heads;
    const double a = load(got, offset(got, b, h, t) + d), e = want[i];
    if (isnan(e)) continue;
    if (isfinite(a) && isfinite(e)) {
      error += (a - e) * (a - e);
      norm += e * e;
      largest = fmax(largest, fabs(a - e));
    } else if (!(a == e)) {
      ++wrong;
    }
  }
  error = warp_sum(error);
  norm = warp_sum(norm);
  for (int step = 16; step > 0; step /= 2) {
    largest = fmax(largest, __shfl_xor_sync(~0u, largest, step));
    wrong += __shfl_xor_sync(~0u, wrong, step);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&sums->error, error);
    atomicAdd(&sums->norm, norm);
    atomicAdd(&sums->wrong, wrong);
    atomicMax(&sums->largest_bits, static_cast<unsigned long long>(__double_as_longlong(largest)));
  }
}

unsigned blocks_of_rows(int64_t rows) { return static_cast<unsigned>((rows + kThreads / 32 - 1) / (kThreads / 32)); }

DeviceDoubles doubles(int64_t count) {
  DeviceDoubles made{DeviceMemory(count * static_cast<int64_t>(sizeof(double)))};
  check(cudaMemset(made.data(), 0xff, static_cast<size_t>(made.memory.bytes())), "cudaMemset");  // NaN
  return made;
}

Params params_of(const ReferenceArgs& args) {
  Params p{};
  p.q = view_of_device(args.q);
  p.k = view_of_device(args.k);
  p.v = view_of_device(args.v);
  p.dout = view_of_device(args.dout);
  p.plan = args.plan;
  p.transposed = args.transposed;
  p.query_lengths = args.query_lengths;
  p.key_lengths = args.key_lengths;
  p.scale = args.scale;
  p.every = args.every;
  return p;
}

}  // namespace

DeviceMemory::DeviceMemory(int64_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<size_t>(bytes > 0 ? bytes : 1)), "cudaMalloc");
  memory_.reset(memory);
}

void DeviceMemory::Free::operator()(void* memory) const noexcept { cudaFree(memory); }

DeviceTensor::DeviceTensor(DType dtype, std::array<int64_t, 4> shape, Layout layout, int64_t shift_by) : shift(shift_by) {
  const int64_t elements = shape[0] * shape[1] * shape[2] * shape[3];
  memory = DeviceMemory((elements + 2 * kMargin + shift) * size_of(dtype));
  view = view_of(static_cast<char*>(memory.data()) + (kMargin + shift) * size_of(dtype), dtype, shape, layout);
  view.device = {DeviceType::kCuda, 0};
  poison();
}

void DeviceTensor::poison() const {
  check(cudaMemset(memory.data(), 0xff, static_cast<size_t>(memory.bytes())), "cudaMemset");
  const auto* const first = static_cast<const char*>(memory.data());
  if (view.data >= first && view.data < first + memory.bytes()) return;
  poison_kernel<<<512, 256>>>(view_of_device(view));
  check(cudaGetLastError(), "poison");
}

void DeviceTensor::fill(uint64_t seed, double spread, const int32_t* lengths) const {
  DeviceMemory on_device;
  if (lengths != nullptr) {
    const int64_t bytes = view.batch() * static_cast<int64_t>(sizeof(int32_t));
    on_device = DeviceMemory(bytes);
    check(cudaMemcpy(on_device.data(), lengths, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  fill_kernel<<<512, 256>>>(view_of_device(view), seed, spread, static_cast<const int32_t*>(on_device.data()));
  check(cudaGetLastError(), "fill");
  if (lengths != nullptr) check(cudaDeviceSynchronize(), "fill");
}

bool DeviceTensor::margins_hold() const {
  const DeviceMemory found(8);
  auto* count = static_cast<unsigned long long*>(found.data());
  check(cudaMemset(count, 0, 8), "cudaMemset");
  const auto* first = static_cast<const uint8_t*>(memory.data());
  const int64_t before = (kMargin + shift) * size_of(view.dtype), after = kMargin * size_of(view.dtype);
  count_unpoisoned<<<8, 128>>>(first, before, count);
  count_unpoisoned<<<8, 128>>>(first + memory.bytes() - after, after, count);
  unsigned long long result = 0;
  check(cudaMemcpy(&result, count, 8, cudaMemcpyDeviceToHost), "margins");
  return result == 0;
}

bool same_bytes(const DeviceMemory& a, const DeviceMemory& b) {
  const DeviceMemory found(8);
  auto* const count = static_cast<unsigned long long*>(found.data());
  check(cudaMemset(count, 0, 8), "cudaMemset");
  count_different<<<256, 256>>>(static_cast<const uint8_t*>(a.data()), static_cast<const uint8_t*>(b.data()), a.bytes(), count);
  unsigned long long different = 0;
  check(cudaMemcpy(&different, count, 8, cudaMemcpyDeviceToHost), "same bytes");
  return a.bytes() == b.bytes() && different == 0;
}

void write_checkered_rows(const DeviceRows& rows, void* stream) {
  checkered_rows<<<static_cast<unsigned>(rows.tiles + 1), 64, 0, static_cast<cudaStream_t>(stream)>>>(rows);
  check(cudaGetLastError(), "checkered rows");
}

void lose_device() {
  trap<<<1, 1>>>();
  const cudaError_t expected = cudaDeviceSynchronize();
  if (expected == cudaSuccess) throw std::runtime_error("a trap went unnoticed");
}

ReferenceResult reference_forward_on_device(const ReferenceArgs& args) {
  const int64_t rows = args.q.batch() * args.q.heads() * args.q.tokens();
  ReferenceResult result{.out = doubles(rows * args.q.head_dim()), .lse = doubles(rows)};
  Params p = params_of(args);
  p.out = result.out.data();
  p.lse = result.lse.data();
  forward<<<blocks_of_rows((rows + args.every - 1) / args.every), kThreads>>>(p);
  check(cudaGetLastError(), "reference forward");
  return result;
}

ReferenceResult reference_backward_on_device(const ReferenceArgs& args) {
  const int64_t rows = args.q.batch() * args.q.heads() * args.q.tokens(), key_rows = args.k.batch() * args.k.heads() * args.k.tokens();
  ReferenceResult result{.out = doubles(rows * args.q.head_dim()),
                         .lse = doubles(rows),
                         .dq = doubles(rows * args.q.head_dim()),
                         .dk = doubles(key_rows * args.q.head_dim()),
                         .dv = doubles(key_rows * args.q.head_dim())};
  const DeviceDoubles delta = doubles(rows);
  Params p = params_of(args);
  p.out = result.out.data();
  p.lse = result.lse.data();
  p.delta = delta.data();
  p.dq = result.dq.data();
  p.dk = result.dk.data();
  p.dv = result.dv.data();
  if (args.out) {
    given_terms<<<blocks_of_rows(rows), kThreads>>>(p, view_of_device(args.out), view_of_device(args.lse));
  } else {
    p.every = 1;
    forward<<<blocks_of_rows(rows), kThreads>>>(p);
    p.every = args.every;
  }
  backward_queries<<<blocks_of_rows((rows + args.every - 1) / args.every), kThreads>>>(p);
  backward_keys<<<blocks_of_rows((key_rows + args.every - 1) / args.every), kThreads>>>(p);
  check(cudaDeviceSynchronize(), "reference backward");
  return result;
}

Sums compare_on_device(const TensorView& got, const double* want) {
  const DeviceMemory memory(sizeof(DeviceSums));
  check(cudaMemset(memory.data(), 0, sizeof(DeviceSums)), "cudaMemset");
  compare_kernel<<<256, 256>>>(view_of_device(got), want, static_cast<DeviceSums*>(memory.data()));
  DeviceSums sums{};
  check(cudaMemcpy(&sums, memory.data(), sizeof(sums), cudaMemcpyDeviceToHost), "compare");
  double largest = 0;
  static_assert(sizeof(largest) == sizeof(sums.largest_bits));
  __builtin_memcpy(&largest, &sums.largest_bits, sizeof(largest));
  return {sums.error, sums.norm, got.batch() * got.heads() * got.tokens() * got.head_dim(), static_cast<int64_t>(sums.wrong), largest};
}

}  // namespace slidetile::test
