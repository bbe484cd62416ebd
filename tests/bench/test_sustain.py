"""Decoding without pause, in seconds rather than minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from power_machine import DrawnMeter
from tiny_models import write_tiny

from edgelm.bench.energy_figures import sustain_share
from edgelm.bench.power.session import PowerWishes
from edgelm.bench.record import Record
from edgelm.bench.record_file import read_record, write_record
from edgelm.bench.sustain import SustainTest, measure_sustain
from edgelm.errors import InvalidRequestError, MeasurementError

_COMMAND = "from edgelm.bench.cli import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


def measure(model: Path, backend: str = "cpu", seconds: float = 1.0, depth: int = 16) -> Record:
    return measure_sustain(SustainTest(model, backend, 1, seconds, depth), lambda _text, _done: None, power=PowerWishes(idle_s=0))


@pytest.mark.parametrize("backend", ["cpu", "llama.cpp"])
def test_rounds_of_decoding(model: Path, backend: str, tmp_path: Path) -> None:
    record = measure(model, backend, 2.5)
    write_record(tmp_path / "sustain.json", record)
    assert read_record(tmp_path / "sustain.json") == record
    assert (record.kind, record.state) == ("sustain", "complete")
    (engine,) = record.engines
    assert engine.is_peer is (backend == "llama.cpp")
    assert engine.openings[0].n_prompt == 16
    assert engine.peak_rss_bytes > 10_000_000
    (run,) = record.sustain
    assert (run.engine, run.n_threads, run.throttled) == (backend, 1, None)
    assert "less than two minutes cannot tell" in run.reason
    assert len(run.rounds) >= 2
    assert run.span.start_s == run.rounds[0].start_s
    assert run.span.end_s == run.rounds[-1].end_s == run.stamps_s[-1]
    assert run.span.end_s - run.span.start_s >= 2.5
    assert list(run.stamps_s) == sorted(run.stamps_s)
    assert len(run.stamps_s) % len(run.rounds) == 0
    assert all(a.end_s <= b.start_s for a, b in zip(run.rounds[:-1], run.rounds[1:], strict=True))
    times = [now.time_s for now in run.conditions]
    assert len(times) >= 3  # one at each end, and about one in each second
    assert times[0] <= run.rounds[0].start_s + 1
    assert times[-1] >= run.span.end_s
    assert run.energy is not None or run.energy_reason


def test_a_known_power_is_found_in_joules_per_token(model: Path) -> None:
    meter = DrawnMeter(5.0)

    def work_or_rest(text: str, _done: float) -> None:
        meter.draw(5.0 if text.startswith(("reading", "resting")) else 25.0)

    record = measure_sustain(SustainTest(model, "cpu", 1, 4.0, 16), work_or_rest, power=PowerWishes(found=[meter], idle_s=1.0))
    (run,) = record.sustain
    assert run.energy is not None, run.energy_reason
    assert (run.energy.meter, run.energy.kind) == ("drawn", "measured")
    assert record.power.idle_w == (pytest.approx(5, rel=0.1), pytest.approx(5, rel=0.1))
    share = sustain_share(run)
    assert share is not None
    seconds = run.span.end_s - run.span.start_s
    # On a busy machine the meter follows the text a tenth of a second late.
    assert (share.watts, share.net_watts) == (pytest.approx(25, rel=0.07), pytest.approx(20, rel=0.07))
    assert share.gross_j == pytest.approx(25 * seconds / len(run.stamps_s), rel=0.07)
    assert record.settings["idle_s"] == "1.0"


def test_an_engine_that_dies_leaves_what_it_decoded(model: Path) -> None:
    def kill_in_the_second_round(text: str, _done: float) -> None:
        if text.startswith("decoding"):
            for child in psutil.Process().children():
                if "edgelm.bench.worker" in child.cmdline():
                    child.kill()

    record = measure_sustain(SustainTest(model, "cpu", 1, 60, 16), kill_in_the_second_round, power=PowerWishes(idle_s=0))
    assert record.state == "failed"
    assert "SIGKILL" in record.reason
    (run,) = record.sustain
    assert len(run.rounds) == 1
    assert run.throttled is None
    assert record.engines[0].state == "failed"


def test_a_model_that_cannot_be_opened_is_an_error(model: Path) -> None:
    with pytest.raises(MeasurementError, match="nonesuch"):
        measure(model, "nonesuch")


@pytest.mark.parametrize(("seconds", "depth"), [(0.0, 1), (-1.0, 1), (float("nan"), 1), (float("inf"), 1), (1.0, -1)])
def test_what_makes_no_sense_is_refused(model: Path, seconds: float, depth: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"makes? no sense"):
        SustainTest(model, "cpu", 1, seconds, depth)


def test_ctrl_c_keeps_what_was_measured(model: Path) -> None:
    n_lines = 0

    def interrupt_in_the_third_round(text: str, _done: float) -> None:
        nonlocal n_lines
        n_lines += text.startswith("decoding")
        if n_lines == 2:
            signal.raise_signal(signal.SIGINT)

    record = measure_sustain(SustainTest(model, "cpu", 1, 60, 16), interrupt_in_the_third_round, power=PowerWishes(idle_s=0))
    assert record.state == "interrupted"
    assert "Ctrl-C" in record.reason
    assert len(record.sustain[0].rounds) == 2
    assert record.engines[0].state == "interrupted"
    assert not [child for child in psutil.Process().children() if "edgelm.bench.worker" in child.cmdline()]


def test_the_command(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "sustain.json"
    arguments = [str(model), "--seconds", "0.5", "--threads", "1", "--backend", "llama.cpp", "--no-history", "--json", str(out)]
    environment = {**os.environ, "COLUMNS": "200"}
    run = subprocess.run(
        [sys.executable, "-c", _COMMAND, "sustain", *arguments, "--idle-seconds", "0"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "cannot be said" in run.stdout
    assert read_record(out).settings["seconds"] == "0.5"
