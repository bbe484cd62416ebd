import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, MeasurementError
from edgelm.quant import evaluate as module
from edgelm.quant.evaluate import Evaluation, Logits, Tokens, compare, evaluate

N_VOCAB = 40
WINDOWS = [np.random.default_rng(i).integers(0, N_VOCAB, n).astype(np.int32) for i, n in enumerate([30] * 9 + [12])]


@dataclass
class Table:
    """Predicts from the last token alone: row t of the table after token t."""

    table: Logits
    name: str = "table"
    pieces: list[int] = field(default_factory=list)

    @property
    def n_vocab(self) -> int:
        return self.table.shape[1]

    def logits(self, tokens: Tokens, n_rows: int) -> Iterator[Logits]:
        for start in range(0, len(tokens), n_rows):
            self.pieces.append(len(tokens[start : start + n_rows]))
            yield self.table[tokens[start : start + n_rows]]


def table(noise: float = 0.0, seed: int = 1) -> Table:
    base = np.random.default_rng(0).standard_normal((N_VOCAB, N_VOCAB))
    return Table((base + noise * np.random.default_rng(seed).standard_normal(base.shape)).astype(np.float32), f"noise {noise}")


def always(*row: float) -> Table:
    """The same probabilities after every token."""
    with np.errstate(divide="ignore"):
        return Table(np.tile(np.log(np.array(row, np.float32)), (len(row), 1)), "always")


def measure(*candidates: Table, windows: list[NDArray[np.int32]] = WINDOWS) -> list[Evaluation]:
    return evaluate(table(), candidates, windows, lambda _: None)


def test_scores_of_known_probabilities() -> None:
    windows = [np.array([0, 1, 2, 0], np.int32), np.array([0, 1], np.int32)]
    (found,) = evaluate(always(0.5, 0.25, 0.25), [always(0.25, 0.5, 0.25)], windows, lambda _: None)
    np.testing.assert_allclose(np.exp(-found.scores.judge_nll), [0.25, 0.25, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(np.exp(-found.scores.other_nll), [0.5, 0.25, 0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.scores.kl, 0.25 * math.log(2), rtol=1e-5)
    assert not found.scores.agrees.any()
    figures = found.figures()
    assert figures.perplexity == pytest.approx(math.exp(np.mean(np.log([2, 4, 4, 2]))))
    assert figures.reference_perplexity == pytest.approx(math.exp(np.mean(np.log([4, 4, 2, 4]))))
    assert figures.log_ratio == pytest.approx(math.log(figures.perplexity / figures.reference_perplexity))
    assert (figures.mean_kl, figures.top_agreement) == (pytest.approx(0.25 * math.log(2)), 0.0)


def test_candidates_together_score_as_each_does_alone_and_the_reference_predicts_once() -> None:
    reference, near, far = table(), table(0.1), table(0.5)
    together = evaluate(reference, [near, far], WINDOWS, lambda _: None)
    assert sum(reference.pieces) == sum(len(window) - 1 for window in WINDOWS)
    for candidate, found in zip((near, far), together, strict=True):
        (alone,) = measure(candidate)
        np.testing.assert_array_equal(found.scores.kl, alone.scores.kl)
        np.testing.assert_array_equal(found.scores.other_nll, alone.scores.other_nll)
    assert together[0].figures().mean_kl < together[1].figures().mean_kl


def test_pieces_of_a_window_score_as_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = measure(table(0.2))
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 8)
    candidate = table(0.2)
    (pieces,) = measure(candidate)
    assert candidate.pieces[:4] == [8, 8, 8, 5]
    np.testing.assert_array_equal(whole.scores.kl, pieces.scores.kl)
    np.testing.assert_array_equal(whole.scores.other_nll, pieces.scores.other_nll)


@pytest.mark.parametrize(("n_vocab", "n_rows"), [(262_144, 32), (49_152, 64), (1 << 25, 1)])
def test_large_vocabularies_come_in_small_pieces(n_vocab: int, n_rows: int) -> None:
    asked = []

    class Huge:
        name = "huge"

        @property
        def n_vocab(self) -> int:
            return n_vocab

        def logits(self, tokens: Tokens, n_rows: int) -> Iterator[Logits]:
            asked.append((n_rows, len(tokens)))
            raise MeasurementError("enough was seen")
            yield

    with pytest.raises(MeasurementError, match="enough"):
        evaluate(Huge(), [Huge()], WINDOWS, lambda _: None)
    assert asked == [(n_rows, 29)]


def test_the_reference_beside_itself_is_exactly_nothing() -> None:
    (found,) = measure(table())
    figures = found.figures()
    assert figures.perplexity == figures.reference_perplexity > 1
    assert (figures.log_ratio, figures.se_log_ratio, figures.mean_kl, figures.max_kl, figures.top_agreement) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_comparison_is_of_pairs() -> None:
    near, far, same = measure(table(0.1), table(0.2, seed=2), table())
    found = compare(near, far)
    assert found.kl_ratio is not None
    assert found.kl_ratio.value == pytest.approx(near.figures().mean_kl / far.figures().mean_kl)
    assert found.log_ratio.value == pytest.approx(near.figures().log_ratio - far.figures().log_ratio)
    itself = compare(near, near)
    assert itself.kl_ratio is not None
    assert (itself.kl_ratio.value, itself.kl_ratio.error, itself.log_ratio.value, itself.log_ratio.error) == (1.0, 0.0, 0.0, 0.0)
    nothing = compare(near, same)
    assert nothing.kl_ratio is None
    assert nothing.log_ratio.value == near.figures().log_ratio


def test_the_error_of_a_pair_is_smaller_than_those_of_its_figures() -> None:
    near, twice = measure(table(0.1, seed=3), table(0.2, seed=3))  # the same noise, twice as large: hard tokens are hard for both
    ratio = compare(near, twice).kl_ratio
    assert ratio is not None
    alone = math.hypot(*(each.figures().se_mean_kl / each.figures().mean_kl for each in (near, twice)))
    assert ratio.value == pytest.approx(0.25, rel=0.1)
    assert ratio.error < 0.2 * ratio.value * alone


def test_other_windows_or_references_are_not_compared() -> None:
    (one,), (other,) = measure(table(0.1)), measure(table(0.1), windows=WINDOWS[:9])
    with pytest.raises(InvalidRequestError, match="other windows"):
        compare(one, other)
    (beside_another,) = evaluate(table(0.3, seed=9), [table(0.1)], WINDOWS, lambda _: None)
    with pytest.raises(InvalidRequestError, match="other references"):
        compare(one, beside_another)


@pytest.mark.parametrize("row", [(math.nan, 0.5), (0.0, 1.0)])
def test_logits_that_give_no_perplexity_are_an_error_not_a_figure(row: tuple[float, float]) -> None:
    windows = [np.array([0, 0, 0], np.int32)]
    with pytest.raises(MeasurementError, match="token 1 to 2 of window 1: the logits of always"):
        evaluate(always(0.5, 0.5), [always(*row)], windows, lambda _: None)
    with pytest.raises(MeasurementError, match="the logits of the reference"):
        evaluate(always(*row), [always(0.5, 0.5)], windows, lambda _: None)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="always predicts 3 tokens, but the reference 2"):
        evaluate(always(0.5, 0.5), [always(0.4, 0.3, 0.3)], WINDOWS, lambda _: None)


@pytest.mark.parametrize("sizes", [[], [2], [5, 1]])
def test_windows_that_predict_too_little_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match="predict too few"):
        measure(table(), windows=[np.zeros(n, np.int32) for n in sizes])
