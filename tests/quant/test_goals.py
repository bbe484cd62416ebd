"""What each tensor becomes, and what is not fit for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm.errors import InvalidRequestError
from edgelm.quant import goals as goals_module
from edgelm.quant.blocks import F16, F32, Q4_0, Q4_1, Q5_1, Q8_0
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.goals import check_calibration, check_finite, row_chunks, set_goals
from edgelm.quant.input_statistics import InputStatistics
from edgelm.quant.model_file import Tensor
from edgelm.quant.tensor_formats import FormatRules

Q, DOWN, NORM, EMBEDDING = "blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.0.attn_norm.weight", "token_embd.weight"


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    return GGUFFile(write_tiny(tmp_path / "m.gguf", "llama", format="Q4_1", embedding_format="F16", n_layers=1))


@dataclass
class InMemory:
    """A ModelFile."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path("memory")

    def drop_pages(self) -> None: ...
    def close(self) -> None: ...


def statistics(n_in: int, n_tokens: int = 4) -> InputStatistics:
    return InputStatistics(n_tokens, np.full(n_in, float(n_tokens), np.float32))


def test_rules_and_plans(file: GGUFFile) -> None:
    rules = FormatRules(Q4_0, overrides=(("*.attn_q.weight", Q5_1),))
    goals = set_goals(file, rules, {Q: Q8_0}, allow_requantize=True)
    assert list(goals) == list(file.tensors)
    assert [goals[name].format for name in (Q, DOWN, NORM, EMBEDDING)] == [Q8_0, Q4_0, F32, Q8_0]
    assert [goals[name].source for name in (Q, DOWN, NORM, EMBEDDING)] == [Q4_1, Q4_1, F32, F16]
    assert goals[Q].resolved.reason == "the plan"
    assert (goals[DOWN].shape, goals[DOWN].n_weights) == ((64, 96), 64 * 96)
    assert [goals[name].is_quantized for name in (Q, DOWN, NORM, EMBEDDING)] == [True, True, False, True]


def test_without_rules_every_matrix_is_kept(file: GGUFFile) -> None:
    goals = set_goals(file, None, {}, allow_requantize=False)
    assert all(goal.is_kept and not goal.is_quantized for goal in goals.values())


def test_few_bits_are_not_quantized_again_unasked(file: GGUFFile) -> None:
    with pytest.raises(InvalidRequestError, match=r"is Q4_1 in the source already; quantizing it again to Q4_0"):
        set_goals(file, FormatRules(Q4_0), {}, allow_requantize=False)
    goals = set_goals(file, FormatRules(Q4_1), {}, allow_requantize=False)  # that is no change
    assert [name for name, goal in goals.items() if goal.is_quantized] == [EMBEDDING]
    with pytest.raises(InvalidRequestError, match=r"token_embd\.weight is in few bits in the source already"):
        set_goals(file, FormatRules(Q4_1), {}, allow_requantize=False, widened=[EMBEDDING])


def test_patterns_that_fit_nothing(file: GGUFFile) -> None:
    with pytest.raises(InvalidRequestError, match="no tensor fits the pattern"):
        set_goals(file, FormatRules(Q4_1, overrides=(("blk.7.*", Q8_0),)), {}, allow_requantize=False)


def test_calibration_of_this_model_and_of_others(file: GGUFFile) -> None:
    goals = set_goals(file, FormatRules(Q4_0), {}, allow_requantize=True)
    matrices = [name for name, goal in goals.items() if goal.is_quantized]
    whole = {name: statistics(goals[name].shape[1]) for name in matrices if name != EMBEDDING}
    assert check_calibration(goals, whole) == []
    assert check_calibration(goals, {**whole, Q: statistics(64, 1), DOWN: InputStatistics(0, np.zeros(96, np.float32))}) == [DOWN]
    with pytest.raises(InvalidRequestError, match=r"of another model: it has 32 inputs for blk\.0\.attn_q\.weight, which has 64"):
        check_calibration(goals, {**whole, Q: statistics(32)})
    with pytest.raises(InvalidRequestError, match="it has nothing on"):
        check_calibration(goals, {"other.weight": statistics(64)})


def test_weights_that_are_not_finite_are_refused(file: GGUFFile) -> None:
    kept = set_goals(file, None, {}, allow_requantize=False)
    check_finite(file, kept)
    tensor = file.tensors[Q]
    infinite = tensor.data.view(Q4_1.dtype).copy()
    infinite["d"][-1] = np.inf
    damaged = InMemory({**file.tensors, Q: Tensor(Q, tensor.shape, Q4_1, infinite.view(np.uint8))})
    with pytest.raises(InvalidRequestError, match=r"blk\.0\.attn_q\.weight: there are weights that are infinite"):
        check_finite(damaged, kept)
    check_finite(damaged, [name for name in damaged.tensors if name != Q])


@pytest.mark.parametrize("at_once", [1, 100, 1 << 23])
def test_rows_come_in_order(file: GGUFFile, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(goals_module, "_WEIGHTS_AT_ONCE", at_once)

    def rows(name: str) -> list[NDArray[np.float32]]:
        return list(row_chunks(file.tensors[name]))

    for name in (Q, EMBEDDING):
        np.testing.assert_array_equal(np.concatenate(rows(name)), file.tensors[name].dequantize())
    np.testing.assert_array_equal(rows(NORM), [file.tensors[NORM].dequantize()[None]])
