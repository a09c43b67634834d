"""How fast the kernels are here: every result is checked before it is timed."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from . import _core
from .attention import _SHORT, kernels
from .plans import Plan

DTypeName = Literal["float32", "bfloat16", "float16"]

# Rounding of the results, then of what happens between them, relative to the norm.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
_TOLERANCE_ON_CUDA = _TOLERANCE | {"float32": 2e-3}  # its f32 products may be tf32
_WARM = 0.2  # of the time
_WARM_CALLS, _CALLS = 25, 40  # back to back on a GPU, where that fits into a quarter of the time each; all of it twice


class BenchRow(NamedTuple):
    """One kernel on one problem. ``reason`` says why it could not run it, and is empty if it did."""

    kernel: str
    direction: str
    milliseconds: float
    """Median of a call."""
    flops_per_second: float
    """4 x pairs x head_dim forward, 10 x pairs x head_dim backward, by the median time."""
    relative_error: float
    """||result - exact|| / ||exact|| in double precision, on sampled tokens; the worst of dq, dk and dv for gradients."""
    reason: str


def bench(
    plan: Plan,
    *,
    heads: int = 1,
    head_dim: int = 128,
    dtype: DTypeName = "float32",
    device: Literal["cpu", "cuda"] = "cpu",
    directions: Sequence[Literal["forward", "backward"]] = ("forward", "backward"),
    seconds: float = 0.5,
) -> list[BenchRow]:
    """Times every kernel of this build for ``device`` on one batch item of random numbers, best kernel first.

    ``plan`` and ``heads`` x ``head_dim`` are the problem, ``seconds`` what each kernel may take once its result was found right. "cuda"
    needs torch; calls are timed back to back there, so a problem smaller than what a call costs the host shows the host's time. That is
    how the program's ``slidetile bench`` does it, which also measures the machine's own peak beside the kernels.

    Raises ValueError for arguments that do not fit, RuntimeError for a wrong result.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}, expected 'cpu' or 'cuda'")
    if dtype not in _SHORT:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(_SHORT)}")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}, expected more than 0")
    problem = _Problem(plan, (heads, head_dim), dtype)
    run = _CudaRun(problem) if device == "cuda" else _Run(problem)
    tolerance = (_TOLERANCE_ON_CUDA if device == "cuda" else _TOLERANCE)[dtype]
    rows = []
    run.call("forward", "")  # what the gradients start from
    for direction in directions:
        flops = (plan.forward_flops if direction == "forward" else plan.backward_flops)(head_dim, heads)
        for name, reason in kernels(device, direction):
            if not reason:
                try:
                    run.call(direction, name)
                except NotImplementedError as refusal:
                    reason = str(refusal)
            if reason:
                rows.append(BenchRow(name, direction, float("nan"), float("nan"), float("nan"), reason))
                continue
            error = problem.error(direction, run)
            if not error < tolerance:
                raise RuntimeError(f"{name}, {direction}: relative error {error:.2e}, expected less than {tolerance:.0e}")
            median = statistics.median(run.times(run.bound(direction, name), seconds))
            rows.append(BenchRow(name, direction, median * 1e3, flops / median, error, ""))
    return rows


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 numbers as their type stores them: bfloat16 as uint16."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _as_double(stored: np.ndarray) -> np.ndarray:
    if stored.dtype == np.uint16:
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


class _Problem:
    """Tensors [heads, tokens, head_dim] by name, and exact results at sampled tokens."""

    def __init__(self, plan: Plan, shape: tuple[int, int], dtype: str):
        (heads, head_dim), rng = shape, np.random.default_rng(0)
        if plan.heads not in (1, heads):
            raise ValueError(f"heads is {heads}, the plan has {plan.heads}")
        tokens = {"q": plan.query_tokens, "k": plan.key_tokens, "v": plan.key_tokens, "dout": plan.query_tokens}
        self.plan, self.dtype, self.scale = plan, dtype, head_dim**-0.5
        self.inputs = {name: _rounded(rng.standard_normal((heads, n, head_dim), dtype=np.float32), dtype) for name, n in tokens.items()}
        self.samples = [(int(rng.integers(heads)), int(rng.integers(n))) for n in 4 * [min(plan.query_tokens, plan.key_tokens)]]

    def at(self, name: str, head: int, tokens: Any) -> np.ndarray:
        return _as_double(self.inputs[name][head, tokens])

    def exact(self, direction: str, sample: tuple[int, int], run: _Run) -> dict[str, np.ndarray]:
        """What the row of one token must be. dk and dv take the softmax's denominators and results from the forward that ran before."""
        head, token = sample
        plan_head = head if self.plan.heads > 1 else 0
        keys = self.plan.keys(token, plan_head)
        k, v = self.at("k", head, keys), self.at("v", head, keys)
        scores = k @ self.at("q", head, token) * self.scale
        weights = np.exp(scores - scores.max(initial=-np.inf))
        weights /= max(weights.sum(), np.finfo(float).tiny)
        out = weights @ v
        if direction == "forward":
            return {"out": out}
        dq = (weights * ((v - out) @ self.at("dout", head, token)) * self.scale) @ k
        queries = self.plan.transpose().keys(token, plan_head)
        q, dout = self.at("q", head, queries), self.at("dout", head, queries)
        p = np.exp(q @ self.at("k", head, token) * self.scale - run.rows("lse", head, queries))
        slopes = p * (dout @ self.at("v", head, token) - (run.rows("out", head, queries) * dout).sum(-1))
        return {"dq": dq, "dk": slopes @ q * self.scale, "dv": p @ dout}

    def error(self, direction: str, run: _Run) -> float:
        """Of the call that ran last."""
        wrong, right = np.zeros(3), np.zeros(3)
        for sample in self.samples:
            for index, (name, want) in enumerate(self.exact(direction, sample, run).items()):
                wrong[index] += ((run.rows(name, *sample) - want) ** 2).sum()
                right[index] += (want**2).sum()
        return float(np.sqrt(np.divide(wrong, right, out=np.zeros(3), where=right > 0)).max())


