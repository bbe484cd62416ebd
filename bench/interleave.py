"""Engines take turns: A B A B, so that a slow drift of the machine touches all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgelm.bench.busy import busy_neighbour
from edgelm.bench.conditions import read_conditions
from edgelm.bench.contestants import PEERS, Contestant
from edgelm.bench.engine_process import EngineProcess
from edgelm.bench.figures import median_interval, speeds
from edgelm.bench.page_cache import cached_fraction, evict
from edgelm.bench.record import EngineRun, Measurement, Opening, Phase, State, Trial
from edgelm.errors import EdgeLMError, InvalidRequestError

# An engine's threads spin for some milliseconds after their work before they sleep; the other's turn begins after that.
_SETTLE_S = 0.25
_MIN_ROUNDS = 5  # before the interval is trusted to end the rounds

Progress = Callable[[str, float], None]
"""Called with what is being done, and the fraction of the whole that is done."""


@dataclass(frozen=True)
class Case:
    """What one measurement repeats."""

    phase: Phase
    n_prompt: int
    n_generate: int
    depth: int

    def __str__(self) -> str:
        n = {"prefill": f"{self.n_prompt}", "decode": f"{self.n_generate}", "both": f"{self.n_prompt}+{self.n_generate}"}[self.phase]
        return f"{self.phase} {n}" + (f" at depth {self.depth}" if self.depth else "")

    @property
    def weight(self) -> float:
        """About how long it takes, in decoded tokens."""
        return self.n_prompt / 4 + self.n_generate


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        backends, peers: edgelm's engines and other programs; the first of all is the one that others are compared with.
        threads: thread counts, one after the other.
        prompts: tokens of a prompt, each measured by itself; empty for no prefill.
        n_generate: tokens generated one by one; 0 for none.
        depths: tokens that the context holds before.
        repeat: rounds at most; fewer where the intervals of all engines are narrow enough.
        within: half the 95% interval over the median, at which rounds end.
        n_cold: new processes to open the model in, for the cold time to first token.
        busy: whether a spinning process runs beside the engines.
        precision: of edgelm's activations; None for the engine's choice.
        options: of each backend, by its name.
    """

    backends: tuple[str, ...] = ("cpu",)
    peers: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] = (512,)
    n_generate: int = 128
    depths: tuple[int, ...] = (0,)
    repeat: int = 10
    within: float = 0.01
    n_cold: int = 3
    busy: bool = False
    precision: str | None = None
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.backends and not self.peers:
            raise InvalidRequestError("no engine to measure; name one with --backends")
        if not self.prompts and not self.n_generate:
            raise InvalidRequestError("nothing to measure: give --prompt or --generate a number of tokens")
        if not self.threads or min(self.threads) < 1 or self.repeat < 1 or min((self.n_generate, self.n_cold, *self.depths)) < 0:
            raise InvalidRequestError(f"threads and repeat must be at least 1, and no number negative: {self}")
        if any(n < 1 for n in self.prompts):
            raise InvalidRequestError(f"prompts of {self.prompts} tokens: each must have at least 1")
        for peer in set(self.peers) - set(PEERS):
            raise InvalidRequestError(f"no peer is called {peer!r}; edgebench has {', '.join(PEERS)}")

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.backends, *self.peers)

    @property
    def n_ctx(self) -> int:
        """Tokens that every context must hold."""
        return max(self.depths) + max((0, *self.prompts)) + self.n_generate + 1

    @property
    def cases(self) -> list[Case]:
        """Every phase at every depth, in the order they are measured."""
        return list(self._cases())

    def _cases(self) -> Iterator[Case]:
        for depth in self.depths:
            for n_prompt in self.prompts:
                yield Case("prefill", n_prompt, 0, depth)
            if self.n_generate:
                yield Case("decode", 0, self.n_generate, depth)
                for n_prompt in self.prompts:
                    yield Case("both", n_prompt, self.n_generate, depth)

    def contestants(self, model: Path, n_threads: int) -> list[Contestant]:
        """All engines with so many threads."""
        return [
            *(
                Contestant(name, model, n_threads, self.n_ctx, precision=self.precision, options=self.options.get(name, {}))
                for name in self.backends
            ),
            *(Contestant(name, model, n_threads, self.n_ctx, is_peer=True) for name in self.peers),
        ]


@dataclass
class _Lane:
    """One engine in the race."""

    engine: EngineRun
    files: tuple[Path, ...] = ()
    process: EngineProcess | None = None

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong inside is this engine's failure."""
        try:
            yield
        except EdgeLMError as error:
            self.fail(error)

    def note(self, opening: Opening, engine: EngineRun, cached: float | None) -> None:
        """Keep an opening that began with so much of the files in the page cache."""
        self.engine = replace(engine, openings=(*self.engine.openings, replace(opening, cached=cached)))

    def fail(self, error: EdgeLMError) -> None:
        """Take it out of the race; the others go on."""
        self.engine = replace(self.engine, state="failed", reason=str(error))
        process, self.process = self.process, None
        if process is not None:
            process.kill()


