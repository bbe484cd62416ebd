"""One level of load: so many requests at once (closed loop), or arrivals at a rate whatever the server does (open loop)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile

from edgelm.bench.load.arrivals import poisson_times
from edgelm.bench.load.client import Client
from edgelm.bench.load.prompts import Prompts
from edgelm.bench.record import LoadLevel, Request, State, Window

_PAUSE_S = 0.1


@dataclass(frozen=True)
class Bounds:
    """How long a level lasts, and how much it may do at once.

    Attributes:
        n_requests: most requests; None for no limit.
        seconds: no request is sent later than this after the level's start; None for no limit. One of the two must be given.
        in_flight: most requests at once in an open loop; those that are due meanwhile wait here, and the wait counts as latency.
    """

    n_requests: int | None
    seconds: float | None
    in_flight: int = 256


@dataclass
class _Tally:
    """What a level has measured so far.

    Attributes:
        requests: those that ended.
        n_sent: begun, or waiting to be.
        n_held: that had to wait because too many were in flight.
    """

    start_s: float
    tell: Callable[[str], None]
    requests: list[Request] = field(default_factory=list)
    n_sent: int = 0
    n_held: int = 0

    def add(self, request: Request) -> None:
        self.requests.append(request)
        n_failed = sum(bool(r.error) for r in self.requests)
        self.tell(f"{len(self.requests)} of {self.n_sent} requests ended" + (f", {n_failed} failed" if n_failed else ""))


async def closed_loop(client: Client, prompts: Prompts, concurrency: int, bounds: Bounds, tell: Callable[[str], None]) -> LoadLevel:
    """`concurrency` clients, each of which sends its next request when its last one has ended.

    An interruption (Ctrl-C) ends the level and is told in its state.
    """
    tally = _Tally(client.now(), tell)

    def goes_on() -> bool:
        return (bounds.n_requests is None or tally.n_sent < bounds.n_requests) and (
            bounds.seconds is None or client.now() < tally.start_s + bounds.seconds
        )

    async def one_client() -> None:
        while goes_on():
            tally.n_sent += 1
            request = await client.ask(prompts.next())
            tally.add(request)
            if request.error:  # do not hammer a server that refuses
                await asyncio.sleep(_PAUSE_S)

    interrupted = False
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_client())
    except asyncio.CancelledError:
        interrupted = True
    return _level(client, tally, interrupted, concurrency=concurrency)


async def open_loop(client: Client, prompts: Prompts, rate: float, bounds: Bounds, seed: int, tell: Callable[[str], None]) -> LoadLevel:
    """Poisson arrivals. A request is timed from when it was due, so a server that falls behind is not spared (no coordinated omission).

    An interruption (Ctrl-C) ends the level and is told in its state.
    """
    tally = _Tally(client.now(), tell)
    room = asyncio.Semaphore(bounds.in_flight)

    async def one_request(due_s: float) -> None:
        tally.n_held += room.locked()
        try:
            async with asyncio.timeout(due_s + client.server.timeout_s - client.now()):
                await room.acquire()
        except TimeoutError:
            now = client.now()
            tally.add(Request(due_s, now, (), now, counted=False, error="timeout before it was sent"))
            return
        try:
            tally.add(await client.ask(prompts.next(), due_s))
        finally:
            room.release()

    interrupted = False
    try:
        async with asyncio.TaskGroup() as group:
            for after_s in _arrivals(rate, bounds, seed):
                await asyncio.sleep(tally.start_s + after_s - client.now())
                tally.n_sent += 1
                group.create_task(one_request(tally.start_s + after_s))
    except asyncio.CancelledError:
        interrupted = True
    return _level(client, tally, interrupted, rate=rate)


def _arrivals(rate: float, bounds: Bounds, seed: int) -> Iterator[float]:
    seconds = bounds.seconds
    times = poisson_times(rate, seed)
    return islice(times if seconds is None else takewhile(lambda time_s: time_s < seconds, times), bounds.n_requests)


def _level(client: Client, tally: _Tally, interrupted: bool, concurrency: int | None = None, rate: float | None = None) -> LoadLevel:
    requests = tuple(sorted(tally.requests, key=lambda request: request.due_s))
    state: State = "complete"
    notes = []
    if interrupted:
        state = "interrupted"
        notes.append(f"interrupted; {tally.n_sent - len(requests)} requests in flight were given up")
    elif all(request.error for request in requests):
        state = "failed"
        notes += [f"the server said last: {client.last_words}"] if client.last_words else []
    if tally.n_held:
        notes.append(f"{tally.n_held} requests waited here because so many were in flight already")
    return LoadLevel(concurrency, rate, Window(tally.start_s, client.now()), requests, state, "; ".join(notes))
