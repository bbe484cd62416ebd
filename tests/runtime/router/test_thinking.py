"""Thinking: samples are counted as they end, and all are stopped as soon as the vote is clear or the budget spent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from byte_model import END, byte_metadata
from numpy.typing import NDArray

from edgelm.backends.base import Batch
from edgelm.backends.scripted import ScriptedBackend
from edgelm.errors import BusyError, DeadlineError, InvalidRequestError
from edgelm.runtime.chat_model import Accepted, Asker, ChatRequest, Event, Events, Finish, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.form import Form
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.router.thinking import ThinkingBudget, Thought, think
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.scheduler import Limits
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.runtime.tool_calls import CallPiece, Tool, ToolUse

ASKER = Asker("ann", 60.0)
QUESTION = ChatRequest([{"role": "user", "content": "What is 3 + 4?"}], SamplingParams(temperature=0.0, seed=10, max_tokens=50))
HANGS = "hangs"
Wave = Sequence[Event | str | Exception]


class ScriptedModel:
    """Answers each request with the next wave of its script. HANGS waits for ever.

    Attributes:
        requests, askers: in the order in which they came.
        n_open: events that were not closed.
        n_taken: events that were given out.
        hangs: is set when somebody waits for what does not come.
    """

    def __init__(self, *waves: Wave) -> None:
        self.waves = list(waves)
        self.requests: list[ChatRequest] = []
        self.askers: list[Asker] = []
        self.n_open = self.n_taken = 0
        self.hangs = asyncio.Event()

    async def chat(self, request: ChatRequest, asker: Asker) -> Events:
        self.requests.append(request)
        self.askers.append(asker)
        wave = self.waves[len(self.requests) - 1]
        if wave and isinstance(wave[0], Exception):
            raise wave[0]
        self.n_open += 1
        return Events(self._events(wave), self._release)

    def _release(self) -> None:
        self.n_open -= 1

    async def _events(self, wave: Wave) -> AsyncIterator[Event]:
        for each in wave:
            if isinstance(each, Exception):
                raise each
            if isinstance(each, str):
                self.hangs.set()
                await asyncio.Event().wait()
            else:
                self.n_taken += 1
                yield each


def said(choice: int, text: str, reason: Any = "stop") -> list[Event]:
    return [TextDelta(choice, text), Finish(choice, reason)]


def wave(*texts: str, usage: int | None = None) -> list[Event]:
    """All samples of a wave, one after the other."""
    events = [Accepted(9), *(event for choice, text in enumerate(texts) for event in said(choice, text))]
    return [*events, Usage(9, 0, len(texts) if usage is None else usage, 0.1, 0.1)]


def thought_of(model: ScriptedModel, budget: ThinkingBudget, request: ChatRequest = QUESTION, **first: Any) -> Thought:
    thought = asyncio.run(think(model, request, ASKER, budget, **first))
    assert model.n_open == 0
    return thought


def test_the_vote_is_stopped_when_it_is_clear_and_what_has_not_ended_is_not_waited_for() -> None:
    events = [event for choice in range(4) for event in said(choice, "The answer is 7.")]
    model = ScriptedModel([Accepted(9), TextDelta(4, "Let "), *events, TextDelta(5, "me "), HANGS])
    thought = thought_of(model, ThinkingBudget(samples=16, wave=6))
    assert replace(thought, seconds=0.0) == Thought("The answer is 7.", (), "7", 1.0, 1.0, 4, 5, 0.0, "clear")
    assert model.n_taken == 10  # not one event more than was needed
    assert model.requests[0].n == 6


def test_the_first_answer_has_a_vote_and_is_preferred_if_it_agrees() -> None:
    model = ScriptedModel([Accepted(9), *said(2, "7"), *said(0, "The answer is 7."), *said(1, "3 + 4 = 7"), HANGS])
    thought = thought_of(model, ThinkingBudget(samples=8, wave=3), first="It is 3 + 4 = 7.")
    assert (thought.text, thought.answer, thought.stopped, thought.n_samples) == ("It is 3 + 4 = 7.", "7", "clear", 3)


def test_the_first_answer_can_be_outvoted() -> None:
    model = ScriptedModel(wave("7", "The answer is 7.", "7", "7"), wave("7", "7", "7", "7"))
    thought = thought_of(model, ThinkingBudget(samples=8, wave=4), first="8")
    assert (thought.text, thought.answer, thought.stopped) == ("7", "7", "clear")
    assert thought.n_samples == 5  # 5 to 1, and 3 to come
    assert thought.agreement == pytest.approx(5 / 6)
    assert thought.margin == pytest.approx(4 / 6)


def test_what_remains_cannot_change_a_certain_majority() -> None:
    model = ScriptedModel([*said(0, "7"), *said(1, "7"), HANGS])
    thought = thought_of(model, ThinkingBudget(samples=3, wave=3))
    assert (thought.answer, thought.stopped, thought.n_samples) == ("7", "clear", 2)


def test_waves_go_on_until_all_samples_are_used() -> None:
    model = ScriptedModel(wave("1", "2"), wave("3", "4"), wave("5"))
    thought = thought_of(model, ThinkingBudget(samples=5, wave=2))
    assert [request.n for request in model.requests] == [2, 2, 1]
    assert (thought.stopped, thought.n_samples, thought.agreement, thought.margin) == ("samples", 5, 0.2, 0.0)


def test_samples_differ_from_each_other_and_from_the_first_answer() -> None:
    model = ScriptedModel(wave("1", "2"), wave("3", "4"), wave("5"))
    greedy = replace(QUESTION, params=replace(QUESTION.params, top_k=1, logprobs=3))
    thought_of(model, ThinkingBudget(samples=5, wave=2), greedy)
    assert [request.params.seed for request in model.requests] == [11, 13, 15]  # choice i of a request has its seed + i
    assert all(request.params.temperature >= 0.7 and request.params.top_k > 1 for request in model.requests)
    assert all(request.params.logprobs is None and request.messages == QUESTION.messages for request in model.requests)


def test_a_higher_temperature_stays_and_without_a_seed_there_is_none() -> None:
    model = ScriptedModel(wave("1"))
    thought_of(model, ThinkingBudget(samples=1), replace(QUESTION, params=SamplingParams(temperature=1.2, max_tokens=None)))
    params = model.requests[0].params
    assert (params.temperature, params.seed, params.max_tokens) == (1.2, None, 4096)


def test_tokens_are_counted_over_all_samples_and_end_it() -> None:
    pieces = [TextDelta(choice, "la ") for _ in range(50) for choice in range(2)]
    model = ScriptedModel([Accepted(9), *said(0, "7"), *pieces, HANGS])
    thought = thought_of(model, ThinkingBudget(samples=8, wave=3, tokens=20))
    assert (thought.stopped, thought.n_tokens, thought.n_samples, thought.answer) == ("tokens", 20, 1, "7")
    assert model.requests[0].params.max_tokens == 20


def test_the_usage_tells_better_than_the_pieces_how_many_tokens_there_were() -> None:
    model = ScriptedModel(wave("1", "2", usage=30), wave("3", "4", usage=30))
    thought = thought_of(model, ThinkingBudget(samples=8, wave=2, tokens=60))
    assert (thought.stopped, thought.n_tokens, thought.n_samples) == ("tokens", 60, 4)
    assert [request.params.max_tokens for request in model.requests] == [50, 30]


def test_seconds_end_it_while_it_waits() -> None:
    model = ScriptedModel([*said(0, "7"), HANGS])
    thought = thought_of(model, ThinkingBudget(samples=8, wave=2, seconds=0.05))
    assert (thought.stopped, thought.answer, thought.n_samples) == ("seconds", "7", 1)
    assert thought.seconds >= 0.05


def test_samples_that_cannot_be_compared_end_it_after_a_wave() -> None:
    essay = "Once there was a king who had no daughters and no sons. " * 9
    model = ScriptedModel(wave(essay, essay))
    thought = thought_of(model, ThinkingBudget(samples=8, wave=2))
    assert (thought.stopped, thought.answer, thought.agreement, thought.text) == ("no comparable answers", None, 0.0, essay)


def test_no_sample_is_asked_for_where_the_first_answer_cannot_be_compared() -> None:
    essay = "Once there was a king who had no daughters and no sons. " * 9
    thought = thought_of(ScriptedModel(), ThinkingBudget(), first=essay)
    assert (thought.stopped, thought.n_samples, thought.text) == ("no comparable answers", 0, essay)


def test_a_sample_that_was_cut_off_has_no_answer() -> None:
    model = ScriptedModel([*said(0, "The answer is 42", "length"), *said(1, "42"), *said(2, "42"), Usage(9, 0, 3, 0.1, 0.1)])
    thought = thought_of(model, ThinkingBudget(samples=3, wave=3))
    assert (thought.answer, thought.agreement) == ("42", pytest.approx(2 / 3))


def test_json_answers_are_compared_in_canonical_form() -> None:
    model = ScriptedModel(wave('{"a": 3, "b": 1}', '{"b": 1, "a": 2}', '{"a": 2, "b": 1.0}'))
    request = replace(QUESTION, params=replace(QUESTION.params, form=Form.json_schema({})))
    thought = thought_of(model, ThinkingBudget(samples=3, wave=3), request)
    assert (thought.text, thought.agreement) == ('{"b": 1, "a": 2}', pytest.approx(2 / 3))
    assert model.requests[0].params.form == request.params.form


def calls(choice: int, *pieces: str) -> list[Event]:
    begin: list[Event] = [ToolCallDelta(choice, CallPiece(0, "", f"call_{choice}", "weather"))]
    return [*begin, *(ToolCallDelta(choice, CallPiece(0, piece)) for piece in pieces), Finish(choice, "tool_calls")]


def test_calls_of_tools_are_compared_and_given_back_whole() -> None:
    bergen, oslo = calls(0, '{"city": ', '"Bergen"}'), calls(1, '{"city": "Os', 'lo"}')
    model = ScriptedModel([*bergen, *oslo, *calls(2, '{ "city":"Oslo" }'), Usage(9, 0, 9, 0.1, 0.1)])
    request = replace(QUESTION, tools=ToolUse([Tool("weather")]))
    first = [CallPiece(0, '{"city": "Oslo"}', "call_first", "weather")]
    thought = thought_of(model, ThinkingBudget(samples=3, wave=3), request)
    assert thought.calls == (CallPiece(0, '{"city": "Oslo"}', "call_1", "weather"),)
    assert model.requests[0].tools == request.tools
    model.requests.clear()
    thought = thought_of(model, ThinkingBudget(samples=3, wave=3), request, first_calls=first)
    assert thought.calls == tuple(first)
    assert thought.agreement == pytest.approx(3 / 4)


def test_several_calls_of_one_sample_stay_apart() -> None:
    def begin(index: int, arguments: str) -> list[Event]:
        return [ToolCallDelta(0, CallPiece(index, "", f"call_{index}", "weather")), ToolCallDelta(0, CallPiece(index, arguments))]

    model = ScriptedModel([*begin(0, '{"day": 1}'), *begin(1, '{"day": 2}'), Finish(0, "tool_calls"), Usage(9, 0, 9, 0.1, 0.1)])
    thought = thought_of(model, ThinkingBudget(samples=1))
    assert [call.arguments for call in thought.calls] == ['{"day": 1}', '{"day": 2}']
    assert thought.answer == 'weather({"day":1})\nweather({"day":2})'


def test_a_majority_that_only_the_last_sample_makes_was_not_clear() -> None:
    thought = thought_of(ScriptedModel(wave("1", "2", "1", usage=33)), ThinkingBudget(samples=3, wave=3))
    assert (thought.answer, thought.stopped, thought.n_tokens) == ("1", "samples", 33)


def test_who_waits_no_longer_than_so_waits_no_longer_for_all_waves() -> None:
    model = ScriptedModel(wave("1"), wave("2"))
    thought_of(model, ThinkingBudget(samples=2, wave=1))
    timeouts = [asker.timeout_s or 0.0 for asker in model.askers]
    assert 60.0 >= timeouts[0] > timeouts[1] > 0.0
    assert {asker.client for asker in model.askers} == {"ann"}


@pytest.mark.parametrize("script", [[BusyError("full")], [*said(0, "7"), DeadlineError("late")]])
def test_errors_of_the_model_are_its_callers_and_leave_nothing_open(script: Wave) -> None:
    model = ScriptedModel(script)
    with pytest.raises((BusyError, DeadlineError)):
        asyncio.run(think(model, QUESTION, ASKER, ThinkingBudget()))
    assert model.n_open == 0


def test_a_timeout_of_the_model_is_not_taken_for_the_end_of_the_budget() -> None:
    with pytest.raises(TimeoutError, match="its own"):
        asyncio.run(think(ScriptedModel([TimeoutError("its own")]), QUESTION, ASKER, ThinkingBudget()))


def test_cancelling_the_caller_closes_everything() -> None:
    model = ScriptedModel([*said(0, "7"), HANGS])

    async def cancelled() -> None:
        task = asyncio.create_task(think(model, QUESTION, ASKER, ThinkingBudget()))
        await model.hangs.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(cancelled())
    assert model.n_open == 0


@pytest.mark.parametrize("fields", [{"samples": 0}, {"wave": 0}, {"tokens": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_budget_for_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(fields))):
        ThinkingBudget(**fields)


# With the scheduler

PROMPT = ChatRequest([{"role": "user", "content": "What is three and four? " * 4}], SamplingParams(seed=1, max_tokens=None))


class CountingBackend(ScriptedBackend):
    """Says "7", or "w" and then "a" for ever, as is drawn.

    Attributes:
        batches: tokens of each chunk of every batch, by sequence.
    """

    def __init__(self) -> None:
        super().__init__(self._next, n_vocab=258, n_ctx=1_000_000)
        self.batches: list[dict[int, int]] = []

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        self.batches.append({chunk.sequence: len(chunk.tokens) for chunk in batch})
        return super().forward(batch)

    def _next(self, history: Sequence[int]) -> NDArray[np.float32]:
        logits = np.zeros(258, np.float32)
        logits[{ord(":"): [ord("7"), ord("w")], ord("7"): END}.get(history[-1], ord("a"))] = 20.0
        return logits


@pytest.fixture
def counting() -> Iterator[tuple[LocalModel, CountingBackend]]:
    backend = CountingBackend()
    metadata = byte_metadata()
    model = LocalModel(LLM.from_parts(backend, Tokenizer.from_metadata(metadata), metadata), Limits(n_active=16, cache_bytes=4000))
    yield model, backend
    model.close()
    assert not backend.sequences


async def until_idle(model: LocalModel) -> None:
    async with asyncio.timeout(20):
        while model.scheduler.n_active or model.scheduler.n_waiting:
            await asyncio.sleep(0.001)


def test_samples_are_one_batch_that_ends_when_the_vote_is_clear(counting: tuple[LocalModel, CountingBackend]) -> None:
    model, backend = counting

    async def thought_and_rest() -> Thought:
        thought = await think(model, PROMPT, Asker(), ThinkingBudget(samples=16, wave=16, tokens=1_000_000))
        await until_idle(model)  # samples that would go on for ever were ended
        return thought

    thought = asyncio.run(thought_and_rest())
    assert (thought.text, thought.stopped, thought.agreement) == ("7", "clear", 1.0)
    assert max(map(len, backend.batches)) == 16
    read = [n for batch in backend.batches for n in batch.values() if n > 1]
    assert sum(read) == model.count_tokens(PROMPT.messages, None)  # the prompt was computed once


def test_cancelling_the_caller_ends_all_samples(counting: tuple[LocalModel, CountingBackend]) -> None:
    model, _ = counting
    request = replace(PROMPT, params=replace(PROMPT.params, logit_bias={ord("7"): -np.inf}))

    async def cancelled() -> None:
        task = asyncio.create_task(think(model, request, Asker(), ThinkingBudget(wave=3, tokens=1_000_000)))
        async with asyncio.timeout(20):
            while model.scheduler.n_active < 3:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        await until_idle(model)

    asyncio.run(cancelled())
