"""What predictions of a text are worth, beside a float reference's: perplexity, KL divergence, agreement on the likeliest token.

The reference predicts each window once, whatever the number of candidates; all see the same tokens, so that differences between a candidate
and the reference, or between two candidates, are paired. Windows are the independent units of every standard error (quant/clustered.py).
Logits live for a few dozen tokens only: of a vocabulary of 262,144 a window's would take half a gigabyte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError, MeasurementError
from edgelm.quant.clustered import Mean, clustered_mean, clustered_ratio, clusters_of
from edgelm.quant.divergence import TokenScores, predictions, token_scores

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]

_LOGITS_AT_ONCE = 1 << 23  # 32 MiB for each model, and 64 MiB of the reference's probabilities
_TOKENS_AT_ONCE = 64  # engines are as fast as with more, and new memory for every piece is slow


class Predictor(Protocol):
    """A model that tells logits: an engine, or weights that are still being quantized."""

    @property
    def name(self) -> str:
        """For people, in messages."""
        ...

    @property
    def n_vocab(self) -> int: ...

    def logits(self, tokens: Tokens, n_rows: int) -> Iterator[Logits]:
        """Logits after each of the tokens, which begin an empty context: float32 [n_rows, n_vocab] at a time, the last of the rest."""
        ...


@dataclass(frozen=True)
class Figures:
    """Of one candidate's predictions; se_ are standard errors.

    Attributes:
        perplexity, reference_perplexity: exp of the mean negative log likelihood.
        log_ratio: ln(perplexity / reference_perplexity), paired.
        mean_kl, median_kl, p99_kl, max_kl: KL(reference || candidate) of the whole distribution, in nats.
        top_agreement: share of positions where both hold the same token for the likeliest.
    """

    perplexity: float
    se_perplexity: float
    reference_perplexity: float
    log_ratio: float
    se_log_ratio: float
    mean_kl: float
    se_mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top_agreement: float
    se_top_agreement: float


@dataclass(frozen=True)
class Evaluation:
    """A candidate's scores beside the reference's.

    Attributes:
        scores: of every predicted token, one window after the other; the judge is the reference.
        clusters: how many of them each independent part of the text has.
    """

    scores: TokenScores
    clusters: tuple[int, ...]

    def figures(self) -> Figures:
        scores, sizes = self.scores, self.clusters
        nll = clustered_mean(scores.other_nll, sizes)
        ratio = clustered_mean(scores.other_nll - scores.judge_nll, sizes)
        kl = clustered_mean(scores.kl, sizes)
        agreement = clustered_mean(scores.agrees.astype(np.float64), sizes)
        median, p99 = np.quantile(scores.kl, [0.5, 0.99])
        perplexity = math.exp(nll.value)
        return Figures(
            perplexity=perplexity,
            se_perplexity=perplexity * nll.error,  # to first order
            reference_perplexity=math.exp(float(scores.judge_nll.mean())),
            log_ratio=ratio.value,
            se_log_ratio=ratio.error,
            mean_kl=kl.value,
            se_mean_kl=kl.error,
            median_kl=float(median),
            p99_kl=float(p99),
            max_kl=float(scores.kl.max()),
            top_agreement=agreement.value,
            se_top_agreement=agreement.error,
        )


@dataclass(frozen=True)
class Comparison:
    """One candidate beside another, on the same tokens and reference.

    Attributes:
        kl_ratio: its mean KL over the other's; None where the other's is 0.
        log_ratio: ln(its perplexity / the other's).
    """

    kl_ratio: Mean | None
    log_ratio: Mean


def compare(evaluation: Evaluation, other: Evaluation) -> Comparison:
    """Ratios with standard errors of pairs, which are far smaller than those of the two figures: both find the same tokens hard.

    Raises:
        InvalidRequestError: they are of other tokens or another reference.
    """
    ours, theirs, sizes = evaluation.scores, other.scores, evaluation.clusters
    if sizes != other.clusters or not np.allclose(ours.judge_nll, theirs.judge_nll, atol=1e-3):
        raise InvalidRequestError("evaluations on other windows or beside other references cannot be compared; evaluate both together")
    return Comparison(
        kl_ratio=clustered_ratio(ours.kl, theirs.kl, sizes) if theirs.kl.any() else None,
        log_ratio=clustered_mean(ours.other_nll - theirs.other_nll, sizes),
    )


def evaluate(
    reference: Predictor, candidates: Sequence[Predictor], windows: Sequence[Tokens], progress: Callable[[str], None]
) -> list[Evaluation]:
    """Every candidate's scores, in their order. Each token after a window's first counts.

    Args:
        windows: int32 [2 or more] each; each begins an empty context.
        progress: called with a line before each window.

    Raises:
        InvalidRequestError: the vocabularies have different sizes, or fewer than two tokens are predicted, so that no error can be told.
        MeasurementError: logits are no numbers, or give a token no chance at all.
    """
    predicted = [len(window) - 1 for window in windows]
    if min(predicted, default=0) < 1 or sum(predicted) < 2:
        raise InvalidRequestError(f"windows of {[n + 1 for n in predicted]} tokens predict too few; give two tokens or more in each")
    for candidate in candidates:
        if candidate.n_vocab != reference.n_vocab:
            raise InvalidRequestError(
                f"{candidate.name} predicts {candidate.n_vocab} tokens, but the reference {reference.n_vocab}; "
                "give models of one vocabulary"
            )
    parts: list[list[TokenScores]] = [[] for _ in candidates]
    for i, window in enumerate(windows):
        progress(f"window {i + 1} of {len(windows)}")
        for scores in _window_scores(reference, candidates, window, f"window {i + 1}"):
            for part, score in zip(parts, scores, strict=True):
                part.append(score)
    return [Evaluation(_joined(part), tuple(clusters_of(predicted))) for part in parts]


def _window_scores(reference: Predictor, candidates: Sequence[Predictor], window: Tokens, where: str) -> Iterator[tuple[TokenScores, ...]]:
    """Scores of one piece of the window after the other, of all candidates."""
    n_rows = max(1, min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // reference.n_vocab // 32 * 32))
    tokens, targets = window[:-1], window[1:]
    theirs = reference.logits(tokens, n_rows)
    ours = [candidate.logits(tokens, n_rows) for candidate in candidates]
    for start in range(0, len(tokens), n_rows):
        judge, came = predictions(next(theirs)), targets[start : start + n_rows]
        scores = tuple(token_scores(judge, next(pieces), came) for pieces in ours)
        for candidate, score in zip(candidates, scores, strict=True):
            _check_finite(score, f"token {start + 1} to {start + len(came)} of {where}", candidate.name)
        yield scores


def _check_finite(scores: TokenScores, where: str, name: str) -> None:
    for who, values in (("the reference", scores.judge_nll), (name, scores.other_nll), (name, scores.kl)):
        if not np.isfinite(values).all():
            raise MeasurementError(
                f"{where}: the logits of {who} are no numbers, or give a token no chance at all, so there is no perplexity; "
                "try another precision or backend, and report it"
            )


def _joined(parts: Sequence[TokenScores]) -> TokenScores:
    columns = ([getattr(part, name) for part in parts] for name in ("judge_nll", "other_nll", "kl", "agrees"))
    return TokenScores(*map(np.concatenate, columns))
