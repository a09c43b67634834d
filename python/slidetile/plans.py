"""Grids, windows and plans: which keys every query sees, before any attention is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Union, cast

import numpy as np

from . import _core

Dim = Union[str, int, Sequence[int]]
"""An extent: ``"TxHxW"``, ``"HxW"`` or ``"W"``, or as many integers. A 2-D image has t = 1."""

DEFAULT_TILE = (6, 8, 8)
"""The tile that windows of video are counted in unless another is given: 384 tokens."""


def three(values: Iterable[int]) -> tuple[int, int, int]:
    t, h, w = values
    return t, h, w


def dim3(value: Dim) -> tuple[int, int, int]:
    """``(t, h, w)`` of a string such as ``"30x48x80"``, an integer, or one to three integers.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        return three(_core.dim3(value))
    if isinstance(value, (int, np.integer)):
        axes: tuple[Any, ...] = (value,)
    else:
        axes = tuple(value) if isinstance(value, Iterable) else ()
    if not 1 <= len(axes) <= 3 or not all(isinstance(axis, (int, np.integer)) for axis in axes):
        raise ValueError(f"extent {value!r}: expected a string such as '30x48x80' or one to three integers")
    if not all(-(2**31) <= axis < 2**31 for axis in axes):
        raise ValueError(f"extent {value!r}: every integer must be less than 2^31")
    return three((1,) * (3 - len(axes)) + tuple(int(axis) for axis in axes))


def _is_one(value) -> bool:
    if isinstance(value, (str, int, np.integer)) or not isinstance(value, Iterable):
        return True
    value = list(value)
    return len(value) > 0 and all(isinstance(axis, (int, np.integer)) for axis in value)


def _per_head(value: Dim | Iterable[Dim], what: str) -> list[tuple[int, int, int]]:
    if _is_one(value):
        return [dim3(cast(Dim, value))]
    windows = [dim3(window) for window in cast(Iterable[Dim], value)]
    if not windows:
        raise ValueError(f"{what}: an empty list, expected one window for all heads or one per head")
    return windows


class BlockCounts(NamedTuple):
    """Blocks of a plan by how many of their pairs are visible, summed over its heads."""

    full: int
    partial: int
    empty: int


class Grid:
    """A canvas (t, h, w in tokens) cut into tiles. The last tile of an axis may be partial; nothing is padded.

    >>> Grid("30x48x80").tiles
    (5, 6, 10)
    """

    def __init__(self, canvas: Dim, tile: Dim = DEFAULT_TILE):
        self.canvas = dim3(canvas)
        self.tile = dim3(tile)
        self.tiles = three(_core.grid_tiles(self.canvas, self.tile))

    @property
    def tokens(self) -> int:
        """Tokens on the canvas."""
        return self.canvas[0] * self.canvas[1] * self.canvas[2]

    def tile_order(self) -> np.ndarray:
        """int32 [tokens]: the raster position of the token at each place in tile order (tiles in raster order, tokens in raster order
        inside). ``x[..., grid.tile_order(), :]`` brings raster tokens into tile order. Attention over a plan needs no such copy."""
        return _core.tile_order(self.canvas, self.tile)

    def __repr__(self) -> str:
        return f"Grid(canvas={'x'.join(map(str, self.canvas))}, tile={'x'.join(map(str, self.tile))})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Grid) and (self.canvas, self.tile) == (other.canvas, other.tile)

    def __hash__(self) -> int:
        return hash((self.canvas, self.tile))


