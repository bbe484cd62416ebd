"""Continuous batching: many generations on one backend, a token of each in every step.

A step is one call of the backend. Of each generation under way it computes what is missing before its next token can be drawn: one token
while it speaks, pieces of the prompt before that, so that a long prompt does not hold up the others. Generations join and leave
between steps.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.base import Backend, Chunk, Outputs
from edgelm.errors import BusyError, ClosedError, DeadlineError, EdgeLMError, InsufficientMemoryError
from edgelm.runtime.common_prefix import common_prefix
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.generation import new_sequence
from edgelm.runtime.prefix_cache import PrefixCache
from edgelm.runtime.prefix_store import PrefixStore
from edgelm.runtime.results import Delta
from edgelm.runtime.step_size import StepSize
from edgelm.runtime.waiting_line import WaitingLine

_WORTH_WAITING = 32  # tokens of a beginning that another generation is just computing


@dataclass(frozen=True)
class Limits:
    """What the scheduler takes on.

    Attributes:
        n_active: generations computed together.
        n_waiting: generations that may wait for a place.
        kv_bytes: of keys and values of all generations and of the prefix cache; None for as much as there is.
        cache_bytes: of them for the prefix cache, at most.
        step_s: seconds that a step should take while prompts are read.
    """

    n_active: int = 16
    n_waiting: int = 256
    kv_bytes: int | None = None
    cache_bytes: int = 512 << 20
    step_s: float = 0.25


@dataclass(eq=False)
class Ticket:
    """A generation that was handed in.

    Attributes:
        text: what it says.
        client: whose it is.
        deliver: called in the scheduler's thread with each delta, or with the error that ends it; must not block.
        deadline: `time.monotonic` by which it must have ended.
        n_cached: tokens of the prompt that need not be computed; known with the first delta.
    """

    text: Continuation
    client: str
    deliver: Callable[[Delta | EdgeLMError], None]
    deadline: float | None = None
    n_cached: int = 0
    is_cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Nobody wants it any more: it gets no further deltas, and its place is free after the step that is being computed."""
        self.is_cancelled = True

    def tell(self, news: Delta | EdgeLMError) -> None:
        """Deliver a delta, or the error that ends it, to whoever still wants it."""
        if not self.is_cancelled:
            self.deliver(news)


