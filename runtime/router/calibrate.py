"""From graded answers to a calibration, and how good it is on answers that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.certainty import TokenCertainty
from edgelm.runtime.router.answer_shape import shape_of
from edgelm.runtime.router.certainty_features import FEATURES, features
from edgelm.runtime.router.confidence import INPUTS, Calibration, Early, Origin
from edgelm.runtime.router.logistic import Logistic
from edgelm.runtime.router.metrics import Reliability, Rows, aurc, auroc, bootstrap, reliability
from edgelm.runtime.router.target import Target, grey_band, outcome, threshold_of
from edgelm.runtime.router.verify_answers import Verification, learn

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Apart = Literal["kinds", "questions"]
"""What is left out together: all questions of some kinds, or some questions of all kinds."""

_MEAN = FEATURES.index("logprob_mean")
_PENALTY = 10.0  # so that a weight of a standardized feature is held like by ten answers against it
_N_FOLDS: Mapping[Apart, int] = MappingProxyType({"kinds": 40, "questions": 10})
"""At most. Kinds differ much in how hard they are, so that figures hang on which are left out together; most often it is each alone."""
_LEAST_KINDS = 5  # fewer leave too little to learn from when some are left out
_LEAST_ROWS = 50
_LEAST_OF_EACH = 10  # right and wrong
_ROUNDS = 1000
_SEED = 0


@dataclass(frozen=True)
class Graded:
    """An answer, and whether it is right.

    Attributes:
        kind: of question.
        question: another one for another question.
        certainties: as TextDelta tells them.
        said_yes: p(yes) of the model, asked whether it is right; None where that is not known.
    """

    kind: str
    question: str
    is_right: bool
    certainties: tuple[TokenCertainty, ...]
    text: str = ""
    said_yes: float | None = None


@dataclass(frozen=True)
class Table:
    """Graded answers as columns of one length; those whose certainty is not known are left out.

    Attributes:
        whole, early: features of the answers and of their beginnings, float64 [n, n_features].
        right: bool [n].
        said_yes: float64 [n], nan where it is not known.
        n_unknown: answers that were left out.
    """

    kinds: tuple[str, ...]
    questions: tuple[str, ...]
    whole: Array
    early: Array
    right: Bools
    said_yes: Array
    n_early: int
    n_unknown: int

    @classmethod
    def of(cls, rows: Sequence[Graded], n_early: int) -> Table:
        """Of at least _LEAST_ROWS answers, some of them right and some wrong.

        Raises:
            InvalidRequestError: there is too little to learn from.
        """
        known = [
            (row, np.concatenate([whole, shape_of(row.text)]), features(row.certainties[:n_early]))
            for row in rows
            if (whole := features(row.certainties)) is not None
        ]
        right = np.array([row.is_right for row, _, _ in known], np.bool_)
        n_right = int(right.sum())
        if len(known) < _LEAST_ROWS or min(n_right, len(known) - n_right) < _LEAST_OF_EACH:
            raise InvalidRequestError(
                f"{len(known)} answers, {n_right} of them right, are too few to calibrate with; give questions that make at least "
                f"{_LEAST_ROWS}, with {_LEAST_OF_EACH} right and {_LEAST_OF_EACH} wrong: neither too easy nor too hard for this model"
            )
        return cls(
            tuple(row.kind for row, _, _ in known),
            tuple(row.question for row, _, _ in known),
            np.array([whole for _, whole, _ in known]),
            np.array([early for _, _, early in known]),
            right,
            np.array([np.nan if row.said_yes is None else row.said_yes for row, _, _ in known]),
            n_early,
            len(rows) - len(known),
        )


@dataclass(frozen=True)
class Evaluation:
    """What a calibration says of answers that it was not fitted to.

    Attributes:
        apart: what was left out together.
        confidence, early: of whole answers and of their beginnings, float64 [n].
    """

    table: Table
    apart: Apart
    confidence: Array
    early: Array

    @property
    def mean_logprob(self) -> Array:
        """What the confidence has to be better than, float64 [n]."""
        return self.table.whole[:, _MEAN]

    @cached_property
    def reliability(self) -> Reliability:
        """Of the confidence."""
        return reliability(self.confidence, self.table.right)

    @cached_property
    def figures(self) -> dict[str, float]:
        """By name:

        n: answers. accuracy: share of them that are right.
        auroc, auroc_mean_logprob: of the confidence, and of the mean log probability. gain, gain_low, gain_high: their difference, with
        a 95% interval over samples of whole kinds or questions. auroc_within_kinds and auroc_within_kinds_mean_logprob: over
        pairs of answers to questions of one kind only. auroc_early, auroc_early_mean_logprob: of the beginnings.
        ece, brier: of the confidence. brier_constant: of the accuracy as everyone's confidence.
        aurc, aurc_mean_logprob: risk is the share of wrong answers.
        """
        right, groups = self.table.right, self.table.kinds if self.apart == "kinds" else self.table.questions

        def gain(rows: Rows) -> float:
            return auroc(self.confidence[rows], right[rows]) - auroc(self.mean_logprob[rows], right[rows])

        low, high = bootstrap(gain, len(right), _ROUNDS, _SEED, groups)
        accuracy = float(right.mean())
        return {
            "n": float(len(right)),
            "accuracy": accuracy,
            "auroc": auroc(self.confidence, right),
            "auroc_mean_logprob": auroc(self.mean_logprob, right),
            "gain": gain(np.arange(len(right))),
            "gain_low": low,
            "gain_high": high,
            "auroc_within_kinds": within(self.table.kinds, self.confidence, right),
            "auroc_within_kinds_mean_logprob": within(self.table.kinds, self.mean_logprob, right),
            "auroc_early": auroc(self.early, right),
            "auroc_early_mean_logprob": auroc(self.table.early[:, _MEAN], right),
            "ece": self.reliability.ece,
            "brier": self.reliability.brier,
            "brier_constant": accuracy * (1 - accuracy),
            "aurc": aurc(self.confidence, ~right),
            "aurc_mean_logprob": aurc(self.mean_logprob, ~right),
        }


@dataclass(frozen=True)
class Fitted:
    """A calibration, and what it was judged by.

    Attributes:
        evaluations: the first one set the threshold.
    """

    calibration: Calibration
    evaluations: tuple[Evaluation, ...]


def evaluate(table: Table, apart: Apart) -> Evaluation:
    """Leave some kinds or questions out, fit to the others, and ask about those left out, until all have been.

    Raises:
        InvalidRequestError: the answers that are left are all right or all wrong.
    """
    folds = folds_of(table.kinds if apart == "kinds" else table.questions, _N_FOLDS[apart])
    return Evaluation(table, apart, _out_of_fold(table.whole, table.right, folds), _out_of_fold(table.early, table.right, folds))


def fit(
    table: Table,
    *,
    model: str,
    model_sha256: str,
    origin: Origin,
    target: Target,
    grey: float,
) -> Fitted:
    """A calibration from all answers, judged on those left out: by kinds, where there are enough, and by questions.

    Args:
        grey: share of the answers between `low` and `high`.

    Raises:
        InvalidRequestError: there is too little to learn from, or the target cannot be reached.
    """
    n_kinds = len(set(table.kinds))
    ways: list[Apart] = ["kinds", "questions"] if n_kinds >= _LEAST_KINDS else ["questions"]
    evaluations = tuple(evaluate(table, apart) for apart in ways)
    first = evaluations[0]
    threshold = threshold_of(target, first.confidence, table.right, origin.cloud_accuracy)
    low, high = grey_band(threshold, first.confidence, grey)
    found = outcome(threshold, first.confidence, table.right, origin.cloud_accuracy)
    outcomes = {"cloud_share": found.cloud_share, "kept_accuracy": found.kept_accuracy, "accuracy": found.accuracy}
    held_out = {f"{each.apart}.{name}": value for each in evaluations for name, value in each.figures.items()}
    held_out |= {f"threshold.{name}": value for name, value in outcomes.items() if value is not None}
    verification = _verification(first)
    if verification is not None:
        names = {"verification.gain": verification.gain, "verification.low": verification.low, "verification.high": verification.high}
        held_out |= names
    calibration = Calibration(
        model=model,
        model_sha256=model_sha256,
        feature_names=INPUTS,
        whole=Logistic.fit(table.whole, table.right, _PENALTY),
        early=Early(table.n_early, Logistic.fit(table.early, table.right, _PENALTY)),
        threshold=threshold,
        low=low,
        high=high,
        held_out={name: value for name, value in held_out.items() if math.isfinite(value)},
        origin=origin,
        verification=None if verification is None else verification.logistic,
    )
    return Fitted(calibration, evaluations)


def _verification(judged: Evaluation) -> Verification | None:
    """What self-verification adds; None where too few answers have it."""
    table = judged.table
    known = np.isfinite(table.said_yes)
    n_right = int(table.right[known].sum())
    if known.sum() < _LEAST_ROWS or min(n_right, int(known.sum()) - n_right) < _LEAST_OF_EACH:
        return None
    names = table.kinds if judged.apart == "kinds" else table.questions
    groups = [name for name, is_known in zip(names, known, strict=True) if is_known]
    folds = folds_of(groups, _N_FOLDS[judged.apart])
    return learn(judged.confidence[known], table.said_yes[known], table.right[known], folds, groups)


def folds_of(groups: Sequence[str], n_folds: int) -> NDArray[np.intp]:
    """The fold of each row, int [n], so that a group is in one fold and the folds are of about the same size."""
    names = np.array(sorted(set(groups)))
    np.random.default_rng(_SEED).shuffle(names)
    sizes = dict.fromkeys(names.tolist(), 0)
    for group in groups:
        sizes[group] += 1
    filled = np.zeros(min(n_folds, len(names)), np.int64)
    fold: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):  # largest first, each where there is most room
        fold[name] = int(filled.argmin())
        filled[fold[name]] += sizes[name]
    return np.array([fold[group] for group in groups], np.intp)


def within(kinds: Sequence[str], scores: Array, right: Bools) -> float:
    """AUROC over the pairs of a right and a wrong answer to questions of one kind; nan where there are none."""
    pairs = total = 0.0
    for _, found in groupby(sorted(range(len(kinds)), key=kinds.__getitem__), key=kinds.__getitem__):
        rows = list(found)
        n_right = int(right[rows].sum())
        if n_pairs := n_right * (len(rows) - n_right):
            pairs += n_pairs
            total += n_pairs * auroc(scores[rows], right[rows])
    return total / pairs if pairs else math.nan


def accuracy_by_kind(table: Table) -> Mapping[str, tuple[int, float]]:
    """Answers of each kind and the share of them that is right."""
    kinds = np.array(table.kinds)
    return {kind: (int((kinds == kind).sum()), float(table.right[kinds == kind].mean())) for kind in sorted(set(table.kinds))}


def _out_of_fold(inputs: Array, right: Bools, folds: NDArray[np.intp]) -> Array:
    p = np.empty(len(right))
    for fold in np.unique(folds):
        held = folds == fold
        p[held] = Logistic.fit(inputs[~held], right[~held], _PENALTY).probability(inputs[held])
    return p
