"""bench: rows for every kernel, each checked."""

import math

import pytest

import slidetile
from slidetile import bench, kernels, natten_plan, sliding_tile_plan

PLAN = sliding_tile_plan("3x6x8", ["1x1x1", "2x2x1"], "2x4x4", before=2, after=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows(dtype):
    rows = bench(PLAN, heads=2, head_dim=32, dtype=dtype, seconds=1e-3)
    assert [row.kernel for row in rows] == [kernel.name for way in ("forward", "backward") for kernel in kernels("cpu", way)]
    ran = [row for row in rows if not row.reason]
    assert {row.direction for row in ran} == {"forward", "backward"}
    for row in ran:
        assert row.milliseconds > 0 and row.flops_per_second > 0 and 0 < row.relative_error < 1e-2
    assert all(math.isnan(row.milliseconds) for row in rows if row.reason)


def test_token_masks():
    rows = bench(natten_plan("3x6x6", "3x3x3", "2x4x4"), head_dim=16, seconds=1e-3)
    assert any(not row.reason for row in rows)


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(slidetile.benchmark._Run, "rows", lambda self, name, head, tokens: self.arrays[name][0, head, tokens] + 1.0)
    with pytest.raises(RuntimeError, match="relative error"):
        bench(PLAN, heads=2, seconds=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="int8"):
        bench(PLAN, heads=2, dtype="int8")
    with pytest.raises(ValueError, match="heads is 3, the plan has 2"):
        bench(PLAN, heads=3)
    with pytest.raises(ValueError, match="seconds"):
        bench(PLAN, heads=2, seconds=0)
    with pytest.raises(ValueError, match="tpu"):
        bench(PLAN, heads=2, device="tpu")


def test_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for dtype in ("float32", "bfloat16"):
        rows = bench(sliding_tile_plan("6x16x24", "1x1x3"), heads=2, dtype=dtype, device="cuda", seconds=0.01)
        assert {row.direction for row in rows if not row.reason} == {"forward", "backward"}