class Plan:
    """For every head and query tile, the key tiles that it reads. Planners make plans, attention runs them; a plan never changes.

    Tokens keep their place in the sequence: ``before`` extra tokens, the canvas in raster order, ``after`` extra tokens. Plans compare
    by content, can be pickled, and are kept on a GPU after the first call there.
    """

    _as_tensor: Callable[[np.ndarray], Any] | None = None  # slidetile.torch sets it

    def __init__(self, core: _core.Plan):
        self.core = core
        self.data = core.bytes()
        """uint8 [n]: the plan as bytes. It is how a plan enters a compiled graph: as a tensor."""
        self.tensor = None if Plan._as_tensor is None else Plan._as_tensor(self.data)
        """``data`` as a tensor of torch, where slidetile.torch is in use."""
        self.query_tokens: int = core.query_tokens
        """Tokens of a query sequence, extra ones included."""
        self.key_tokens: int = core.key_tokens
        """Tokens of a key sequence, extra ones included."""

    @staticmethod
    def from_bytes(data) -> Plan:
        """The plan that ``data``, a plan's ``data`` as bytes or uint8 array, holds. Raises ValueError if it is damaged."""
        if isinstance(data, (bytes, bytearray, memoryview)):
            data = np.frombuffer(data, dtype=np.uint8)
        return Plan(_core.plan_from_bytes(data))

    @property
    def canvas(self) -> tuple[int, int, int]:
        """The queries' canvas in tokens; 0x0x0 if they have none."""
        return three(self.core.canvas)

    @property
    def tile(self) -> tuple[int, int, int]:
        """Extent of a tile in tokens."""
        return three(self.core.tile)

    @property
    def grid_tiles(self) -> tuple[int, int, int]:
        """Tiles along each axis of the canvas."""
        return three(self.core.grid_tiles)

    @property
    def extra(self) -> tuple[int, int]:
        """Tokens before and after the canvas in the queries' sequence."""
        return self.core.extra

    @property
    def query_tiles(self) -> int:
        """Tiles of the query sequence, those of extra tokens included."""
        return self.core.query_tiles

    @property
    def heads(self) -> int:
        """Heads that the plan tells apart; 1 serves any number of heads."""
        return self.core.heads

    @property
    def rows(self) -> int:
        """Distinct lists of key tiles."""
        return self.core.rows

    @property
    def entries(self) -> int:
        """Key tiles in all rows."""
        return self.core.entries

    @property
    def masks(self) -> int:
        """Distinct token masks of partly visible tiles; 0 for sliding tile plans."""
        return self.core.masks

    @property
    def density(self) -> float:
        """Visible (query, key) pairs as a fraction of all pairs, averaged over heads."""
        return self.core.density

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1 - self.core.density

    def visible_pairs(self, heads: int | None = None) -> int:
        """Visible (query, key) pairs, summed over ``heads`` heads (the plan's by default)."""
        return self.core.visible_pairs(self.heads if heads is None else heads)

    def forward_flops(self, head_dim: int, heads: int | None = None) -> float:
        """Floating-point operations of a forward pass of one batch item: 4 x pairs x head_dim."""
        return self.core.forward_flops(self.heads if heads is None else heads, head_dim)

    def backward_flops(self, head_dim: int, heads: int | None = None) -> float:
        """Floating-point operations of a backward pass of one batch item: 10 x pairs x head_dim."""
        return self.core.backward_flops(self.heads if heads is None else heads, head_dim)

    def count_blocks(self, query_block: int, key_block: int) -> BlockCounts:
        """Blocks of ``query_block`` x ``key_block`` tokens in tile order: fully, partly and not visible ones."""
        return BlockCounts(*self.core.count_blocks(query_block, key_block))

    def key_tiles(self, query_tile: int, head: int = 0) -> list[int]:
        """The key tiles that a query tile reads, ascending."""
        return self.core.key_tiles(head, query_tile)

    def keys(self, query_token: int, head: int = 0) -> np.ndarray:
        """int32: the positions in the key sequence that the query at a position sees, ascending."""
        return self.core.keys(head, query_token)

    def mask(self, head: int = 0) -> np.ndarray:
        """bool [query tokens, key tokens] in sequence order: what other attention functions call the mask. For tests and pictures."""
        return self.core.mask(head).view(np.bool_)

    def transpose(self) -> Plan:
        """The plan of the same pairs seen from the keys."""
        return Plan(self.core.transpose())

    def __or__(self, other: Plan) -> Plan:
        """The plan of the pairs visible in either; both must tile the same sequences."""
        return Plan(self.core.union(other.core))

    def __eq__(self, other) -> bool:
        return isinstance(other, Plan) and self.data.tobytes() == other.data.tobytes()

    def __hash__(self) -> int:
        return hash(self.data[:32].tobytes())

    def __reduce__(self):
        return Plan.from_bytes, (self.data.tobytes(),)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.canvas)), "x".join(map(str, self.tile))
        return f"Plan(canvas={shape[0]}, tile={shape[1]}, extra={self.extra}, heads={self.heads}, sparsity={self.sparsity:.4f})"


