"""Votes: who leads, by how much, and when more of them would be wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.vote import Vote, probability_of_lead

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12)


def of(answers: str, blank: int = 0) -> Vote:
    vote = Vote()
    for answer in [*answers, *[None] * blank]:
        vote = vote.plus(answer)
    return vote


def test_the_answer_of_the_greatest_weight_leads() -> None:
    vote = of("abbca", blank=1).plus("b", 0.5)
    assert vote.weights == {"a": 2.0, "b": 2.5, "c": 1.0}
    assert vote.leader == "b"
    assert vote.total == 6.5
    assert vote.share == pytest.approx(2.5 / 6.5)
    assert vote.margin == pytest.approx(0.5 / 6.5)


def test_of_equal_answers_the_first_leads() -> None:
    assert of("ba").leader == "b"
    assert of("baab").leader == "b"


@pytest.mark.parametrize("vote", [of(""), of("", blank=3)])
def test_without_answers_there_is_no_leader(vote: Vote) -> None:
    assert vote.leader is None
    assert vote.share == vote.margin == 0.0
    assert not vote.is_clear(0)


@pytest.mark.parametrize(
    ("votes", "n_remaining", "is_clear"),
    [
        ("aaa", 100, False),  # 15/16
        ("aaaa", 100, True),  # 31/32
        ("aaaaab", 100, False),  # 15/16
        ("aaaaaab", 100, True),  # 247/256
        ("aaaabbbb", 100, False),
        ("aaaabc", 100, False),  # of the others, the strongest counts
        ("aaaaaabc", 100, True),
        ("aab", 1, False),  # the last could make it equal
        ("aab", 0, True),
        ("aaab", 1, True),
        ("ab", 0, False),
        ("a", 0, True),
    ],
)
def test_when_a_vote_is_clear(votes: str, n_remaining: int, is_clear: bool) -> None:
    assert of(votes).is_clear(n_remaining) is is_clear


def test_how_sure_one_must_be_can_be_chosen() -> None:
    assert of("aaa").is_clear(100, sure=0.9)
    assert not of("aaaa").is_clear(100, sure=0.99)


def test_parts_of_votes_are_counted_so_that_the_lead_is_not_overrated() -> None:
    assert not of("aaa").plus("a", 0.9).is_clear(100)
    assert not of("aaaaaa").plus("b").plus("b", 0.1).is_clear(100)


@given(ANSWERS, ANSWERS)
def test_a_majority_that_is_certain_stays(begun: list[str | None], rest: list[str | None]) -> None:
    vote = Vote()
    for answer in begun:
        vote = vote.plus(answer)
    if vote.is_clear(len(rest), sure=1.0):
        leader = vote.leader
        for answer in rest:
            vote = vote.plus(answer)
        assert vote.leader == leader


@pytest.mark.parametrize(("n_first", "n_second"), [(0, 0), (3, 0), (4, 1), (7, 7), (9, 4)])
def test_the_probability_of_a_lead_is_the_integral_over_the_beta_distribution(n_first: int, n_second: int) -> None:
    x = (np.arange(200_000) + 0.5) / 200_000
    density = x**n_first * (1 - x) ** n_second
    assert probability_of_lead(n_first, n_second) == pytest.approx(density[x > 0.5].sum() / density.sum(), abs=1e-4)


def test_the_probability_of_a_lead_holds_for_many_votes() -> None:
    assert probability_of_lead(600, 300) == pytest.approx(1.0)
    assert probability_of_lead(600, 600) == pytest.approx(0.5)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.1, float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(InvalidRequestError, match="weight"):
        Vote().plus("a", weight)
