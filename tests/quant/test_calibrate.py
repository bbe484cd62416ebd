"""Calibration of the float model, against the inputs computed at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.errors import InvalidRequestError
from edgelm.quant.calibrate import calibrate
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.input_statistics import InputStatistics
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch

WINDOWS = np.random.default_rng(1).integers(3, 280, (5, 32)).astype(np.int32)


def calibrated(path: Path, folder: Path, n_batch: int, outer: bool, told: list[tuple[str, int, int]]) -> dict[str, InputStatistics]:
    found: dict[str, InputStatistics] = {}
    with GGUFFile(path) as file, RowThreads(1) as threads, Scratch(folder) as scratch:
        model = BlockSteps(file, WINDOWS.shape[1], threads)
        for names, statistics in calibrate(model, WINDOWS, n_batch, outer, threads, scratch, lambda *what: told.append(what)):
            assert not found.keys() & set(names)
            found.update(dict.fromkeys(names, statistics))
    return found


@pytest.mark.parametrize("variant", ["llama-untied", "phi3", "gemma2"])
def test_the_sums_are_those_of_all_inputs(tmp_path: Path, variant: str) -> None:
    path = write_variant(tmp_path / "m.gguf", variant, n_layers=2)
    told: list[tuple[str, int, int]] = []
    found = calibrated(path, tmp_path, 2, True, told)
    assert told == [("block 1 of 2", 0, 2), ("block 2 of 2", 1, 2)]
    with GGUFFile(path) as file:
        matrices = {name for name, t in file.tensors.items() if len(t.shape) == 2} - {"token_embd.weight"}
        assert found.keys() == matrices | {"output.weight"}
        model = BlockSteps(file, WINDOWS.shape[1])
        stream = model.embed(WINDOWS, {})
        for layer in range(2):
            state = model.begin(layer, stream, {})
            for names, step in zip(model.linear_groups(layer), model.steps(layer, {}), strict=True):
                assert_sums(found, names, state.inputs)
                state = step(state)
            stream = state.stream
        assert_sums(found, ("output.weight",), model.end(stream).inputs)


def assert_sums(found: dict[str, InputStatistics], names: tuple[str, ...], inputs: np.ndarray) -> None:
    x = inputs.reshape(-1, inputs.shape[-1])
    for name in names:
        statistics = found[name]
        assert statistics is found[names[0]]
        assert statistics.n_tokens == WINDOWS.size
        assert statistics.outer is not None
        np.testing.assert_allclose(statistics.squares, np.square(x).sum(axis=0), rtol=1e-3)
        np.testing.assert_allclose(statistics.outer, x.T @ x, rtol=1e-3, atol=1e-3 * np.abs(x.T @ x).max())


def test_the_size_of_batches_changes_nothing_but_rounding(tmp_path: Path) -> None:
    path = write_variant(tmp_path / "m.gguf", "llama", n_layers=1)
    one, all_at_once = (calibrated(path, tmp_path, n_batch, False, []) for n_batch in (1, 5))
    for name, statistics in one.items():
        assert statistics.outer is None
        np.testing.assert_allclose(statistics.squares, all_at_once[name].squares, rtol=1e-4)


def test_damaged_weights_are_told_by_the_next_layer(tmp_path: Path) -> None:
    path = write_variant(tmp_path / "m.gguf", "llama", n_layers=2)
    with GGUFFile(path) as file:
        data = file.tensors["blk.0.ffn_down.weight"].data
        start = path.read_bytes().index(data.tobytes())
    with path.open("r+b") as raw:
        raw.seek(start)
        raw.write(np.full(8, np.nan, np.float32).tobytes())
    with pytest.raises(InvalidRequestError, match=r"the inputs of blk\.1\.attn_q\.weight are not finite"):
        calibrated(path, tmp_path, 5, False, [])
