"""Who is next: generations that wait for a place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """What stands in line."""

    @property
    def client(self) -> str: ...


T = TypeVar("T", bound=Waits)


class WaitingLine(Generic[T]):
    """First come, first served among requests of one client. Among clients, the one that has the fewest places comes first, and of
    equals the one that was served longest ago."""

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._turn = count(1)
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting)

    def join(self, one: T) -> None:
        """Stand at the end."""
        self._waiting.append(one)

    def join_first(self, one: T) -> None:
        """Stand at the head: it had a place already."""
        self._waiting.insert(0, one)

    def take(self, places: Mapping[str, int], is_ready: Callable[[T], bool]) -> T | None:
        """The next one that is ready, out of the line.

        Args:
            places: how many each client has now; none for a client that is not named.
        """
        ready = [one for one in self._waiting if is_ready(one)]
        if not ready:
            return None
        first = min(ready, key=lambda one: (places.get(one.client, 0), self._served.get(one.client, 0)))
        self._waiting.remove(first)
        self._served[first.client] = next(self._turn)
        here = {one.client for one in self._waiting}
        self._served = {client: turn for client, turn in self._served.items() if client in here or client == first.client}
        return first

    def remove(self, is_unwanted: Callable[[T], bool]) -> list[T]:
        """Take those out that are unwanted."""
        unwanted = [one for one in self._waiting if is_unwanted(one)]
        self._waiting = [one for one in self._waiting if not is_unwanted(one)]
        return unwanted
