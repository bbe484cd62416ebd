"""Engines take turns: A B A B, so that a slow drift of the machine touches all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
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
    process: EngineProcess | None = None

    def fail(self, error: EdgeLMError) -> None:
        """Take it out of the race; the others go on."""
        self.engine = replace(self.engine, state="failed", reason=str(error))
        if self.process is not None:
            self.process.kill()
        self.process = None


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
                    self._open_once(lane, contestant, f"preparing {contestant.name}", is_cold=False)
                for lane in lanes:
                    lane.engine = replace(lane.engine, openings=())  # a first opening may export the model or compile kernels
            for turn in range(self._workload.n_cold):
                for lane, contestant in zip(lanes, contestants, strict=True):
                    self._open_once(lane, contestant, f"{contestant.name}, cold start {turn + 1} of {self._workload.n_cold}", is_cold=True)
            with ExitStack() as stack:
                for lane, contestant in zip(lanes, contestants, strict=True):
                    self._enter(lane, contestant, stack)
                stack.enter_context(busy_neighbour(self._workload.busy))
                for case in self._workload.cases:
                    self._measure(case, n_threads, lanes)
                for lane in lanes:
                    if lane.process is not None:
                        lane.engine = replace(lane.engine, peak_rss_bytes=lane.process.peak_rss_bytes())
        except KeyboardInterrupt:
            for lane in lanes:
                if lane.engine.state == "complete":
                    lane.engine = replace(lane.engine, state="interrupted")
            raise
        finally:
            self.engines += [lane.engine for lane in lanes]

    def _open_once(self, lane: _Lane, contestant: Contestant, what: str, *, is_cold: bool) -> None:
        if lane.engine.state == "failed":
            return
        files = _files_of(contestant)
        if is_cold:
            evict(files)
        cached = cached_fraction(files)
        try:
            with self._process(contestant, what) as process:
                self._note(lane, *process.open(self._n_first), cached)
        except EdgeLMError as error:
            lane.fail(error)

    def _enter(self, lane: _Lane, contestant: Contestant, stack: ExitStack) -> None:
        if lane.engine.state == "failed":
            return
        cached = cached_fraction(_files_of(contestant))
        lane.process = stack.enter_context(self._process(contestant, f"opening {contestant.name}"))
        try:
            self._note(lane, *lane.process.open(self._n_first), cached)
        except EdgeLMError as error:
            lane.fail(error)

    def _process(self, contestant: Contestant, what: str) -> EngineProcess:
        where = f"{what}, {_threads(contestant.n_threads)}"
        self._progress(where, self._done / self._total)
        return EngineProcess(contestant, self._origin, lambda line: self._progress(f"{where}: {line}", self._done / self._total))

    @property
    def _n_first(self) -> int:
        """Tokens of an opening's first prompt."""
        return self._workload.prompts[0] if self._workload.prompts else 1

    @staticmethod
    def _note(lane: _Lane, opening: Opening, engine: EngineRun, cached: float | None) -> None:
        lane.engine = replace(engine, openings=(*lane.engine.openings, replace(opening, cached=cached)))

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
                measurement = replace(found[lane.engine.engine], state=state, reason=lane.engine.reason)
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


def _files_of(contestant: Contestant) -> list[Path]:
    """The files that the engine reads to open the model."""
    if contestant.name != "onnx" or contestant.model.is_dir():
        return [contestant.model]
    from edgelm.backends.onnx.engine import export_folder
    from edgelm.runtime.settings import read_settings

    exports = export_folder(read_settings().home)
    return [exports] if exports.is_dir() else []


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"