@dataclass(eq=False)
class _Run:
    """A generation under way.

    Attributes:
        n_computed: tokens that its sequence holds.
    """

    ticket: Ticket
    sequence: int
    n_computed: int

    @property
    def n_missing(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.ticket.text.history) - self.n_computed

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Prompt and what was said so far, int32 [n]."""
        return np.asarray(self.ticket.text.history, np.int32)


class Scheduler:
    """Computes in a thread of its own. The backend stays the caller's, to be closed after the scheduler.

    Args:
        store: beginnings on disk, if they are to outlive the process.

    Raises:
        InvalidRequestError: the backend cannot save sequences for the store.
    """

    def __init__(self, backend: Backend, limits: Limits | None = None, store: PrefixStore | None = None) -> None:
        self.limits = limits or Limits()
        self._backend = backend
        self._cache = PrefixCache(backend, self.limits.cache_bytes, store)
        self._step_size = StepSize(self.limits.step_s)
        self._line: WaitingLine[Ticket] = WaitingLine()
        self._runs: list[_Run] = []
        self._changed = threading.Condition()
        self._is_full = False  # until a generation leaves, as memory ran out
        self._ends_at: float | None = None
        self._thread = threading.Thread(target=self._work, name="edgelm-scheduler", daemon=True)
        self._thread.start()

    @property
    def n_active(self) -> int:
        """Generations under way."""
        return len(self._runs)

    @property
    def n_waiting(self) -> int:
        """Generations that wait for a place."""
        return len(self._line)

    @property
    def n_cached_tokens(self) -> int:
        """Tokens in the prefix cache."""
        return self._cache.n_tokens

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Hand generations in: all of them, or none.

        Raises:
            BusyError: too many wait already.
            ClosedError: the scheduler was closed.
        """
        with self._changed:
            if self._ends_at is not None:
                raise ClosedError("the model is being closed; ask again when it has been loaded anew")
            n_free = self.limits.n_active - len(self._runs)
            if len(self._line) + len(tickets) > self.limits.n_waiting + n_free:
                raise BusyError(f"{len(self._line)} generations wait already, and {len(tickets)} more are too many; ask again later")
            for ticket in tickets:
                ticket.text.begin()
                self._line.join(ticket)
            self._changed.notify()

    def close(self, grace_s: float = 0.0) -> None:
        """End: what is under way may go on for so long, then it gets ClosedError, as does what waits. Closing twice is allowed."""
        with self._changed:
            if self._ends_at is None:
                self._ends_at = monotonic() + grace_s
            self._changed.notify()
        self._thread.join()

    # In the scheduler's thread

    def _work(self) -> None:
        try:
            while self._next_batch():
                self._step()
            self._cache.close()
        except BaseException as error:
            with self._changed:
                self._ends_at = monotonic()
                self._end_all(ClosedError(f"the engine failed ({error!r}); load the model anew"))
            raise
        finally:
            with suppress(ClosedError):
                self._cache.clear()

    def _next_batch(self) -> bool:
        """Wait for generations to compute; False when the scheduler was closed and there are none."""
        with self._changed:
            while True:
                self._drop()
                self._admit()
                if self._runs or self._ends_at is not None:
                    return bool(self._runs)
                self._changed.wait()

    def _drop(self) -> None:
        """Give up what nobody wants and what came too late."""
        now = monotonic()
        if self._ends_at is not None and now >= self._ends_at:
            self._end_all(ClosedError("the model was closed"))

        def is_unwanted(ticket: Ticket) -> bool:
            return ticket.is_cancelled or (ticket.deadline is not None and now > ticket.deadline)

        late = self._line.remove(is_unwanted)
        for run in [run for run in self._runs if is_unwanted(run.ticket)]:
            self._leave(run)
            late.append(run.ticket)
        for ticket in late:
            ticket.tell(DeadlineError("the request took longer than its timeout allows"))

    def _admit(self) -> None:
        while len(self._runs) < self.limits.n_active and not (self._is_full and self._runs):
            ticket = self._line.take(Counter(run.ticket.client for run in self._runs), self._is_ready)
            if ticket is None:
                return
            self._runs.append(self._begin(ticket))

    def _is_ready(self, ticket: Ticket) -> bool:
        """Not while another generation is just computing what this one begins with."""
        tokens = np.asarray(ticket.text.history, np.int32)
        reading = [run for run in self._runs if run.n_missing > 1] if self._cache.is_used else []
        return not any(common_prefix(tokens, run.tokens) > run.n_computed + _WORTH_WAITING for run in reading)

    def _begin(self, ticket: Ticket) -> _Run:
        """A place for it, beginning with what is there of its tokens; the last one is computed for its logits."""
        tokens = np.asarray(ticket.text.history, np.int32)
        source, n_shared = self._cache.find(tokens[:-1])
        for run in self._runs if self._cache.is_used else ():
            n = min(run.n_computed, common_prefix(tokens[:-1], run.tokens))
            if n > n_shared:
                source, n_shared = run.sequence, n
        sequence = new_sequence()
        if source is not None:
            try:
                self._backend.share(source, sequence, n_shared)
            except InsufficientMemoryError:  # a page of it is copied; computed anew, it asks for memory where that is made
                n_shared = 0
        ticket.n_cached = min(n_shared, ticket.text.n_prompt)
        return _Run(ticket, sequence, n_shared)

    def _step(self) -> None:
        """Compute one batch and deliver what it gives."""
        work = self._make_room(_portions(self._runs, self._step_size.n_tokens))
        chunks = [_chunk(run, n) for run, n in work]
        begin = perf_counter()
        try:
            logits = iter(self._backend.forward(chunks))
        except EdgeLMError as error:
            self._fail(work, error)
            return
        seconds = perf_counter() - begin
        self._step_size.note(sum(n for _, n in work), seconds)
        for run, n in work:
            run.n_computed += n
        said = [(run, _advance(run, next(logits), seconds)) for run, _ in work if run.n_missing == 0]
        for run, delta in said:  # all at once: those who are told begin to work, and would compete with the drawing of tokens
            run.ticket.tell(delta)
            if isinstance(delta, EdgeLMError) or delta.finish_reason is not None:
                self._leave(run)

    def _leave(self, run: _Run) -> None:
        """Its place is free; what it computed may serve others."""
        self._runs.remove(run)
        self._is_full = False
        self._cache.keep(run.sequence, run.ticket.text.history[: run.n_computed])

    def _make_room(self, work: list[tuple[_Run, int]]) -> list[tuple[_Run, int]]:
        """Keep to kv_bytes: beginnings that are kept go first, then the youngest generations wait for a place again."""
        per_token, most = self._backend.info.kv_bytes_per_token, self.limits.kv_bytes
        if most is None:
            return work
        while (sum(run.n_computed for run in self._runs) + sum(n for _, n in work) + self._cache.n_tokens) * per_token > most:
            if not self._cache.free_oldest():
                if len(self._runs) == 1:
                    break  # the backend knows whether there is memory
                work = [(run, n) for run, n in work if run is not self._runs[-1]]
                self._put_back(self._runs[-1])
        return work

    def _put_back(self, run: _Run) -> None:
        """Free its memory; it will be computed again from its tokens so far."""
        self._runs.remove(run)
        self._is_full = True
        self._backend.free(run.sequence)
        with self._changed:
            self._line.join_first(run.ticket)

    def _fail(self, work: list[tuple[_Run, int]], error: EdgeLMError) -> None:
        """A step that could not be computed: make room where memory is what is missing, or end those that it was for."""
        if isinstance(error, InsufficientMemoryError):
            if self._cache.free_oldest():
                return
            if len(self._runs) > 1:
                self._put_back(self._runs[-1])
                return
        for run, _ in work:
            self._discard(run, error)

    def _end_all(self, error: EdgeLMError) -> None:
        for run in list(self._runs):
            self._discard(run, error)
        for ticket in self._line.remove(lambda _: True):
            ticket.tell(error)

    def _discard(self, run: _Run, error: EdgeLMError) -> None:
        self._runs.remove(run)
        self._is_full = False
        with suppress(ClosedError):  # closing the backend freed everything
            self._backend.free(run.sequence)
        run.ticket.tell(error)


