from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from bench_records import MODEL, load_record, run_record, sustain_record

from edgelm.bench import history
from edgelm.bench.record_file import write_record
from edgelm.errors import RecordError

RUN = run_record(("cpu", "onnx"), (2,), depths=(0,), repeat=3)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path))
    return tmp_path / "bench" / "history.sqlite"


def test_a_record_comes_back_whole_by_the_beginning_of_its_id(path: Path) -> None:
    assert history.entries() == ()
    assert not path.exists()
    history.add(RUN)
    history.add(RUN)  # the same again
    assert path.exists()
    assert history.load(RUN.id) == history.load(RUN.id[:3]) == RUN
    assert len(history.entries()) == 1


def test_entries_sum_up_and_can_be_searched(path: Path) -> None:
    other = replace(RUN, id="0123456789ab", started="2025-11-22T20:00:00+09:00", model=replace(MODEL, name="Gemma-3.gguf"))
    for record in (RUN, other, load_record(), sustain_record()):
        history.add(record)
    assert [entry.kind for entry in history.entries()] == ["sustain", "load", "run", "run"]  # by UTC, the newest first
    entry = history.entries(model="smollm2", engine="onnx")[0]
    assert (entry.id, entry.engines, entry.state) == (RUN.id, ("cpu", "onnx"), "complete")
    assert entry.tokens_per_s == pytest.approx(140, rel=0.05)
    assert entry.j_per_token == pytest.approx(15 / 140, rel=0.05)
    assert [entry.id for entry in history.entries(model="gemma")] == [other.id]
    assert history.entries(engine="on") == ()
    assert history.entries(model="%") == ()
    assert len(history.entries(limit=1)) == 1
    assert history.entries()[0].tokens_per_s == 16.0
    assert history.entries()[1].tokens_per_s == pytest.approx(116, rel=0.1)
    assert path.exists()


def test_ids_that_name_no_record_or_several(path: Path) -> None:
    with pytest.raises(RecordError, match="no record 'abc'"):
        history.load("abc")
    history.add(RUN)
    history.add(replace(RUN, id=RUN.id[:-1] + "0"))
    with pytest.raises(RecordError, match="more than one record begins with 'a1b2'"):
        history.load("a1b2")
    with pytest.raises(RecordError, match="no record ''"):
        history.load("")
    with pytest.raises(RecordError, match="no record '_'"):
        history.load("_")
    assert path.exists()


def test_another_record_of_the_same_id_is_refused_and_remove_makes_room(path: Path) -> None:
    history.add(RUN)
    changed = replace(RUN, seconds=RUN.seconds + 1.0)
    with pytest.raises(RecordError, match="another record with id"):
        history.add(changed)
    assert history.load(RUN.id) == RUN
    assert history.remove(RUN.id[:4]) == RUN.id
    history.add(changed)
    assert history.load(RUN.id) == changed
    assert path.exists()


@pytest.mark.parametrize("content", [b"this is no database, however long it may be. " * 50, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_history_is_reported_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (lambda: history.add(RUN), history.entries, lambda: history.load("a1")):
        with pytest.raises(RecordError, match="damaged, or no history"):
            use()
    assert path.read_bytes() == content


def test_other_databases_and_later_versions_are_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE photos (id)")
        database.commit()
    with pytest.raises(RecordError, match="no history of edgebench"):
        history.add(RUN)
    path.unlink()
    history.add(RUN)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(RecordError, match=r"version 9.*update edgelm"):
        history.entries()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be used"):
        history.add(RUN, tmp_path / "file" / "history.sqlite")


def test_many_processes_write_at_once(path: Path) -> None:
    template = path.parent.parent / "record.json"
    write_record(template, run_record(("cpu",), (2,), depths=(0,), repeat=3, power=False))
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path;"
        "from edgelm.bench import history; from edgelm.bench.record_file import read_record;"
        "record = read_record(Path(sys.argv[1]));"
        "[history.add(replace(record, id=f'{int(sys.argv[2]) * 100 + n:012x}')) for n in range(10)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(template), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(history.entries(limit=100)) == 30
