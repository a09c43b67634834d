"""A type checker accepts what the documentation shows, and refuses what would fail."""

import pathlib
import shutil
import subprocess
import sys

import pytest

import slidetile

pytest.importorskip("mypy")

GOOD = """
import numpy as np
import slidetile

plan = slidetile.sliding_tile_plan("4x8x8", [(1, 3, 3), "1x1x1"], tile=(2, 4, 4), after=7)
canvas: tuple[int, int, int] = plan.canvas
keys: np.ndarray = plan.keys(0)
out, lse = slidetile.attention_forward(np.zeros(1), np.zeros(1), np.zeros(1), plan, layout="bshd", key_lengths=[3])
rows = slidetile.bench(plan, heads=2, dtype="bfloat16")
milliseconds: float = rows[0].milliseconds
windows: list[tuple[int, int, int]] = slidetile.WindowTable.hunyuan().windows(0, 0)
names: list[str] = [kernel.name for kernel in slidetile.kernels("cuda", "backward")]
"""
BAD = [
    'slidetile.sliding_tile_plan(1.5, "1x1x1")',
    'slidetile.full_plan("4x8x8", before="3")',
    'slidetile.attention_forward(1, 2, 3, "plan")',
    'slidetile.kernels("tpu")',
    'slidetile.bench(plan, dtype="int8")',
]


def test_types(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(GOOD + "\n".join(BAD) + "\n")
    package = pathlib.Path(slidetile.__file__).parent
    shutil.copytree(package, tmp_path / "slidetile", ignore=shutil.ignore_patterns("*.so", "__pycache__"))  # alone: not what is beside it
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--no-site-packages", "--ignore-missing-imports"]
    said = subprocess.run([*command, "user.py"], capture_output=True, text=True, cwd=tmp_path, timeout=300).stdout
    wrong = sorted(int(line.split(":")[1]) for line in said.splitlines() if line.startswith("user.py") and ": error:" in line)
    first = GOOD.count("\n") + 1
    assert wrong == list(range(first, first + len(BAD))), said
