"""Attention over a plan for any array that has DLPack: numpy, torch, jax, cupy. Nothing is copied."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from . import _core
from .plans import Plan

Layout = Literal["bhsd", "bshd"]
"""Order of an array's axes: b batch, h heads, s tokens, d head_dim."""


_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Kernel(NamedTuple):
    """A kernel of this build. ``reason`` says why this machine can't run it, and is empty if it can."""

    name: str
    reason: str


def kernels(device: Literal["cpu", "cuda"] = "cpu", direction: Literal["forward", "backward"] = "forward") -> list[Kernel]:
    """The kernels of this build for a kind of device, best first."""
    return [Kernel(*kernel) for kernel in _core.kernels(device, direction)]


def _torch_of(array: Any) -> Any:
    """torch, if the array is one of its tensors."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else None


def _describe(array: Any) -> Any:
    if (torch := _torch_of(array)) is not None:
        if array.requires_grad and torch.is_grad_enabled():
            raise ValueError("a tensor requires grad, and nothing is recorded here: use slidetile.torch.attention, or detach it")
        from .torch import _describe as describe_tensor

        return describe_tensor(array)
    if _is_jax(array):
        if isinstance(array, sys.modules["jax"].core.Tracer):
            raise ValueError("an array that jax traces has no memory: call this outside jit and grad, or through jax.pure_callback")
        array.block_until_ready()
    if not hasattr(array, "__dlpack__"):
        raise TypeError(f"a {type(array).__name__}, expected an array that has DLPack (of numpy, torch, jax, cupy, ...)")
    # numpy has no bfloat16 of its own; the one that jax brings (ml_dtypes) does not go through DLPack.
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
        if not all(stride % 2 == 0 for stride in array.strides):
            raise ValueError("a bfloat16 array has strides that are no multiple of its element size")
        return array.ctypes.data, "bf16", -1, array.shape, tuple(stride // 2 for stride in array.strides)
    return array


def _is_jax(array: Any) -> bool:
    return "jax" in sys.modules and isinstance(array, sys.modules["jax"].Array)


def _writable(array: Any, name: str) -> Any:
    if _is_jax(array):
        raise ValueError(f"{name}: an array of jax is read-only, expected a writable array")
    return _describe(array)


def _finished(array: Any, like: Any) -> Any:
    """An array of ``_empty_like`` once it is written: jax's are never written again."""
    return sys.modules["jax"].numpy.from_dlpack(array) if _is_jax(like) else array


def _empty_like(array: Any, shape: tuple[int, ...], float32: bool = False) -> Any:
    """A new array of the same library, on the same device: for jax, the memory of one."""
    if isinstance(array, np.ndarray):
        return np.empty(shape, np.float32 if float32 else array.dtype)
    library = type(array).__module__.partition(".")[0]
    module = sys.modules.get(library)
    if library in ("torch", "cupy") and module is not None:
        place = {"device": array.device} if library == "torch" else {}
        return module.empty(shape, dtype=module.float32 if float32 else array.dtype, **place)
    if _is_jax(array) and array.dtype.name in _SHORT and all(device.platform == "cpu" for device in array.devices()):
        return _core.host_array(shape, "f32" if float32 else _SHORT[array.dtype.name])
    if _is_jax(array):
        raise ValueError(
            f"out: {array.dtype.name} arrays of jax on {array.device} can't be made here; on a GPU pass torch.from_dlpack(array)"
        )
    raise ValueError(f"out: arrays of {library} can't be made empty here; pass out= (and lse=) as writable arrays")


def _queue(array: Any, stream: int | None) -> tuple[int, Any]:
    """``(stream, allocate)`` of a call: the library's current stream unless one is given, and its memory for the kernel's workspace."""
    library = type(array).__module__.partition(".")[0]
    held = []
    if (torch := _torch_of(array)) is not None and array.is_cuda:
        number = torch.cuda.current_stream(array.device).cuda_stream if stream is None else stream

        def from_torch(size: int) -> int:
            with torch.cuda.stream(torch.cuda.ExternalStream(number, device=array.device)):
                held.append(torch.empty(size, dtype=torch.uint8, device=array.device))
            return held[0].data_ptr()

        return number, from_torch
    if library == "cupy":
        cupy = sys.modules["cupy"]
        number = cupy.cuda.get_current_stream().ptr if stream is None else stream

        def from_cupy(size: int) -> int:
            with cupy.cuda.ExternalStream(number):
                held.append(cupy.empty(size, dtype=cupy.uint8))
            return held[0].data.ptr

        return number, from_cupy
    return stream or 0, None


def _lse_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return (shape[0], shape[1], shape[2]) if layout == "bhsd" else (shape[0], shape[2], shape[1])


