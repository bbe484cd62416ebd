"""What a router gains and costs on judged pairs, beside simple ways to choose, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.difficulty import Chances, Difficulty
from edgelm.runtime.router.gains_curve import GainsCurve
from edgelm.runtime.router.logistic import Array
from edgelm.runtime.router.metrics import Reliability, Rows, aurc, auroc, bootstrap, reliability
from edgelm.runtime.router.pairs import Examples, Pair, digest
from edgelm.runtime.router.train import N_FOLDS, held_out

ROUTER, LENGTH, RANDOM, ORACLE = "router", "length in words", "random", "oracle"
LEVELS = (0.5, 0.8)
_MIN_TASKS = 5  # of which whole ones are drawn again; below, single questions are
_MIN_NET_GAIN = 10.0  # answers; a share of fewer says nothing


class Estimate(NamedTuple):
    """A figure and its 95% interval; nan where it is not defined, or for an end that is not known."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Columns:
    """The pairs as columns: tasks [n]; scores float64 [n]; tokens of the prompts [n], estimated from their length."""

    tasks: tuple[str, ...]
    weak: Array
    strong: Array
    n_tokens: Array

    @property
    def gains(self) -> Array:
        """By how much the cloud is better, float64 [n]."""
        return self.strong - self.weak


@dataclass(frozen=True)
class Way:
    """A way to choose who answers.

    Attributes:
        scores: float64 [n]; the largest go to the cloud first.
        doubts: float64 [n]; the larger, the likelier the answer given here is wrong.
    """

    name: str
    scores: Array
    doubts: Array


@dataclass(frozen=True)
class Figures:
    """How well a way chooses.

    Attributes:
        apgr: mean share of the gap between the models that is recovered, over all shares of calls.
        cpt: smallest share of calls that recovers each of LEVELS.
        auroc: of the doubts, for telling where the answer given here is wrong.
        aurc: mean error of the answers given here, when those of the least doubt are given first.
    """

    way: str
    apgr: Estimate
    cpt: tuple[Estimate, ...]
    auroc: Estimate
    aurc: Estimate


