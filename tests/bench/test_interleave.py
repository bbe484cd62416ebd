import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_models import write_tiny

from edgelm.bench.figures import speeds
from edgelm.bench.interleave import Case, Interleaving, Workload
from edgelm.bench.page_cache import cached_fraction
from edgelm.errors import InvalidRequestError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


def workers() -> list[psutil.Process]:
    """Processes of engines, the oldest first."""
    found = (child for child in psutil.Process().children() if "edgelm.bench.worker" in child.cmdline())
    return sorted(found, key=lambda child: (child.create_time(), child.pid))


def at(text: str, act: Callable[[], None]) -> Callable[[str, float], None]:
    """A progress callback that acts once, when the text is told."""
    waiting = [act]

    def progress(told: str, _: float) -> None:
        if text in told and waiting:
            waiting.pop()()

    return progress


@pytest.fixture(scope="module")
def whole(model: Path) -> tuple[Interleaving, list[float]]:
    fractions: list[float] = []
    workload = Workload(("cpu", "llamacpp"), ("llama.cpp",), (1,), (8,), 4, (0, 16), repeat=2, n_cold=1)
    bench = Interleaving(model, workload, 0.0, lambda _, done: fractions.append(done))
    bench.run()
    return bench, fractions


def test_every_phase_at_every_depth_of_every_engine(whole: tuple[Interleaving, list[float]]) -> None:
    bench, _ = whole
    found = {(m.engine, m.phase, m.depth, m.n_prompt, m.n_generate) for m in bench.measurements}
    engines = ("cpu", "llamacpp", "llama.cpp")
    phases = (("prefill", 8, 0), ("decode", 0, 4), ("both", 8, 4))
    assert found == {(engine, phase, depth, p, g) for engine in engines for phase, p, g in phases for depth in (0, 16)}
    assert all(len(m.trials) == 2 and m.state == "complete" and speeds(m).min() > 0 for m in bench.measurements)


def test_engines_take_turns(whole: tuple[Interleaving, list[float]]) -> None:
    bench, _ = whole
    for phase in ("prefill", "decode", "both"):
        trials = [(t.start_s, m.engine) for m in bench.measurements if m.phase == phase and m.depth == 0 for t in m.trials]
        assert [engine for _, engine in sorted(trials)] == ["cpu", "llamacpp", "llama.cpp"] * 2


def test_every_trial_knows_the_machine_before_and_after(whole: tuple[Interleaving, list[float]]) -> None:
    for measurement in whole[0].measurements:
        for trial in measurement.trials:
            assert trial.before.time_s <= trial.start_s < trial.stamps_s[-1] <= trial.after.time_s


def test_engines_tell_of_cold_and_warm_openings(whole: tuple[Interleaving, list[float]]) -> None:
    bench, _ = whole
    assert [(engine.engine, engine.is_peer, len(engine.openings)) for engine in bench.engines] == [
        ("cpu", False, 2),
        ("llamacpp", False, 2),
        ("llama.cpp", True, 2),
    ]
    assert all(engine.peak_rss_bytes > 0 and engine.state == "complete" for engine in bench.engines)


def test_progress_rises_to_the_end_and_no_process_is_left(whole: tuple[Interleaving, list[float]]) -> None:
    _, fractions = whole
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < fractions[-1] <= 1
    assert workers() == []


def test_rounds_end_when_the_interval_is_narrow_enough(model: Path) -> None:
    bench = Interleaving(model, Workload(prompts=(), n_generate=2, repeat=30, within=0.99, n_cold=0), 0.0, lambda _text, _done: None)
    bench.run()
    assert len(bench.measurements[0].trials) == 5


def test_an_engine_that_dies_half_way_is_marked_and_the_others_go_on(model: Path) -> None:
    workload = Workload(("cpu", "llamacpp"), (), (1,), (8,), 4, repeat=3, n_cold=0)
    bench = Interleaving(model, workload, 0.0, at("decode 4, 1 thread, round 2", lambda: os.kill(workers()[1].pid, signal.SIGKILL)))
    bench.run()
    states = {(m.engine, m.phase): (m.state, len(m.trials)) for m in bench.measurements}
    assert states == {
        ("cpu", "prefill"): ("complete", 3),
        ("llamacpp", "prefill"): ("complete", 3),
        ("cpu", "decode"): ("complete", 3),
        ("llamacpp", "decode"): ("failed", 1),
        ("cpu", "both"): ("complete", 3),
    }
    (failed,) = (engine for engine in bench.engines if engine.state == "failed")
    assert failed.engine == "llamacpp"
    assert "SIGKILL" in failed.reason
    assert next(m for m in bench.measurements if m.state == "failed").reason == failed.reason


