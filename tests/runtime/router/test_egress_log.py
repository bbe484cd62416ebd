"""The log: what was acknowledged is never lost, whatever is killed or full, and nothing is added to a broken one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
from egress_logs import BODY, CHANGES, ENDED, SENT, Note, fill, found, head_file

from edgelm.errors import BusyError, InvalidRequestError, RecordError
from edgelm.runtime.router import egress_log
from edgelm.runtime.router.egress_log import EgressLog
from edgelm.runtime.router.egress_record import Head, Refused, Sent
from edgelm.runtime.router.egress_verify import read, verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "egress.jsonl"


@pytest.fixture
def log(path: Path) -> EgressLog:
    return EgressLog(path)


def test_records_are_chained_and_say_what_was_sent(path: Path) -> None:
    east = timezone(timedelta(hours=2))
    log = EgressLog(path, clock=lambda: datetime(2025, 3, 1, 1, 2, 3, 4, tzinfo=east))
    records = [log.append(entry) for entry in (SENT, ENDED, Refused("r2", None, "private", "names a person"))]
    first, second, third = map(json.loads, path.read_text().splitlines())
    assert first == {
        "seq": 1,
        "time": "2025-02-28T23:02:03.000004Z",
        "prev": "0" * 64,
        "kind": "sent",
        "request": "r1",
        "endpoint": "https://cloud.example",
        "model": "big",
        "level": "public",
        "reason": "too hard",
        "attempt": 1,
        "body_sha256": hashlib.sha256(BODY).hexdigest(),
        "body_bytes": len(BODY),
        "replaced": {"EMAIL": 2},
        "reserved_tokens": 1000,
        "reserved_money": "0.0012",
        "hash": first["hash"],
    }
    assert second["prev"] == hashlib.sha256(path.read_bytes().splitlines()[0]).hexdigest()
    assert (second["seq"], second["status"], second["cost"], second["milliseconds"]) == (2, 200, "0.001", 1234)
    assert (third["kind"], third["endpoint"]) == ("refused", None)
    assert list(read(path)) == records
    assert verify(path).problem is None
    assert (verify(path).n_records, verify(path).head) == (3, records[2].head)


def test_bodies_are_kept_only_if_they_shall_be(path: Path, log: EgressLog) -> None:
    log.append(SENT)
    assert b"messages" not in path.read_bytes()
    record = EgressLog(path, keeps_bodies=True).append(SENT)
    assert record.fields["body"].encode() == BODY
    assert verify(path).problem is None


def test_bodies_of_any_bytes_are_kept_exactly(path: Path) -> None:
    body = bytes(range(256))
    EgressLog(path, keeps_bodies=True).append(Sent("r", "e", "m", "l", "w", 1, body, {}, 1, Decimal(0)))
    (record,) = read(path)
    assert record.fields["body"].encode("utf-8", "surrogateescape") == body


def test_an_entry_that_no_record_can_hold_leaves_the_log_as_it_is(path: Path, log: EgressLog) -> None:
    log.append(SENT)
    before = path.read_bytes()
    for fields in ({"seq": 5}, {"seconds": 1.5}):
        with pytest.raises(InvalidRequestError, match=r"its own seq|no whole number"):
            log.append(Note(fields))
    assert path.read_bytes() == before


def test_files_are_their_owners_only(path: Path, log: EgressLog) -> None:
    mask = os.umask(0)
    try:
        log.append(SENT)
    finally:
        os.umask(mask)
    assert sorted(file.name for file in path.parent.iterdir()) == ["egress.jsonl", "egress.jsonl.head"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    log.append(SENT)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_link_is_followed(path: Path, log: EgressLog, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "elsewhere").touch()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="no link"):
        log.append(SENT)
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    head_file(path).symlink_to(tmp_path / "other")
    log.append(SENT)
    assert not (tmp_path / "other").exists()
    assert not head_file(path).is_symlink()


def test_neither_folders_nor_pipes_are_logs(path: Path, log: EgressLog) -> None:
    path.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(RecordError, match=r"cannot be used|no regular file"):
            log.append(SENT)
        for use in (verify, lambda place: list(read(place))):
            with pytest.raises(RecordError, match="no regular file"):
                use(path)
        if path.is_dir():
            path.rmdir()
            os.mkfifo(path)


def test_a_log_that_is_not_there(path: Path) -> None:
    for use in (verify, lambda place: list(read(place))):
        with pytest.raises(RecordError, match="cannot be used"):
            use(path)


@pytest.mark.parametrize("name", ["a field", "the last cut", "all cut", "the last forged", "half of the last cut", "the last swapped"])
def test_nothing_is_appended_to_a_log_whose_end_is_broken(path: Path, log: EgressLog, name: str) -> None:
    lines = fill(path)
    broken = b"".join(CHANGES[name][0](lines if name != "a field" else lines[:3]))
    path.write_bytes(broken)
    with pytest.raises(RecordError, match=r"edgelm route verify.*begin a new one"):
        log.append(SENT)
    assert path.read_bytes() == broken


def test_a_missing_log_or_head_is_noticed(path: Path, log: EgressLog) -> None:
    fill(path)
    head = head_file(path).read_bytes()
    head_file(path).unlink()
    assert found(path) == (None, "head")
    with pytest.raises(RecordError, match="head is missing"):
        log.append(SENT)
    head_file(path).write_bytes(head)
    path.unlink()
    with pytest.raises(RecordError, match="has had 6:"):
        log.append(SENT)


# --- crashes


def test_a_torn_line_is_replaced_and_noted(path: Path, log: EgressLog) -> None:
    lines = fill(path)
    torn = lines[5][:77]
    path.write_bytes(path.read_bytes() + torn)
    assert [record.seq for record in read(path)] == [1, 2, 3, 4, 5, 6]
    record = log.append(SENT)
    assert (record.seq, record.fields["torn"]) == (7, {"bytes": 77, "sha256": hashlib.sha256(torn).hexdigest()})
    assert path.read_bytes().splitlines(keepends=True)[:6] == lines
    assert verify(path).problem is None
    assert "torn" not in log.append(SENT).fields


def test_a_torn_first_line(path: Path, log: EgressLog) -> None:
    first = fill(path, 1)[0]
    head_file(path).write_text(f"{Head()}\n")
    path.write_bytes(first[:-1])
    assert found(path) == (1, "torn")
    assert log.append(SENT).seq == 1
    assert found(path) is None


def test_records_beyond_the_head_are_of_processes_that_died(path: Path, log: EgressLog) -> None:
    fill(path, 2)
    head = head_file(path).read_bytes()
    fill(path, 2)
    head_file(path).write_bytes(head)
    assert found(path) is None
    assert log.append(SENT).seq == 5
    assert found(path) is None


def test_long_and_torn_lines_at_the_end_are_read_back(path: Path) -> None:
    log = EgressLog(path, keeps_bodies=True)
    for n in (10, 20_000, 300_000):
        body = b"x" * n
        log.append(Sent("r", "e", "m", "l", "w", 1, body, {}, 1, Decimal(0)))
        with path.open("ab") as file:
            file.write(b"{" * n)
    assert log.append(ENDED).fields["torn"]["bytes"] == 300_000
    assert verify(path).n_records == 4
    assert verify(path).problem is None


def test_threads_append_to_one_chain(path: Path) -> None:
    logs = [EgressLog(path) for _ in range(3)]
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda n: logs[n % 3].append(Note({"number": n})), range(60)))
    assert sorted(record.seq for record in records) == list(range(1, 61))
    assert verify(path).n_records == 60
    assert verify(path).problem is None


APPEND = (
    "import sys; from pathlib import Path; from edgelm.runtime.router.egress_log import EgressLog\n"
    "from edgelm.runtime.router.egress_record import Refused\n"
    "log = EgressLog(Path(sys.argv[1]))\n"
    "for n in range(int(sys.argv[3])):\n"
    "    record = log.append(Refused(f'{sys.argv[2]}-{n}', None, 'private', 'x' * 500))\n"
    "    print(record.seq, record.fields['request'], flush=True)\n"
)


def start(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", APPEND, str(path), name, str(n)], stdout=subprocess.PIPE, text=True)


def test_processes_append_to_one_chain(path: Path) -> None:
    writers = [start(path, name, 20) for name in "abc"]
    said = [line for writer in writers for line in writer.communicate(timeout=60)[0].splitlines()]
    assert len(said) == 60
    assert {f"{record.seq} {record.fields['request']}" for record in read(path)} == set(said)
    assert verify(path).n_records == 60
    assert verify(path).problem is None


def test_processes_that_are_killed_lose_nothing_that_was_acknowledged(path: Path) -> None:
    chance, said = random.Random(3), []
    for round_ in range(4):
        writers = [start(path, f"{round_}{name}", 10_000) for name in "ab"]
        for writer in writers:
            assert writer.stdout is not None
            said += [writer.stdout.readline() for _ in range(chance.randint(1, 20))]
            writer.send_signal(signal.SIGKILL)
        said += [line for writer in writers for line in writer.communicate(timeout=60)[0].splitlines(keepends=True)]
        EgressLog(path).append(Refused(f"after {round_}", None, "private", "x"))
        assert verify(path).problem is None
    there = {f"{record.seq} {record.fields['request']}\n" for record in read(path)}
    acknowledged = {line for line in said if line.endswith("\n")}
    assert len(acknowledged) >= 8
    assert acknowledged <= there
    assert verify(path).n_records == len(there)


# --- a disk that does not take it


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a process without root's rights can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


def test_a_read_only_log_is_not_written(open_folder: Path) -> None:
    log, folder = open_folder / "log", open_folder / "none"
    fill(log, 1)
    before = log.read_bytes()
    log.chmod(0o400)
    open_folder.chmod(0o555)
    code = (
        "import fcntl, os, sys; from pathlib import Path; from edgelm.errors import RecordError\n"
        "from edgelm.runtime.router.egress_log import EgressLog\n"
        "from edgelm.runtime.router.egress_record import Refused\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "for name in sys.argv[1:]:\n"
        "    try: EgressLog(Path(name)).append(Refused('r', None, 'private', 'x'))\n"
        "    except RecordError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(log), str(folder / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("cannot be used ([Errno 13]") == 2
    assert log.read_bytes() == before
    assert not folder.exists()


@pytest.mark.parametrize("room", [0, 1, 300])
def test_a_full_disk_fails_and_the_log_goes_on_later(path: Path, room: int) -> None:
    """A bound of a file's size stands in for the disk: of the next line only so many bytes have room."""
    fill(path, 3)
    before = path.read_bytes()
    code = (
        "import resource, sys; from pathlib import Path; from edgelm.errors import RecordError\n"
        "from edgelm.runtime.router.egress_log import EgressLog\n"
        "from edgelm.runtime.router.egress_record import Refused\n"
        "log, size = EgressLog(Path(sys.argv[1])), int(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try: log.append(Refused('r', None, 'private', 'x' * 600))\n"
        "except RecordError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(len(before) + room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "make room" in done.stdout
    assert path.read_bytes()[: len(before)] == before
    assert found(path) == (None if room == 0 else (4, "torn"))
    assert EgressLog(path).append(SENT).seq == 4
    assert found(path) is None


def test_a_head_that_cannot_be_written_fails_too(path: Path, log: EgressLog) -> None:
    fill(path, 1)
    head_file(path).with_name(f"{path.name}.head.new").mkdir()
    with pytest.raises(RecordError, match="cannot be used"):
        log.append(SENT)
    head_file(path).with_name(f"{path.name}.head.new").rmdir()
    assert log.append(SENT).seq == 3
    assert found(path) is None


def test_times_are_utc(path: Path, log: EgressLog) -> None:
    before = datetime.now(UTC)
    told = datetime.fromisoformat(log.append(SENT).time)
    assert before <= told <= datetime.now(UTC)
    assert verify(path).n_records == 1


def test_a_lock_that_is_never_given_back_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_log, "_WAIT_S", 0.05)
    path = tmp_path / "egress.jsonl"
    log = EgressLog(path)
    log.append(Refused("r", None, "ask", "first"))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(BusyError, match="has held the log"):
            log.append(Refused("r", None, "ask", "second"))
    log.append(Refused("r", None, "ask", "third"))
    assert [record.fields["reason"] for record in read(path)] == ["first", "third"]
