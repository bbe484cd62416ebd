"""`edgebench load` as a function: one level of load after the other, in one record."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx
import psutil

from edgelm.bench.conditions import read_conditions
from edgelm.bench.load.client import Client, Server
from edgelm.bench.load.levels import Bounds, closed_loop, open_loop
from edgelm.bench.load.notes import level_notes
from edgelm.bench.load.prompts import Prompts
from edgelm.bench.machine import describe_machine
from edgelm.bench.power.energy import energy_of
from edgelm.bench.power.session import ANY_METER, PowerWishes
from edgelm.bench.record import Load, LoadLevel, Power, Record, State
from edgelm.bench.run_clock import RunClock
from edgelm.errors import InvalidRequestError

Progress = Callable[[str, float], None]

_ELSEWHERE = "the server runs on another machine, which the meters here do not see; where they do, say so with --local"


@dataclass(frozen=True)
class LoadTest:
    """What is asked of a server, and how much at once.

    Attributes:
        concurrency: levels of a closed loop; empty for arrivals at a rate.
        rates: levels of arrivals per second; empty for a closed loop.
        n_prompt: words of a prompt, about one token each.
        n_requests, seconds: of each level; with neither, 8 requests for each client and at least 16, or 64 arrivals.
        in_flight: most requests at once where they arrive at a rate.
        n_warmup: requests before the first level, at least 1.
        ttft_target_s, tpot_target_s: what a good answer keeps; None for no target.
        same_prompt: ask the same again and again, so that a prefix cache may help.
        local: whether the meters here measure the server; None to judge by its address.
    """

    server: Server
    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    n_prompt: int = 128
    n_requests: int | None = None
    seconds: float | None = None
    in_flight: int = 256
    n_warmup: int = 2
    ttft_target_s: float | None = None
    tpot_target_s: float | None = None
    seed: int = 0
    same_prompt: bool = False
    local: bool | None = None

    def __post_init__(self) -> None:
        if bool(self.concurrency) == bool(self.rates):
            raise InvalidRequestError("give either --concurrency (requests at once) or --rate (arrivals per second)")
        if any(n < 1 for n in (*self.concurrency, self.n_prompt, self.n_warmup, self.in_flight, self.server.n_generate)):
            raise InvalidRequestError("numbers of requests and of tokens must be at least 1")
        amounts = (*self.rates, self.seconds, self.ttft_target_s, self.tpot_target_s, self.server.timeout_s)
        if not all(amount is None or 0 < amount < float("inf") for amount in amounts):
            raise InvalidRequestError("rates and seconds must be greater than 0 and finite")
        if self.n_requests is not None and self.n_requests < 1:
            raise InvalidRequestError(f"--requests is {self.n_requests}; a level needs at least 1")

    def bounds(self, concurrency: int | None) -> Bounds:
        """How long a level of so many requests at once lasts; None for one of arrivals."""
        n_requests = self.n_requests
        if n_requests is None and self.seconds is None:
            n_requests = 64 if concurrency is None else max(16, 8 * concurrency)
        return Bounds(n_requests, self.seconds, self.in_flight)


def measure_load(test: LoadTest, progress: Progress, power: PowerWishes = ANY_METER) -> Record:
    """Measure, and return the record: also after Ctrl-C or when requests fail, with everything measured until then.

    Args:
        progress: called with what is being done and the fraction that is done.
        power: the server is meant to be open, and idle, in the rests before and after.

    Raises:
        MeasurementError: the server cannot be reached, or refuses such requests.
    """
    clock = RunClock.start()
    local = is_this_machine(test.server.url) if test.local is None else test.local
    levels: list[LoadLevel] = []
    with power.session(clock.origin) as session:
        progress("resting", 0.0)
        session.idle(power.idle_s if local else 0.0)
        server = asyncio.run(_run_levels(test, clock.origin, levels, progress))
        if levels[-1].state != "interrupted":
            with contextlib.suppress(KeyboardInterrupt):  # what was measured is more than the rest
                progress("resting", 1.0)
                session.idle(power.idle_s if local else 0.0)
    load = Load(server.base, server.model, test.n_prompt, server.n_generate, test.ttft_target_s, test.tpot_target_s, ())
    watts = session.power()
    load = replace(load, levels=tuple(_judged(load, level, watts, local) for level in levels))
    state, reason = _state(test, load.levels)
    return Record(
        kind="load",
        id=clock.id,
        started=clock.started,
        machine=describe_machine(),
        settings=_settings(test, server, local) | power.settings(),
        seconds=clock.seconds,
        clock_step_s=clock.step_s,
        state=state,
        reason=reason,
        power=watts,
        load=load,
    )


def is_this_machine(url: str) -> bool:
    """Whether an address is one of this machine's own, as far as names can be resolved. (A tunnel to elsewhere looks like one.)"""
    try:
        found = {ipaddress.ip_address(str(info[4][0])) for info in socket.getaddrinfo(httpx.URL(url).host, None)}
    except (OSError, ValueError):
        return False
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return all(address.is_loopback or str(address) in own for address in found)


