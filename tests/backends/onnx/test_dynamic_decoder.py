"""The decoder over the graph for any number of tokens: slots that keep what they hold, whatever runs beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm.backends.onnx import dynamic_decoder
from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.dynamic_decoder import DynamicDecoder
from edgelm.backends.onnx.export import ExportOptions, export_model
from edgelm.backends.onnx.session import SessionSettings
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import InsufficientMemoryError, InvalidRequestError, ModelFileError
from edgelm.quant.exported_folder import ExportedFolder
from edgelm.quant.gguf_file import GGUFFile

TOKENS = np.random.default_rng(3).integers(0, 288, (4, 40)).astype(np.int32)
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "gemma3", n_layers=2)  # a sliding window of 16 tokens


@pytest.fixture(scope="module")
def folder(model: Path) -> Path:
    path = model.parent / "exported"
    export_model(GGUFFile(model), path, ExportOptions(precision="f32", n_ctx=64))
    return path


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[Array]:
    """Logits after each token, [40, n_vocab] for each of the four sequences."""
    reference = ReferenceModel(GGUFFile(model), n_ctx=64)
    return [reference.logits(tokens) for tokens in TOKENS]


@pytest.fixture
def decoder(folder: Path) -> Iterator[DynamicDecoder]:
    decoder = DynamicDecoder(ExportedFolder(folder), SessionSettings(n_threads=2), n_ctx=48)
    yield decoder
    decoder.close()


def part(slot: int, start: int, stop: int, *, sequence: int | None = None, rows: NDArray[np.int64] | None = None) -> Run:
    """Tokens start to stop of a sequence, in a slot of its number unless given; all rows unless given."""
    every = np.arange(stop - start)
    return Run(slot, start, TOKENS[slot if sequence is None else sequence, start:stop], every if rows is None else rows)


def close(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)


def test_prompts_and_single_tokens_of_unequal_sequences(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.reserve(4)
    for slot, n in enumerate((3, 20, 1, 9)):
        close(decoder.run([part(slot, 0, n)], False)[0], wanted[slot][:n])
    mixed = [part(3, 9, 10), part(1, 20, 31), part(0, 3, 4), part(2, 1, 2)]
    for run, rows in zip(mixed, decoder.run(mixed, False), strict=True):
        close(rows, wanted[run.slot][run.n_past : run.n_past + len(run.tokens)])


def test_gaps_between_slots(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.reserve(4)
    decoder.run([part(slot, 0, 10) for slot in range(4)], False)
    for step in range(10, 14):
        found = decoder.run([part(3, step, step + 1), part(0, step, step + 1), part(1, step, step + 1)], False)
        for slot, rows in zip((3, 0, 1), found, strict=True):
            close(rows, wanted[slot][step : step + 1])
    close(decoder.run([part(2, 10, 11)], False)[0], wanted[2][10:11])


def test_rows(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.reserve(2)
    some, none = np.array([1, 4]), np.array([], np.int64)
    found = decoder.run([part(0, 0, 6, rows=some), part(1, 0, 1, rows=none)], False)
    close(found[0], wanted[0][some])
    assert found[1].shape == (0, 288)
    found = decoder.run([part(0, 6, 7, rows=none), part(1, 1, 2)], False)
    assert found[0].shape == (0, 288)
    close(found[1], wanted[1][1:2])


def test_results_are_the_callers(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.reserve(2)
    decoder.run([part(0, 0, 5), part(1, 0, 5)], False)
    first = decoder.run([part(0, 5, 6), part(1, 5, 6)], False)
    decoder.run([part(0, 6, 7), part(1, 6, 7)], False)
    close(np.concatenate(first), np.stack([wanted[0][5], wanted[1][5]]))


def test_long_prompts_in_pieces(decoder: DynamicDecoder, wanted: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_decoder, "_N_PIECE", 7)
    close(decoder.run([part(0, 0, 40)], False)[0], wanted[0])
    rows = np.array([0, 13, 14, 39])
    close(decoder.run([part(0, 0, 40, rows=rows)], False)[0], wanted[0][rows])


def test_hidden_states(decoder: DynamicDecoder, model: Path) -> None:
    decoder.reserve(2)
    wanted = ReferenceModel(GGUFFile(model)).hidden(TOKENS[1])
    close(decoder.run([part(1, 0, 30)], True)[0], wanted[:30])
    close(decoder.run([part(1, 30, 31)], True)[0], wanted[30:31])


def test_growing_keeps_what_slots_hold(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.run([part(0, 0, 20)], False)
    decoder.reserve(2)
    close(decoder.run([part(0, 20, 21)], False)[0], wanted[0][20:21])
    decoder.run([part(1, 0, 7)], False)
    decoder.reserve(4)
    found = decoder.run([part(0, 21, 22), part(1, 7, 8), part(3, 0, 3)], False)
    for rows, (slot, start, stop) in zip(found, ((0, 21, 22), (1, 7, 8), (3, 0, 3)), strict=True):
        close(rows, wanted[slot][start:stop])


def test_copy_and_going_back(decoder: DynamicDecoder, wanted: list[Array]) -> None:
    decoder.reserve(2)
    decoder.run([part(0, 0, 20)], False)
    decoder.copy(0, 1, 12)
    decoder.run([part(0, 5, 9, sequence=2)], False)  # slot 0 goes back and on with other tokens
    close(decoder.run([part(1, 12, 14, sequence=0)], False)[0], wanted[0][12:14])


def test_keys_and_values_are_written_in_place(decoder: DynamicDecoder) -> None:
    arrays = decoder._cache.arrays
    for array in arrays:
        array[:] = 7.0
    decoder.run([part(0, 0, 5)], False)
    decoder.run([part(0, 5, 6)], False)
    assert decoder._cache.arrays is arrays
    for array in arrays:
        written = (array != 7.0).all(axis=(0, 1, 3))
        assert written.tolist() == [True] * 6 + [False] * 42


def test_a_narrow_cache(model: Path, wanted: list[Array], tmp_path: Path) -> None:
    export_model(GGUFFile(model), tmp_path / "f16", ExportOptions(precision="f32", n_ctx=64, kv_type="f16"))
    decoder = DynamicDecoder(ExportedFolder(tmp_path / "f16"), SessionSettings(), n_ctx=64)
    assert decoder.kv_bytes_per_token == 2 * 2 * 1 * 32 * 2
    found = np.concatenate([decoder.run([part(0, 0, 30)], False)[0], decoder.run([part(0, 30, 31)], False)[0]])
    assert np.abs(found - wanted[0][:31]).max() < 0.02 * np.abs(wanted[0]).max()
    decoder.close()


def test_sizes(decoder: DynamicDecoder, folder: Path) -> None:
    assert decoder.kv_bytes_per_token == 2 * 2 * 1 * 32 * 4
    assert decoder.weight_bytes == sum(file.stat().st_size for file in folder.glob("model.onnx*"))
    assert (decoder.n_ctx, decoder.n_vocab, list(decoder.providers)) == (48, 288, ["cpu"])


def test_no_memory_leaves_everything_as_it_was(decoder: DynamicDecoder, wanted: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder.run([part(0, 0, 5)], False)
    with monkeypatch.context() as patch:
        patch.setattr("edgelm.backends.memory.available_memory", lambda: 0)
        with pytest.raises(InsufficientMemoryError, match="a larger KV cache"):
            decoder.reserve(2)
        with pytest.raises(InsufficientMemoryError, match="the weights of exported"):
            DynamicDecoder(ExportedFolder(decoder._session.path.parent), SessionSettings(), n_ctx=48)
    close(decoder.run([part(0, 5, 6)], False)[0], wanted[0][5:6])


def test_the_context_is_the_folders_at_most(folder: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"n_ctx is 65, but .* was exported for 64 tokens"):
        DynamicDecoder(ExportedFolder(folder), SessionSettings(), n_ctx=65)


def test_another_graph(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.output.pop()
    exported = ExportedFolder(tmp_path / "other")
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="not a graph that edgelm exported"):
        DynamicDecoder(exported, SessionSettings(), n_ctx=8)


def test_closing_twice(decoder: DynamicDecoder) -> None:
    decoder.close()
    decoder.close()
