"""What every Backend promises, checked on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.backends.registry import open_backend
from edgelm.backends.scripted import ScriptedBackend
from edgelm.errors import ClosedError, ContextOverflowError, InvalidRequestError

N_CTX = 40


def make_scripted(_folder: Path) -> Backend:
    def next_logits(history: Sequence[int]) -> np.ndarray:
        return np.random.default_rng(list(history)).standard_normal(288).astype(np.float32)

    return ScriptedBackend(next_logits, n_vocab=288, n_ctx=N_CTX)


def make_cpu(folder: Path) -> Backend:
    return open_backend("cpu", write_tiny(folder / "tiny.gguf", "llama"), n_threads=1, n_ctx=N_CTX, precision="f32")


@pytest.fixture(params=[make_scripted, make_cpu], ids=["scripted", "cpu"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    make: Callable[[Path], Backend] = request.param
    backend = make(tmp_path)
    yield backend
    backend.close()


def chunk(sequence: int, *tokens: int, outputs: Outputs = Outputs.LAST) -> Chunk:
    return Chunk(sequence, np.array(tokens, np.int32), outputs)


def test_rows_come_in_the_order_of_the_batch(backend: Backend) -> None:
    rows = backend.forward([chunk(1, 5, 6, 7, outputs=Outputs.ALL), chunk(2, 8, outputs=Outputs.NONE), chunk(3, 5, 6)])
    assert (rows.shape, rows.dtype) == ((4, backend.info.n_vocab), np.float32)
    np.testing.assert_allclose(rows[1], rows[3], rtol=1e-4, atol=1e-4)
    assert not np.allclose(rows[0], rows[1])
    assert [backend.length(sequence) for sequence in (1, 2, 3, 4)] == [3, 1, 2, 0]


def test_only_nones_give_no_rows(backend: Backend) -> None:
    assert backend.forward([chunk(1, 5, outputs=Outputs.NONE)]).shape == (0, backend.info.n_vocab)


def test_a_sequence_goes_on_as_if_given_at_once(backend: Backend) -> None:
    whole = backend.forward([chunk(1, 5, 6, 7, 8)])
    backend.forward([chunk(2, 5, 6), chunk(3, 9)])
    np.testing.assert_allclose(backend.forward([chunk(2, 7, 8)]), whole, rtol=1e-4, atol=1e-4)


def test_truncate_rolls_back(backend: Backend) -> None:
    backend.forward([chunk(1, 5, 6, 7)])
    backend.truncate(1, 1)
    assert backend.length(1) == 1
    np.testing.assert_allclose(backend.forward([chunk(1, 8)]), backend.forward([chunk(2, 5, 8)]), rtol=1e-4, atol=1e-4)


def test_share_starts_a_sequence_with_anothers_beginning(backend: Backend) -> None:
    backend.forward([chunk(1, 5, 6, 7)])
    backend.share(1, 2, 2)
    assert (backend.length(1), backend.length(2)) == (3, 2)
    shared = backend.forward([chunk(2, 9)])
    np.testing.assert_allclose(shared, backend.forward([chunk(3, 5, 6, 9)]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backend.forward([chunk(1, 9)]), backend.forward([chunk(4, 5, 6, 7, 9)]), rtol=1e-4, atol=1e-4)


def test_free_forgets(backend: Backend) -> None:
    backend.forward([chunk(1, 5, 6)])
    backend.free(1)
    backend.free(99)
    assert backend.length(1) == 0
    np.testing.assert_allclose(backend.forward([chunk(1, 7)]), backend.forward([chunk(2, 7)]), rtol=1e-4, atol=1e-4)


def test_hidden_states(backend: Backend) -> None:
    rows = backend.hidden([chunk(1, 5, 6, outputs=Outputs.ALL), chunk(2, 7)])
    assert (rows.shape, rows.dtype) == ((3, backend.info.n_embd), np.float32)
    assert backend.length(1) == 2


def test_the_context_may_be_filled_and_not_exceeded(backend: Backend) -> None:
    backend.forward([chunk(1, *[5] * N_CTX)])
    with pytest.raises(ContextOverflowError):
        backend.forward([chunk(2, 6), chunk(1, 5)])
    assert (backend.length(1), backend.length(2)) == (N_CTX, 0)


WRONG = {"empty": [chunk(1)], "too large": [chunk(1, 288)], "negative": [chunk(1, -1)], "twice": [chunk(1, 5), chunk(1, 6)]}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_senseless_batches_change_nothing(backend: Backend, wrong: list[Chunk]) -> None:
    with pytest.raises(InvalidRequestError):
        backend.forward([chunk(7, 5), *wrong])
    assert backend.length(7) == backend.length(1) == 0


def test_closed(backend: Backend) -> None:
    backend.close()
    backend.close()
    for call in (lambda: backend.forward([chunk(1, 5)]), lambda: backend.truncate(1, 0), lambda: backend.hidden([chunk(1, 5)])):
        with pytest.raises(ClosedError):
            call()
