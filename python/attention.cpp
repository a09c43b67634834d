// Attention calls for Python: arrays in, kernels chosen and run without the interpreter's lock.
#include "slidetile/attention.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "convert.h"
#include "slidetile/error.h"

namespace slidetile::python {
namespace {

Layout layout_of(const std::string& name) {
  require(name == "bhsd" || name == "bshd", "layout: '", name, "', expected 'bhsd' or 'bshd'");
  return name == "bhsd" ? Layout::kBhsd : Layout::kBshd;
}

// What a call has beside its tensors, as one tuple: (layout, scale, key_lengths, kernel, stream, allocate). `allocate(bytes)` returns the
// address of device memory and keeps it alive for the call; None is the tensor type's allocator, on its current stream.
struct Call {
  Layout layout = Layout::kBhsd;
  AttentionOptions options;
  std::string kernel;
  ArrayArg lengths;
  nb::object allocate;
  Workspace workspace;

  explicit Call(const nb::tuple& tuple) {
    require(tuple.size() == 6, "call: ", tuple.size(), " elements, expected 6");
    layout = layout_of(nb::cast<std::string>(tuple[0]));
    options.scale = nb::cast<float>(tuple[1]);
    if (!tuple[2].is_none()) {
      lengths = array_from(tuple[2], "key_lengths", Access::kRead);
      require(std::strcmp(lengths.dtype, "i32") == 0 && lengths.axes == 1, "key_lengths: expected one axis of int32");
      require(lengths.shape[0] <= 1 || lengths.strides[0] == 1, "key_lengths: expected contiguous numbers");
      options.key_lengths = {static_cast<const int32_t*>(lengths.data), static_cast<size_t>(lengths.shape[0])};
    }
    kernel = nb::cast<std::string>(tuple[3]);
    options.kernel = kernel;
    options.stream = reinterpret_cast<void*>(nb::cast<uintptr_t>(tuple[4]));
    allocate = nb::borrow(tuple[5]);
  }

  void check_lengths(const Device& device) const {
    require(options.key_lengths.empty() || lengths.device == device, "key_lengths: on ", to_string(lengths.device), ", q is on ",
            to_string(device));
  }

  void reserve(int64_t bytes, const Device& device) {
    if (bytes <= 0) return;
    std::byte* data = nullptr;
    if (!allocate.is_none()) {
      data = reinterpret_cast<std::byte*>(nb::cast<uintptr_t>(allocate(bytes)));
    } else {
      require(workspace.allocate(bytes, device), "this kernel needs ", bytes, " bytes of device memory, and no allocator was given");
      data = workspace.data();
    }
    options.workspace = {data, static_cast<size_t>(bytes)};
  }
};

void forward(const nb::tuple& arrays, const PlanPtr& plan, const nb::tuple& call_tuple) {
  require(arrays.size() == 5, "forward: ", arrays.size(), " arrays, expected q, k, v, out, lse");
  Call call(call_tuple);
  const ArrayArg q = array_from(arrays[0], "q", Access::kRead), k = array_from(arrays[1], "k", Access::kRead),
                 v = array_from(arrays[2], "v", Access::kRead), out = array_from(arrays[3], "out", Access::kWrite);
  ForwardTensors tensors{.q = tensor_view(q, "q", call.layout),
                         .k = tensor_view(k, "k", call.layout),
                         .v = tensor_view(v, "v", call.layout),
                         .out = tensor_view(out, "out", call.layout),
                         .lse = {}};
  ArrayArg lse;
  if (!arrays[4].is_none()) {
    lse = array_from(arrays[4], "lse", Access::kWrite);
    tensors.lse = lse_view(lse, "lse");
  }
  call.check_lengths(tensors.q.device);
  const PlanView view = plan->view(tensors.q.device);
  if (tensors.q.device.type == DeviceType::kCuda) call.reserve(forward_workspace_bytes(tensors, view, call.options), tensors.q.device);
  const nb::gil_scoped_release release;
  attention_forward(tensors, view, call.options);
}

void backward(const nb::tuple& arrays, const PlanPtr& plan, const nb::tuple& call_tuple) {
  require(arrays.size() == 9, "backward: ", arrays.size(), " arrays, expected q, k, v, out, lse, dout, dq, dk, dv");
  Call call(call_tuple);
  constexpr const char* kNames[] = {"q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv"};
  std::vector<ArrayArg> args;
  for (size_t i = 0; i < 9; ++i) args.push_back(array_from(arrays[i], kNames[i], i < 6 ? Access::kRead : Access::kWrite));
  const auto view_at = [&](size_t i) {
    return i == 4 ? lse_view(args[i], kNames[i]) : tensor_view(args[i], kNames[i], call.layout);
  };
  const BackwardTensors tensors{.q = view_at(0),
                                .k = view_at(1),
                                .v = view_at(2),
                                .out = view_at(3),
                                .lse = view_at(4),
                                .dout = view_at(5),
                                .dq = view_at(6),
                                .dk = view_at(7),
                                .dv = view_at(8)};
  const Device device = tensors.q.device;
  call.check_lengths(device);
  const PlanView transposed = plan->transposed_view(device), view = plan->view(device);
  if (device.type == DeviceType::kCuda) call.reserve(backward_workspace_bytes(tensors, view, transposed, call.options), device);
  const nb::gil_scoped_release release;
  attention_backward(tensors, view, transposed, call.options);
}

void merge_into(const nb::tuple& into, const nb::tuple& other, const std::string& layout_name) {
  require(into.size() == 2 && other.size() == 2, "merge: expected (out, lse) and (out, lse)");
  const Layout layout = layout_of(layout_name);
  const ArrayArg out = array_from(into[0], "out", Access::kWrite), lse = array_from(into[1], "lse", Access::kWrite),
                 other_out = array_from(other[0], "other out", Access::kRead), other_lse = array_from(other[1], "other lse", Access::kRead);
  merge({tensor_view(out, "out", layout), lse_view(lse, "lse")}, {tensor_view(other_out, "other out", layout), lse_view(other_lse, "lse")});
}

std::vector<std::pair<std::string, std::string>> kernels(const std::string& device, const std::string& direction) {
  require(device == "cpu" || device == "cuda", "kernels: device '", device, "', expected 'cpu' or 'cuda'");
  require(direction == "forward" || direction == "backward", "kernels: direction '", direction, "', expected 'forward' or 'backward'");
  const DeviceType type = device == "cpu" ? DeviceType::kCpu : DeviceType::kCuda;
  std::vector<std::pair<std::string, std::string>> result;
  for (const KernelInfo& kernel : direction == "forward" ? forward_kernels(type) : backward_kernels(type)) {
    result.emplace_back(kernel.name, kernel.reason);
  }
  return result;
}

}  // namespace

void bind_attention(nb::module_& module) {
  module.def("forward", forward, nb::arg("arrays"), nb::arg("plan"), nb::arg("call"));
  module.def("backward", backward, nb::arg("arrays"), nb::arg("plan"), nb::arg("call"));
  module.def("merge", merge_into, nb::arg("into"), nb::arg("other"), nb::arg("layout"));
  module.def("kernels", kernels, nb::arg("device"), nb::arg("direction"));
}

}  // namespace slidetile::python
