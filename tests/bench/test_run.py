import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from power_machine import DrawnMeter
from tiny_models import write_tiny

from edgelm.bench.figures import speeds
from edgelm.bench.interleave import Workload
from edgelm.bench.power.base import AbsentMeter
from edgelm.bench.power.session import PowerWishes
from edgelm.bench.quality import QualityTest
from edgelm.bench.record import Record
from edgelm.bench.record_file import decode_record, encode_record
from edgelm.bench.run import run_benchmark
from edgelm.errors import InvalidRequestError, ModelFileError

NO_METER = PowerWishes(found=[AbsentMeter("rapl", "no /sys/class/powercap", "measure on the machine itself")])
SMALL = Workload(("cpu",), (), (1,), (8,), 8, repeat=2, n_cold=0)


def quiet(_text: str, _done: float) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", format="Q4_0")


@pytest.fixture(scope="module")
def record(model: Path) -> Record:
    text = Path(__file__).parents[1] / "data/evaluation.txt"
    workload = replace(SMALL, backends=("cpu", "llamacpp"), n_cold=1)
    quality = QualityTest(text, n_tokens=64, n_window=32)
    return run_benchmark(model, workload, {"repeat": 2}, quiet, power=NO_METER, quality=quality)


def test_a_record_holds_everything_and_survives_its_file(record: Record, model: Path) -> None:
    assert decode_record(encode_record(record), "it") == record
    assert (record.kind, record.state, record.model.name) == ("run", "complete", model.name)
    assert {(m.engine, m.phase) for m in record.measurements} == {
        (e, p) for e in ("cpu", "llamacpp") for p in ("prefill", "decode", "both")
    }
    assert [engine.engine for engine in record.engines] == ["cpu", "llamacpp"]
    assert [limits.n_threads for limits in record.limits] == [1]
    assert [quality.engine for quality in record.quality] == ["cpu", "llamacpp"]
    assert record.machine.cpu
    assert abs(record.clock_step_s) < 0.5
    assert record.seconds > max(trial.stamps_s[-1] for m in record.measurements for trial in m.trials)


def test_without_a_meter_there_are_no_watts_but_a_reason(record: Record) -> None:
    assert record.power.headline is None
    assert "no /sys/class/powercap" in record.power.reason
    assert "measure on the machine itself" in record.power.reason
    assert all(m.energy is None and "powercap" in m.energy_reason for m in record.measurements)


def test_every_measurement_has_its_share_of_the_limit_or_says_why_not(record: Record) -> None:
    for measurement in record.measurements:
        assert measurement.limit is not None
        assert measurement.limit.fraction is not None or measurement.limit.reason


def test_a_known_power_is_found_in_joules_per_token(model: Path) -> None:
    workload = replace(SMALL, n_generate=400, prompts=(), repeat=3)
    power = PowerWishes(found=[DrawnMeter(25.0)], idle_s=0.3)
    record = run_benchmark(model, workload, {}, quiet, power=power, with_limits=False)
    (measured,) = record.measurements
    assert record.power.headline == "drawn", record.power.reason
    assert measured.energy is not None, measured.energy_reason
    assert measured.energy.gross_j / measured.energy.seconds == pytest.approx(25, rel=0.05)
    joules_per_token = measured.energy.gross_j / sum(len(trial.stamps_s) for trial in measured.trials)
    seconds_per_token = (1 / speeds(measured)).mean()  # of all trials together, though one may be slower than the others
    assert joules_per_token == pytest.approx(25 * seconds_per_token, rel=0.1)
    assert measured.energy.net_j is None  # idle took as much


def test_a_meter_that_ends_half_way_leaves_no_number(model: Path) -> None:
    meter = DrawnMeter(25.0)

    def unplug(text: str, _: float) -> None:
        meter.is_unplugged = meter.is_unplugged or "round 2" in text

    workload = replace(SMALL, n_generate=100, prompts=())
    record = run_benchmark(model, workload, {}, unplug, power=PowerWishes(found=[meter], idle_s=0), with_limits=False)
    assert record.state == "complete"
    assert record.power.headline is None
    assert record.measurements[0].energy is None
    assert "drawn: it does not answer" in record.measurements[0].energy_reason


def test_an_engine_that_dies_makes_the_record_failed_and_keeps_the_rest(model: Path) -> None:
    def kill(text: str, _: float) -> None:
        if "decode 8, 1 thread, round 2" in text:
            for child in psutil.Process().children():
                os.kill(child.pid, signal.SIGKILL)

    record = run_benchmark(model, SMALL, {}, kill, power=NO_METER, with_limits=False)
    assert record.state == "failed"
    assert "SIGKILL" in record.reason
    assert [(m.phase, m.state, len(m.trials)) for m in record.measurements] == [("prefill", "complete", 2), ("decode", "failed", 1)]


def test_ctrl_c_keeps_what_there_is(model: Path) -> None:
    def interrupt(text: str, _: float) -> None:
        if "decode 8, 1 thread, round 2" in text:
            raise KeyboardInterrupt

    record = run_benchmark(model, SMALL, {}, interrupt, power=NO_METER, with_limits=False)
    assert record.state == "interrupted"
    assert [(m.phase, m.state) for m in record.measurements] == [("prefill", "complete"), ("decode", "interrupted")]
    assert decode_record(encode_record(record), "it") == record


def test_a_model_that_cannot_be_read_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError):
        run_benchmark(tmp_path / "none.gguf", SMALL, {}, quiet, power=NO_METER)


def test_a_text_that_does_not_do_is_told_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(InvalidRequestError, match="few"):
        run_benchmark(model, SMALL, {}, quiet, power=NO_METER, quality=QualityTest(tmp_path / "short.txt"))