def _core_of(plan: Plan) -> _core.Plan:
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: a {type(plan).__name__}, expected slidetile.Plan")
    return plan.core


def scale_number(scale: float | None) -> float:
    """The scale as the library takes it: there 0 stands for 1 / sqrt(head_dim), so nobody else may say 0."""
    if scale is None:
        return 0.0
    if -1e-38 < scale < 1e-38:
        raise ValueError(f"scale is {scale}, expected a number of float32 other than 0, or None for 1 / sqrt(head_dim)")
    return float(scale)


def _call(layout: Layout, scale: float | None, key_lengths: Any, kernel: str, queue: tuple[int, Any]) -> tuple:
    if key_lengths is not None and isinstance(key_lengths, (list, tuple)):
        key_lengths = np.asarray(key_lengths, dtype=np.int32)
    lengths = None if key_lengths is None else _describe(key_lengths)
    return layout, scale_number(scale), lengths, kernel, *queue


def attention_forward(
    q: Any,
    k: Any,
    v: Any,
    plan: Plan,
    *,
    scale: float | None = None,
    key_lengths: Sequence[int] | Any | None = None,
    layout: Layout = "bhsd",
    kernel: str = "",
    out: Any = None,
    lse: Any = None,
    stream: int | None = None,
) -> tuple[Any, Any]:
    """``softmax(scale q k^T) v`` over the pairs that the plan makes visible; returns ``(out, lse)``.

    q and out are [batch, heads, query tokens, head_dim], k and v [batch, heads, key tokens, head_dim] (``layout="bhsd"``), or with tokens
    before heads (``"bshd"``); float32, bfloat16 or float16, any strides with a contiguous last axis, head_dim 1 to 256. ``lse`` is the
    natural logarithm of the softmax's denominator, float32 [batch, heads, query tokens]. A row that sees no key gives 0 and -inf.

    ``scale`` is 1 / sqrt(head_dim) unless given. ``key_lengths``, int32 [batch] on q's device, says how many tokens of the sequence each
    batch item uses (only tokens after the canvas may be unused); rows past it give 0 and -inf. ``kernel`` names one of ``kernels()``, or
    "reference" for double-precision loops. ``out`` and ``lse`` are written where given; arrays of libraries other than numpy, torch, cupy
    and (on the host) jax need them. On CUDA, arrays of torch and cupy use the current stream, or the one whose handle is given as
    ``stream``. Gradients are not recorded: ``slidetile.torch`` does that.

    Raises ValueError for arrays that do not fit each other or the plan, NotImplementedError where no kernel can run the problem.
    """
    described = tuple(_describe(array) for array in (q, k, v))
    to_out = _empty_like(q, tuple(q.shape)) if out is None else out
    to_lse = _empty_like(q, _lse_shape(tuple(q.shape), layout), float32=True) if lse is None and len(q.shape) == 4 else lse
    call = _call(layout, scale, key_lengths, kernel, _queue(q, stream))
    targets = _writable(to_out, "out"), None if to_lse is None else _writable(to_lse, "lse")
    _core.forward((*described, *targets), _core_of(plan), call)
    return _finished(to_out, q) if out is None else out, _finished(to_lse, q) if lse is None else lse


def attention_backward(
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    plan: Plan,
    *,
    scale: float | None = None,
    key_lengths: Sequence[int] | Any | None = None,
    layout: Layout = "bhsd",
    kernel: str = "",
    stream: int | None = None,
) -> tuple[Any, Any, Any]:
    """Gradients ``(dq, dk, dv)`` of sum(out * dout), with ``out`` and ``lse`` from :func:`attention_forward` of the same arguments.

    Shapes, types and errors as there.
    """
    grads = tuple(_empty_like(array, tuple(array.shape)) for array in (q, k, v))
    arrays = tuple(_describe(array) for array in (q, k, v, out, lse, dout, *grads))
    _core.backward(arrays, _core_of(plan), _call(layout, scale, key_lengths, kernel, _queue(q, stream)))
    dq, dk, dv = (_finished(grad, array) for grad, array in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def merge(out: Any, lse: Any, other_out: Any, other_lse: Any, *, layout: Layout = "bhsd") -> None:
    """Two results over disjoint keys of the same queries as one, into ``out`` and ``lse``: arrays on the host, or tensors of torch.

    Raises ValueError for arrays that do not fit each other.
    """
    if _torch_of(out) is not None and out.is_cuda:
        from .torch import merge as merged

        for target, result in zip((out, lse), merged(out, lse, other_out, other_lse, layout=layout), strict=True):
            target.copy_(result)
        return
    into, other = (_writable(out, "out"), _writable(lse, "lse")), (_describe(other_out), _describe(other_lse))
    _core.merge(into, other, layout)
