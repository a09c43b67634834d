"""Strategies: which window each head of each layer uses at each sampling step, and the files that say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from . import _core
from .plans import DEFAULT_TILE, Dim, dim3, three

Form = Literal["published", "compact"]


class WindowTable:
    """A window in tiles for every (step, layer, head).

    ``WindowTable(windows)`` takes them as nested sequences [steps][layers][heads]; ``load``, ``from_json`` and ``hunyuan`` read them.
    Raises ValueError for ragged tables and for windows that are not positive.
    """

    def __init__(self, windows: Sequence[Sequence[Sequence[Dim]]]):
        layers, heads = len(windows[0]) if windows else 0, len(windows[0][0]) if windows and windows[0] else 0
        if any(len(step) != layers for step in windows) or any(len(layer) != heads for step in windows for layer in step):
            raise ValueError("window table: every step must have as many layers, and every layer as many heads, as the first")
        flat = [dim3(window) for step in windows for layer in step for window in layer]
        self.core: _core.WindowTable = _core.window_table(len(windows), layers, heads, flat)

    @classmethod
    def _of(cls, core: _core.WindowTable) -> WindowTable:
        table = cls.__new__(cls)
        table.core = core
        return table

    @classmethod
    def load(cls, path: str | os.PathLike) -> WindowTable:
        """Reads a file in either form, plain or compressed by gzip. Raises OSError where it can't be read, ValueError for its content."""
        return cls._of(_core.window_table_load(os.fspath(path)))

    @classmethod
    def from_json(cls, text: str) -> WindowTable:
        """Reads text in either form."""
        return cls._of(_core.window_table_from_json(text))

    @classmethod
    def hunyuan(cls) -> WindowTable:
        """The published search for HunyuanVideo (canvas 30x48x80, tile 6x8x8): 50 steps, 60 layers, 24 heads; steps 0 to 14 are dense."""
        return cls._of(_core.hunyuan_strategy())

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return self.core.steps

    @property
    def layers(self) -> int:
        """Self-attention layers of the model."""
        return self.core.layers

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        return self.core.heads

    def windows(self, step: int, layer: int) -> list[tuple[int, int, int]]:
        """The windows of a layer's heads at a step."""
        return [three(window) for window in self.core.windows(step, layer)]

    def sparsity(self, canvas: Dim, tile: Dim = DEFAULT_TILE, step: int | None = None) -> float:
        """The fraction of pairs that the windows hide on a canvas, averaged over the table or over one step."""
        if step is not None and step < 0:
            raise ValueError(f"window table: step {step}, the table has {self.steps}")
        return self.core.sparsity(dim3(canvas), dim3(tile), -1 if step is None else step)

    def to_json(self, form: Form = "published") -> str:
        """``{"step_layer_head": [t, h, w], ...}`` as searches are published, or "compact": letters for windows."""
        return self.core.to_json(form)

    def save(self, path: str | os.PathLike, form: Form = "published") -> None:
        """Writes a file, compressed where its name ends in ``.gz``. Raises OSError."""
        self.core.save(os.fspath(path), form)

    def __eq__(self, other) -> bool:
        return isinstance(other, WindowTable) and self.core.equals(other.core)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"WindowTable(steps={self.steps}, layers={self.layers}, heads={self.heads})"
