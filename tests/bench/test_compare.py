import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.backends.registry import open_backend
from edgelm.bench.compare import Comparison, Measurement, Workload, compare
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.runner import BackendRunner
from edgelm.errors import InvalidRequestError
from edgelm.runtime.export import export


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def comparison(model: Path) -> Comparison:
    return compare(model, Workload((1, 2), n_prompt=40, n_generate=12, repeat=2, precision="f32"), lambda _: None)


@pytest.fixture
def runner(model: Path) -> Iterator[BackendRunner]:
    runner = BackendRunner(open_backend("cpu", model, n_threads=1, n_ctx=64, precision="f32"))
    yield runner
    runner.close()


def test_every_phase_and_thread_count_is_measured_in_turns(comparison: Comparison) -> None:
    assert [(m.phase, m.n_threads, m.n_tokens) for m in comparison.measurements] == [
        ("decode", 1, 12),
        ("prefill", 1, 40),
        ("decode", 2, 12),
        ("prefill", 2, 40),
    ]
    for measured in comparison.measurements:
        assert len(measured.edgelm) == len(measured.peer) == 2
        assert min(*measured.edgelm, *measured.peer) > 0


def test_both_engines_decode_the_same_tokens(comparison: Comparison) -> None:
    assert [m.equal_tokens for m in comparison.measurements if m.phase == "decode"] == [12, 12]


def test_the_record_says_what_was_measured_where(comparison: Comparison, model: Path) -> None:
    assert comparison.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert comparison.model_bytes == model.stat().st_size
    assert comparison.machine.cpu
    assert set(comparison.machine.versions) == {
        "edgelm",
        "numpy",
        "numba",
        "llvmlite",
        "llama-cpp-python",
        "onnxruntime",
        "onnxruntime-genai",
    }


def test_ratios_are_taken_turn_by_turn() -> None:
    measured = Measurement("decode", 1, 128, edgelm=(30.0, 20.0, 90.0), peer=(10.0, 10.0, 60.0))
    assert measured.ratios == (3.0, 2.0, 1.5)
    assert (measured.ratio, measured.edgelm_median, measured.peer_median) == (2.0, 30.0, 10.0)


def test_phases_without_tokens_are_left_out(model: Path) -> None:
    result = compare(model, Workload((1,), n_prompt=0, n_generate=4, repeat=1, busy=True), lambda _: None)
    assert [m.phase for m in result.measurements] == ["decode"]


@pytest.mark.parametrize(
    "wrong", [{"threads": ()}, {"threads": (0,)}, {"repeat": 0}, {"n_prompt": -1}, {"n_prompt": 0, "n_generate": 0}, {"peer": "x"}]
)
def test_a_workload_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        Workload(**wrong)


def test_runner_and_peer_do_the_same(runner: BackendRunner, model: Path) -> None:
    peer = LlamaCppPeer(model, 1, n_ctx=64)
    for each in (runner, peer):
        assert each.prefill([5, 6, 7]) > 0
    assert runner.decode_greedy(8, 5)[0] == peer.decode_greedy(8, 5)[0]
    runner.clear()
    peer.clear()
    assert runner.decode_greedy(9, 5)[0] == peer.decode_greedy(9, 5)[0]
    peer.close()


@pytest.mark.parametrize(("backend", "peer"), [("llamacpp", "llama-cpp-python"), ("onnx", "onnxruntime-genai")])
def test_other_engines_beside_their_own_libraries(model: Path, tmp_path: Path, backend: str, peer: str) -> None:
    if peer == "onnxruntime-genai":
        export(model, tmp_path / "folder", target="cpu")
        model = tmp_path / "folder"
    result = compare(model, Workload((1,), n_prompt=20, n_generate=6, repeat=1, backend=backend, peer=peer), lambda _: None)
    decode, prefill = result.measurements
    assert (decode.phase, decode.equal_tokens, prefill.phase) == ("decode", 6, "prefill")
