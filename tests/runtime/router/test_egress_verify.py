"""Reading a log: every change is found where it was made."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import pytest
from egress_logs import CHANGES, ENDED, SENT, Note, fill, found, head_file
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgelm.errors import RecordError
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Head
from edgelm.runtime.router.egress_verify import read, verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "egress.jsonl"


@pytest.fixture
def log(path: Path) -> EgressLog:
    return EgressLog(path)


def test_reading_meanwhile_sees_whole_records(path: Path, log: EgressLog) -> None:
    fill(path)
    records = read(path)
    next(records)
    log.append(SENT)
    assert len(list(records)) == 5


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The bytes of a log of four records, and of its head."""
    path = tmp_path_factory.mktemp("sound") / "log"
    for entry in (SENT, ENDED, SENT, Note({"any": ["thing", None, True, {"é": -1}]})):
        EgressLog(path).append(entry)
    return path.read_bytes(), head_file(path).read_bytes()


@given(seed=st.integers(0, 2**32), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_byte_that_is_flipped_is_found_in_its_line(sound: tuple[bytes, bytes], seed: int, flip: int) -> None:
    content = bytearray(sound[0])
    place = random.Random(seed).randrange(len(content))
    content[place] ^= flip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(content)
        head_file(path).write_bytes(sound[1])
        verification = verify(path)
    assert verification.problem is not None
    assert verification.problem.line == sound[0][:place].count(b"\n") + 1
    assert verification.n_records == verification.problem.line - 1


@given(place=st.integers(0, 66), flip=st.integers(1, 255))
@example(place=0, flip=ord("4") ^ ord("3"))
@settings(max_examples=50, deadline=None)
def test_any_byte_of_the_head_that_is_flipped_is_found(sound: tuple[bytes, bytes], place: int, flip: int) -> None:
    content = bytearray(sound[1])
    content[place] ^= flip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(sound[0])
        head_file(path).write_bytes(content)
        assert found(path) in {(None, "head"), *((n, "replaced") for n in range(1, 5)), *((n, "cut") for n in range(5, 10))}
        if content[:2] in (b"1:", b"2:", b"3:"):  # it may be behind, so that appending looks only at the last line, and the log is sound
            return
        with pytest.raises(RecordError, match=r"is broken|has had"):
            EgressLog(path).append(SENT)
        assert path.read_bytes() == sound[0]


def test_a_head_that_lags_elsewhere_is_no_sound_one(path: Path) -> None:
    fill(path, 2)
    head_file(path).write_text(f"1:{'5' * 64}\n")
    assert found(path) == (1, "replaced")


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_tampering_is_found_at_its_line(path: Path, name: str) -> None:
    change, line, kind = CHANGES[name]
    lines = fill(path)
    assert found(path) is None
    path.write_bytes(b"".join(change(lines)))
    assert found(path) == (line, kind)
    verification = verify(path)
    assert verification.n_records == verification.head.seq == line - 1
    assert verification.head.sha256 == (hashlib.sha256(lines[line - 2][:-1]).hexdigest() if line > 1 else "0" * 64) or "put in" in name


def test_a_forged_log_with_a_forged_head_is_found_by_the_head_that_was_noted(path: Path, tmp_path: Path) -> None:
    fill(path)
    noted = verify(path).head
    forgery = tmp_path / "forgery"
    for number in range(8):
        EgressLog(forgery).append(Note({"number": number * 2}))
    for file in (forgery, head_file(forgery)):
        file.rename(path.with_name(file.name.replace("forgery", path.name)))
    assert found(path) is None
    assert found(path, noted) == (6, "replaced")
    assert found(path, Head(9, "5" * 64)) == (9, "cut")


def test_a_noted_head_stays_good_while_the_log_grows(path: Path) -> None:
    fill(path)
    noted = verify(path).head
    fill(path)
    assert found(path, noted) is None
