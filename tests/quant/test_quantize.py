"""The work on one model: order, progress, resuming, and the file. Whole runs are in tests/runtime/test_quantize.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_tiny

from edgelm.backends.block_steps import BlockSteps
from edgelm.errors import InsufficientMemoryError
from edgelm.quant import goals as goals_module
from edgelm.quant.blocks import Q4_0
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.goals import set_goals
from edgelm.quant.input_statistics import Calibration, InputAccumulator
from edgelm.quant.matrix import LinearInputs, Method
from edgelm.quant.memory_limit import MemoryLimit
from edgelm.quant.quantize import Quantizer, write_quantized
from edgelm.quant.row_threads import RowThreads
from edgelm.quant.scratch import Scratch
from edgelm.quant.tensor_formats import FormatRules
from edgelm.quant.work_folder import open_or_create

WINDOWS = np.random.default_rng(1).integers(3, 280, (6, 64)).astype(np.int32)
Told = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m.gguf", "llama", n_layers=2, tied=False)


@contextmanager
def quantizer(source: Path, target: Path, method: Method, **changes: Any) -> Iterator[tuple[Quantizer, Told]]:
    told: Told = []
    with GGUFFile(source) as file, RowThreads(1) as threads, open_or_create(target, {}) as work:
        goals = set_goals(file, FormatRules(Q4_0, output=Q4_0), {}, allow_requantize=False)
        rest = {"memory": MemoryLimit(1 << 40), **changes}
        yield Quantizer(file, goals, method, work, threads, lambda *what: told.append(what), **rest), told


def blocks(work: Quantizer) -> dict[str, bytes]:
    return {name: work.work.load_tensor(name).tobytes() for name in work.work.finished}


def run_blocks(work: Quantizer, folder: Path) -> None:
    with Scratch(folder) as scratch:
        work.block_by_block(BlockSteps(work.file, WINDOWS.shape[1], work.threads), WINDOWS, 2, scratch, {})


def statistics_of(source: Path, outer: bool) -> Calibration:
    """Random inputs, the same for all weights of a width, which share the object."""
    rng, found = np.random.default_rng(0), {}
    with GGUFFile(source) as file:
        for width in (64, 96):
            accumulator = InputAccumulator("w", width, outer)
            accumulator.add((rng.standard_normal((300, width)) @ rng.standard_normal((width, width))).astype(np.float32))
            statistics = accumulator.finish()
            found |= {name: statistics for name, t in file.tensors.items() if t.shape[1:] == (width,) and name != "token_embd.weight"}
    return found


@pytest.mark.parametrize("method", ["round", "search"])
def test_large_matrices_come_in_pieces(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    results = []
    for n, at_once in enumerate((1 << 23, 5000)):
        monkeypatch.setattr(goals_module, "_WEIGHTS_AT_ONCE", at_once)
        with quantizer(source, tmp_path / f"{n}.gguf", Method(method)) as (work, _):
            work.one_by_one(statistics_of(source, outer=False))
            results.append((blocks(work), {name: each.facts["error"] for name, each in work.work.finished.items()}))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    assert all(0 < error < 0.02 for error in results[0][1].values())


def test_statistics_that_weights_share_are_factorized_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    of = LinearInputs.of
    monkeypatch.setattr(LinearInputs, "of", lambda outer, *rest: (made.append(len(outer)), of(outer, *rest))[1])
    calibration = statistics_of(source, outer=True)
    sums = {name: each.outer.copy() for name, each in calibration.items() if each.outer is not None}
    with quantizer(source, tmp_path / "q.gguf", Method("gptq")) as (work, _):
        work.one_by_one(calibration)
        assert len(work.work.finished) == 16
    assert made == [64, 96]
    assert all(np.array_equal(calibration[name].outer, outer) for name, outer in sums.items())  # they may be used again


def test_progress_counts_weights_to_the_end(source: Path, tmp_path: Path) -> None:
    with quantizer(source, tmp_path / "a.gguf", Method("search")) as (work, told):
        work.one_by_one({})
        n_all = sum(goal.n_weights for goal in work.goals.values() if goal.is_quantized)
        assert [what for what, _, _ in told] == [name for name, goal in work.goals.items() if goal.is_quantized]
        assert {of for _, _, of in told} == {n_all}
        assert told[0][1] == 0
        last = told[-1]
        assert last[1] + work.goals[last[0]].n_weights == n_all
    with quantizer(source, tmp_path / "b.gguf", Method("gptq")) as (work, told):
        run_blocks(work, tmp_path)
        n_done = [done for _, done, _ in told]
        assert list(dict.fromkeys(what for what, _, _ in told)) == ["token_embd.weight", "block 1 of 2", "block 2 of 2", "output.weight"]
        assert n_done == sorted(n_done)
        assert told[-1][1] + work.goals["output.weight"].n_weights == told[-1][2]
        assert told[-1][2] == n_all - work.goals["token_embd.weight"].n_weights


def test_what_is_done_is_not_done_again(source: Path, tmp_path: Path) -> None:
    """The work stops wherever something is told, over and over; each time one goes on."""
    with quantizer(source, tmp_path / "whole.gguf", Method("gptq")) as (work, _):
        run_blocks(work, tmp_path)
        wanted = blocks(work)
    places: dict[str, Path] = {}  # each tensor's file, which is another one if it is made again
    n_before, n_runs, is_done = -1, 0, False
    while not is_done:
        with quantizer(source, tmp_path / "parts.gguf", Method("gptq")) as (work, told):
            assert len(work.work.finished) > n_before
            n_before, n_runs = len(work.work.finished), n_runs + 1

            def stop(what: str, done: int, of: int, told: Told = told, work: Quantizer = work, n: int = n_before) -> None:
                told.append((what, done, of))
                if len(work.work.finished) > n:
                    raise KeyboardInterrupt

            try:
                run_blocks(replace(work, say=stop), tmp_path)
                is_done = True
            except KeyboardInterrupt:
                continue
            finally:
                assert n_before < 2 or told[0][1] > 0
                now = {name: tensor.path for name, tensor in work.work.finished.items()}
                assert places.items() <= now.items()
                places = now
            assert blocks(work) == wanted
    assert n_runs == len(wanted)  # each made one tensor


def test_a_limit_of_memory_leaves_what_is_done(source: Path, tmp_path: Path) -> None:
    complaint = r"more than the 0 MB allowed; .* it goes on from here$"
    with (
        quantizer(source, tmp_path / "q.gguf", Method("search"), memory=MemoryLimit(1000)) as (work, _),
        pytest.raises(InsufficientMemoryError, match=complaint),
    ):
        work.one_by_one({})
    with quantizer(source, tmp_path / "q.gguf", Method("search")) as (work, _):
        work.one_by_one({})
        assert len(work.work.finished) == 16


def test_the_file_has_the_goals(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "q[1].gguf"
    left, other = tmp_path / "q[1].gguf.x7.partial", tmp_path / "q1.gguf.x7.partial"
    for path in (left, other):
        path.touch()
    with quantizer(source, target, Method("round")) as (work, _):
        work.one_by_one({})
        write_quantized(target, work.file, work.goals, work.work, {"edgelm.quantize.method": "round", "edgelm.quantize.damping": 0.01})
        wanted = blocks(work)
    with GGUFFile(target) as file, GGUFFile(source) as before:
        assert list(file.tensors) == list(before.tensors)
        assert {name: file.tensors[name].data.tobytes() for name in wanted} == wanted
        for name in file.tensors.keys() - wanted.keys():
            np.testing.assert_array_equal(file.tensors[name].dequantize(), before.tensors[name].dequantize())
        assert file.metadata["edgelm.quantize.method"] == "round"
        assert file.metadata["general.file_type"] == 2
    assert (left.exists(), other.exists()) == (False, True)  # the first was left by a process killed while it wrote this file
