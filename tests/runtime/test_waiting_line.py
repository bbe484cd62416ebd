"""Who is next."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.runtime.waiting_line import WaitingLine


@dataclass(frozen=True)
class One:
    client: str
    number: int


def line_of(clients: str) -> WaitingLine[One]:
    line: WaitingLine[One] = WaitingLine()
    for number, client in enumerate(clients):
        line.join(One(client, number))
    return line


def order(line: WaitingLine[One], places: dict[str, int]) -> list[int]:
    numbers = []
    while (one := line.take(places, lambda _: True)) is not None:
        numbers.append(one.number)
    return numbers


def test_one_client_is_served_in_turn() -> None:
    assert order(line_of("aaa"), {}) == [0, 1, 2]


def test_clients_take_turns() -> None:
    assert order(line_of("aaabc"), {}) == [0, 3, 4, 1, 2]


def test_who_has_fewer_places_comes_first() -> None:
    assert order(line_of("ab"), {"a": 2, "b": 1}) == [1, 0]


def test_one_that_is_not_ready_waits() -> None:
    line = line_of("ab")
    taken = line.take({}, lambda one: one.client == "b")
    assert taken == One("b", 1)
    assert line.take({}, lambda _: False) is None
    assert list(line) == [One("a", 0)]


def test_one_that_had_a_place_goes_first_and_the_unwanted_leave() -> None:
    line = line_of("aa")
    line.join_first(One("a", 9))
    assert line.remove(lambda one: one.number == 0) == [One("a", 0)]
    assert len(line) == 2
    assert order(line, {}) == [9, 1]
