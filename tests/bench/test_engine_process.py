import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tiny_models import write_tiny

from edgelm.bench.contestants import Contestant
from edgelm.bench.engine_process import EngineProcess
from edgelm.errors import InvalidRequestError, MeasurementError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


@pytest.fixture
def process(model: Path) -> Iterator[EngineProcess]:
    with EngineProcess(Contestant("cpu", model, 1, 64), time.perf_counter(), lambda _: None) as process:
        yield process


def worker() -> psutil.Process:
    """The process of the only engine that runs."""
    (found,) = (child for child in psutil.Process().children() if "edgelm.bench.worker" in child.cmdline())
    return found


def test_an_opening_says_when_what_was_there(process: EngineProcess) -> None:
    opening, engine = process.open(16)
    assert 0 <= opening.spawned_s < opening.ready_s < opening.opened_s < opening.first_token_s
    assert opening.n_prompt == 16
    assert opening.peak_rss_bytes > 10_000_000
    assert (engine.engine, engine.n_threads, engine.is_peer, engine.precision) == ("cpu", 1, False, "int8")
    assert engine.bytes_per_token > 0
    assert engine.version.startswith("edgelm ")


def test_trials_are_raw_timestamps_on_the_record_s_clock(process: EngineProcess) -> None:
    opening, _ = process.open(1)
    process.hold(20)
    before = opening.first_token_s
    for phase, n_prompt, n_generate, n_stamps in (("prefill", 8, 0, 1), ("decode", 0, 5, 5), ("both", 8, 5, 5)):
        process.hold(20)
        trial = process.trial(phase, n_prompt, n_generate)
        assert len(trial.stamps_s) == n_stamps
        assert [before, trial.start_s, *trial.stamps_s] == sorted([before, trial.start_s, *trial.stamps_s])
        before = trial.stamps_s[-1]
    assert process.peak_rss_bytes() >= opening.peak_rss_bytes


@pytest.mark.parametrize(("phase", "n_prompt", "n_generate"), [("decode", 0, 0), ("prefill", 0, 4), ("both", 8, 0), ("both", 0, 8)])
def test_a_trial_of_nothing_is_refused(process: EngineProcess, phase: str, n_prompt: int, n_generate: int) -> None:
    process.open(1)
    with pytest.raises(InvalidRequestError, match="measures nothing"):
        process.trial(phase, n_prompt, n_generate)


def test_what_the_engine_finds_wrong_is_told(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:1000])
    for name, path, message in (("cpu", broken, "broken.gguf"), ("turbo", model, "turbo")):
        with (
            EngineProcess(Contestant(name, path, 1, 64), 0.0, lambda _: None) as process,
            pytest.raises(MeasurementError, match=message),
        ):
            process.open(1)


def test_the_peak_of_memory_is_the_engine_s_own(process: EngineProcess) -> None:
    ballast = bytearray(b"x") * 400_000_000
    with EngineProcess(process._contestant, 0.0, lambda _: None) as beside:
        assert beside.open(1)[0].peak_rss_bytes < len(ballast)


def test_a_context_that_overflows_is_told_and_not_measured(process: EngineProcess) -> None:
    process.open(1)
    process.hold(0)
    with pytest.raises(MeasurementError, match="context"):
        process.trial("prefill", 200, 0)


def test_a_process_that_is_killed_is_told_and_leaves_nothing(process: EngineProcess) -> None:
    process.open(1)
    child = worker()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(MeasurementError, match="SIGKILL"):
        process.hold(4)
    process.close()
    assert not child.is_running()


def test_closing_ends_the_process(model: Path) -> None:
    process = EngineProcess(Contestant("cpu", model, 1, 64), 0.0, lambda _: None)
    process.open(1)
    child = worker()
    process.close()
    process.close()
    assert not child.is_running()
    with pytest.raises(MeasurementError, match="closed"):
        process.hold(1)
