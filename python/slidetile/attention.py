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


class Kernel(NamedTuple):
    """A kernel of this build. ``reason`` says why this machine can't run it, and is empty if it can."""

    name: str
    reason: str


def kernels(device: Literal["cpu", "cuda"] = "cpu", direction: Literal["forward", "backward"] = "forward") -> list[Kernel]:
    """The kernels of this build for a kind of device, best first."""
    return [Kernel(*kernel) for kernel in _core.kernels(device, direction)]


def _describe(array: Any) -> Any:
    # numpy has no bfloat16 of its own; the one that jax brings (ml_dtypes) does not go through DLPack.
    if isinstance(array, np.ndarray) and array.dtype.name == "bfloat16":
        if not all(stride % 2 == 0 for stride in array.strides):
            raise ValueError("a bfloat16 array has strides that are no multiple of its element size")
        return array.ctypes.data, "bf16", -1, array.shape, tuple(stride // 2 for stride in array.strides)
    return array


def _empty_like(array: Any, shape: tuple[int, ...], float32: bool = False) -> Any:
    """A new array of the same library, on the same device."""
    if isinstance(array, np.ndarray):
        return np.empty(shape, np.float32 if float32 else array.dtype)
    library = type(array).__module__.partition(".")[0]
    module = sys.modules.get(library)
    if library in ("torch", "cupy") and module is not None:
        place = {"device": array.device} if library == "torch" else {}
        return module.empty(shape, dtype=module.float32 if float32 else array.dtype, **place)
    raise ValueError(f"out: arrays of {library} can't be made empty here; pass out= (and lse=) as writable arrays")


def _lse_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return (shape[0], shape[1], shape[2]) if layout == "bhsd" else (shape[0], shape[2], shape[1])


def _call(layout: Layout, scale: float | None, key_lengths: Any, kernel: str, stream: int) -> tuple:
    if key_lengths is not None and isinstance(key_lengths, (list, tuple)):
        key_lengths = np.asarray(key_lengths, dtype=np.int32)
    return layout, 0.0 if scale is None else float(scale), key_lengths, kernel, stream, None


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
    stream: int = 0,
) -> tuple[Any, Any]:
    """``softmax(scale q k^T) v`` over the pairs that the plan makes visible; returns ``(out, lse)``.

    q and out are [batch, heads, query tokens, head_dim], k and v [batch, heads, key tokens, head_dim] (``layout="bhsd"``), or with tokens
    before heads (``"bshd"``); float32, bfloat16 or float16, any strides with a contiguous last axis, head_dim 1 to 256. ``lse`` is the
    natural logarithm of the softmax's denominator, float32 [batch, heads, query tokens]. A row that sees no key gives 0 and -inf.

    ``scale`` is 1 / sqrt(head_dim) unless given. ``key_lengths``, int32 [batch] on q's device, says how many tokens of the sequence each
    batch item uses (only tokens after the canvas may be unused); rows past it give 0 and -inf. ``kernel`` names one of ``kernels()``, or
    "reference" for double-precision loops. ``out`` and ``lse`` are written where given. On CUDA give them, and ``stream`` as an integer;
    ``slidetile.torch`` does both for you.

    Raises ValueError for arrays that do not fit each other or the plan, NotImplementedError where no kernel can run the problem.
    """
    described = tuple(_describe(array) for array in (q, k, v))
    if out is None:
        out = _empty_like(q, tuple(q.shape))
    if lse is None and len(q.shape) == 4:
        lse = _empty_like(q, _lse_shape(tuple(q.shape), layout), float32=True)
    call = _call(layout, scale, key_lengths, kernel, stream)
    _core.forward((*described, _describe(out), lse), plan.core, call)
    return out, lse


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
    stream: int = 0,
) -> tuple[Any, Any, Any]:
    """Gradients ``(dq, dk, dv)`` of sum(out * dout), with ``out`` and ``lse`` from :func:`attention_forward` of the same arguments.

    Shapes, types and errors as there.
    """
    grads = tuple(_empty_like(array, tuple(array.shape)) for array in (q, k, v))
    arrays = (*(_describe(a) for a in (q, k, v, out)), lse, *(_describe(a) for a in (dout, *grads)))
    _core.backward(arrays, plan.core, _call(layout, scale, key_lengths, kernel, stream))
    return grads


def merge(out: Any, lse: Any, other_out: Any, other_lse: Any, *, layout: Layout = "bhsd") -> None:
    """Two results over disjoint keys of the same queries as one, into ``out`` and ``lse``. Arrays on the host."""
    _core.merge((_describe(out), lse), (_describe(other_out), other_lse), layout)
