#!/usr/bin/env python3
"""Writes the GPU tables of README.md and docs/benchmarks.md from bench/results/gpu_check_h100.json: tools/make_gpu_tables.py [--check]

The text between the markers of each file is replaced; with --check nothing is written and a difference is an error.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "gpu_check_h100.json"
BEGIN, END = "<!-- gpu rows: begin -->\n", "<!-- gpu rows: end -->\n"

# What others take on such a card, ms and of that run's product: bench/peers/run.py, and "alone" without the permutes that they need.
README_ROWS = [
    ("333", "cuda.sm90", "30x48x80, window 3x3x3", "FlashAttention-4 block-sparse: 26.6 (0.77), alone 22.9 (0.94); FlexAttention: 42.1 (0.51)"),
    ("555", "cuda.sm90", "window 5x5x5", "FlashAttention-4: 104.9 (0.89), alone 103.5 (0.97); FlexAttention: 160 (0.64)"),
    ("dense", "cuda.sm90", "dense", "FlashAttention-4: 247 (0.96); cuDNN: 254 (0.90); FlashAttention-2: 458 (0.50)"),
    ("text256_five_windows", "cuda.sm90", "30x48x80 + 256 text tokens, the paper's five windows over the heads", ""),
    ("33x45x80_text256", "cuda.sm90", "33x45x80 + 256 text tokens (HunyuanVideo 720p), 3x3x3", "published kernel: refuses"),
    ("21x30x52", "cuda.sm90", "21x30x52 (Wan 480p), 3x3x3", "published kernel: refuses"),
    ("tile444_555", "cuda.sm90", "tile 4x4x4, window 5x5x5", ""),
    ("d64", "cuda.sm90", "head_dim 64, 48 heads, 3x3x3", ""),
    ("333_backward", "cuda.sm90.atomic", "gradients, 3x3x3, fastest mode", "FlashAttention-4: 68.5 (0.72), alone 65.5 (0.82); FlexAttention: 101 (0.55)"),
    ("333_backward", "cuda.sm90", "gradients, the same bits every run", ""),
    ("333", "cuda.sm80", "portable kernel (Ampere and later), 3x3x3", "FlashAttention-2, dense: 0.50"),
    ("333_backward", "cuda.sm80.atomic", "its gradients, fastest mode", "FlashAttention-2, dense: 0.41"),
]  # fmt: skip


def rows_of() -> list[dict]:
    return json.loads(RESULT.read_text())["bench"]["rows"]


def readme_table(rows: list[dict]) -> str:
    lines = ["| | ms | of matmul | peers |", "|---|---|---|---|"]
    for case, kernel, label, peers in README_ROWS:
        row = next(row for row in rows if row["case"] == case and row["kernel"] == kernel)
        lines.append(f"| {label} | {row['median_ms']:.3g} | {row['fraction_of_peak']:.2f} | {peers} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def full_table(rows: list[dict]) -> str:
    lines = ["| case | kernel | ms | TFLOP/s | of the product | to reach |", "|---|---|---|---|---|---|"]
    for row in rows:
        title = row["title"] + (", f16" if row["dtype"] == "f16" else "")
        bar = f"{row['to_reach']:.3g}" if row.get("to_reach") else ""
        rate = row["flops_per_s"] / 1e12
        lines.append(
            f"| {title} | `{row['kernel']}` | {row['median_ms']:.1f} | {rate:.0f} | {row['fraction_of_peak']:.2f} | {bar} |".replace(
                "|  |", "| |"
            )
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    rows, bad = rows_of(), False
    for name, table in (("README.md", readme_table(rows)), ("docs/benchmarks.md", full_table(rows))):
        path = ROOT / name
        before, rest = path.read_text().split(BEGIN)
        text = before + BEGIN + table + END + rest.split(END)[1]
        if "--check" not in sys.argv:
            path.write_text(text)
        elif text != path.read_text():
            print(f"{name}: its GPU table is not what tools/make_gpu_tables.py makes of {RESULT.name}")
            bad = True
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
