"""The wheel holds the whole package, though its floors are symbolic links in the source tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("quant", "backends", "runtime", "bench")


def test_a_built_wheel_holds_every_module(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("edgelm", *FLOORS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=240)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entry_points = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    modules = {f"edgelm/{file.relative_to(ROOT)}" for floor in FLOORS for file in (ROOT / floor).rglob("*.py")}
    assert "edgelm/quant/blocks.py" in modules
    assert modules | {"edgelm/__init__.py", "edgelm/errors.py", "edgelm/py.typed"} <= names
    assert not {name for name in names if name.startswith(FLOORS)}
    assert "edgelm = edgelm.runtime.cli:main" in entry_points