async def _run_levels(test: LoadTest, origin: float, levels: list[LoadLevel], progress: Progress) -> Server:
    """Run all levels, or those until an interruption; the server with what was learned of it."""
    async with Client(test.server, origin) as client:
        progress("warming up", 0.0)
        prompts = Prompts(test.n_prompt, test.seed, test.same_prompt)
        await client.connect(prompts.next())
        await asyncio.gather(*(client.ask(prompts.next()) for _ in range(test.n_warmup - 1)))
        client.last_words = ""
        n_levels = len(test.concurrency) + len(test.rates)
        for number, amount in enumerate((*test.concurrency, *test.rates)):
            levels.append(await _run_level(test, client, prompts, amount, progress, number / n_levels))
            if levels[-1].state == "interrupted":
                break
        return client.server


async def _run_level(test: LoadTest, client: Client, prompts: Prompts, amount: float, progress: Progress, done: float) -> LoadLevel:
    origin = client.origin
    before = read_conditions(origin)
    if test.concurrency:
        name = f"{amount:.0f} at once"
        level = await closed_loop(client, prompts, int(amount), test.bounds(int(amount)), lambda line: progress(f"{name}: {line}", done))
    else:
        name = f"{amount:g} requests/s"
        level = await open_loop(client, prompts, amount, test.bounds(None), test.seed, lambda line: progress(f"{name}: {line}", done))
    return replace(level, before=before, after=read_conditions(origin))


def _judged(load: Load, level: LoadLevel, power: Power, local: bool) -> LoadLevel:
    """The level with its energy, and with what is to be said of its figures."""
    energy, reason = energy_of(power, [level.span]) if local else (None, _ELSEWHERE)
    notes = [text for text in (level.reason, *level_notes(load, level)) if text]
    return replace(level, energy=energy, energy_reason=reason, reason="; ".join(notes))


def _state(test: LoadTest, levels: Sequence[LoadLevel]) -> tuple[State, str]:
    if levels[-1].state == "interrupted":
        n_wanted = len(test.concurrency) + len(test.rates)
        return "interrupted", f"ended by Ctrl-C in level {len(levels)} of {n_wanted}"
    failed = sum(level.state == "failed" for level in levels)
    if failed == len(levels):
        return "failed", levels[-1].reason
    return "complete", f"{failed} of {len(levels)} levels failed" if failed else ""


def _settings(test: LoadTest, server: Server, local: bool) -> dict[str, str]:
    """All but the API key."""
    of_server = {name: value for name, value in vars(server).items() if name != "key"} | {"url": server.base, "has_key": bool(server.key)}
    of_test = {name: value for name, value in vars(test).items() if name != "server"} | {"local": local}
    return {name: str(value) for name, value in (of_server | of_test).items()}
