"""Kernels on disk: compiled once, found again, and never stale, damaged or for another CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.backends import source_digest
from edgelm.backends.cpu import kernel_cache
from edgelm.backends.cpu.kernel_cache import KernelCache, host_target, kernel_digest, kernel_path
from edgelm.errors import BackendUnavailableError

NAME = "gate:silu"


def run_gate(cache: KernelCache) -> float:
    """silu(1) * 3 by way of the kernel's own records."""
    from edgelm.backends.cpu.records import GATE, JOB, JOB_SLOTS, OP, SLOTS

    gate, up = (ctypes.c_float * 8)(*[1.0] * 8), (ctypes.c_float * 8)(*[3.0] * 8)
    op, job = (ctypes.c_int64 * SLOTS)(), (ctypes.c_int64 * JOB_SLOTS)()
    op[OP.rows // 8], job[JOB.n_tokens // 8] = JOB.n_tokens, 1
    op[GATE.gate // 8], op[GATE.up // 8], op[GATE.n_runs // 8] = ctypes.addressof(gate), ctypes.addressof(up), 1
    cache.function(NAME)(ctypes.addressof(op), ctypes.addressof(job), 0, 1)
    return gate[0]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the kernel is compiled."""
    folder = tmp_path_factory.mktemp("kernels")
    KernelCache(folder).load([NAME])
    return folder


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "kernels"))


def test_a_compiled_kernel_computes(folder: Path) -> None:
    assert run_gate(KernelCache(folder)) == pytest.approx(3 * 0.7310586, rel=1e-6)


def test_the_second_start_compiles_nothing_and_does_without_numba(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom edgelm.backends.cpu.kernel_cache import KernelCache\n"
        f"KernelCache(Path({str(folder)!r}), progress=print).load([{NAME!r}])\nprint('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


def test_compiling_says_what_happens_and_that_it_happens_once(tmp_path: Path) -> None:
    lines: list[str] = []
    KernelCache(tmp_path, progress=lines.append).load(["serve"])
    assert "compiling 1 kernels" in lines[0]
    assert "once" in lines[0]
    assert lines[1:] == ["compiled serve"]


@pytest.mark.parametrize("damage", [lambda code: code[:-100], lambda code: code[:-9] + b"?" + code[-8:], lambda _code: b""])
def test_a_damaged_kernel_is_compiled_again(damage: object, folder: Path) -> None:
    path = kernel_path(KernelCache(folder).folder, NAME)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    assert run_gate(KernelCache(folder)) == pytest.approx(3 * 0.7310586, rel=1e-6)
    assert path.read_bytes()[:40] == whole[:40]


def test_another_cpu_source_or_version_is_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = host_target()
    digests = {kernel_digest(target), kernel_digest(replace(target, cpu="other")), kernel_digest(replace(target, features="+x"))}
    source = tmp_path / "source" / "backends" / "cpu"
    shutil.copytree(Path(kernel_cache.__file__).parent, source)
    (tmp_path / "source" / "quant").mkdir()
    shutil.copy(Path(kernel_cache.__file__).parents[2] / "quant" / "pack_rows.py", tmp_path / "source" / "quant")
    monkeypatch.setattr(source_digest, "__file__", str(source.parent / "source_digest.py"))
    assert kernel_digest(target) in digests
    (source / "codes.py").write_text((source / "codes.py").read_text() + "\n# changed\n")
    digests.add(kernel_digest(target))
    monkeypatch.setattr(kernel_cache, "version", lambda _name: "0.0")
    digests.add(kernel_digest(target))
    assert len(digests) == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailableError, match="file"):
        KernelCache(tmp_path / "file").load([NAME])


def test_no_partial_files_are_left(folder: Path) -> None:
    names = [path.name for path in KernelCache(folder).folder.iterdir()]
    assert names == ["gate-silu.kernel"]
    assert [path.name for path in folder.iterdir()] == [KernelCache(folder).folder.name]
