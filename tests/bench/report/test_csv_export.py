from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from bench_records import MODEL, load_record, run_record, sustain_record

from edgelm.bench.record import Record
from edgelm.bench.report.csv_export import COLUMNS, csv_text


def rows(record: Record) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(record))))


def test_one_row_per_measurement_with_the_figures_of_the_record() -> None:
    record = run_record()
    found = rows(record)
    assert len(found) == len(record.measurements)
    assert list(found[0]) == list(COLUMNS)
    first = found[0]
    assert (first["engine"], first["phase"], first["threads"], first["trials"]) == ("cpu", "decode", "1", "6")
    assert float(first["tokens_per_s_low"]) < float(first["tokens_per_s"]) < float(first["tokens_per_s_high"])
    assert float(first["tokens_per_s"]) == pytest.approx(84, rel=0.05)
    assert float(first["energy_per_unit_j"]) * float(first["tokens_per_s"]) == pytest.approx(float(first["watts"]), rel=0.05)
    assert (first["energy_unit"], first["meter_kind"]) == ("generated token", "vendor model")
    assert float(first["mean_kl_nats"]) == 0.0041


def test_the_cold_start_is_the_one_from_disk() -> None:
    prefill = next(row for row in rows(run_record(("cpu",), (2,))) if row["phase"] == "prefill" and row["depth_tokens"] == "0")
    assert float(prefill["ttft_cold_s"]) == pytest.approx(1.9)
    assert float(prefill["cold_cached_fraction"]) == 0


def test_what_is_not_known_is_empty() -> None:
    for row in rows(run_record(("cpu",), (2,), power=False, quality=False, limits=False, repeat=2)):
        assert row["watts"] == row["mean_kl_nats"] == row["limit_fraction"] == row["tokens_per_s_low"] == ""
        assert row["energy_reason"] == "no power meter"
    record = run_record(("cpu",), (2,))
    empty = replace(record, measurements=(replace(record.measurements[0], trials=(), state="failed", reason="it crashed", energy=None),))
    (row,) = rows(empty)
    assert (row["tokens_per_s"], row["state"], row["reason"]) == ("", "failed", "it crashed")


def test_load_and_sustain_have_rows() -> None:
    found = rows(load_record((1, 16)))
    assert [(row["concurrency"], row["errors"]) for row in found] == [("1", "0"), ("16", "1")]
    assert float(found[0]["ttft_warm_s"]) == pytest.approx(0.25, rel=0.1)
    (row,) = rows(sustain_record())
    assert (row["engine"], row["tokens_per_s"], row["energy_unit"]) == ("cpu", "16.0", "generated token")


def test_a_name_is_no_formula() -> None:
    record = replace(run_record(("cpu",), (2,)), model=replace(MODEL, name='=HYPERLINK("http://x")'))
    assert rows(record)[0]["model"].startswith("'=")
