from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import interrupted_work
import numpy as np
import pytest

from edgelm.errors import ClosedError, EdgeLMError, InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F32, Q4_0, Q4_K
from edgelm.quant.work_folder import open_or_create, work_path

SETTINGS = {"edgelm": "0.1", "settings": {"format": "q4_0", "steps": [1, 2]}}
BLOCKS = np.arange(4 * 18, dtype=np.uint8)  # Q4_0, shape (2, 64)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file to be written, with a folder beside it that holds one tensor and one checkpoint."""
    path = tmp_path / "out.gguf"
    with open_or_create(path, SETTINGS) as folder:
        folder.save_tensor("a/../b", Q4_0, (2, 64), BLOCKS, {"error": np.float32(0.25), "method": "gptq"})
        folder.save_state("block 0", {"x": np.arange(12.0).reshape(6, 2)})
    return path


def child(task: str, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, interrupted_work.__file__, task, str(target)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output(task: str, target: Path) -> str:
    process = child(task, target)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def test_a_later_run_finds_what_was_saved(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder:
        tensor = folder.finished["a/../b"]
        assert (tensor.format, tensor.shape, tensor.n_bytes) == (Q4_0, (2, 64), 72)
        assert tensor.facts == {"error": 0.25, "method": "gptq"}
        data = folder.load_tensor("a/../b")
        assert np.array_equal(data, BLOCKS)
        assert not data.flags.writeable
        state = folder.last_state()
        assert state is not None
        assert state.step == "block 0"
        assert np.array_equal(state.arrays["x"].read(), np.arange(12.0).reshape(6, 2))


def test_arrays_are_written_and_read_in_pieces(target: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float16)
    with open_or_create(target, SETTINGS) as folder:
        old = folder.last_state()
        assert old is not None
        with folder.new_state("block 1") as new:
            for rows, before in zip(np.split(values[:6], 3), old.arrays["x"].chunks(2), strict=True):  # the last one is still read
                new.append("hidden", rows)
                new.append("before", before)
            new.append("hidden", values[6:].copy(order="F"))
            new.append("none", np.empty((0, 5), np.int32))
        state = folder.last_state()
    assert state is not None
    assert list(state.arrays) == ["hidden", "before", "none"]
    assert [len(chunk) for chunk in state.arrays["hidden"].chunks(3)] == [3, 3, 1]
    assert np.array_equal(np.concatenate(list(state.arrays["hidden"].chunks(3))), values)
    assert state.arrays["hidden"].dtype == np.float16
    assert np.array_equal(state.arrays["before"].read(), np.arange(12.0).reshape(6, 2))
    assert np.array_equal(state.arrays["hidden"].mapped(), values)
    assert state.arrays["hidden"].mapped().dtype == values.dtype
    assert state.arrays["none"].read().shape == state.arrays["none"].mapped().shape == (0, 5)
    with pytest.raises(ModelFileError, match="checkpoint may be outdated"):
        old.arrays["x"].read()
    with pytest.raises(InvalidRequestError, match="pieces of 0 rows"):
        list(state.arrays["hidden"].chunks(0))


def test_a_checkpoint_that_fails_leaves_the_last_one(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder:
        n_files = len(list(folder.path.iterdir()))

        def half() -> None:
            with folder.new_state("block 1") as new:
                new.append("x", np.ones((2, 2)))
                raise ValueError("something else")

        with pytest.raises(ValueError, match="something else"):
            half()
        for bad, message in [
            ([np.ones((2, 2)), np.ones((2, 3))], "cannot follow"),
            ([np.ones((2, 2)), np.ones((2, 2), np.float32)], "cannot follow"),
            ([np.array("text")], "give rows of plain numbers"),
            ([np.array(1.0)], "give rows of plain numbers"),
            ([np.ones(2, complex)], "give rows of plain numbers"),
        ]:
            with pytest.raises(InvalidRequestError, match=message):
                folder.save_state("block 1", {"x": bad})
        assert len(list(folder.path.iterdir())) == n_files
        state = folder.last_state()
        assert state is not None
        assert state.step == "block 0"


def test_a_tensor_saved_again_takes_the_place_of_the_first(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder:
        n_files = len(list(folder.path.iterdir()))
        first = folder.load_tensor("a/../b")
        folder.save_tensor("a/../b", F32, (3,), iter([np.float32([1]), np.float32([2, 3])]))
        assert np.array_equal(folder.load_tensor("a/../b").view(np.float32), np.float32([1, 2, 3]))
        assert np.array_equal(first, BLOCKS)
        assert len(list(folder.path.iterdir())) == n_files


def test_tensors_that_are_not_what_they_should_be_are_not_stored(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder:
        n_files = len(list(folder.path.iterdir()))
        with pytest.raises(InvalidRequestError, match=r"c with shape \(2, 64\) takes 72 bytes as Q4_0, but was given 71"):
            folder.save_tensor("c", Q4_0, (2, 64), BLOCKS[1:])
        with pytest.raises(InvalidRequestError, match="c: the figure 'error' is nan"):
            folder.save_tensor("c", Q4_0, (2, 64), BLOCKS, {"error": float("nan")})
        with pytest.raises(ModelFileError, match="rows of 64 values cannot be Q4_K"):
            folder.save_tensor("c", Q4_K, (2, 64), BLOCKS)
        assert list(folder.finished) == ["a/../b"]
        assert len(list(folder.path.iterdir())) == n_files
        with pytest.raises(InvalidRequestError, match="no finished tensor c"):
            folder.load_tensor("c")


def test_several_threads_save_tensors(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: folder.save_tensor(f"t{n}", Q4_0, (2, 64), BLOCKS + np.uint8(n)), range(20)))
    with open_or_create(target, SETTINGS) as folder:
        assert all(np.array_equal(folder.load_tensor(f"t{n}"), BLOCKS + np.uint8(n)) for n in range(20))


def test_removed_folders_are_gone(target: Path) -> None:
    with open_or_create(target, SETTINGS) as folder:
        folder.remove()
        assert not work_path(target).exists()
        for use in (folder.remove, lambda: folder.save_tensor("a", Q4_0, (2, 64), BLOCKS), lambda: folder.save_state("b", {})):
            with pytest.raises(ClosedError):
                use()


def test_other_settings_are_refused_with_what_differs(target: Path) -> None:
    other = {"edgelm": "0.2", "settings": {"format": "q4_1", "steps": [1, 2], "seed": 3}}
    with pytest.raises(InvalidRequestError) as caught:
        open_or_create(target, other)
    text = str(caught.value)
    assert "edgelm: '0.1' there, '0.2' now; settings: format: 'q4_0' there, 'q4_1' now; settings: seed: nothing there, 3 now" in text
    assert "steps" not in text
    assert "--restart" in text
    with open_or_create(target, SETTINGS) as folder:
        assert list(folder.finished) == ["a/../b"]
    with open_or_create(target, other, restart=True) as folder:
        assert not folder.finished
        assert folder.last_state() is None
        assert not list(folder.path.glob("*.bin"))


def test_a_folder_with_nothing_done_serves_any_settings(tmp_path: Path) -> None:
    open_or_create(tmp_path / "out.gguf", SETTINGS).close()
    with open_or_create(tmp_path / "out.gguf", {"other": 1}) as folder:
        folder.save_state("a", {})
    with pytest.raises(InvalidRequestError, match="other settings"):
        open_or_create(tmp_path / "out.gguf", SETTINGS)


def data_file(folder: Path) -> Path:
    return min(folder.glob("*.bin"))


def edit_manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def edit(folder: Path) -> None:
        fields = json.loads((folder / "manifest.json").read_text())
        change(fields)
        (folder / "manifest.json").write_text(json.dumps(fields))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: data_file(folder).write_bytes(bytes(72)), r"000000\.bin has other bytes than were written"),
        (lambda folder: data_file(folder).write_bytes(b"short"), r"000000\.bin has 5 bytes instead of 72"),
        (lambda folder: data_file(folder).unlink(), r"000000\.bin cannot be read"),
        (lambda folder: max(folder.glob("*.bin")).write_bytes(bytes(96)), r"000001\.bin has other bytes"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not sound JSON"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json is missing"),
        (edit_manifest(lambda m: m.update(version=9)), "is of version 9"),
        (edit_manifest(lambda m: m["tensors"]["a/../b"].update(file="../../secret")), "the name of a data file"),
        (edit_manifest(lambda m: m["tensors"]["a/../b"].update(format="Q9")), "one of F32"),
        (edit_manifest(lambda m: m["tensors"]["a/../b"].update(shape=[2, 33])), "rows of 33"),
        (edit_manifest(lambda m: m["tensors"]["a/../b"].update(facts={"error": [1]})), "numbers and texts"),
        (edit_manifest(lambda m: m["state"]["arrays"]["x"].update(dtype="|O8")), "a type of numbers"),
        (edit_manifest(lambda m: m["state"]["arrays"]["x"].update(shape=[-1, 2])), "a list of whole numbers"),
    ],
)
def test_damaged_folders_are_refused_and_discarded_when_told(target: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(work_path(target))
    before = sorted(work_path(target).iterdir())
    with pytest.raises(ModelFileError, match=message) as caught:
        open_or_create(target, SETTINGS)
    assert "--restart" in str(caught.value)
    assert sorted(work_path(target).iterdir()) == before
    with open_or_create(target, SETTINGS, restart=True) as folder:
        assert not folder.finished
        folder.remove()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "123.bin", "000000.bin/inside"])
