"""One attention problem for all peers: tensors in raster order, its plan, and the check against double precision on sampled rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from collections.abc import Callable

import torch

import slidetile


@dataclass(frozen=True)
class Problem:
    """q, k, v, dout: [1, tokens, heads, head_dim] in memory, canvas tokens in raster order, text after them."""

    name: str
    canvas: tuple[int, int, int] = (30, 48, 80)
    window: tuple[int, int, int] = (3, 3, 3)
    tile: tuple[int, int, int] = (6, 8, 8)
    text: int = 0
    heads: int = 24
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"

    @functools.cached_property
    def plan(self) -> slidetile.Plan:
        return slidetile.sliding_tile_plan(self.canvas, self.window, self.tile, after=self.text)

    @functools.cached_property
    def dense_plan(self) -> slidetile.Plan:
        return slidetile.full_plan(self.canvas, self.tile, after=self.text)

    @property
    def tokens(self) -> int:
        return self.plan.query_tokens

    @property
    def whole_tiles(self) -> bool:
        return all(extent % size == 0 for extent, size in zip(self.canvas, self.tile, strict=True))

    @functools.cached_property
    def tensors(self) -> list[torch.Tensor]:
        """q, k, v, dout as [1, tokens, heads, head_dim]."""
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (1, self.tokens, self.heads, self.head_dim)
        return [torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(self.dtype) for _ in range(4)]

    @functools.cached_property
    def order(self) -> torch.Tensor:
        """Raster position of the token at each place in tile order, text last."""
        canvas = torch.from_numpy(slidetile.Grid(self.canvas, self.tile).tile_order()).long()
        return torch.cat([canvas, torch.arange(len(canvas), self.tokens)]).to(self.device)

    @functools.cached_property
    def inverse(self) -> torch.Tensor:
        return self.order.argsort()

    def tiled(self, x: torch.Tensor) -> torch.Tensor:
        """[1, tokens, heads, head_dim] into [1, heads, tokens in tile order, head_dim]: what most peers read. Counted as their time."""
        return self.to_tile_order(x).transpose(1, 2).contiguous()

    def untiled(self, x: torch.Tensor) -> torch.Tensor:
        """Back from [1, heads, tokens in tile order, head_dim]."""
        return self.to_raster_order(x.transpose(1, 2))

    def to_tile_order(self, x: torch.Tensor) -> torch.Tensor:
        """[1, tokens, heads, head_dim] from raster into tile order."""
        if self.text or not self.whole_tiles:
            return x.index_select(1, self.order)
        (t, h, w), (a, b, c) = self.plan.grid_tiles, self.tile
        return x.view(1, t, a, h, b, w, c, *x.shape[2:]).permute(0, 1, 3, 5, 2, 4, 6, 7, 8).reshape(x.shape)

    def to_raster_order(self, x: torch.Tensor) -> torch.Tensor:
        """[1, tokens, heads, head_dim] from tile into raster order."""
        if self.text or not self.whole_tiles:
            return x.index_select(1, self.inverse)
        (t, h, w), (a, b, c) = self.plan.grid_tiles, self.tile
        return x.reshape(1, t, h, w, a, b, c, *x.shape[2:]).permute(0, 1, 4, 2, 5, 3, 6, 7, 8).reshape(x.shape)

    def blocks(self, size: int) -> tuple[list[list[int]], int]:
        """For each block of `size` tokens in tile order, the key blocks it reads; for whole tiles of a multiple of `size` tokens."""
        per_tile = self.tile[0] * self.tile[1] * self.tile[2] // size
        rows = []
        for q in range(self.plan.query_tiles):
            row = [per_tile * k + i for k in self.plan.key_tiles(q) for i in range(per_tile)]
            rows += [row] * per_tile
        return rows, len(rows)

    def why_not_blocks(self, size: int) -> str | None:
        volume = self.tile[0] * self.tile[1] * self.tile[2]
        if self.text or not self.whole_tiles or volume % size:
            return f"needs whole tiles of a multiple of {size} tokens and no text"
        return None

    def check(self, out: torch.Tensor, dense: bool = False, rows: int = 48) -> float:
        """Relative error of [1, tokens, heads, head_dim] on sampled rows against double precision."""
        q, k, v, _ = self.tensors
        generator = torch.Generator().manual_seed(1)
        tiles = _tiles_of(self.plan)
        wrong = right = 0.0
        for _ in range(rows):
            head = int(torch.randint(self.heads, (), generator=generator))
            tile = int(torch.randint(self.plan.query_tiles, (), generator=generator))
            token = int(tiles[tile][int(torch.randint(len(tiles[tile]), (), generator=generator))])
            seen = torch.arange(self.tokens) if dense else torch.cat([tiles[key] for key in self.plan.key_tiles(tile)])
            seen = seen.to(self.device)
            scores = k[0, seen, head].double() @ q[0, token, head].double() * self.head_dim**-0.5
            want = scores.softmax(0) @ v[0, seen, head].double()
            wrong += float((out[0, token, head].double() - want).square().sum())
            right += float(want.square().sum())
        return (wrong / right) ** 0.5

    def check_gradients(self, grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor], dense: bool = False) -> float:
        """Relative error of dq, dk, dv on sampled tokens of sampled heads against double precision; the worst of the three."""
        plan, columns = (self.dense_plan, 1) if dense else (self.plan, 3)
        q, k, v, dout = self.tensors
        generator = torch.Generator().manual_seed(2)
        tiles, scale = _tiles_of(plan), self.head_dim**-0.5
        seen_by, wrong, right = plan.transpose(), [0.0] * 3, [0.0] * 3
        for _ in range(columns):
            head = int(torch.randint(self.heads, (), generator=generator))
            tile = int(torch.randint(plan.query_tiles, (), generator=generator))
            token = int(tiles[tile][0])
            want = [torch.zeros(self.head_dim, dtype=torch.float64, device=self.device) for _ in range(3)]
            # Every query tile that reads this token, with all of its keys: p and ds of their rows; the token's own row gives dq.
            for query_tile in {*seen_by.key_tiles(tile), tile}:
                queries = tiles[query_tile].to(self.device)
                keys = torch.cat([tiles[key] for key in plan.key_tiles(query_tile)]).to(self.device)
                for part in queries.split(384):
                    rows = [x[0, part, head].double() for x in (q, dout)]
                    p = (rows[0] @ k[0, keys, head].double().T * scale).softmax(-1)
                    dp = rows[1] @ v[0, keys, head].double().T
                    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
                    column = keys == token
                    want[1] += (ds[:, column] * rows[0]).sum(0)
                    want[2] += (p[:, column] * rows[1]).sum(0)
                    want[0] += ds[part == token].sum(0) @ k[0, keys, head].double()
            for index, grad in enumerate(grads):
                wrong[index] += float((grad[0, token, head].double() - want[index]).square().sum())
                right[index] += float(want[index].square().sum())
        return max((w / r) ** 0.5 for w, r in zip(wrong, right, strict=True))


@functools.lru_cache(maxsize=4)
def _tiles_of(plan: slidetile.Plan) -> list[torch.Tensor]:
    """Sequence positions of the tokens of each tile, from the key lists: tiles in raster order, then runs of text."""
    order = torch.from_numpy(slidetile.Grid(plan.canvas, plan.tile).tile_order()).long()
    tiles, begin = [], 0
    for t in range(plan.grid_tiles[0]):
        for h in range(plan.grid_tiles[1]):
            for w in range(plan.grid_tiles[2]):
                at = (t, h, w)
                size = 1
                for axis in range(3):
                    size *= min(plan.tile[axis], plan.canvas[axis] - at[axis] * plan.tile[axis])
                tiles.append(order[begin : begin + size])
                begin += size
    text = torch.arange(begin, plan.query_tokens)
    run = max(64, plan.tile[0] * plan.tile[1] * plan.tile[2])
    return tiles + list(text.split(run)) if len(text) else tiles


@dataclass
class Case:
    """A peer ready to run a problem. `forward` returns [1, tokens, heads, head_dim] in raster order, permutes included."""

    forward: Callable[[], torch.Tensor]
    backward: Callable[[], object] | None = None  # dq, dk, dv alone, like forward's result, from what one forward saved
    dense: bool = False  # computes all pairs
    tolerance: float = 4e-3
