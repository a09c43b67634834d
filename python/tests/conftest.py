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


LONGEST = "test_on_a_gpu", "test_example", "test_docs", "test_compile", "test_against_flex", "_on_small_problems", "pipeline", "loop"


def pytest_collection_modifyitems(items):
    """pytest-xdist gives each worker a run of a quarter of its share first: one long test at the head of each run."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    long = list(dict.fromkeys(item for name in LONGEST for item in items if name in item.name))
    others = [item for item in items if item not in long]
    run = max(len(items) // (4 * workers), 2)
    heads = {place % workers * run + place // workers: item for place, item in enumerate(long[: workers * run])}
    rest = iter(others + long[workers * run :])
    items[:] = [heads[place] if place in heads else next(rest) for place in range(len(items))]


@pytest.fixture(autouse=True)
def _seed():
    if torch is not None:
        torch.manual_seed(0)