class Interleaving:
    """Measures a workload; `engines` and `measurements` hold what there is at every moment, also after an interruption.

    Args:
        model: path of the model.
        origin: `time.perf_counter()` at the record's start.
        mark: called just before and just after each trial.
    """

    def __init__(self, model: Path, workload: Workload, origin: float, progress: Progress, mark: Callable[[], None] = lambda: None) -> None:
        self.engines: list[EngineRun] = []
        self.measurements: list[Measurement] = []
        self._model = model
        self._workload = workload
        self._origin = origin
        self._progress = progress
        self._mark = mark
        self._done = 0.0
        cases = sum(case.weight for case in workload.cases) * (workload.repeat + 1)
        self._total = max(cases * len(workload.threads), 1.0)

    def run(self) -> None:
        """Measure everything. An engine that fails is marked so and left out; KeyboardInterrupt passes through."""
        for n_threads in self._workload.threads:
            self._measure_at(n_threads)

    def _measure_at(self, n_threads: int) -> None:
        contestants = self._workload.contestants(self._model, n_threads)
        lanes = [_Lane(EngineRun(c.name, n_threads, is_peer=c.is_peer)) for c in contestants]
        try:
            if self._workload.n_cold:
                for lane, contestant in zip(lanes, contestants, strict=True):
                    self._prepare(lane, contestant)
            for turn in range(self._workload.n_cold):
                for lane, contestant in zip(lanes, contestants, strict=True):
                    self._start_cold(lane, contestant, f"{contestant.name}, cold start {turn + 1} of {self._workload.n_cold}")
            with ExitStack() as stack:
                for lane, contestant in zip(lanes, contestants, strict=True):
                    self._enter(lane, contestant, stack)
                stack.enter_context(busy_neighbour(self._workload.busy))
                for case in self._workload.cases:
                    self._measure(case, n_threads, lanes)
                for lane in lanes:
                    self._note_peak(lane)
        except KeyboardInterrupt:
            for lane in lanes:
                if lane.engine.state == "complete":
                    lane.engine = replace(lane.engine, state="interrupted", reason="ended by Ctrl-C")
            raise
        finally:
            self.engines += [lane.engine for lane in lanes]

    def _prepare(self, lane: _Lane, contestant: Contestant) -> None:
        """A first opening, which may export the model or compile kernels, so it is no start that counts."""
        with lane.failing(), self._process(contestant, f"preparing {contestant.name}") as process:
            _, lane.engine = process.open(self._n_first)
            lane.files = process.files

    def _start_cold(self, lane: _Lane, contestant: Contestant, what: str) -> None:
        if lane.engine.state == "failed":
            return
        with lane.failing():
            evict(lane.files)
            cached = cached_fraction(lane.files)
            with self._process(contestant, what) as process:
                lane.note(*process.open(self._n_first), cached)

    def _enter(self, lane: _Lane, contestant: Contestant, stack: ExitStack) -> None:
        if lane.engine.state == "failed":
            return
        with lane.failing():
            cached = cached_fraction(lane.files)
            lane.process = stack.enter_context(self._process(contestant, f"opening {contestant.name}"))
            opening, engine = lane.process.open(self._n_first)
            if self._workload.n_cold:
                lane.note(opening, engine, cached)
            else:  # nothing was prepared, so it is not known what this opening did beside opening
                lane.engine = engine

    @staticmethod
    def _note_peak(lane: _Lane) -> None:
        if lane.process is not None:
            with lane.failing():
                lane.engine = replace(lane.engine, peak_rss_bytes=lane.process.peak_rss_bytes())

    def _process(self, contestant: Contestant, what: str) -> EngineProcess:
        where = f"{what}, {_threads(contestant.n_threads)}"
        self._progress(where, self._done / self._total)
        return EngineProcess(contestant, self._origin, lambda line: self._progress(f"{where}: {line}", self._done / self._total))

    @property
    def _n_first(self) -> int:
        """Tokens of an opening's first prompt."""
        return self._workload.prompts[0] if self._workload.prompts else 1

    def _measure(self, case: Case, n_threads: int, lanes: list[_Lane]) -> None:
        racing = [lane for lane in lanes if lane.process is not None]
        found = {lane.engine.engine: Measurement(lane.engine.engine, n_threads, **vars(case), trials=()) for lane in racing}
        start, where = self._done, f"{case}, {_threads(n_threads)}"
        interrupted = True
        try:
            for round_number in range(self._workload.repeat + 1):
                text = f"{where}, {f'round {round_number} of at most {self._workload.repeat}' if round_number else 'warm-up'}"
                for lane in racing:
                    self._progress(text, self._done / self._total)
                    trial = self._turn(case, lane)
                    if trial is not None and round_number:
                        name = lane.engine.engine
                        found[name] = replace(found[name], trials=(*found[name].trials, trial))
                self._done = start + case.weight * (round_number + 1)
                if all(self._is_certain(found[lane.engine.engine]) for lane in racing if lane.process is not None):
                    break
            interrupted = False
        finally:
            self._done = start + case.weight * (self._workload.repeat + 1)
            for lane in racing:
                state: State = "failed" if lane.process is None else "interrupted" if interrupted else "complete"
                reason = "ended by Ctrl-C" if state == "interrupted" else lane.engine.reason
                measurement = replace(found[lane.engine.engine], state=state, reason=reason)
                if measurement.trials or state == "failed":
                    self.measurements.append(measurement)

    def _turn(self, case: Case, lane: _Lane) -> Trial | None:
        """One trial of one engine; None if it has failed, now or before."""
        if lane.process is None:
            return None
        try:
            lane.process.hold(case.depth)
            time.sleep(_SETTLE_S)
            before = read_conditions(self._origin)
            self._mark()
            trial = lane.process.trial(case.phase, case.n_prompt, case.n_generate)
            self._mark()
        except EdgeLMError as error:
            lane.fail(error)
            return None
        return replace(trial, before=before, after=read_conditions(self._origin))

    def _is_certain(self, measurement: Measurement) -> bool:
        if len(measurement.trials) < _MIN_ROUNDS:
            return False
        half = median_interval(speeds(measurement)).half_width
        return half is not None and half <= self._workload.within


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"
