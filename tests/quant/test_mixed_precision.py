from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import FORMATS
from edgelm.quant.mixed_precision import Budget, Choice, Plan, TensorOptions, choose_formats

ERRORS = {"Q4_0": 1.0, "IQ4_NL": 0.6, "Q4_1": 0.55, "Q5_0": 0.25, "Q5_1": 0.14, "Q8_0": 0.004}


def options(name: str, shape: tuple[int, ...], sensitivity: float, formats: dict[str, float] = ERRORS) -> TensorOptions:
    choices = tuple(Choice(f, FORMATS[f].nbytes(shape), sensitivity * error) for f, error in formats.items())
    return TensorOptions(name, shape, choices)


def small_model(seed: int) -> list[TensorOptions]:
    rng = np.random.default_rng(seed)
    shapes = [(7, 64), (64, 96), (32, 32), (64, 64), (96, 64)]
    return [options(f"blk.0.t{n}.weight", shape, float(rng.lognormal())) for n, shape in enumerate(shapes)]


def every_plan(tensors: list[TensorOptions]) -> list[tuple[int, int, float]]:
    """Bytes, bytes padded to 32, and error of every choice there is."""
    return [
        (sum(c.n_bytes for c in picked), sum(math.ceil(c.n_bytes / 32) * 32 for c in picked), sum(c.error for c in picked))
        for picked in itertools.product(*(t.choices for t in tensors))
    ]


def shown(plan: Plan) -> dict[str, str]:
    return {name: block_format.name for name, block_format in plan.formats.items()}


@pytest.mark.parametrize("seed", range(4))
def test_least_error_for_bits_per_weight(seed: int) -> None:
    tensors = small_model(seed)
    for bits in (4.5, 4.77, 5.3, 6.1, 9):
        plan = choose_formats(tensors, Budget("bits per weight", bits))
        best = min(error for n, _, error in every_plan(tensors) if n <= bits * plan.n_weights / 8)
        assert plan.bits_per_weight <= bits
        assert plan.error <= best * 1.0001


@pytest.mark.parametrize("seed", range(4))
def test_least_error_for_a_file_size_counts_padding_and_fixed_bytes(seed: int) -> None:
    tensors, fixed = small_model(seed), 5000
    smallest = min(padded for _, padded, _ in every_plan(tensors))
    for size in (fixed + smallest, fixed + smallest + 63, 16_500, 20_000):
        plan = choose_formats(tensors, Budget("file size", size), fixed)
        best = min(error for _, padded, error in every_plan(tensors) if fixed + padded <= size)
        assert plan.file_bytes <= size
        assert plan.error <= best * 1.0001


@pytest.mark.parametrize("seed", range(4))
def test_fewest_bytes_for_an_error(seed: int) -> None:
    tensors = small_model(seed)
    for target in (0.05, 0.5, 2.0, 100.0):
        plan = choose_formats(tensors, Budget("error", target))
        best = min(n for n, _, error in every_plan(tensors) if error <= target)
        assert plan.error <= target * (1 + 1e-9)
        assert plan.n_bytes <= best * 1.0001


def test_sensitive_tensors_get_the_bytes() -> None:
    tensors = [options("a", (64, 64), 1), options("b", (64, 64), 100), options("c", (64, 64), 10)]
    assert shown(choose_formats(tensors, Budget("bits per weight", 5))) == {"a": "IQ4_NL", "b": "Q5_1", "c": "IQ4_NL"}


def test_a_plain_format_is_affordable_at_its_own_bits_per_weight() -> None:
    tensors = [options(f"t{n}", (3, 32), 1, {"Q4_0": 1.0}) for n in range(50)]  # 54 bytes each: padding counts for file sizes only
    assert choose_formats(tensors, Budget("bits per weight", 4.5)).bits_per_weight == 4.5
    assert choose_formats(tensors, Budget("file size", 50 * 64)).file_bytes == 50 * 64
    with pytest.raises(InvalidRequestError):
        choose_formats(tensors, Budget("file size", 50 * 64 - 1))


def test_a_larger_format_of_more_error_is_never_chosen() -> None:
    tensors = [options("a", (64, 64), 1, {"Q4_1": 2.0, "Q4_0": 1.0, "IQ4_NL": 1.5})]
    assert shown(choose_formats(tensors, Budget("bits per weight", 5))) == {"a": "Q4_0"}


def test_two_hundred_tensors_at_once() -> None:
    rng = np.random.default_rng(1)
    shapes = {"attn_q": (576, 576), "attn_k": (192, 576), "ffn_up": (1536, 576), "ffn_down": (576, 1536)}
    tensors = [options(f"blk.{n}.{kind}.weight", shape, float(rng.lognormal())) for n in range(50) for kind, shape in shapes.items()]
    plan = choose_formats(tensors, Budget("bits per weight", 4.83))
    # What is left is less than the smallest step: the fewest bytes by which two formats of the smallest tensor differ.
    assert 4.83 * plan.n_weights / 8 - plan.n_bytes < 192 * 576 / 32 * 2


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("bits per weight", 4.4), r"fits 4\.4 bits per weight; the smallest possible is 4\.5 bits per weight"),
        (
            Budget("file size", 3000),
            r"fits a file of 3,000 bytes; the smallest possible is 3,304 bytes \(0\.01 MB\), of which 1,000 are not",
        ),
        (Budget("error", 0.001), r"at most 0\.001; the least possible is 0\.004"),
        (Budget("bits per weight", 0), "above zero"),
        (Budget("bits per weight", math.nan), "finite number"),
        (Budget("file size", math.inf), "finite number"),
        (Budget("error", -1), "above zero"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(budget: Budget, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        choose_formats([options("a", (64, 64), 1)], budget, fixed_bytes=1000)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "no tensors to plan"),
        ([options("a", (64, 64), 1)] * 2, "a is to be planned 2 times"),
        ([TensorOptions("a", (64, 64), ())], "no format to choose from"),
        ([TensorOptions("a", (0, 64), (Choice("Q4_0", 0, 1.0),))], "has no weights"),
        ([TensorOptions("a", (64, 64), (Choice("Q9_9", 1, 1.0),))], "'Q9_9', which is no format"),
        ([TensorOptions("a", (64, 64), (Choice("Q4_0", 99, 1.0),))], "takes 2304 bytes as Q4_0, but was given 99"),
        ([options("a", (64, 64), math.nan)], "error of a as Q4_0 is nan"),
        ([options("a", (64, 64), -1)], "error of a as Q4_0 is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(tensors: list[TensorOptions], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        choose_formats(tensors, Budget("bits per weight", 5))


def test_a_width_that_the_format_does_not_hold_is_refused() -> None:
    with pytest.raises(ModelFileError, match="rows of 576"):
        choose_formats([TensorOptions("a", (64, 576), (Choice("Q4_K", 1, 1.0),))], Budget("bits per weight", 5))
