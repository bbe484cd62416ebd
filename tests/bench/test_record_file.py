import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.bench.record import EngineRun, Machine, Measurement, Record, Trial
from edgelm.bench.record_file import decode_record, encode_record, read_record, require_records, write_record, write_text
from edgelm.errors import MissingPackageError, RecordError

RECORD = Record(
    "run",
    "0123456789ab",
    "2026-01-02T03:04:05+00:00",
    Machine("a CPU", 2, "an OS", "3.11", {"numpy": "2"}),
    {"repeat": "3"},
    seconds=2.0,
    engines=(EngineRun("cpu", 1),),
    measurements=(Measurement("cpu", 1, "decode", 0, 2, 0, (Trial(0.5, (1.0, 1.5), minor_faults=3),)),),
)


def changed(**fields: object) -> str:
    return json.dumps(json.loads(encode_record(RECORD)) | fields)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, RECORD)
    assert read_record(path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "no version"),
        (json.dumps({"measurements": [{"phase": "decode", "edgelm": [10.0]}]}), "no version"),
        (changed(version=0), "version 0"),
        (changed(version=99), "update edgelm"),
        (changed(version="1"), "version 1"),
        (changed(seconds=float("nan")), "finite"),
        (changed(surprise=1), "surprise"),
        (changed(measurements=[{"engine": "cpu"}]), "measurements.0"),
        (changed(kind="walk"), "kind"),
        (changed(seconds="soon"), "seconds"),
    ],
)
def test_what_is_no_sound_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        decode_record(text, "it")


def test_numbers_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(RecordError, match="finite"):
        encode_record(replace(RECORD, seconds=float("inf")))


def test_a_missing_file_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path / "none.json")
    with pytest.raises(RecordError, match="cannot be written"):
        write_record(tmp_path / "no" / "folder.json", RECORD)


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RecordError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_without_pydantic_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    text = encode_record(RECORD)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    for work in (require_records, lambda: decode_record(text, "it"), lambda: encode_record(RECORD)):
        with pytest.raises(MissingPackageError, match="pip install"):
            work()
