"""Sliding tile attention as PyTorch operators: gradients, ``torch.compile``, autocast, checkpointing, CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from . import _core
from .attention import Layout, scale_number
from .plans import DEFAULT_TILE, Dim, Plan, _per_head, dim3

__all__ = ["attention", "merge", "sliding_tile_attention"]

_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int32: "i32", torch.uint8: "u8"}

_Options = tuple[Any, float, str, str]  # key_lengths, scale, layout, kernel

_library = torch.library.Library("slidetile", "DEF")
# A graph that torch.compile captures would hold the plan of its capture, whatever plan comes later: the operators run between such graphs.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)
_library.define(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor plan, Tensor? key_lengths, float scale, str layout, str kernel)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor plan, Tensor? key_lengths,"
    " float scale, str layout, str kernel) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def _describe(tensor: torch.Tensor) -> Any:
    """What the extension reads: cheaper than a DLPack capsule, and without its synchronisation of streams."""
    if _READS_TENSORS:
        return tensor
    index = tensor.get_device() if tensor.is_cuda else -1
    return tensor.data_ptr(), _NAMES.get(tensor.dtype, "other"), index, tensor.shape, tensor.stride()


# PyTorch 2.10 and later describe a tensor to C, and give memory there.
_READS_TENSORS = _core.use_tensor_type(torch.Tensor)


def _plan_tensor(data: np.ndarray) -> torch.Tensor:
    with torch.inference_mode(False):
        tensor = torch.from_numpy(data)
    # Compile for plans of any size at once: what torch._dynamo.maybe_mark_dynamic does.
    tensor._dynamo_weak_dynamic_indices = {0}  # type: ignore[attr-defined]
    return tensor


Plan._as_tensor = staticmethod(_plan_tensor)


def _stream_of(device: int) -> int:
    return torch.cuda.current_stream(device).cuda_stream


# The same number without an object around it, where this build of torch has it.
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_of)


def _plan(plan: torch.Tensor) -> _core.Plan:
    if not plan.is_cpu:
        raise ValueError(f"plan: a plan's bytes are on {plan.device}, expected the host: attention puts a copy on the GPU itself, once")
    return _core.plan_of(_describe(plan))


def _data(plan: Plan | torch.Tensor) -> torch.Tensor:
    if isinstance(plan, torch.Tensor):
        return plan
    return torch.from_numpy(plan.data) if plan.tensor is None else plan.tensor


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() == 0 or tensor.stride(-1) == 1 else tensor.contiguous()


def _lse_like(q: torch.Tensor, layout: str) -> torch.Tensor:
    heads, tokens = (1, 2) if layout == "bhsd" else (2, 1)
    return q.new_empty((q.shape[0], q.shape[heads], q.shape[tokens]), dtype=torch.float32)


def _call(function, arrays: tuple, plan: _core.Plan, options: _Options) -> None:
    """Runs a function of the extension on the device and the current stream of the tensors."""
    key_lengths, scale, layout, kernel = options
    q = arrays[0]
    stream, allocate, workspace = 0, None, []
    if not _READS_TENSORS:
        arrays = tuple(_describe(array) for array in arrays)
        key_lengths = None if key_lengths is None else _describe(key_lengths)

        def allocate(size: int) -> int:
            workspace.append(q.new_empty((size,), dtype=torch.uint8))
            return workspace[0].data_ptr()

    if q.is_cuda:
        stream = _current_stream(q.get_device())
    try:
        function(arrays, plan, (layout, scale, key_lengths, kernel, stream, allocate))  # the library makes q's device current itself
    except MemoryError as error:
        raise torch.OutOfMemoryError(str(error)) from error


def _require_rank(q: torch.Tensor) -> None:
    if q.dim() != 4:
        raise ValueError(f"q: {q.dim()} axes, expected 4 (batch, heads, tokens, head_dim in the order of layout)")


def _forward(q, k, v, plan, options, with_lse):
    _require_rank(q)
    q, k, v = _readable(q), _readable(k), _readable(v)
    out, lse = torch.empty_like(q), _lse_like(q, options[2]) if with_lse else None
    _call(_core.forward, (q, k, v, out, lse), plan, options)
    return out, lse


def _backward(dout, q, k, v, out, lse, plan, options):
    q, k, v, dout = _readable(q), _readable(k), _readable(v), _readable(dout)
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _call(_core.backward, (q, k, v, out, lse, dout, *grads), plan, options)
    return grads


def _forward_operator(q, k, v, plan, key_lengths, scale, layout, kernel):
    return _forward(q, k, v, _plan(plan), (key_lengths, scale, layout, kernel), True)


def _backward_operator(dout, q, k, v, out, lse, plan, key_lengths, scale, layout, kernel):
    return _backward(dout, q, k, v, _readable(out), lse, _plan(plan), (key_lengths, scale, layout, kernel))


for _device in ("CPU", "CUDA"):
    _library.impl("attention_forward", _forward_operator, _device)
    _library.impl("attention_backward", _backward_operator, _device)


@torch.library.register_fake("slidetile::attention_forward", lib=_library)
def _forward_fake(q, k, v, plan, key_lengths, scale, layout, kernel):
    _require_rank(q)
    q = _readable(q)
    return torch.empty_like(q), _lse_like(q, layout)


@torch.library.register_fake("slidetile::attention_backward", lib=_library)
def _backward_fake(dout, q, k, v, out, lse, plan, key_lengths, scale, layout, kernel):
    return torch.empty_like(_readable(q)), torch.empty_like(_readable(k)), torch.empty_like(_readable(v))


def _backward_kernel(forward_kernel: str) -> str:
    """A forward kernel's name means nothing to the backward pass, unless it is the loops that both have."""
    return "reference" if forward_kernel == "reference" else ""


