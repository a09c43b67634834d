"""What a call costs the host, eager: python bench/host_time.py [--json FILE]

Microseconds a call while the device is behind: calls are queued and nothing waits for them. Attention as users call it beside PyTorch's own
in the same place, the difference (what it adds to a call), then its parts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import slidetile
import slidetile.torch as st

QUEUED = 50  # calls at a time: the device's queue takes all of them
WARM = 3  # rounds
CALLS = "", ", recording gradients", ", backward", ", forward and backward"
OURS = tuple("attention" + call for call in CALLS)
THEIRS = tuple("scaled_dot_product_attention" + call for call in CALLS)


class Empty(torch.autograd.Function):
    """What autograd itself costs around a function of Python."""

    @staticmethod
    def forward(ctx, q, k, v, out):
        ctx.save_for_backward(q, k, v)
        return out.view_as(out)

    @staticmethod
    def backward(ctx, dout):
        return *ctx.saved_tensors, None


def microseconds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians over rounds in which each has its turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(WARM + rounds):
        for name, function in functions.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(QUEUED):
                function()
            times[name].append((time.perf_counter() - start) / QUEUED)
    return {name: statistics.median(values[WARM:]) * 1e6 for name, values in times.items()}


def parts(canvas: str, heads: int) -> dict[str, Callable[[], object]]:
    plan = slidetile.sliding_tile_plan(canvas, "3x3x3")
    shape = (1, plan.query_tokens, heads, 128)
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    data, op = plan.tensor, torch.ops.slidetile
    out, lse = op.attention_forward(q, k, v, data, None, 0.0, "bshd", "")
    targets = [torch.empty_like(q) for _ in range(3)]
    call = (None, 0.0, "bshd", "")

    def ours(q, k, v):
        return st.attention(q, k, v, plan, layout="bshd")

    def theirs(q, k, v):  # as diffusers calls it
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    saved, saved_theirs, empty = ours(*inputs), theirs(*inputs), Empty.apply(*inputs, out)
    return {
        OURS[0]: lambda: ours(q, k, v),
        THEIRS[0]: lambda: theirs(q, k, v),
        OURS[1]: lambda: ours(*inputs),
        THEIRS[1]: lambda: theirs(*inputs),
        OURS[2]: lambda: torch.autograd.grad(saved, inputs, dout, retain_graph=True),
        THEIRS[2]: lambda: torch.autograd.grad(saved_theirs, inputs, dout, retain_graph=True),
        OURS[3]: lambda: torch.autograd.grad(ours(*inputs), inputs, dout),
        THEIRS[3]: lambda: torch.autograd.grad(theirs(*inputs), inputs, dout),
        "an empty function": lambda: Empty.apply(*inputs, out),
        "its backward, empty": lambda: torch.autograd.grad(empty, inputs, dout, retain_graph=True),
        "the operator, forward": lambda: op.attention_forward(q, k, v, data, None, 0.0, "bshd", ""),
        "the operator, backward": lambda: op.attention_backward(dout, q, k, v, out, lse, data, None, 0.0, "bshd", ""),
        "the extension, forward": lambda: st._call(st._core.forward, (q, k, v, out, lse), plan.core, call),
        "the extension, backward": lambda: st._call(st._core.backward, (q, k, v, out, lse, dout, *targets), plan.core, call),
        "results made, forward": lambda: (torch.empty_like(q), st._lse_like(q, "bshd")),
        "results made, backward": lambda: [torch.empty_like(x) for x in (q, k, v)],
        "plan found by its bytes": lambda: st._plan(data),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    parser.add_argument("--canvas", default="6x16x16", help="small, so that the device keeps up (default: 6x16x16)")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="of 50 calls each (default: 15)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    times = microseconds(parts(options.canvas, options.heads), options.rounds)
    added = {f"added{call}": times[ours] - times[theirs] for call, ours, theirs in zip(CALLS, OURS, THEIRS, strict=True)}
    for name, value in (times | added).items():
        print(f"{name:52} {value:8.1f} us")
    if options.json:
        stamp = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "canvas": options.canvas, "heads": options.heads}
        options.json.write_text(json.dumps(stamp | {"microseconds": times, "added_microseconds": added}, indent=1) + "\n")


if __name__ == "__main__":
    main()
