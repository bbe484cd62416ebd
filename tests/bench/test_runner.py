"""Every engine and every other program behind the same four calls: equal tokens from equal weights."""

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.registry import open_backend
from edgelm.bench.genai_peer import GenAIPeer
from edgelm.bench.llama_cpp_python_peer import LlamaCppPythonPeer
from edgelm.bench.llamacpp_peer import LlamaCppPeer
from edgelm.bench.runner import BackendRunner, Runner
from edgelm.errors import BackendUnavailableError, ModelFileError
from edgelm.runtime.export import export

N_CTX = 96
PROMPT = [5, 60, 7, 200, 31, 9, 88, 140]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose weights are float32, so that every engine computes nearly the same logits."""
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, exported."""
    path = tmp_path_factory.mktemp("exported") / "folder"
    export(model, path, target="cpu", n_ctx=N_CTX, precision="f32")
    return path


def backend_runner(name: str, path: Path) -> BackendRunner:
    n_ctx = None if path.is_dir() else N_CTX
    return BackendRunner(open_backend(name, path, n_threads=1, n_ctx=n_ctx, precision="f32"))


RUNNERS: dict[str, Callable[[Path, Path], Runner]] = {
    "cpu": lambda model, _: backend_runner("cpu", model),
    "llamacpp": lambda model, _: backend_runner("llamacpp", model),
    "onnx": lambda _, folder: backend_runner("onnx", folder),
    "llama.cpp": lambda model, _: LlamaCppPeer(model, 1, N_CTX),
    "llama-cpp-python": lambda model, _: LlamaCppPythonPeer(model, 1, N_CTX),
    "onnxruntime-genai": lambda _, folder: GenAIPeer(folder, 1, N_CTX),
}


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, model: Path, folder: Path) -> Iterator[Runner]:
    runner = RUNNERS[request.param](model, folder)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def greedy(model: Path) -> Callable[[list[int], int], list[int]]:
    """The n greedy tokens that follow a context, from logits of the whole context each time: nothing is remembered, so nothing is stale."""
    reference = backend_runner("cpu", model)

    def continuation(context: list[int], n: int) -> list[int]:
        found: list[int] = []
        for _ in range(n):
            found.append(int(reference.logits(np.array(context + found, np.int32))[-1].argmax()))
        return found

    return continuation


def test_a_prefill_gives_the_next_token_and_decoding_those_after_it(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    first, *others = greedy(PROMPT, 7)
    assert runner.n_vocab == 288
    assert runner.prefill(PROMPT) == first
    assert list(runner.decode(first, 6)) == others


def test_decoding_may_begin_with_any_token(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    runner.prefill(PROMPT)
    assert list(runner.decode(77, 4)) == greedy([*PROMPT, 77], 4)


def test_decoding_may_begin_an_empty_context(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    runner.hold(())
    assert list(runner.decode(9, 5)) == greedy([9], 5)


def test_a_second_prefill_continues_the_first(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    runner.prefill(PROMPT[:3])
    assert [runner.prefill(PROMPT[3:])] == greedy(PROMPT, 1)


def test_hold_returns_to_a_depth_as_often_as_asked(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    for _ in range(3):
        runner.hold(PROMPT)
        assert list(runner.decode(50, 5)) == greedy([*PROMPT, 50], 5)
        runner.hold(PROMPT)
        assert [runner.prefill([51, 52])] == greedy([*PROMPT, 51, 52], 1)


def test_hold_takes_another_context_and_none(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    for context in (PROMPT, PROMPT[:4], [*PROMPT, 3, 4], PROMPT[::-1], []):
        runner.hold(context)
        assert [runner.prefill([33])] == greedy([*context, 33], 1)


@pytest.mark.parametrize("name", ["cpu", "llamacpp", "llama.cpp", "llama-cpp-python"])
def test_hold_returns_to_a_depth_beyond_a_sliding_window(tmp_path: Path, name: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", "gemma3", tied=False)  # layers that see 16 tokens back
    context = [3 + i * 37 % 250 for i in range(40)]
    runner, fresh = RUNNERS[name](path, path), RUNNERS[name](path, path)
    fresh.prefill(context)
    expected = list(fresh.decode(8, 30))
    for _ in range(3):
        runner.hold(context)
        assert list(runner.decode(8, 30)) == expected
    runner.close()
    fresh.close()


def test_tokens_come_one_by_one(runner: Runner, greedy: Callable[[list[int], int], list[int]]) -> None:
    runner.prefill(PROMPT)
    assert list(islice(runner.decode(77, 40), 2)) == greedy([*PROMPT, 77], 2)
    runner.hold(PROMPT)
    assert list(runner.decode(77, 3)) == greedy([*PROMPT, 77], 3)


def test_closing_twice_is_allowed(runner: Runner) -> None:
    runner.close()


def test_logits_are_of_an_empty_context(model: Path) -> None:
    runner = backend_runner("cpu", model)
    tokens = np.array(PROMPT, np.int32)
    fresh = runner.logits(tokens)
    runner.hold([1, 2, 3])
    runner.prefill([4])
    np.testing.assert_array_equal(runner.logits(tokens), fresh)
    runner.close()


@pytest.mark.parametrize(("peer", "module"), [(LlamaCppPythonPeer, "llama_cpp"), (GenAIPeer, "onnxruntime_genai")])
def test_a_program_that_is_not_installed_is_told_with_advice(
    model: Path, monkeypatch: pytest.MonkeyPatch, peer: Callable[[Path, int, int], Runner], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        peer(model, 1, N_CTX)


@pytest.mark.parametrize("peer", [LlamaCppPythonPeer, GenAIPeer])
def test_a_model_that_a_program_does_not_load_is_named(tmp_path: Path, peer: Callable[[Path, int, int], Runner]) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        peer(bad, 1, N_CTX)