def _portions(runs: Sequence[_Run], n_tokens: int) -> list[tuple[_Run, int]]:
    """How many tokens of each run the next step computes: one of those that speak; of prompts, half of n_tokens for the one that has
    waited longest, the rest for those that need least."""
    speaking = [(run, 1) for run in runs if run.n_missing == 1]
    reading = [run for run in runs if run.n_missing > 1]
    room = max(n_tokens - len(speaking), 1)
    portions: dict[_Run, int] = {}
    for run in reading[:1]:
        portions[run] = min(run.n_missing, max(room // 2, 1) if len(reading) > 1 else room)
    for run in sorted(reading, key=lambda run: run.n_missing):
        left = room - sum(portions.values())
        portions[run] = min(run.n_missing, portions.get(run, 0) + left)
    return speaking + [(run, n) for run, n in portions.items() if n]


def _advance(run: _Run, logits: NDArray[np.float32], seconds: float) -> Delta | EdgeLMError:
    """What the run says next."""
    text = run.ticket.text
    if len(text.history) == text.n_prompt:
        text.prefilled()
    else:
        text.decoded(seconds)
    try:
        return text.advance(logits)
    except EdgeLMError as error:  # a token of logit_bias that the vocabulary does not have
        return error


def _chunk(run: _Run, n_tokens: int) -> Chunk:
    history = run.ticket.text.history[run.n_computed : run.n_computed + n_tokens]
    return Chunk(run.sequence, np.asarray(history, np.int32), Outputs.LAST if n_tokens == run.n_missing else Outputs.NONE)
