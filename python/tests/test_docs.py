"""Runs the Python blocks of docs/python.md in order, the examples, and the benchmarks on small problems."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


TEXT = (ROOT / "docs" / "python.md").read_text()
BLOCKS = list(re.finditer(r"^```python\n(.*?)^```", TEXT, re.S | re.M))


def test_docs(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        line = TEXT[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], "docs/python.md", "exec"), names)


@pytest.mark.parametrize("module", ["slidetile", "slidetile.torch", "slidetile.diffusers"])
def test_every_function_is_in_an_example(module):
    pytest.importorskip(module.rpartition(".")[2])
    code = "\n".join(block[1] for block in BLOCKS)
    for name in importlib.import_module(module).__all__:
        shown_by = RESULTS.get(name, name)
        assert re.search(rf"\b{shown_by}\b", code), name


# What a function of an example returns, and names of types alone.
RESULTS = {"BenchRow": "bench", "BlockCounts": "count_blocks", "Controller": "controller", "Dim": "canvas", "Kernel": "kernels",
           "Layout": "layout", "Plan": "plan", "__version__": "slidetile"}  # fmt: skip


def run_bench(*arguments):
    if pytest.importorskip("torch").cuda.is_available():
        pytest.skip("where a GPU is, the benchmarks themselves run")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "bench" / arguments[0], "--smoke", *arguments[1:]]
    return subprocess.run(command, check=True, timeout=300, env=one_thread, capture_output=True, text=True).stdout


def test_peers_on_small_problems():
    peers = [f"--peer={peer}" for peer in ("slidetile_peer", "slidetile_dense", "sdpa_default")]  # those that compile nothing
    shown = run_bench("peers/run.py", "--backward", "--seconds=0.01", *peers)
    assert shown.count("of matmul") == 10 and "FAILED" not in shown


def test_models_on_small_problems():
    pytest.importorskip("diffusers")
    shown = run_bench("models.py", "--repeats=1")
    assert "dense native" in shown and all(f"{window} " in shown for window in ("3x3x3", "5x3x5"))
