"""Arrays put aside: what is read back, full disks, and what a kill leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import ModelFileError
from edgelm.quant.scratch import Scratch

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.tuples(st.integers(0, 3), SHAPES), max_size=20))
def test_the_last_array_of_each_key_comes_back(tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, tuple[int, ...]]]) -> None:
    wanted = {}
    with Scratch(tmp_path_factory.getbasetemp()) as scratch:
        for i, (key, shape) in enumerate(puts):
            wanted[key] = np.random.default_rng(i).standard_normal(shape).astype(np.float32)
            scratch.put(key, wanted[key])
        for key, array in wanted.items():
            found = scratch.get(key)
            assert found.shape == array.shape
            np.testing.assert_array_equal(found, array)


def test_arrays_in_any_order_of_memory(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    with Scratch(tmp_path) as scratch:
        for key, view in enumerate((array.T, array[::-1, 1::2], array.astype(np.float64))):
            scratch.put(key, view)
            np.testing.assert_array_equal(scratch.get(key), view)


def test_what_comes_back_is_the_caller_s_own(tmp_path: Path) -> None:
    with Scratch(tmp_path) as scratch:
        scratch.put("a", np.ones(5, np.float32))
        scratch.get("a")[:] = 2
        np.testing.assert_array_equal(scratch.get("a"), np.ones(5))


def test_arrays_of_changing_size_do_not_let_the_file_grow(tmp_path: Path) -> None:
    with Scratch(tmp_path) as scratch:
        for i in range(200):
            for key in range(3):
                scratch.put(key, np.ones(100 + 50 * (i % 4), np.float32))
        assert scratch._file.seek(0, 2) < 3 * 4 * 1000


def run(code: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import sys; from pathlib import Path; folder = Path(sys.argv[1])\n{code}", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_is_an_error_and_no_array_is_lost_but_the_one(tmp_path: Path) -> None:
    code = """
import resource
import numpy as np
from edgelm.errors import ModelFileError
from edgelm.quant.scratch import Scratch
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with Scratch(folder) as scratch:
    scratch.put("small", np.arange(1000, dtype=np.float32))
    scratch.put("large", np.ones(1000, np.float32))
    try:
        scratch.put("large", np.ones(100_000, np.float32))
    except ModelFileError as error:
        print(error)
    print((scratch.get("small") == np.arange(1000)).all())
    try:
        scratch.get("large")
    except KeyError:
        print("not there")
"""
    child = run(code, tmp_path)
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    message, small, large = out.splitlines()
    assert message == f"{tmp_path}: intermediate results cannot be kept there (File too large); free space"
    assert (small, large) == ("True", "not there")


def test_nothing_is_left_after_a_kill_nor_seen_before(tmp_path: Path) -> None:
    code = """
import numpy as np
from edgelm.quant.scratch import Scratch
scratch = Scratch(folder)
scratch.put("a", np.ones(100_000, np.float32))
print("put", flush=True)
sys.stdin.read()
"""
    child = run(code, tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline() == "put\n"
    assert list(tmp_path.iterdir()) == []
    child.kill()
    child.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="missing: intermediate results cannot be kept there"):
        Scratch(tmp_path / "missing")