class _Run:
    """Tensors [1, heads, tokens, head_dim] of a problem where the kernels read and write them."""

    def __init__(self, problem: _Problem):
        self.plan = problem.plan
        like = {"out": "q", "dq": "q", "dk": "k", "dv": "v"}
        self.arrays = {name: self.place(values[None]) for name, values in problem.inputs.items()}
        self.arrays |= {name: self.place(np.zeros_like(problem.inputs[other])[None]) for name, other in like.items()}
        heads, tokens, _ = problem.inputs["q"].shape
        self.arrays["lse"] = self.place(np.zeros((1, heads, tokens), np.float32))
        self.described = {
            name: self.describe(array, "f32" if name == "lse" else _SHORT[problem.dtype]) for name, array in self.arrays.items()
        }

    def bound(self, direction: str, kernel: str) -> Callable[[], None]:
        """A call with all that it passes made before: what it costs beyond the library's own function is a microsecond."""
        if direction == "forward":
            names, function = "q k v out lse", _core.forward
        else:
            names, function = "q k v out lse dout dq dk dv", _core.backward
        arrays = tuple(self.described[name] for name in names.split())
        return functools.partial(function, arrays, self.plan.core, ("bhsd", 0.0, None, kernel, *self.queue()))

    def call(self, direction: str, kernel: str) -> None:
        self.bound(direction, kernel)()

    def place(self, values: np.ndarray) -> Any:
        return values

    def describe(self, array: Any, dtype: str) -> tuple:
        return array.ctypes.data, dtype, -1, array.shape, tuple(stride // array.itemsize for stride in array.strides)

    def queue(self) -> tuple[int, Any]:
        return 0, None

    def rows(self, name: str, head: int, tokens: Any) -> np.ndarray:
        return _as_double(self.arrays[name][0, head, tokens])

    def times(self, call: Callable[[], None], seconds: float) -> list[float]:
        """Seconds a call, several times over."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < _WARM * seconds:
            call()
        times: list[float] = []
        while not times or time.perf_counter() - begin < seconds:
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        return times


class _CudaRun(_Run):
    """On the current GPU and stream, in torch's memory."""

    def __init__(self, problem: _Problem):
        import torch

        self.torch = torch
        self.workspace: Any = None
        super().__init__(problem)

    def place(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values).cuda()

    def describe(self, array: Any, dtype: str) -> tuple:
        return array.data_ptr(), dtype, array.get_device(), array.shape, array.stride()

    def queue(self) -> tuple[int, Any]:
        return self.torch.cuda.current_stream().cuda_stream, self.allocate

    def allocate(self, size: int) -> int:
        if self.workspace is None or self.workspace.numel() < size:
            self.workspace = self.torch.empty(size, dtype=self.torch.uint8, device="cuda")
        return self.workspace.data_ptr()

    def rows(self, name: str, head: int, tokens: Any) -> np.ndarray:
        rows = self.arrays[name][0, head, self.torch.as_tensor(tokens, device="cuda").long()].cpu().numpy()
        return _as_double(rows.view(np.uint16) if rows.dtype == np.int16 else rows)

    def times(self, call: Callable[[], None], seconds: float) -> list[float]:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))

        def timed(calls: int) -> float:
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3 / calls

        one = timed(2)
        warm, calls = (max(1, min(most, int(seconds / 4 / one))) for most in (_WARM_CALLS, _CALLS))
        times = []
        for _ in range(2):
            timed(warm)
            times.append(timed(calls))
        return times
