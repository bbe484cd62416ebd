"""Learns a difficulty from pairs, and judges what it has learned on tasks that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.difficulty import ChanceModel, Chances, Difficulty
from edgelm.runtime.router.logistic import Array, Logistic
from edgelm.runtime.router.pairs import Examples, Pair, digest
from edgelm.runtime.router.signals import FEATURES

N_FOLDS = 10
_PENALTY = 100.0
_MIN_TASKS = 5  # of a format: what is learned on fewer may be of those tasks, and could not be judged on others
_MIN_EXAMPLES = 1000  # of a format: some ten wrong answers of a strong model for each feature
_RARE = 0.005  # share of the examples at each end that may lie beyond the range in which features count; rarer marks count nothing
_LENGTH_ONLY = ("words",)


def train(pairs: Sequence[Pair], about: Mapping[str, str] | None = None) -> Difficulty:
    """A difficulty learned from all of the pairs.

    Args:
        about: where they come from, to be kept with it.

    Raises:
        InvalidRequestError: there are no pairs.
    """
    facts = {"n_pairs": str(len(pairs)), "n_tasks": str(len({pair.task for pair in pairs})), "digest": digest(pairs)}
    return fit(Examples.of(pairs), {**(about or {}), **facts})


def fit(examples: Examples, about: Mapping[str, str] | None = None) -> Difficulty:
    """A difficulty learned from all of the examples.

    Raises:
        InvalidRequestError: there are none.
    """
    if not len(examples):
        raise InvalidRequestError("nothing can be learned from no pairs; give some")
    formats: dict[str, ChanceModel] = {}
    for name in sorted({signals.format for signals in examples.signals}):
        part = examples.part([n for n, signals in enumerate(examples.signals) if signals.format == name])
        if len(part) >= _MIN_EXAMPLES and len(set(part.tasks)) >= _MIN_TASKS:
            formats[name] = _model(part, tuple(FEATURES))
    return Difficulty(_model(examples, _LENGTH_ONLY), formats, about or {})


def held_out(examples: Examples, learn: Callable[[Examples], Difficulty] = fit, n_folds: int = N_FOLDS, seed: int = 0) -> list[Chances]:
    """The chances of each example, by what was learned from other tasks.

    Raises:
        InvalidRequestError: there are fewer than two tasks.
    """
    chances = [Chances(math.nan, math.nan)] * len(examples)
    for held in folds(examples.tasks, n_folds, seed):
        learned = learn(examples.part(np.flatnonzero(~held).tolist()))
        for n in np.flatnonzero(held).tolist():
            chances[n] = learned.chances(examples.signals[n])
    return chances


def folds(tasks: Sequence[str], n_folds: int = N_FOLDS, seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Which examples are held out, bool [n], once for each fold: whole tasks, dealt out at random.

    Raises:
        InvalidRequestError: there are fewer than two tasks.
    """
    names = sorted(set(tasks))
    if len(names) < 2:
        raise InvalidRequestError(f"there are pairs of {len(names)} task; what is learned on a task can only be judged on another one")
    n_folds = min(n_folds, len(names))
    fold_of = {names[at]: n % n_folds for n, at in enumerate(np.random.default_rng(seed).permutation(len(names)))}
    for fold in range(n_folds):
        yield np.array([fold_of[task] == fold for task in tasks])


def _model(examples: Examples, names: tuple[str, ...]) -> ChanceModel:
    inputs = np.array([signals.of(names) for signals in examples.signals], np.float64)
    low, high = np.quantile(inputs, [_RARE, 1 - _RARE], axis=0, method="closest_observation")
    inputs = inputs.clip(low, high)
    return ChanceModel(names, low, high, _logistic(inputs, examples.weak), _logistic(inputs, examples.strong))


def _logistic(inputs: Array, scores: Array) -> Logistic:
    """A regression; one that always gives the same, where the scores are all the same."""
    if scores.min() < scores.max():
        return Logistic.fit(inputs, scores, _PENALTY)
    p = (scores.sum() + 0.5) / (len(scores) + 1)  # not quite 0 or 1: so few examples do not make certain
    n = inputs.shape[1]
    return Logistic(inputs.mean(axis=0), np.ones(n), np.zeros(n), math.log(p / (1 - p)))
