"""Many generations on one backend: each says what it would say alone, whoever else is there, and all places come free again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from queue import Queue
from typing import Any

import numpy as np
import pytest
from byte_model import byte_metadata, says
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm.backends.base import Batch
from edgelm.backends.scripted import Script, ScriptedBackend
from edgelm.errors import BusyError, ClosedError, DeadlineError, EdgeLMError, InsufficientMemoryError, InvalidRequestError
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.llm import LLM
from edgelm.runtime.results import Completion, Delta, collect
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.scheduler import Limits, Scheduler, Ticket
from edgelm.runtime.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
VOCABULARY = Tokenizer.from_metadata(byte_metadata())


class SteppedBackend(ScriptedBackend):
    """Computes a batch when the test lets it.

    Attributes:
        batches: tokens of each chunk, by sequence, of every batch.
        fails_with: raised by the next batch.
    """

    def __init__(self, script: Script, n_ctx: int = 512) -> None:
        super().__init__(script, n_vocab=258, n_ctx=n_ctx)
        self.batches: list[dict[int, int]] = []
        self.fails_with: BaseException | None = None
        self._steps = threading.Semaphore(0)
        self.is_free = False

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        if not self.is_free:
            self._steps.acquire()
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise error
        self.batches.append({chunk.sequence: len(chunk.tokens) for chunk in batch})
        return super().forward(batch)

    def step(self, n: int = 1) -> None:
        """Let it compute n batches more, and wait until it has."""
        wanted = len(self.batches) + n
        for _ in range(n):
            self._steps.release()
        wait_until(lambda: len(self.batches) >= wanted)

    def run(self) -> None:
        """Let it compute all that comes."""
        self.is_free = True
        self._steps.release()


class Listener:
    """Hands a text in and hears what is said."""

    def __init__(
        self, scheduler: Scheduler, prompt: Sequence[int], params: SamplingParams = GREEDY, client: str = "", **fields: Any
    ) -> None:
        self.heard: Queue[Delta | EdgeLMError] = Queue()
        vocabulary = fields.pop("vocabulary", VOCABULARY)
        self.first_s = 0.0
        text = Continuation(vocabulary, prompt, params, fields.pop("n_ctx", 512))
        self.ticket = Ticket(text, client, self._hear, **fields)
        scheduler.submit([self.ticket])

    def _hear(self, news: Delta | EdgeLMError) -> None:
        self.first_s = self.first_s or time.monotonic()
        self.heard.put(news)

    def whole(self) -> Completion:
        deltas = []
        while not deltas or deltas[-1].finish_reason is None:
            news = self.heard.get(timeout=20)
            if isinstance(news, EdgeLMError):
                raise news
            deltas.append(news)
        return collect(deltas)


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def begin(backend: SteppedBackend, scheduler: Scheduler, n: int) -> None:
    """Step until n generations are under way: the first may have begun before the others were there."""
    wait_until(lambda: scheduler.n_active)
    if scheduler.n_active < n:
        backend.step()
    wait_until(lambda: scheduler.n_active == n)


@pytest.fixture
def backend() -> Iterator[SteppedBackend]:
    backend = SteppedBackend(says("hello there"))
    yield backend
    backend.close()


@pytest.fixture
def scheduler(backend: SteppedBackend) -> Iterator[Scheduler]:
    scheduler = Scheduler(backend, Limits(n_active=3, n_waiting=4, cache_bytes=0))
    yield scheduler
    backend.run()
    scheduler.close()
    assert not backend.sequences


@pytest.fixture
def caching(backend: SteppedBackend) -> Iterator[Scheduler]:
    scheduler = Scheduler(backend, Limits(n_active=3, cache_bytes=400))
    yield scheduler
    backend.run()
    scheduler.close()
    assert not backend.sequences


def test_each_says_what_it_would_say_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")
    with LLM(path, n_threads=1, precision="f32") as llm:
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 200, n).tolist() for n in (1, 5, 70, 33, 200, 2)]
        alone = [llm.generate(prompt, GREEDY, ignore_eos=True) for prompt in prompts]
        scheduler = Scheduler(llm.backend, Limits(n_active=4))
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        listeners = [Listener(scheduler, prompt, params, vocabulary=llm.tokenizer, n_ctx=llm.info.n_ctx) for prompt in prompts]
        assert [listener.whole().token_ids for listener in listeners] == [completion.token_ids for completion in alone]
        scheduler.close()


def test_they_are_computed_together_and_join_and_leave_between_steps(backend: SteppedBackend, scheduler: Scheduler) -> None:
    first = Listener(scheduler, [1] * 5)
    backend.step(3)
    second = Listener(scheduler, [2] * 5)
    backend.step(3)  # one that had begun may have been without it
    assert [len(batch) for batch in backend.batches[:2]] == [1, 1]
    assert len(backend.batches[-1]) == 2
    backend.run()
    assert first.whole().text == second.whole().text == "hello there"
    assert len(backend.batches[-1]) == 1


def test_a_long_prompt_does_not_hold_up_those_that_speak(backend: SteppedBackend, scheduler: Scheduler) -> None:
    speaker = Listener(scheduler, [1])
    backend.step(2)
    reader = Listener(scheduler, [2] * 400)
    backend.run()
    speaker.whole()
    reader.whole()
    speaking = next(iter(backend.batches[0]))
    together = [batch for batch in backend.batches if speaking in batch and len(batch) == 2]
    assert together
    assert all(batch[speaking] == 1 for batch in together)
    assert max(max(batch.values()) for batch in backend.batches) < 400


def test_a_short_prompt_is_read_beside_a_long_one(backend: SteppedBackend, scheduler: Scheduler) -> None:
    Listener(scheduler, [1] * 400)
    backend.step()
    short = Listener(scheduler, [2] * 8)
    backend.step(3)
    assert short.heard.qsize() >= 1
    backend.run()


def test_no_more_than_the_places_are_computed_and_the_line_is_bounded(backend: SteppedBackend, scheduler: Scheduler) -> None:
    listeners = [Listener(scheduler, [n]) for n in range(3)]
    begin(backend, scheduler, 3)
    listeners += [Listener(scheduler, [n]) for n in range(3, 7)]
    with pytest.raises(BusyError, match="4 generations wait"):
        Listener(scheduler, [9])
    backend.run()
    assert {listener.whole().text for listener in listeners} == {"hello there"}
    assert max(map(len, backend.batches)) == 3


def test_a_client_that_floods_does_not_keep_another_waiting(backend: SteppedBackend, scheduler: Scheduler) -> None:
    many = [Listener(scheduler, [n], client="many") for n in range(3)]
    begin(backend, scheduler, 3)
    many += [Listener(scheduler, [n], client="many") for n in range(3, 6)]
    one = Listener(scheduler, [7], client="one")
    backend.run()
    one.whole()
    assert [listener.whole().text for listener in many] == ["hello there"] * 6
    order = sorted([*many, one], key=lambda listener: listener.first_s)
    assert order.index(one) <= 3


@pytest.mark.parametrize("n_steps", [0, 1, 6])
def test_a_place_is_free_one_step_after_nobody_wants_it(backend: SteppedBackend, scheduler: Scheduler, n_steps: int) -> None:
    listener = Listener(scheduler, [1] * 100)  # of which the first step computes 32
    wait_until(lambda: scheduler.n_active == 1)
    backend.step(n_steps) if n_steps else None
    listener.ticket.cancel()
    n_heard = listener.heard.qsize()
    backend.step()
    wait_until(lambda: scheduler.n_active == 0 and not backend.sequences)
    assert listener.heard.qsize() <= n_heard + 1


def test_one_that_waits_is_given_up_too(backend: SteppedBackend, scheduler: Scheduler) -> None:
    for n in range(3):
        Listener(scheduler, [n])
    begin(backend, scheduler, 3)
    waiting = Listener(scheduler, [5])
    waiting.ticket.cancel()
    backend.step()
    wait_until(lambda: scheduler.n_waiting == 0)
    assert waiting.heard.empty()


def test_a_deadline_ends_it_with_an_error(backend: SteppedBackend, scheduler: Scheduler) -> None:
    listener = Listener(scheduler, [1], deadline=time.monotonic() - 1)
    other = Listener(scheduler, [2])
    backend.run()
    with pytest.raises(DeadlineError, match="timeout"):
        listener.whole()
    assert other.whole().text == "hello there"


def test_what_was_computed_is_not_computed_again(backend: SteppedBackend, caching: Scheduler) -> None:
    backend.run()
    prompt = list(range(100))
    first = Listener(caching, prompt)
    first.whole()
    backend.batches.clear()
    again = Listener(caching, [*prompt[:80], 250, 251])
    assert again.whole().text == "hello there"
    assert (first.ticket.n_cached, again.ticket.n_cached) == (0, 80)
    assert backend.batches[0].popitem()[1] == 2


def test_a_conversation_goes_on_where_it_was(backend: SteppedBackend, caching: Scheduler) -> None:
    backend.run()
    first = Listener(caching, list(range(60)))
    answer = list(first.whole().token_ids)
    after = Listener(caching, [*range(60), *answer, 5, 6])
    after.whole()
    assert after.ticket.n_cached == 60 + len(answer)


def test_of_the_same_prompt_at_the_same_time_one_is_computed(backend: SteppedBackend, caching: Scheduler) -> None:
    listeners = [Listener(caching, list(range(200))) for _ in range(3)]
    backend.run()
    assert [listener.whole().text for listener in listeners] == ["hello there"] * 3
    assert sum(n for batch in backend.batches for n in batch.values()) < 200 + 3 * 20


def test_the_cache_forgets_the_oldest(backend: SteppedBackend, caching: Scheduler) -> None:
    backend.run()
    for first in range(5):
        Listener(caching, [first] * 110).whole()
    wait_until(lambda: caching.n_active == 0)
    assert caching.n_cached_tokens <= 400
    newest, oldest = Listener(caching, [4] * 120), Listener(caching, [0] * 120)
    newest.whole()
    oldest.whole()
    assert newest.ticket.n_cached >= 110
    assert oldest.ticket.n_cached == 0


def test_within_the_memory_given_the_youngest_waits_and_says_the_same(backend: SteppedBackend) -> None:
    scheduler = Scheduler(backend, Limits(n_active=3, kv_bytes=150, cache_bytes=50))
    listeners = [Listener(scheduler, [n] * 60) for n in range(3)]
    backend.run()
    assert [listener.whole().text for listener in listeners] == ["hello there"] * 3
    scheduler.close()
    assert max(map(len, backend.batches)) <= 2


def test_where_memory_runs_out_the_youngest_waits(backend: SteppedBackend, scheduler: Scheduler) -> None:
    listeners = [Listener(scheduler, [n] * 10) for n in range(2)]
    begin(backend, scheduler, 2)
    backend.fails_with = InsufficientMemoryError("the KV cache is full")
    backend.run()
    assert [listener.whole().text for listener in listeners] == ["hello there"] * 2


def test_where_sharing_finds_no_memory_the_beginning_is_computed_anew(
    backend: SteppedBackend, caching: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(_source: int, _target: int, _n_tokens: int) -> None:
        raise InsufficientMemoryError("no page is left")

    backend.run()
    Listener(caching, list(range(60))).whole()
    monkeypatch.setattr(backend, "share", share)
    again = Listener(caching, list(range(60)))
    assert again.whole().text == "hello there"
    assert again.ticket.n_cached == 0


def test_where_one_alone_has_no_memory_it_is_told(backend: SteppedBackend, scheduler: Scheduler) -> None:
    listener = Listener(scheduler, [1] * 10)
    backend.fails_with = InsufficientMemoryError("the KV cache is full")
    backend.run()
    with pytest.raises(InsufficientMemoryError, match="is full"):
        listener.whole()
    assert Listener(scheduler, [2]).whole().text == "hello there"


def test_a_token_that_no_vocabulary_has_is_no_concern_of_others(backend: SteppedBackend, scheduler: Scheduler) -> None:
    wrong = Listener(scheduler, [1], SamplingParams(logit_bias={9999: 1.0}))
    right = Listener(scheduler, [2])
    backend.run()
    with pytest.raises(InvalidRequestError, match="9999"):
        wrong.whole()
    assert right.whole().text == "hello there"


def test_closing_lets_those_that_began_end_in_time(backend: SteppedBackend) -> None:
    scheduler = Scheduler(backend, Limits(n_active=1))
    listeners = [Listener(scheduler, [1]), Listener(scheduler, [2])]
    backend.step()
    closing = threading.Thread(target=scheduler.close, args=(20,))
    closing.start()
    wait_until(lambda: scheduler._ends_at is not None)
    with pytest.raises(ClosedError, match="being closed"):
        Listener(scheduler, [3])
    backend.run()
    closing.join()
    assert [listener.whole().text for listener in listeners] == ["hello there"] * 2


def test_closing_at_once_tells_everybody(backend: SteppedBackend) -> None:
    scheduler = Scheduler(backend, Limits(n_active=1))
    listeners = [Listener(scheduler, [1]), Listener(scheduler, [2])]
    backend.step(2)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    wait_until(lambda: scheduler._ends_at is not None)
    backend.run()
    closing.join()
    for listener in listeners:
        with pytest.raises(ClosedError, match="was closed"):
            listener.whole()
    assert not backend.sequences


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_leaves_nobody_waiting(backend: SteppedBackend) -> None:
    scheduler = Scheduler(backend, Limits(n_active=1))
    listeners = [Listener(scheduler, [1]), Listener(scheduler, [2])]
    backend.fails_with = RuntimeError("broken")
    backend.run()
    for listener in listeners:
        with pytest.raises(ClosedError, match="broken"):
            listener.whole()
    wait_until(lambda: not scheduler._thread.is_alive())
    with pytest.raises(ClosedError):
        Listener(scheduler, [3])
    scheduler.close()