def _setup_context(ctx, inputs, output):
    q, k, v, plan, key_lengths, ctx.scale, ctx.layout, kernel = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, plan, key_lengths)
    ctx.mark_non_differentiable(lse)
    ctx.kernel = _backward_kernel(kernel)


def _differentiate(ctx, dout, _):
    q, k, v, out, lse, plan, key_lengths = ctx.saved_tensors
    grads = torch.ops.slidetile.attention_backward(dout, q, k, v, out, lse, plan, key_lengths, ctx.scale, ctx.layout, ctx.kernel)
    return *grads, None, None, None, None, None


class _Direct(torch.autograd.Function):
    """The operators' autograd without the dispatcher between."""

    @staticmethod
    def forward(ctx, q, k, v, plan, options, with_lse):
        out, lse = _forward(q, k, v, plan.core, options, True)
        ctx.save_for_backward(q, k, v, out, lse, options[0])
        ctx.plan, ctx.options = plan, options
        ctx.set_materialize_grads(False)  # lse's would be a tensor of zeros, filled at each call
        if not with_lse:
            return out
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, dout, _=None):
        q, k, v, out, lse, key_lengths = ctx.saved_tensors
        _, scale, layout, kernel = ctx.options
        kernel = _backward_kernel(kernel)
        if torch.is_grad_enabled() or not _plain(dout):  # create_graph: the operator says no to second derivatives when they are asked for
            data = _data(ctx.plan)
            grads = torch.ops.slidetile.attention_backward(dout, q, k, v, out, lse, data, key_lengths, scale, layout, kernel)
        else:
            grads = _backward(dout, q, k, v, out, lse, ctx.plan.core, (key_lengths, scale, layout, kernel))
        return *grads, None, None, None


def _as_lengths(key_lengths: Any, device: torch.device) -> torch.Tensor:
    lengths = torch.as_tensor(key_lengths, device=device)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"key_lengths: {lengths.dtype}, expected integers")
    return lengths.to(torch.int32).contiguous()


_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def _plain(*tensors: torch.Tensor) -> bool:
    """Nobody but the CPU or GPU would see these tensors' operators: no mode, transform, tracer or subclass."""
    for tensor in tensors:
        if not (type(tensor) in _PLAIN_TYPES and (tensor.is_cuda or tensor.is_cpu)):
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _refuse_second(ctx, *_):
    raise NotImplementedError("slidetile has no second derivatives: attention_backward can't be differentiated")


