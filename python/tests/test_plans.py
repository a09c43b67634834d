"""Plans against a predicate of tokens by brute force, and what is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slidetile
from slidetile import Grid, Plan, clear_plan, full_plan, natten_plan, sliding_tile_plan, swin_plan


def visible(canvas, tile, window, before, after):
    """The mask of sliding tile attention from its definition."""
    t, h, w = canvas
    coordinates = np.stack(np.meshgrid(range(t), range(h), range(w), indexing="ij"), -1).reshape(-1, 3)
    tiles = -(-np.array(canvas) // tile)
    extent = np.minimum(window, tiles)
    q = coordinates // tile
    first = np.clip(q - extent // 2, 0, tiles - extent)
    inside = (q[None] >= first[:, None]) & (q[None] < (first + extent)[:, None])
    mask = np.ones((t * h * w + before + after,) * 2, dtype=bool)
    mask[before : before + t * h * w, before : before + t * h * w] = inside.all(-1)
    return mask


extents = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(canvas=extents, tile=extents, window=extents, before=st.integers(0, 5), after=st.integers(0, 70))
def test_sliding_tile_plan_is_the_definition(canvas, tile, window, before, after):
    tile = tuple(min(pair) for pair in zip(tile, canvas, strict=True))
    plan = sliding_tile_plan(canvas, window, tile, before=before, after=after)
    mask = visible(canvas, tile, window, before, after)
    assert np.array_equal(plan.mask(), mask)
    assert plan.visible_pairs() == mask.sum()
    assert plan.density == pytest.approx(mask.mean())
    assert np.array_equal(plan.transpose().mask(), mask.T)
    assert Plan.from_bytes(plan.data) == plan


def test_the_paper():
    plan = sliding_tile_plan("30x48x80", "3x3x3")
    assert plan.grid_tiles == (5, 6, 10)
    assert plan.sparsity == pytest.approx(0.91)
    assert plan.forward_flops(128, heads=24) == pytest.approx(14.68e12, rel=1e-2)
    assert plan.backward_flops(128, heads=24) == pytest.approx(2.5 * plan.forward_flops(128, heads=24))
    counts = sliding_tile_plan("48x48x48", "3x3x3", "4x4x4").count_blocks(64, 64)
    assert counts.full / sum(counts) == pytest.approx(0.0156, abs=1e-4) and counts.partial == 0


def test_other_planners():
    natten = natten_plan("4x8x8", "3x3x3", "2x4x4")
    assert (natten.mask().sum(1) == 27).all() and natten.masks > 0
    assert natten_plan((1, 1, 9), 3, (1, 1, 3), causal=(False, False, True)).mask()[0].sum() == 1
    swin = swin_plan("4x8x8", "2x4x4", "2x4x4")
    assert (swin.mask().sum(1) == 32).all()
    clear = clear_plan((1, 16, 16), 3, (1, 8, 8))
    assert clear.mask()[8 * 16 + 8].sum() == 25
    assert full_plan("4x8x8", "2x4x4", after=3).density == 1
    union = natten | swin
    assert np.array_equal(union.mask(), natten.mask() | swin.mask())


def test_a_window_for_each_head():
    plan = sliding_tile_plan("4x8x8", ["1x1x1", (2, 2, 2), "1x1x1"], "2x4x4")
    assert plan.heads == 3 and plan.mask(1).all() and not plan.mask(0).all()
    assert plan.key_tiles(3, head=2) == [3]
    assert "heads=3" in repr(plan)


def test_plans_are_values():
    one, other = sliding_tile_plan("4x8x8", "1x1x1", "2x4x4"), sliding_tile_plan("4x8x8", "1x1x1", "2x4x4")
    assert one == other and hash(one) == hash(other) and pickle.loads(pickle.dumps(one)) == one
    assert one != sliding_tile_plan("4x8x8", "1x1x2", "2x4x4")
    assert one.core is other.core  # and so is what they keep on a GPU


def test_grid():
    grid = Grid("5x6x7", "2x4x4")
    assert grid.tiles == (3, 2, 2) and grid.tokens == 210
    order = grid.tile_order()
    assert sorted(order) == list(range(210)) and order[:5].tolist() == [0, 1, 2, 3, 7]
    assert slidetile.dim3("30x48x80") == (30, 48, 80) and slidetile.dim3(7) == (1, 1, 7) and slidetile.dim3((4, 5)) == (1, 4, 5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("4x8x8", "0x1x1", "2x4x4"), "0x1x1"),
        (("4x8x8", "1x1x1", "6x8x8"), "6x8x8"),
        (("4x8", "1x1x1", "2x4x4"), "tile"),
        (("axb", "1x1x1", "2x4x4"), "axb"),
        (("4x8x8", [], "2x4x4"), "empty"),
        (((4, 8, 8, 8), "1x1x1", "2x4x4"), "extent"),
        ((("4", 8, 8), "1x1x1", "2x4x4"), "extent"),
        (((2**40, 1, 1), "1x1x1", "1x1x1"), "2\\^31"),
        (((2**15, 2**15, 2), "1x1x1", "1x1x1"), "2\\^31"),
    ],
)
def test_bad_extents(arguments, message):
    with pytest.raises(ValueError, match=message):
        sliding_tile_plan(*arguments)


def test_bad_extra_tokens():
    with pytest.raises(ValueError, match="before"):
        sliding_tile_plan("4x8x8", "1x1x1", "2x4x4", before=-1)
    with pytest.raises(ValueError, match="after"):
        full_plan("4x8x8", "2x4x4", after=1.5)


def test_damaged_bytes():
    data = sliding_tile_plan((2, 4, 4), ["1x1x1", "2x1x1"], (1, 2, 2), after=3).data
    for size in range(0, data.size, 7):
        with pytest.raises(ValueError):
            Plan.from_bytes(data[:size])
    for place in range(0, data.size, 11):
        damaged = data.copy()
        damaged[place] ^= 0xFF
        with pytest.raises(ValueError):
            Plan.from_bytes(damaged)
    with pytest.raises(ValueError, match="uint8"):
        Plan.from_bytes(data.astype(np.float32))
    with pytest.raises(ValueError):
        Plan.from_bytes(b"")


@pytest.mark.parametrize(
    "plan",
    [
        sliding_tile_plan("3x5x7", [(1, 1, 2), (2, 1, 1)], "2x4x4", before=3, after=6),
        slidetile.natten_plan("3x6x6", "3x3x3", "2x4x4"),
    ],
)
def test_keys_are_rows_of_the_mask(plan):
    for head in range(plan.heads):
        mask = plan.mask(head)
        for token in range(0, plan.query_tokens, 3):
            assert (plan.keys(token, head) == mask[token].nonzero()[0]).all()
    with pytest.raises(ValueError, match="query token 999"):
        plan.keys(999)
    if plan.heads > 1:
        with pytest.raises(ValueError, match="head 9"):
            plan.keys(0, 9)


@pytest.mark.parametrize("extent", [None, 1.5, (1.5, 1, 1), (1, 2, 3, 4), "axb", (), object()])
def test_extents_that_are_none(extent):
    with pytest.raises(ValueError, match="ext|empty"):
        sliding_tile_plan("6x8x8", extent)
    with pytest.raises(ValueError, match="ext"):
        sliding_tile_plan(extent, "1x1x1")
