"""Shared by the tests: seeds, and a few threads only."""

import os

import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax would take most of a GPU that tests share

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)  # everything is small, and threads that wait for each other on a busy machine are slower than one


@pytest.fixture(autouse=True)
def _seed():
    if torch is not None:
        torch.manual_seed(0)
