"""What is installed: types for checkers, and no driver library."""

import importlib.util
import inspect
import pathlib
import shutil
import subprocess
import sys

import pytest

import slidetile

HERE = pathlib.Path(slidetile.__file__).parent


def test_it_is_typed():
    assert (HERE / "py.typed").exists() and (HERE / "_core.pyi").exists()
    for name in slidetile.__all__:
        value = getattr(slidetile, name)
        assert not (inspect.isfunction(value) or inspect.isclass(value)) or value.__doc__, name


def test_it_holds_no_driver_library():
    extensions = [path for path in HERE.rglob("*.so*")]
    assert [path.name.partition(".")[0] for path in extensions] == ["_core"]
    if not shutil.which("readelf"):
        pytest.skip("no readelf")
    dynamic = subprocess.run(["readelf", "-d", extensions[0]], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]\n") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert not [name for name in needed if "cuda" in name or "nvidia" in name], needed


def test_core_needs_no_torch():
    """numpy alone is enough: importing slidetile does not import torch."""
    code = "import sys, slidetile; slidetile.sliding_tile_plan('4x8x8', '1x1x1', '2x4x4'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version():
    assert slidetile.__version__.count(".") == 2
    assert importlib.util.find_spec("slidetile._core") is not None