def test_an_opening_that_may_have_exported_or_compiled_is_no_start(model: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    bench = Interleaving(model, Workload(("cpu", "llamacpp"), n_cold=1), 0.0, at("preparing llamacpp", interrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert [(engine.state, engine.reason, engine.openings) for engine in bench.engines] == [("interrupted", "ended by Ctrl-C", ())] * 2
    bench = Interleaving(model, Workload(prompts=(), n_generate=2, repeat=1, n_cold=0), 0.0, lambda _text, _done: None)
    bench.run()
    assert [(engine.state, engine.openings) for engine in bench.engines] == [("complete", ())]


def test_cold_starts_of_onnx_are_of_its_own_export(model: Path, home: Path) -> None:
    other = home / "onnx" / "another model" / "weights.bin"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(20 << 20))
    bench = Interleaving(model, Workload(("onnx",), prompts=(), n_generate=2, repeat=1, n_cold=1), 0.0, lambda _text, _done: None)
    bench.run()
    (engine,) = bench.engines
    cold, warm = engine.openings
    assert len(list((home / "onnx").iterdir())) == 2, "the export is not where EDGELM_HOME says"
    if cold.cached is None:
        pytest.skip("the system does not tell what is in its page cache")
    assert warm.cached > 0.95  # though most bytes of the folder of all exports are another model's
    assert cached_fraction([other]) > 0.95  # which nobody threw out of the cache


def test_an_engine_that_dies_at_the_end_is_marked(model: Path) -> None:
    marks: list[float] = []

    def kill_after_the_last_trial() -> None:
        marks.append(0.0)
        if len(marks) == 2 * 2 * 2:  # before and after each trial of two engines in the warm-up and one round
            workers()[0].kill()

    workload = Workload(("cpu", "llamacpp"), (), (1,), (), 2, repeat=1, n_cold=0)
    bench = Interleaving(model, workload, 0.0, lambda _text, _done: None, kill_after_the_last_trial)
    bench.run()
    assert [(engine.engine, engine.state) for engine in bench.engines] == [("cpu", "failed"), ("llamacpp", "complete")]
    assert all(m.state == "complete" for m in bench.measurements)


@pytest.mark.parametrize("format_name", ["Q4_0", "F32"])
def test_llama_cpp_as_a_peer_has_the_same_sizes_as_edgelm_s_engine_on_it(format_name: str, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "llama", format=format_name)
    bench = Interleaving(model, Workload(("llamacpp",), ("llama.cpp",), (1,), (), 2, repeat=1, n_cold=0), 0.0, lambda _text, _done: None)
    bench.run()
    ours, peer = bench.engines
    sizes = ("bytes_per_token", "kv_bytes_per_token", "weight_bytes")
    assert [getattr(peer, name) for name in sizes] == [getattr(ours, name) for name in sizes]
    assert peer.precision == {"Q4_0": "int8", "F32": ""}[format_name]
    assert peer.version.startswith("llama-cpp-python ")


def test_an_engine_that_cannot_open_the_model_is_marked(model: Path) -> None:
    bench = Interleaving(model, Workload(("cpu", "turbo"), (), (1,), (4,), 0, repeat=1, n_cold=0), 0.0, lambda _text, _done: None)
    bench.run()
    assert [(engine.engine, engine.state) for engine in bench.engines] == [("cpu", "complete"), ("turbo", "failed")]
    assert "turbo" in bench.engines[1].reason
    assert [m.engine for m in bench.measurements] == ["cpu"]


def test_an_interruption_keeps_what_was_measured(model: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    workload = Workload(("cpu", "llamacpp"), (), (1, 2), (8,), 4, repeat=3, n_cold=0)
    bench = Interleaving(model, workload, 0.0, at("decode 4, 1 thread, round 2", interrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert [(m.engine, m.phase, m.state, len(m.trials)) for m in bench.measurements] == [
        ("cpu", "prefill", "complete", 3),
        ("llamacpp", "prefill", "complete", 3),
        ("cpu", "decode", "interrupted", 1),
        ("llamacpp", "decode", "interrupted", 1),
    ]
    assert [engine.state for engine in bench.engines] == ["interrupted", "interrupted"]
    assert workers() == []


def test_the_busy_neighbour_lasts_as_long_as_the_measurements(model: Path) -> None:
    seen: list[int] = []
    workload = Workload(prompts=(), n_generate=2, repeat=1, n_cold=0, busy=True)
    bench = Interleaving(model, workload, 0.0, lambda text, _: seen.append(len(psutil.Process().children())) if "round" in text else None)
    bench.run()
    assert seen == [2]
    assert psutil.Process().children() == []


def test_cases_of_a_workload() -> None:
    assert Workload(prompts=(8, 16), n_generate=0).cases == [Case("prefill", 8, 0, 0), Case("prefill", 16, 0, 0)]
    assert Workload(prompts=(), n_generate=3, depths=(5,)).cases == [Case("decode", 0, 3, 5)]
    assert Workload(prompts=(8, 64), n_generate=3, depths=(5, 100)).n_ctx == 168
    assert str(Case("both", 8, 3, 100)) == "both 8+3 at depth 100"


@pytest.mark.parametrize(
    "wrong",
    [
        {"backends": ()},
        {"threads": ()},
        {"threads": (0,)},
        {"repeat": 0},
        {"prompts": (-1,)},
        {"prompts": (), "n_generate": 0},
        {"peers": ("x",)},
        {"depths": (-1,)},
        {"n_cold": -1},
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        Workload(**wrong)
