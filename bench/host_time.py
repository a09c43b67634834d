"""What a call costs the host, eager: python bench/host_time.py [--json FILE]

Microseconds a call while the device is behind: calls are queued and nothing waits for them. Attention as users call it, then its parts,
then PyTorch's own attention beside it.
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
    described = tuple(st._describe(x) for x in (q, k, v, out, lse))
    targets = [torch.empty_like(q) for _ in range(3)]
    gradients = (*described, *(st._describe(x) for x in (dout, *targets)))
    room = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    call = ("bshd", 0.0, None, "", torch.cuda.current_stream().cuda_stream, lambda size: room.data_ptr())
    saved, empty = st.attention(*inputs, plan, layout="bshd"), Empty.apply(*inputs, out)
    swapped = [x.transpose(1, 2) for x in (q, k, v)]

    def with_gradients():
        torch.autograd.grad(st.attention(*inputs, plan, layout="bshd"), inputs, dout)

    return {
        "attention": lambda: st.attention(q, k, v, plan, layout="bshd"),
        "attention, recording gradients": lambda: st.attention(*inputs, plan, layout="bshd"),
        "its backward": lambda: torch.autograd.grad(saved, inputs, dout, retain_graph=True),
        "attention and its backward": with_gradients,
        "an empty function": lambda: Empty.apply(*inputs, out),
        "its backward, empty": lambda: torch.autograd.grad(empty, inputs, dout, retain_graph=True),
        "the operator, forward": lambda: op.attention_forward(q, k, v, data, None, 0.0, "bshd", ""),
        "the operator, backward": lambda: op.attention_backward(dout, q, k, v, out, lse, data, None, 0.0, "bshd", ""),
        "the extension, forward": lambda: st._core.forward(described, plan.core, call),
        "the extension, backward": lambda: st._core.backward(gradients, plan.core, call) or targets,
        "results made": lambda: (torch.empty_like(q), st._lse_like(q, "bshd")),
        "tensors described": lambda: tuple(st._describe(x) for x in (q, k, v, out, lse)),
        "plan found": lambda: st._plan(data),
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(*swapped),
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
    for name, value in times.items():
        print(f"{name:36} {value:8.1f} us")
    if options.json:
        stamp = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "canvas": options.canvas, "heads": options.heads}
        options.json.write_text(json.dumps(stamp | {"microseconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()