torch.library.register_autograd("slidetile::attention_forward", _differentiate, setup_context=_setup_context, lib=_library)
torch.library.register_autograd("slidetile::attention_backward", _refuse_second, lib=_library)


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan | torch.Tensor,
    scale: float | None = ...,
    key_lengths: torch.Tensor | Sequence[int] | None = ...,
    *,
    layout: Layout = ...,
    return_lse: Literal[False] = ...,
    kernel: str = ...,
) -> torch.Tensor: ...


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan | torch.Tensor,
    scale: float | None = ...,
    key_lengths: torch.Tensor | Sequence[int] | None = ...,
    *,
    layout: Layout = ...,
    return_lse: Literal[True],
    kernel: str = ...,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan | torch.Tensor,
    scale: float | None = None,
    key_lengths: torch.Tensor | Sequence[int] | None = None,
    *,
    layout: Layout = "bhsd",
    return_lse: bool = False,
    kernel: str = "",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """``softmax(scale q k^T) v`` over the pairs that ``plan`` makes visible, with gradients for q, k and v.

    q is [batch, heads, query tokens, head_dim], k and v [batch, heads, key tokens, head_dim], or with ``layout="bshd"`` tokens before
    heads, as diffusers keeps them; float32, bfloat16 or float16, one device, any strides. The result is like q. Tokens are in the order
    that the plan describes: raster order on the canvas, extra tokens around it.

    ``scale`` is 1 / sqrt(head_dim) unless given. ``key_lengths`` (int32 [batch]): the tokens of the sequence that each batch item uses,
    where the last ones are padding; rows past it are 0 and give no gradient. ``return_lse`` also gives the natural logarithm of the
    softmax's denominator, float32 [batch, heads, tokens]; no gradient flows through it. ``kernel`` names one of ``slidetile.kernels()``.

    Under autocast q, k and v are cast to its type. On CUDA the work goes to the current stream, and the plan is copied there at its first
    call: make one before you capture a CUDA graph.

    Raises ValueError for tensors that do not fit each other or the plan, NotImplementedError where no kernel can run the problem and for
    second derivatives.
    """
    if not isinstance(plan, (Plan, torch.Tensor)):
        raise TypeError(f"plan: a {type(plan).__name__}, expected slidetile.Plan")
    if not (isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor)):
        raise TypeError(f"q, k, v: {type(q).__name__}, {type(k).__name__}, {type(v).__name__}, expected torch.Tensor")
    device_type = q.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if key_lengths is not None:
        key_lengths = _as_lengths(key_lengths, q.device)
    options = key_lengths, scale_number(scale), layout, kernel
    if torch.compiler.is_compiling() or not isinstance(plan, Plan) or not _plain(q, k, v):
        if not q.device == k.device == v.device:
            raise ValueError(f"q, k, v: on {q.device}, {k.device}, {v.device}, expected one device")
        out, lse = torch.ops.slidetile.attention_forward(q, k, v, _data(plan), *options)
    elif not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)):
        out, lse = _forward(q, k, v, plan.core, options, return_lse)
    elif return_lse:
        out, lse = _Direct.apply(q, k, v, plan, options, True)
    else:
        return _Direct.apply(q, k, v, plan, options, False)
    return (out, lse) if return_lse else out


