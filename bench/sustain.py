"""`edgebench sustain` as a function: decode without pause for minutes, and watch speed, clock, temperature and watts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from edgelm.bench.conditions import read_conditions
from edgelm.bench.contestants import PEERS, Contestant
from edgelm.bench.engine_process import EngineProcess
from edgelm.bench.machine import describe_machine
from edgelm.bench.model_facts import describe_model
from edgelm.bench.power.energy import energy_of
from edgelm.bench.power.session import ANY_METER, PowerWishes
from edgelm.bench.record import Conditions, EngineRun, Power, Record, State, Sustain, Trial, Window
from edgelm.bench.run_clock import RunClock
from edgelm.bench.throttling import Round, judge_speed
from edgelm.errors import InvalidRequestError, MeasurementError

Progress = Callable[[str, float], None]

_ROUND_S = 4.0
_TRY = 16
_LEAST, _MOST = 8, 256
_PERIOD_S = 1.0
_LONG_PAUSES = 0.05


@dataclass(frozen=True)
class SustainTest:
    """What is decoded, and for how long.

    Attributes:
        backend: one of edgelm's engines, or another program of edgelm.bench.contestants.PEERS.
        seconds: of decoding; less than two minutes cannot tell whether a speed holds.
        depth: tokens that the context holds at the start of every round.
        precision: of edgelm's activations; None for the engine's choice.
    """

    path: Path
    backend: str
    n_threads: int
    seconds: float
    depth: int = 128
    precision: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise InvalidRequestError(f"{self.seconds} seconds of decoding make no sense; give more than 0")
        if self.depth < 0:
            raise InvalidRequestError(f"a depth of {self.depth} tokens makes no sense; give 0 or more")

    def contestant(self) -> Contestant:
        """Who decodes."""
        n_ctx = self.depth + _MOST + 1
        return Contestant(self.backend, self.path, self.n_threads, n_ctx, self.backend in PEERS, self.precision)


def measure_sustain(
    test: SustainTest,
    progress: Progress,
    *,
    power: PowerWishes = ANY_METER,
    is_random: bool = False,
) -> Record:
    """Measure, and return the record: also after Ctrl-C or when the engine fails half way, with everything measured until then.

    Args:
        progress: called with what is being done and the fraction that is done.
        is_random: whether the model's weights are random.

    Raises:
        EdgeLMError: the model cannot be read or opened.
    """
    clock = RunClock.start()
    progress(f"reading {test.path.name}", 0.0)
    model = replace(describe_model(test.path), is_random=is_random)
    state: State = "complete"
    reason = ""
    with power.session(clock.origin) as session:
        progress("resting", 0.0)
        session.idle(power.idle_s)
        decoding = _Decoding(test, clock.origin, progress)
        try:
            decoding.run()
        except KeyboardInterrupt:
            state, reason = "interrupted", "ended by Ctrl-C; what was measured before is kept"
        except MeasurementError as error:
            if decoding.engine is None:
                raise
            state, reason = "failed", str(error)
        if state == "complete":
            with contextlib.suppress(KeyboardInterrupt):  # what was measured is more than the rest
                progress("resting", 1.0)
                session.idle(power.idle_s)
    engine = replace(decoding.engine, state=state, reason=reason) if decoding.engine else None
    watts = session.power()
    return Record(
        kind="sustain",
        id=clock.id,
        started=clock.started,
        machine=describe_machine(),
        settings={name: str(value) for name, value in vars(test).items()} | power.settings(),
        model=model,
        seconds=clock.seconds,
        clock_step_s=clock.step_s,
        state=state,
        reason=reason,
        engines=(engine,) if engine else (),
        power=watts,
        sustain=(_judged(test, decoding, engine, watts),) if engine else (),
    )


class _Decoding:
    """Rounds of an engine, one after the other.

    Attributes:
        engine: what it says of itself; None until it is open.
        trials, conditions: what was measured so far.
    """

    def __init__(self, test: SustainTest, origin: float, progress: Progress) -> None:
        self.engine: EngineRun | None = None
        self.trials: list[Trial] = []
        self.conditions: list[Conditions] = []
        self._test, self._origin, self._progress = test, origin, progress

    def run(self) -> None:
        """Decode until the time is over; an interruption leaves what was measured."""
        process = EngineProcess(self._test.contestant(), self._origin, lambda line: self._progress(line, 0.0))
        try:
            self._run(process)
        except BaseException:
            process.kill()  # it may be in the middle of a round
            raise
        process.close()

    def _run(self, process: EngineProcess) -> None:
        opening, engine = process.open(max(self._test.depth, 1))
        self.engine = replace(engine, openings=(opening,))
        n_tokens = self._round_length(process)
        with _Watch(self._origin, self.conditions):
            start: float | None = None
            while start is None or self.trials[-1].stamps_s[-1] - start < self._test.seconds:
                process.hold(self._test.depth)
                trial = process.trial("decode", 0, n_tokens)
                self.trials.append(trial)
                start = trial.start_s if start is None else start
                done = (trial.stamps_s[-1] - start) / self._test.seconds
                self._progress(_line(trial, self.conditions), min(done, 1.0))
        self.engine = replace(self.engine, peak_rss_bytes=process.peak_rss_bytes())

    def _round_length(self, process: EngineProcess) -> int:
        """Tokens that take a few seconds, so that a round is short beside a minute and long beside the pause after it."""
        for _ in range(2):  # the first compiles
            process.hold(self._test.depth)
            trial = process.trial("decode", 0, _TRY)
        speed = _TRY / (trial.stamps_s[-1] - trial.start_s)
        return max(_LEAST, min(_MOST, round(speed * min(_ROUND_S, self._test.seconds / 8))))


class _Watch:
    """Reads the machine's conditions about once a second while something else runs."""

    def __init__(self, origin: float, conditions: list[Conditions]) -> None:
        self._origin, self._conditions = origin, conditions
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conditions", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._conditions.append(read_conditions(self._origin))
            self._over.wait(_PERIOD_S)
        self._conditions.append(read_conditions(self._origin))


