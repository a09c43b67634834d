"""Strategy files: the published one, and what is refused."""

import pytest

from slidetile import WindowTable, sliding_tile_plan


def test_hunyuan():
    table = WindowTable.hunyuan()
    assert (table.steps, table.layers, table.heads) == (50, 60, 24)
    assert table.sparsity("30x48x80") == pytest.approx(0.58375, abs=1e-5)
    assert all(table.sparsity("30x48x80", step=step) == 0 for step in range(15))
    assert table.windows(0, 0) == [(5, 6, 10)] * 24
    plan = sliding_tile_plan("30x48x80", table.windows(49, 59), after=256)
    assert plan.heads == 24 and 0.6 < plan.sparsity < 0.95


def test_files(tmp_path):
    table = WindowTable([[[(1, 2, 3), "4x5x6"], ["1x1x1", (1, 1, 1)]]])
    assert (table.steps, table.layers, table.heads) == (1, 2, 2)
    for name in ("a.json", "a.json.gz"):
        for form in ("published", "compact"):
            table.save(tmp_path / name, form)
            assert WindowTable.load(tmp_path / name) == table
    assert WindowTable.from_json(table.to_json()) == table
    assert WindowTable.from_json('{"0_0_0": [1, 2, 3]}').windows(0, 0) == [(1, 2, 3)]


def test_bad_tables(tmp_path):
    for text in ("", "[]", "{}", '{"0_0_0": [1, 2]}', '{"0_0_0": [1, 2, 0]}', '{"0_0_1": [1, 2, 3]}', '{"0_0": [1, 2, 3]}'):
        with pytest.raises(ValueError):
            WindowTable.from_json(text)
    with pytest.raises(OSError):
        WindowTable.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="as many"):
        WindowTable([[[(1, 1, 1)], []]])
    with pytest.raises(ValueError):
        WindowTable([])
    with pytest.raises(ValueError, match="step 50"):
        WindowTable.hunyuan().windows(50, 0)
