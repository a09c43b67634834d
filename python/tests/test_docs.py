"""Runs the Python blocks of docs/python.md in order, and the examples."""

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


def test_peers_on_small_problems():
    pytest.importorskip("torch")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    peers = [f"--peer={peer}" for peer in ("slidetile_peer", "slidetile_dense", "sdpa_default")]  # those that compile nothing
    command = [sys.executable, ROOT / "bench" / "peers" / "run.py", "--smoke", "--backward", "--seconds=0.01", *peers]
    shown = subprocess.run(command, check=True, timeout=300, env=one_thread, capture_output=True, text=True).stdout
    assert shown.count("of matmul") == 10 and "FAILED" not in shown


@pytest.mark.parametrize("name, needs", [("attention", "torch"), ("diffusers_wan", "diffusers")])
def test_example(name, needs):
    pytest.importorskip(needs)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in conftest.py
    subprocess.run([sys.executable, ROOT / "examples" / f"{name}.py"], check=True, timeout=300, env=one_thread)
