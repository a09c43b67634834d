"""Sliding tile attention for video diffusion transformers (arXiv 2502.04507).

A *window* says what a query tile may see. A planner turns windows into a *plan*: for each query tile, the key tiles it reads. A kernel runs
a plan. Tokens stay where they are: nothing is permuted into tile order, nothing is padded.

This module needs numpy alone and takes any DLPack array. ``slidetile.torch`` has operators with gradients that compile;
``slidetile.diffusers`` puts them into the models of diffusers.
"""

from ._version import __version__
from .attention import Kernel, Layout, attention_backward, attention_forward, kernels, merge
from .benchmark import BenchRow, bench
from .plans import (
    DEFAULT_TILE,
    BlockCounts,
    Dim,
    Grid,
    Plan,
    clear_plan,
    dim3,
    full_plan,
    natten_plan,
    sliding_tile_plan,
    swin_plan,
)
from .tables import WindowTable

__all__ = [
    "DEFAULT_TILE",
    "BenchRow",
    "BlockCounts",
    "Dim",
    "Grid",
    "Kernel",
    "Layout",
    "Plan",
    "WindowTable",
    "__version__",
    "attention_backward",
    "attention_forward",
    "bench",
    "clear_plan",
    "dim3",
    "full_plan",
    "kernels",
    "merge",
    "natten_plan",
    "sliding_tile_plan",
    "swin_plan",
]