def test_folders_of_others_are_never_touched(tmp_path: Path, restart: bool, name: str) -> None:
    place = work_path(tmp_path / "out.gguf") / name
    place.parent.mkdir(parents=True)
    place.write_text("years of work")
    with pytest.raises(ModelFileError, match="which edgelm did not put there"):
        open_or_create(tmp_path / "out.gguf", SETTINGS, restart=restart)
    assert place.read_text() == "years of work"
    assert len(list(place.parent.iterdir())) == 1


def test_links_are_not_followed(target: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    data_file(work_path(target)).unlink()
    (work_path(target) / "000000.bin").symlink_to(precious)
    with pytest.raises(ModelFileError, match=r"holds 000000\.bin, which edgelm did not put there"):
        open_or_create(target, SETTINGS, restart=True)
    assert precious.read_text() == "years of work"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    work_path(tmp_path / "out.gguf").write_text("")
    with pytest.raises(ModelFileError, match="is no folder"):
        open_or_create(tmp_path / "out.gguf", SETTINGS)


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"out\.gguf\.unfinished cannot be written \(No such file"):
        open_or_create(tmp_path / "absent" / "out.gguf", SETTINGS)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    process = child("hold", target)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for restart in (False, True):
            with pytest.raises(InvalidRequestError, match=rf"another process \(number {process.pid}\) is working in .*unfinished"):
                open_or_create(target, interrupted_work.FINGERPRINT, restart=restart)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with open_or_create(target, interrupted_work.FINGERPRINT) as folder:
        assert (folder.path / "lock").read_text() == str(os.getpid())
        with pytest.raises(EdgeLMError, match="another process"):
            open_or_create(target, interrupted_work.FINGERPRINT)


def test_killed_at_every_operation_on_files_and_resumed(tmp_path: Path) -> None:
    assert int(output("kill_at_every_operation", tmp_path / "out.gguf")) > 40


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    output("kill_at_random_moments", tmp_path / "out.gguf")


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: the tensor, the checkpoint and then the manifest do not fit."""
    target = tmp_path / "out.gguf"
    lines = output("fill_disk", target).splitlines()
    assert len(lines) == 6
    assert all(line.startswith(f"{work_path(target)} has no room left") and "what was finished is kept" in line for line in lines[::2])
    # After a tensor or a checkpoint nothing is left behind; of the tensor that only the manifest had no room for, the data are.
    assert lines[1::2] == ["2 0", "2 0", "3 0"]
    with open_or_create(target, interrupted_work.FINGERPRINT) as folder:
        assert list(folder.finished) == ["small"]
        state = folder.last_state()
        assert state is not None
        assert state.step == "first"
        assert np.array_equal(state.arrays["hidden"].read(), interrupted_work.hidden(1))
        assert len(list(folder.path.glob("*.bin"))) == 2