def _judged(test: SustainTest, decoding: _Decoding, engine: EngineRun, power: Power) -> Sustain:
    trials = decoding.trials
    windows = tuple(Window(trial.start_s, trial.stamps_s[-1]) for trial in trials)
    rounds = [Round(trial.start_s, trial.stamps_s[-1], len(trial.stamps_s)) for trial in trials]
    verdict = judge_speed(rounds, decoding.conditions, engine.n_threads)
    span = Window(windows[0].start_s, windows[-1].end_s) if windows else Window(0.0, 0.0)
    energy, energy_reason = energy_of(power, [span]) if windows else (None, "nothing was decoded")
    return Sustain(
        engine=test.backend,
        n_threads=engine.n_threads,
        span=span,
        stamps_s=tuple(stamp for trial in trials for stamp in trial.stamps_s),
        conditions=tuple(decoding.conditions),
        throttled=verdict.throttled,
        first_minute=verdict.first_minute,
        steady=verdict.steady,
        ratio_interval=verdict.ratio_interval,
        reason=verdict.reason + _pauses(span, windows),
        energy=energy,
        energy_reason=energy_reason,
        rounds=windows,
    )


def _pauses(span: Window, windows: Sequence[Window]) -> str:
    """Engines that cannot cut their context back fill it anew before every round."""
    total = span.end_s - span.start_s
    share = 1 - sum(window.end_s - window.start_s for window in windows) / total if total else 0.0
    return f"; {share:.0%} of the time went into filling the context between rounds" if share > _LONG_PAUSES else ""


def _line(trial: Trial, conditions: Sequence[Conditions]) -> str:
    speed = f"{len(trial.stamps_s) / (trial.stamps_s[-1] - trial.start_s):.3g} tokens/s"
    now = conditions[-1] if conditions else None
    mhz = f", {now.mhz:.0f} MHz" if now and now.mhz is not None else ""
    celsius = f", {now.celsius:.0f} °C" if now and now.celsius is not None else ""
    return f"decoding: {speed}{mhz}{celsius}"
