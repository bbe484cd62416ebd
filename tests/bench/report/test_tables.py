from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from bench_records import MODEL, NOT_MEASURED, load_record, run_record, sustain_record
from rich.console import Console

from edgelm.bench.record import LimitShare, Power, Record
from edgelm.bench.report.tables import print_record


def printed(record: Record, width: int = 200) -> str:
    text = io.StringIO()
    print_record(record, Console(file=text, width=width))
    return text.getvalue()


def test_a_run_shows_speed_latency_energy_and_quality() -> None:
    text = printed(run_record(depths=(0, 1024)))
    for words in (
        *("smollm2-135m-q4_1.gguf on AMD EPYC", "ratio to cpu", "95% interval", "TTFT warm ms", "TPOT ms", "ITL p50 ms"),
        *("TTFT cold ms", "on disk", "in page cache", "(memory)", "(arithmetic)", "peak memory MB", "vpmaddubsw"),
        *("Energy (CPU package, rapl:package-0)", "vendor model", "generated token", "prompt token", "request", "net J", "tokens/J"),
        *("mean KL", "top token agrees", "kept (1.00%)", "virtual machine or container (kvm)", "record a1b2c3d4e5f6"),
    ):
        assert words in text
    assert "not measured" not in text


def test_speeds_and_ratios_are_those_of_the_record() -> None:
    record = run_record(("cpu", "onnx"), (2,), depths=(0,), repeat=5)
    line = next(line for line in printed(record).splitlines() if "decode 32" in line and "onnx" in line)
    cells = re.split(r"\s{2,}", line.strip())
    assert cells[:4] == ["2", "decode 32", "0", "onnx"]
    assert float(cells[4]) == pytest.approx(140 * 0.52, rel=0.03)
    assert cells[6] == "5"
    assert float(cells[7].split()[0]) == pytest.approx(0.52, rel=0.03)


def test_without_a_meter_there_is_one_line_that_says_why() -> None:
    text = printed(run_record(power=False, depths=(0,)))
    assert f"power: not measured ({NOT_MEASURED})" in text
    assert "Energy" not in text


def test_assumed_watts_are_labelled_and_become_no_energy() -> None:
    power = Power(reason="no meter", assumed_w=15.0)
    text = printed(replace(run_record(power=False, depths=(0,)), power=power))
    assert "power: not measured (no meter)" in text
    assert "15.0 W were given by hand (--estimate-tdp): an assumption" in text
    assert "J per" not in text


def test_a_share_of_the_limit_that_cannot_be_told_has_a_reason() -> None:
    record = run_record(("cpu",), (2,), depths=(0,))
    share = LimitShare("memory", 1e8, 1e8, 100.0, None, "it would exceed 100%")
    text = printed(replace(record, measurements=tuple(replace(m, limit=share) for m in record.measurements)))
    assert "(memory)" not in text
    assert "it would exceed 100%" in text


def test_an_interrupted_record_says_so_and_shows_what_there_is() -> None:
    record = run_record(("cpu",), (2,), depths=(0,), repeat=2)
    broken = replace(record.measurements[1], trials=(), state="interrupted", reason="Ctrl-C", energy=None, limit=None)
    record = replace(record, measurements=(record.measurements[0], broken), state="interrupted", reason="Ctrl-C")
    text = printed(record)
    assert "INTERRUPTED: Ctrl-C" in text
    assert "cpu (interrupted)" in text
    assert "prefill 512 at depth 0 of cpu, 2 threads: interrupted after 0 trials (Ctrl-C)" in text


def test_an_empty_record_can_be_shown() -> None:
    record = run_record((), (2,), depths=(0,), power=False, quality=False, limits=False, state="failed", reason="it crashed")
    assert "FAILED: it crashed" in printed(record)


def test_names_are_not_taken_for_markup() -> None:
    assert "[red]x[/red]" in printed(replace(run_record(("cpu",), (2,)), model=replace(MODEL, name="[red]x[/red]")))


def test_load_and_sustain_have_their_tables() -> None:
    text = printed(load_record())
    for words in (
        "16 at once",
        "good/s",
        "Latency under load",
        "TTFT of 1.00 s and a TPOT of 50.0 ms",
        "HTTP 500 (1)",
        "power: not measured",
    ):
        assert words in text
    text = printed(sustain_record())
    for words in ("THROTTLED", "0.800 (0.790 to 0.810)", "sustain, 2 threads"):
        assert words in text
    assert "holds" in printed(sustain_record(throttled=False))


def test_a_narrow_console_cuts_no_number() -> None:
    record = run_record(depths=(0, 1024))
    narrow, wide = printed(record, 80), printed(record, 200)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    for figure in re.findall(r"\d[\d.,]*", wide):
        assert figure in narrow