def _extra(before: int, after: int) -> tuple[int, int]:
    for name, count in (("before", before), ("after", after)):
        if not isinstance(count, (int, np.integer)) or not 0 <= count < 2**31:
            raise ValueError(f"{name} is {count!r}, expected a number of tokens, 0 or more")
    return int(before), int(after)


def sliding_tile_plan(canvas: Dim, window: Dim | Iterable[Dim], tile: Dim = DEFAULT_TILE, *, before: int = 0, after: int = 0) -> Plan:
    """Sliding tile attention (arXiv 2502.04507): a query tile reads exactly ``min(window, tiles)`` key tiles along each axis.

    ``canvas`` and ``tile`` are in tokens, ``window`` in tiles: one for all heads, or a list of one per head. The window is shifted
    inward at borders, never shrunk. ``before`` and ``after`` are extra tokens (text) around the canvas's in the sequence: every query
    sees them and they see everything. Any canvas works; the last tile of an axis may be partial.

    Raises ValueError for extents that are not positive and for tiles larger than the canvas.

    >>> round(sliding_tile_plan("30x48x80", "3x3x3").sparsity, 2)
    0.91
    """
    return Plan(_core.sliding_tile_plan(dim3(canvas), dim3(tile), _per_head(window, "window"), _extra(before, after)))


def full_plan(canvas: Dim, tile: Dim = DEFAULT_TILE, *, before: int = 0, after: int = 0) -> Plan:
    """Dense attention over the canvas and the extra tokens, for any number of heads."""
    return Plan(_core.full_plan(dim3(canvas), dim3(tile), _extra(before, after)))


def natten_plan(
    canvas: Dim,
    window: Dim | Iterable[Dim],
    tile: Dim = DEFAULT_TILE,
    *,
    stride: Dim = (1, 1, 1),
    dilation: Dim = (1, 1, 1),
    causal: Sequence[bool] = (False, False, False),
    before: int = 0,
    after: int = 0,
) -> Plan:
    """Neighborhood attention (arXiv 2504.16922): token windows, ``window`` in tokens per axis, one for all heads or a list of one per head.

    ``stride``: so many consecutive queries share a window; ``dilation``: keys are that many tokens apart; ``causal``: no key after the
    query, per axis. Raises ValueError unless 1 <= stride <= window and window x dilation <= canvas on every axis.
    """
    if len(causal) != 3:
        raise ValueError(f"causal has {len(causal)} elements, expected 3: t, h, w")
    flags = tuple(bool(axis) for axis in causal)
    windows = [(one, dim3(stride), dim3(dilation), flags) for one in _per_head(window, "window")]
    return Plan(_core.natten_plan(dim3(canvas), dim3(tile), windows, _extra(before, after)))


def clear_plan(canvas: Dim, radius: int, tile: Dim = DEFAULT_TILE, *, before: int = 0, after: int = 0) -> Plan:
    """CLEAR's circular windows (arXiv 2412.16112): a query sees the tokens nearer than ``radius`` tokens."""
    return Plan(_core.clear_plan(dim3(canvas), dim3(tile), radius, _extra(before, after)))


def swin_plan(canvas: Dim, window: Dim, tile: Dim = DEFAULT_TILE, *, shift: Dim = (0, 0, 0), before: int = 0, after: int = 0) -> Plan:
    """Swin's windows (arXiv 2103.14030): the canvas is cut into windows (in tokens) and a token sees its own; ``shift`` moves the cuts."""
    return Plan(_core.swin_plan(dim3(canvas), dim3(tile), (dim3(window), dim3(shift)), _extra(before, after)))
