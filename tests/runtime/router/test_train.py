"""Training: finds what made the answers, claims nothing of what it has hardly seen, and is judged on tasks that it has not."""

from __future__ import annotations

import numpy as np
import pytest

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.difficulty import Difficulty
from edgelm.runtime.router.pairs import Examples, Pair
from edgelm.runtime.router.signals import signals_of
from edgelm.runtime.router.train import fit, folds, held_out, train

OPTIONS = "\nA. yes\nB. no"


def examples(n: int, n_tasks: int, ending: str = OPTIONS) -> Examples:
    """The model here is wrong wherever a reason is asked for; the cloud answers four of five rightly."""
    random = np.random.default_rng(n)
    words = ["red", "green", "round", "small", "tall"]
    pairs = []
    for k in range(n):
        asks = bool(random.integers(2))
        text = ("Why " if asks else "When ") + " ".join(random.choice(words, random.integers(3, 30))) + ending
        pairs.append(Pair(f"task-{k % n_tasks}", ({"role": "user", "content": text},), float(not asks), float(random.random() < 0.8)))
    return Examples.of(pairs)


def gain(difficulty: Difficulty, text: str) -> float:
    return difficulty.gain(signals_of([{"role": "user", "content": text}]))


def test_what_made_the_answers_is_found_and_told() -> None:
    found = fit(examples(1500, 6))
    assert gain(found, "Why red green round?" + OPTIONS) > 0.5
    assert gain(found, "When red green round?" + OPTIONS) < 0.1
    assert found.explain(signals_of([{"role": "user", "content": "Why red?" + OPTIONS}]))[0].startswith("a reason asked for (+")


@pytest.mark.parametrize(("n", "n_tasks"), [(1500, 4), (900, 6)])
def test_of_a_format_hardly_seen_only_the_length_counts(n: int, n_tasks: int) -> None:
    found = fit(examples(n, n_tasks))
    assert not found.formats
    assert gain(found, "Why red green round?" + OPTIONS) == gain(found, "When red green round?" + OPTIONS)


def test_a_format_that_was_not_seen_is_judged_by_length() -> None:
    found = fit(examples(1500, 6))
    assert set(found.formats) == {"options"}
    assert gain(found, "Why red?") == gain(found, "When red?")


def test_a_mark_that_is_all_but_never_seen_counts_nothing() -> None:
    seen = examples(1500, 6)
    odd = examples(3, 3, " ```x```" + OPTIONS)
    both = Examples(seen.signals + odd.signals, seen.tasks + odd.tasks, np.append(seen.weak, odd.weak), np.append(seen.strong, odd.strong))
    found = fit(both)
    assert gain(found, "Why red? ```x```" + OPTIONS) == pytest.approx(gain(found, "Why red? x" + OPTIONS), abs=1e-3)


def test_answers_that_are_always_right_teach_that() -> None:
    seen = examples(1500, 6)
    found = fit(Examples(seen.signals, seen.tasks, seen.weak, np.ones(1500)))
    assert 0.99 < found.chances(seen.signals[0]).cloud < 1


def test_shares_are_learned_from_as_shares() -> None:
    seen = examples(1500, 6)
    half = fit(Examples(seen.signals, seen.tasks, 0.25 + 0.5 * seen.weak, seen.strong))
    chances = [half.chances(signals).local for signals in seen.signals]
    assert np.mean(chances) == pytest.approx(0.25 + 0.5 * seen.weak.mean(), abs=0.01)
    assert 0.15 < min(chances) < 0.4 < 0.6 < max(chances) < 0.85


def test_no_fold_is_judged_by_what_was_learned_on_a_task_of_it() -> None:
    seen = examples(60, 7)
    learned_on: list[set[str]] = []

    def learn(part: Examples) -> Difficulty:
        learned_on.append(set(part.tasks))
        return fit(part)

    held_out(seen, learn, n_folds=3)
    held = [{task for task, out in zip(seen.tasks, mask, strict=True) if out} for mask in folds(seen.tasks, 3)]
    assert [learned & out for learned, out in zip(learned_on, held, strict=True)] == [set()] * 3
    assert all(learned | out == set(seen.tasks) for learned, out in zip(learned_on, held, strict=True))


def test_every_example_is_held_out_once() -> None:
    tasks = [f"task-{n % 7}" for n in range(50)]
    for n_folds in (2, 7, 99):
        masks = list(folds(tasks, n_folds))
        assert len(masks) == min(n_folds, 7)
        assert np.sum(masks, axis=0).tolist() == [1] * 50


def test_a_memory_of_tasks_does_not_help() -> None:
    """Who only remembers how tasks went knows nothing of those held out."""
    seen = examples(400, 8)
    by_task = Examples(seen.signals, seen.tasks, np.array([float(task < "task-4") for task in seen.tasks]), np.ones(400))
    chances = np.array(held_out(by_task))
    easy = by_task.weak == 1
    assert chances[easy, 0].mean() < chances[~easy, 0].mean() + 0.05


def test_nothing_is_learned_from_nothing_nor_judged_on_one_task() -> None:
    with pytest.raises(InvalidRequestError, match="no pairs"):
        train([])
    with pytest.raises(InvalidRequestError, match="1 task"):
        held_out(examples(20, 1))


def test_what_was_learned_says_from_what() -> None:
    pairs = [Pair("a", ({"role": "user", "content": "x"},), 0.0, 1.0), Pair("b", ({"role": "user", "content": "y z"},), 1.0, 1.0)]
    about = train(pairs, {"source": "here"}).about
    assert about["source"] == "here"
    assert (about["n_pairs"], about["n_tasks"]) == ("2", "2")