@dataclass(frozen=True)
class Scope:
    """Some of the pairs, judged together.

    Attributes:
        rows: which of the pairs, int [n_pairs].
        drawn: what was drawn again for the intervals: "tasks" or "questions".
        weak, strong: mean score of the answers given here, and in the cloud.
        figures: of the router, of the length, of an oracle and of chance; none where the net gain is too small for shares of it.
        lead: by how much the router's APGR is above that of the length.
    """

    name: str
    rows: Rows
    n_tasks: int
    drawn: str
    weak: float
    strong: float
    figures: tuple[Figures, ...]
    lead: Estimate

    @property
    def n_pairs(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Evaluation:
    """All that was found.

    Attributes:
        how: how the router came by its scores.
        notes: what a reader must know to trust the figures.
        rounds: samples behind each interval.
        columns: the pairs, as they were judged.
        ways: the router, the length and the oracle, of all pairs.
        overall, families, tasks: figures; families only where there are several.
        thresholds: the expected gain from which on the cloud is asked, for each of LEVELS.
        calibration: the router's probabilities that the answer given here is right, beside how often it was.
    """

    how: str
    notes: tuple[str, ...]
    rounds: int
    columns: Columns
    ways: tuple[Way, ...]
    overall: Scope
    families: tuple[Scope, ...]
    tasks: tuple[Scope, ...]
    thresholds: tuple[float, ...]
    calibration: Reliability


def evaluate(pairs: Sequence[Pair], router: Difficulty | None = None, rounds: int = 500, seed: int = 0, by_task: bool = True) -> Evaluation:
    """Judge a router.

    Args:
        router: as it is; None learns one for each fold of the tasks from the other folds.
        rounds: samples for each interval.
        by_task: judge each task by itself too.

    Raises:
        InvalidRequestError: no pairs, fewer than two tasks where a router is to be learned, or no answers that the cloud gains.
    """
    if not pairs:
        raise InvalidRequestError("nothing can be judged on no pairs; give some")
    examples = Examples.of(pairs)
    columns = Columns(examples.tasks, examples.weak, examples.strong, np.array([s.n_prompt_tokens for s in examples.signals], np.float64))
    if columns.gains.sum() < _MIN_NET_GAIN:
        raise InvalidRequestError(
            f"the strong model answers {columns.gains.sum():g} more questions rightly than the weak one, of {len(pairs)}; "
            f"give pairs of which it gains {_MIN_NET_GAIN:g} at least, or see whether weak and strong are the wrong way round"
        )
    chances = held_out(examples, seed=seed) if router is None else [router.chances(signals) for signals in examples.signals]
    ways = _ways(chances, pairs, columns)
    judge = _Judge(columns, ways, rounds, seed)
    names = sorted(set(columns.tasks))
    families = sorted({family(task) for task in names})
    gains = GainsCurve.of(ways[0].scores, columns.gains)
    return Evaluation(
        how=_how(columns, router),
        notes=tuple(_notes(pairs, columns, router)),
        rounds=rounds,
        columns=columns,
        ways=ways,
        overall=judge.scope("all", names),
        families=tuple(judge.scope(name, {task for task in names if family(task) == name}) for name in families)
        if 1 < len(families) < len(names)
        else (),
        tasks=tuple(judge.scope(name, {name}) for name in names) if by_task else (),
        thresholds=tuple(float(np.quantile(ways[0].scores, 1 - gains.reach(level))) for level in LEVELS),
        calibration=reliability([chance.local for chance in chances], columns.weak),
    )


def family(task: str) -> str:
    """What is before the slash in the name of a task."""
    return task.partition("/")[0]


def _ways(chances: Sequence[Chances], pairs: Sequence[Pair], columns: Columns) -> tuple[Way, ...]:
    both = np.array(chances, np.float64)
    lengths = np.array([n_words(pair) for pair in pairs], np.float64)
    return (
        Way(ROUTER, both[:, 1] - both[:, 0], 1 - both[:, 0]),
        Way(LENGTH, lengths, lengths),
        Way(ORACLE, columns.gains, 1 - columns.weak),
    )


def n_words(pair: Pair) -> int:
    """Words of all messages of a pair."""
    contents = [message.get("content") or "" for message in pair.messages]
    texts = [[content] if isinstance(content, str) else [part.get("text") or "" for part in content] for content in contents]
    return sum(len(text.split()) for parts in texts for text in parts)


class _Judge:
    def __init__(self, columns: Columns, ways: Sequence[Way], rounds: int, seed: int) -> None:
        self._columns = columns
        self._ways = ways
        self._rounds = rounds
        self._seed = seed

    def scope(self, name: str, tasks_of: Collection[str]) -> Scope:
        """The figures of all pairs of some tasks."""
        at = np.array([n for n, task in enumerate(self._columns.tasks) if task in tasks_of], np.intp)
        tasks = [self._columns.tasks[n] for n in at]
        weak, gains = self._columns.weak[at], self._columns.gains[at]
        groups = tasks if len(set(tasks)) >= _MIN_TASKS else None

        def estimate(statistic: Callable[[Rows], float]) -> Estimate:
            low, high = bootstrap(statistic, len(at), self._rounds, self._seed, groups)
            return Estimate(statistic(np.arange(len(at))), low, high)

        figures: list[Figures] = []
        lead = Estimate(math.nan)
        if gains.sum() >= _MIN_NET_GAIN:
            curves = [GainsCurve.of(way.scores[at], gains) for way in self._ways]
            for way, curve in zip(self._ways, curves, strict=True):
                figures.append(_figures(way.name, curve, way.doubts[at], 1 - weak, estimate))
            figures.append(_of_chance(1 - weak))
            lead = estimate(lambda rows: curves[0].area(rows) - curves[1].area(rows))
        drawn = "questions" if groups is None else "tasks"
        strong = weak + gains
        return Scope(name, at, len(set(tasks)), drawn, float(weak.mean()), float(strong.mean()), tuple(figures), lead)


def _figures(
    name: str, curve: GainsCurve, doubts: Array, losses: Array, estimate: Callable[[Callable[[Rows], float]], Estimate]
) -> Figures:
    wrong = losses > 0.5
    return Figures(
        name,
        estimate(curve.area),
        tuple(estimate(partial(curve.reach, level)) for level in LEVELS),
        estimate(lambda rows: auroc(doubts[rows], wrong[rows])),
        estimate(lambda rows: aurc(-doubts[rows], losses[rows])),
    )


def _of_chance(losses: Array) -> Figures:
    return Figures(RANDOM, Estimate(0.5), tuple(Estimate(level) for level in LEVELS), Estimate(0.5), Estimate(float(losses.mean())))


def _how(columns: Columns, router: Difficulty | None) -> str:
    if router is None:
        n_folds = min(N_FOLDS, len(set(columns.tasks)))
        return f"cross-validated: {n_folds} folds of whole tasks, each judged by what was learned on the others"
    return "a router as it is"


def _notes(pairs: Sequence[Pair], columns: Columns, router: Difficulty | None) -> Iterator[str]:
    if router is not None:
        if router.about.get("digest") == digest(pairs):
            yield "The router was trained on these very pairs: the figures say how well it remembers, not how well it will do."
        else:
            yield "The router may have been trained on some of these pairs; if it was, the figures flatter it."
    if len(set(columns.tasks)) < _MIN_TASKS:
        yield f"There are pairs of {len(set(columns.tasks))} tasks only: the intervals say nothing of other tasks."
    for task in sorted(set(columns.tasks)):
        of_task = [n for n, name in enumerate(columns.tasks) if name == task]
        weak, strong = columns.weak[of_task].mean(), columns.strong[of_task].mean()
        if len(of_task) >= 30 and strong < 0.1 and weak > 2 * strong:
            yield f"{task}: the strong model scores {strong:.0%} and the weak one {weak:.0%}, which looks like a fault of grading."