def merge(
    out: torch.Tensor, lse: torch.Tensor, other_out: torch.Tensor, other_lse: torch.Tensor, *, layout: Layout = "bhsd"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two results over disjoint keys of the same queries as one, ``(out, lse)``, on any device; gradients flow to all four.

    ``lse`` is float32 [batch, heads, tokens] as :func:`attention` returns it. Raises ValueError for tensors that do not fit each other.
    """
    heads, tokens = (1, 2) if layout == "bhsd" else (2, 1)
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout: '{layout}', expected 'bhsd' or 'bshd'")
    if out.dim() != 4 or other_out.shape != out.shape:
        raise ValueError(f"merge: out is {tuple(out.shape)} and {tuple(other_out.shape)}, expected the same four axes")
    rows = out.shape[0], out.shape[heads], out.shape[tokens]
    if lse.shape != rows or other_lse.shape != rows:
        raise ValueError(f"merge: lse is {tuple(lse.shape)} and {tuple(other_lse.shape)}, expected {rows} (batch, heads, tokens)")
    both = torch.stack((lse.float(), other_lse.float()))
    largest = both.detach().amax(0)
    weights = (both - largest.where(largest > -torch.inf, 0)).exp()
    total = weights.sum(0)
    shares = weights / total.where(total > 0, 1)  # neither saw a key: out stays 0
    if layout == "bshd":
        shares = shares.transpose(2, 3)
    merged = shares[0].unsqueeze(-1) * out + shares[1].unsqueeze(-1) * other_out
    return merged.to(out.dtype), largest + total.log()


@functools.lru_cache(maxsize=128)
def _tile_order_plan(canvas: str, windows: tuple, text: tuple[int, int]) -> Plan:
    extent = dim3(canvas)
    tile = tuple(min(axis, tokens) for axis, tokens in zip(DEFAULT_TILE, extent, strict=True))
    return Plan(_core.sliding_tile_plan_in_tile_order(extent, tile, _per_head(windows, "window_size"), text))


@torch.compiler.assume_constant_result
def _tile_order_bytes(canvas: str, windows: tuple, text: tuple[int, int]) -> torch.Tensor:
    return _data(_tile_order_plan(canvas, windows, text))


def sliding_tile_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: Dim | Sequence[Dim],
    text_length: int,
    has_text: bool = True,
    seq_shape: str = "30x48x80",
) -> torch.Tensor:
    """In place of the function of the same name in the published kernel's package: same arguments, same layout, with gradients.

    q, k and v are [batch, heads, tokens, head_dim]: the tokens of the canvas ``seq_shape`` tile by tile (tiles of 6x8x8, in raster order),
    then, with ``has_text``, text of which the first ``text_length`` tokens are real. ``window_size`` holds one window in tiles for each
    head. Video sees its window and the real text, text sees all video and the real text.

    Any canvas, head size, data type and text length works. At the border of a canvas that 6x8x8 does not divide, a tile holds the tokens
    that are there. An even window of w tiles reads w tiles. New code is better off with :func:`attention`, which takes tokens in raster
    order and needs no tiling passes.

    Raises ValueError for tokens that do not match ``seq_shape`` and ``text_length``.
    """
    extents = [int(axis) if axis.isdecimal() else 0 for axis in seq_shape.split("x")]
    if len(extents) != 3 or min(extents) < 1:
        raise ValueError(f"seq_shape is '{seq_shape}', expected three extents such as '30x48x80'")
    canvas, tokens = extents[0] * extents[1] * extents[2], q.shape[2]
    text = tokens - canvas
    if not has_text:
        text_length = 0
    if text < 0 or (text > 0 and not has_text):
        raise ValueError(f"q has {tokens} tokens, expected {canvas} for seq_shape {seq_shape}{' and text' if has_text else ''}")
    if not 0 <= text_length <= text:
        raise ValueError(f"text_length is {text_length}, expected 0 to {text}: q has {tokens} tokens, seq_shape {seq_shape} has {canvas}")
    if isinstance(window_size, (str, int)):
        windows: tuple[Any, ...] = (window_size,)
    elif all(isinstance(axis, int) for axis in window_size):
        windows = (tuple(window_size),)
    else:
        windows = tuple(window if isinstance(window, (str, int)) else tuple(window) for window in window_size)
    plan = (_tile_order_bytes if torch.compiler.is_compiling() else _tile_order_plan)(seq_shape, windows, (text, int(text_length)))
    keys = canvas + int(text_length)
    return attention(q, k[:, :, :keys], v[:, :, :keys], plan)
