"""The crew's size follows what is measured: it gives way to other processes, and comes back."""

from __future__ import annotations

from collections.abc import Mapping

from edgelm.backends.cpu.crew import CrewSize


def run(crew: CrewSize, n_steps: int, seconds: Mapping[int, float], late_above: int) -> list[int]:
    """Sizes of n_steps steps that take `seconds` by size, and are late with more threads than late_above."""
    sizes = []
    for _ in range(n_steps):
        sizes.append(crew.size)
        crew.note(seconds[crew.size], 3 if crew.size > late_above else 0)
    return sizes


def test_an_undisturbed_crew_stays_whole() -> None:
    assert set(run(CrewSize(4), 1000, {4: 1.0}, late_above=4)) == {4}


def test_a_single_late_step_changes_nothing() -> None:
    crew = CrewSize(2)
    run(crew, 20, {2: 1.0}, late_above=2)
    crew.note(9.0, 5)
    assert set(run(crew, 1000, {2: 1.0}, late_above=2)) == {2}


def test_a_disturbed_crew_gives_way_and_stays_small_while_that_is_faster() -> None:
    sizes = run(CrewSize(2), 1000, {1: 1.0, 2: 3.0}, late_above=1)
    assert sizes[20:].count(1) > 0.9 * len(sizes[20:])
    assert sizes[:12].count(2) <= 7


def test_a_smaller_crew_that_is_no_faster_is_given_up() -> None:
    sizes = run(CrewSize(2), 1000, {1: 1.0, 2: 0.99}, late_above=1)
    assert sizes[20:].count(2) > 0.9 * len(sizes[20:])


def test_the_crew_comes_back_when_the_disturbance_ends() -> None:
    crew = CrewSize(2)
    run(crew, 200, {1: 1.0, 2: 3.0}, late_above=1)
    assert crew.size == 1
    run(crew, 1100, {1: 1.0, 2: 0.6}, late_above=2)
    assert set(run(crew, 1000, {1: 1.0, 2: 0.6}, late_above=2)) == {2}


def test_one_thread_is_the_least() -> None:
    assert set(run(CrewSize(1), 100, {1: 1.0}, late_above=0)) == {1}


def test_it_shrinks_step_by_step_to_the_fastest_size() -> None:
    sizes = run(CrewSize(4), 2000, {1: 4.0, 2: 1.0, 3: 2.0, 4: 3.0}, late_above=2)
    assert sizes[100:].count(2) > 0.8 * len(sizes[100:])
