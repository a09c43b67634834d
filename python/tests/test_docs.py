"""Runs the Python blocks of docs/python.md in order, and the examples."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_docs():
    pytest.importorskip("diffusers")
    names = {}
    text = (ROOT / "docs" / "python.md").read_text()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], "docs/python.md", "exec"), names)


@pytest.mark.parametrize("name, needs", [("attention", "torch"), ("diffusers_wan", "diffusers")])
def test_example(name, needs):
    pytest.importorskip(needs)
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in conftest.py
    subprocess.run([sys.executable, ROOT / "examples" / f"{name}.py"], check=True, timeout=300, env=one_thread)
