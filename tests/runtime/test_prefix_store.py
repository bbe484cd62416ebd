"""Beginnings on disk: whole or not there, bounded, for their owner only, and of no harm when they are damaged."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.prefix_store import PrefixStore, StoreFolder

A, B = [1, 2, 3, 4], [1, 2, 9]


def array(tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.asarray(tokens, np.int32)


def state(n: int = 100, value: int = 7) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    return [np.full(n // 2, value, np.uint8), np.full(n - n // 2, value + 1, np.uint8)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    folder = StoreFolder(tmp_path / "cache", 100_000)
    yield folder
    folder.close()


@pytest.fixture
def store(folder: StoreFolder) -> PrefixStore:
    return folder.of("a model")


def files(folder: StoreFolder) -> list[Path]:
    return sorted(folder.root.rglob("*.safetensors"))


def test_what_was_written_is_found_and_read(store: PrefixStore) -> None:
    store.write(array(A), state())
    store.write(array(B), state(value=20))
    file, n = store.find(array([1, 2, 3, 5]))
    assert n == 3
    assert file is not None
    read = store.read(file)
    assert read is not None
    tokens, bytes_ = read
    assert tokens.tolist() == A
    assert bytes_.tolist() == [7] * 50 + [8] * 50
    assert store.find(array([5])) == (None, 0)


def test_a_later_server_finds_it_and_another_model_does_not(tmp_path: Path) -> None:
    first = StoreFolder(tmp_path, 100_000)
    first.of("a model").write(array(A), state())
    first.close()
    second = StoreFolder(tmp_path, 100_000)
    assert second.of("a model").find(array(A))[1] == 4
    assert second.of("another").find(array(A)) == (None, 0)
    second.close()


def test_what_another_holds_is_not_written_and_what_it_holds_is_deleted(store: PrefixStore, folder: StoreFolder) -> None:
    store.write(array(A), state())
    store.write(array(A[:2]), state())
    assert len(files(folder)) == 1
    store.write(array([*A, 5]), state())
    assert len(files(folder)) == len(store) == 1
    assert store.find(array([*A, 5]))[1] == 5


def test_they_are_bounded_and_the_ones_used_longest_ago_go(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, 25_000)
    store = folder.of("a model")
    for i in range(2):
        store.write(array([i, i]), state(10_000))
        time.sleep(0.01)
    file, _ = store.find(array([0, 0]))
    assert file is not None
    assert store.read(file) is not None
    store.write(array([5, 5]), state(10_000))
    assert {int(store.find(array([i, i]))[0] in files(folder)) for i in (0, 5)} == {1}
    assert store.find(array([1, 1])) == (None, 0)
    assert len(store) == len(files(folder)) == 2
    store.write(array([6]), state(30_000))  # larger than all that may be
    assert store.find(array([6])) == (None, 0)
    folder.close()
    smaller = StoreFolder(tmp_path, 11_000)
    assert len(files(smaller)) == 1
    smaller.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "another file"])
def test_damage_is_noticed_and_removed(tmp_path: Path, damage: str) -> None:
    folder = StoreFolder(tmp_path, 100_000)
    folder.of("a model").write(array(A), state())
    (file,) = files(folder)
    content = file.read_bytes()
    changed = {"cut": content[:-1], "changed": content[:-1] + b"!", "emptied": b"", "another file": b"no such thing" * 100}[damage]

    def read() -> None:
        store = folder.of("a model")
        found, _ = store.find(array(A))
        assert found is None or store.read(found) is None
        assert store.find(array(A)) == (None, 0)

    file.write_bytes(changed)
    read()
    store = folder.of("a model")
    store.write(array(A), state())
    assert store.read(files(folder)[0]) is not None
    folder.close()


def test_a_file_that_another_model_drove_out_is_missing_and_no_more(store: PrefixStore, folder: StoreFolder) -> None:
    store.write(array(A), state())
    (file,) = files(folder)
    file.unlink()
    assert store.read(file) is None
    assert len(store) == 0


def test_only_its_owner_may_look(store: PrefixStore, folder: StoreFolder) -> None:
    store.write(array(A), state())
    for path in (folder.root, *folder.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_two_servers_do_not_share_a_folder(folder: StoreFolder) -> None:
    with pytest.raises(InvalidRequestError, match="another server"):
        StoreFolder(folder.root, 1)


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidRequestError, match="give another folder"):
        StoreFolder(tmp_path / "file", 1)


def test_a_full_disk_loses_the_beginning_and_nothing_else(
    store: PrefixStore, folder: StoreFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store.write(array(B), state())
    monkeypatch.setattr(os, "fsync", full)
    store.write(array(A), state())
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert store.find(array(A)) == (files(folder)[0], 2)
    assert not list(folder.root.rglob("*.unfinished"))


def test_written_soon_is_written_by_the_end(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path, 10_000_000)
    store = folder.of("a model")
    for i in range(50):
        store.write_soon(array([i]), state())
    folder.close()
    assert 1 <= len(files(folder)) <= 50


WRITER = """
import sys, numpy as np
from pathlib import Path
from edgelm.runtime.prefix_store import StoreFolder
store = StoreFolder(Path(sys.argv[1]), 1 << 40).of("a model")
print("ready", flush=True)
for i in range(10_000):
    store.write(np.array([i, i + 1], np.int32), [np.full(3_000_000, i % 251, np.uint8)])
"""


def test_a_process_that_is_killed_while_writing_leaves_whole_files(tmp_path: Path) -> None:
    unfinished = 0
    for attempt in range(30):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.003 * attempt)
            process.send_signal(signal.SIGKILL)
        unfinished += len(list(tmp_path.rglob("*.unfinished")))
        folder = StoreFolder(tmp_path, 200_000_000)
        assert not list(tmp_path.rglob("*.unfinished"))
        store = folder.of("a model")
        assert len(store) == len(files(folder))
        for file in files(folder):
            read = store.read(file)
            assert read is not None
            assert (read[1] == read[0][0] % 251).all()
        folder.close()
        if unfinished and attempt >= 4:
            return
    pytest.fail("no write was ever interrupted, so nothing was shown")
