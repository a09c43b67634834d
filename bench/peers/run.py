"""Times this library beside its peers on the same tensors: python bench/peers/run.py [--json FILE] [--case NAME] [--backward]

Every result is checked against double precision on sampled rows before it is timed. Steady state: 25 warm launches back to back, then 40
(fewer for long ones) timed together, twice, with the 8192^3 matrix product of the same type before each. Permutes that a peer needs are its
time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from problem import Case, Problem  # noqa: E402

PEERS = [
    "slidetile_peer", "slidetile_dense", "flex_attention", "sdpa_cudnn", "sdpa_flash", "sdpa_default", "flash_attention4", "sta_kernel",
    "natten_peer",
]  # fmt: skip

CASES = [
    Problem("canvas 30x48x80, 3x3x3"),
    Problem("canvas 30x48x80, 5x5x5", window=(5, 5, 5)),
    Problem("3x3x3 with text", text=256),
    Problem("wan 69 frames 3x3x3", canvas=(18, 48, 80), heads=40),
    Problem("hunyuan 720p with text", canvas=(33, 45, 80), text=256),
    Problem("wan 480p", canvas=(21, 30, 52), heads=12),
    Problem("tile 4x4x4 5x5x5", canvas=(32, 48, 80), tile=(4, 4, 4), window=(5, 5, 5)),
]
SMALL = [
    Problem("small", canvas=(6, 16, 24), window=(1, 1, 3), tile=(6, 8, 8), heads=2, head_dim=64, dtype=torch.float32, device="cpu"),
    Problem("small with text", canvas=(7, 9, 17), window=(1, 1, 1), text=20, heads=1, head_dim=64, dtype=torch.float32, device="cpu"),
]


def measure(function, device: str, seconds: float) -> float:
    """Seconds a call in steady state."""
    if device == "cpu":
        function()
        start, count = time.perf_counter(), 0
        while count < 40 and time.perf_counter() - start < seconds:
            function()
            count += 1
        return (time.perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timed(count: int) -> float:
        begin.record()
        for _ in range(count):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count

    function()
    once = max(timed(1), 1e-6)
    warm, count = (min(n, int(seconds / once)) for n in (25, 40))
    for _ in range(warm):
        function()
    return timed(max(count, 1))


class Matmul:
    """The machine's own rate, measured beside each peer."""

    def __init__(self, problem: Problem, seconds: float):
        self.seconds = seconds
        n = 8192 if problem.device == "cuda" else 512
        self.flops, self.device = 2.0 * n**3, problem.device
        self.a, self.b = (torch.randn(n, n, device=problem.device, dtype=problem.dtype) for _ in range(2))

    def rate(self) -> float:
        return self.flops / measure(lambda: self.a @ self.b, self.device, self.seconds)


def run_case(problem: Problem, peers: list[str], backward: bool, seconds: float) -> Iterator[dict]:
    matmul = Matmul(problem, seconds / 2)
    for name in peers:
        peer = importlib.import_module(name)
        row = {"case": problem.name, "peer": peer.NAME, "direction": "backward" if backward else "forward"}
        try:
            reason = peer.why_not(problem)
            case: Case | None = None if reason else peer.prepare(problem)
            if case is not None and backward and case.backward is None:
                reason = "no backward here"
            if reason:
                row["skipped"] = reason
                yield row
                continue
            error = problem.check_gradients(case.backward(), case.dense) if backward else problem.check(case.forward(), case.dense)
            row["relative_error"] = error
            if not error < case.tolerance * (2 if backward else 1):
                row["failed"] = f"relative error {error:.2e}"
                yield row
                continue
            plan = problem.dense_plan if case.dense else problem.plan
            count = plan.backward_flops if backward else plan.forward_flops
            flops = count(problem.head_dim, problem.heads)
            times, rates = [], []
            for _ in range(2):
                rates.append(matmul.rate())
                times.append(measure(case.backward if backward else case.forward, problem.device, seconds))
            best, rate = min(times), sum(rates) / 2
            row |= {"ms": [t * 1e3 for t in times], "flops_per_s": flops / best, "matmul_flops_per_s": rate,
                    "of_matmul": flops / best / rate}  # fmt: skip
        except Exception as error:  # a peer that fails is a row of the table, not the end of it
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        if problem.device == "cuda":
            torch.cuda.empty_cache()
        yield row


def show(row: dict) -> None:
    head = f"{row['case']:24} {row['peer']:30} {row['direction']:9}"
    if "ms" in row:
        rates = f"{row['flops_per_s'] / 1e12:8.2f} TFLOP/s {row['of_matmul']:6.3f} of matmul"
        print(f"{head} {min(row['ms']):9.3f} ms {rates}   error {row['relative_error']:.1e}", flush=True)
    else:
        print(f"{head} {'FAILED ' + row['failed'] if 'failed' in row else '- ' + row['skipped']}", flush=True)


def stamp() -> dict:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent).stdout.strip()
    except OSError:
        commit = ""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "torch": torch.__version__, "commit": commit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; may be repeated")
    parser.add_argument("--peer", action="append", choices=PEERS, help="only these peers; may be repeated")
    parser.add_argument("--backward", action="store_true", help="gradients too")
    parser.add_argument("--seconds", type=float, default=1.5, help="for one timing (default: 1.5)")
    parser.add_argument("--smoke", action="store_true", help="small problems on the CPU: does it all run?")
    options = parser.parse_args()
    cases = SMALL if options.smoke else CASES
    if options.case:
        cases = [case for case in cases if any(part in case.name for part in options.case)]
    if not options.smoke and not torch.cuda.is_available():
        parser.error("needs a GPU; --smoke runs small problems without one")
    rows = []
    for problem in cases:
        for backward in (False, True) if options.backward else (False,):
            for row in run_case(problem, options.peer or PEERS, backward, options.seconds):
                show(row)
                rows.append(row)
                if options.json:
                    options.json.write_text(json.dumps(stamp() | {"rows": rows}, indent=1))
        for name in ("tensors", "order", "inverse"):
            problem.__dict__.pop(name, None)  # free the memory of this case
    sys.exit(1 if options.smoke and any("failed" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
