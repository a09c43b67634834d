// Uploads plans: one allocation and one copy for a plan and its transpose.
#include "slidetile/device_plan.h"

#include <cstring>
#include <utility>
#include <vector>

#include "slidetile/cuda/backward_lowering.h"
#include "slidetile/cuda/device.h"
#include "slidetile/cuda/lowering.h"
#include "slidetile/error.h"

namespace slidetile {
namespace {

constexpr size_t kAlignment = 256;

// Bytes to upload, and where each array of a view starts in them.
class Image {
 public:
  template <typename T>
  const T* add(const T* from, int64_t count) {
    if (from == nullptr) return nullptr;
    const size_t at = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment, size = static_cast<size_t>(count) * sizeof(T);
    bytes_.resize(at + (size == 0 ? 1 : size));  // an empty array has an address too
    if (size != 0) std::memcpy(bytes_.data() + at, from, size);
    return reinterpret_cast<const T*>(at);  // an offset until relocate()
  }
  const std::vector<std::byte>& bytes() const noexcept { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

void add(Image& image, TilingView& tiling) {
  tiling.tile_begin = image.add(tiling.tile_begin, int64_t{tiling.tiles} + 1);
  tiling.token = image.add(tiling.token, tiling.tokens);
}

// The host view with offsets into the image in place of pointers.
PlanView add(Image& image, const Plan& plan) {
  PlanView view = view_of(plan);
  add(image, view.query);
  add(image, view.key);
  view.head_class = image.add(view.head_class, view.heads);
  view.row_of = image.add(view.row_of, int64_t{view.classes} * view.query.tiles);
  view.row_begin = image.add(view.row_begin, int64_t{view.rows} + 1);
  view.key_tile = image.add(view.key_tile, view.entries);
  view.mask_of = image.add(view.mask_of, view.entries);
  view.mask_begin = view.masks == 0 ? nullptr : image.add(view.mask_begin, int64_t{view.masks} + 1);
  view.mask_words = view.masks == 0 ? nullptr : image.add(view.mask_words, static_cast<int64_t>(plan.mask_words.size()));
  return view;
}

// A lowering, and where its tables lie in the image.
template <typename Lowering>
struct Placed {
  Lowering lowering;
  size_t at = 0;
};

template <typename Lowering>
Placed<Lowering> place(Image& image, Lowering lowering) {
  const auto at = reinterpret_cast<size_t>(image.add(lowering.bytes.data(), static_cast<int64_t>(lowering.bytes.size())));
  return {std::move(lowering), at};
}

struct Relocation {
  std::byte* base;
  template <typename T>
  void operator()(const T*& offset) const {
    offset = reinterpret_cast<const T*>(base + reinterpret_cast<size_t>(offset));
  }
};

void relocate(PlanView& view, const Device& device, const Relocation& move) {
  view.device = device;
  for (TilingView* tiling : {&view.query, &view.key}) {
    move(tiling->tile_begin);
    move(tiling->token);
  }
  move(view.head_class);
  move(view.row_of);
  move(view.row_begin);
  move(view.key_tile);
  if (view.mask_of != nullptr) move(view.mask_of);
  if (view.masks != 0) {
    move(view.mask_begin);
    move(view.mask_words);
  }
}

}  // namespace

struct DevicePlan::State {
  int device = 0;
  void* memory = nullptr;
  int64_t bytes = 0;
  bool has_transposed = false;
  PlanView plan, transposed;
  cuda::Lowering lowering, transposed_lowering;
  cuda::BackwardLowering backward;

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    if (memory == nullptr) return;
    int before = 0;
    cudaGetDevice(&before);
    cudaSetDevice(device);
    cudaFree(memory);
    cudaSetDevice(before);
  }

  void upload(const Plan& host, const Plan* host_transposed, const Device& to, void* stream) {
    require(to.type == DeviceType::kCuda, "device plan: the device is ", to_string(to), ", expected a CUDA device");
    validate(host);
    cuda::properties_of(to.index);  // throws where there is no such device
    Image image;
    plan = add(image, host);
    const auto lowered = place(image, cuda::lower(host));
    Placed<cuda::LoweringImage> transposed_lowered;
    Placed<cuda::BackwardLoweringImage> backward_lowered;
    if (host_transposed != nullptr) {
      validate(*host_transposed);
      require(host_transposed->query == host.key && host_transposed->key == host.query && host_transposed->heads() == host.heads(),
              "device plan: the second plan is not the transpose of the first: it covers ", host_transposed->query.tokens(), " x ",
              host_transposed->key.tokens(), " tokens and ", host_transposed->heads(), " heads, expected ", host.key.tokens(), " x ",
              host.query.tokens(), " and ", host.heads());
      transposed = add(image, *host_transposed);
      transposed_lowered = place(image, cuda::lower(*host_transposed));
      backward_lowered = place(image, cuda::lower_backward(*host_transposed, cuda::properties_of(to.index).multiprocessors));
      has_transposed = true;
    }
    device = to.index;
    bytes = static_cast<int64_t>(image.bytes().size());
    const cuda::CurrentDevice current(device);
    cuda::check(cudaMalloc(&memory, image.bytes().size()), "device plan: cudaMalloc");
    const auto on = static_cast<cudaStream_t>(stream);
    cuda::check(cudaMemcpyAsync(memory, image.bytes().data(), image.bytes().size(), cudaMemcpyHostToDevice, on), "device plan: copy");
    cuda::check(cudaStreamSynchronize(on), "device plan: copy");
    const Relocation move{static_cast<std::byte*>(memory)};
    relocate(plan, to, move);
    lowering = cuda::relocated(lowered.lowering, move.base + lowered.at);
    plan.lowering = &lowering;
    if (has_transposed) {
      relocate(transposed, to, move);
      transposed_lowering = cuda::relocated(transposed_lowered.lowering, move.base + transposed_lowered.at);
      backward = cuda::relocated(backward_lowered.lowering, move.base + backward_lowered.at);
      transposed_lowering.backward = &backward;
      transposed.lowering = &transposed_lowering;
    }
  }
};

DevicePlan::DevicePlan() noexcept = default;

DevicePlan::DevicePlan(const Plan& plan, const Device& device, void* stream) : state_(std::make_unique<State>()) {
  state_->upload(plan, nullptr, device, stream);
}

DevicePlan::DevicePlan(const Plan& plan, const Plan& transposed, const Device& device, void* stream) : state_(std::make_unique<State>()) {
  state_->upload(plan, &transposed, device, stream);
}

DevicePlan::~DevicePlan() = default;
DevicePlan::DevicePlan(DevicePlan&&) noexcept = default;
DevicePlan& DevicePlan::operator=(DevicePlan&&) noexcept = default;

const PlanView& DevicePlan::view() const {
  require(state_ != nullptr, "device plan: it is empty");
  return state_->plan;
}

const PlanView& DevicePlan::transposed() const {
  require(state_ != nullptr && state_->has_transposed, "device plan: it was made without the transposed plan");
  return state_->transposed;
}

int64_t DevicePlan::bytes() const noexcept { return state_ == nullptr ? 0 : state_->bytes; }

}  // namespace slidetile
