"""The model on this device as a ChatModel that many may ask at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event as Signal
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import EdgeLMError, InvalidRequestError
from edgelm.runtime.chat_model import Accepted, Asker, ChatRequest, Event, Events, Finish, Message, TextDelta, ToolCallDelta, Usage
from edgelm.runtime.continuation import Continuation
from edgelm.runtime.llm import LLM, Prompt
from edgelm.runtime.measures import embedding_of
from edgelm.runtime.prefix_store import PrefixStore
from edgelm.runtime.results import Delta
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.scheduler import Limits, Scheduler, Ticket
from edgelm.runtime.tool_calls import CallReader, Tool, ToolUse, has_tools, written_out

News = tuple[int, Delta | EdgeLMError]


class LocalModel:
    """A loaded model and the scheduler that shares it among those who ask. It owns the LLM. Arguments and errors as of Scheduler."""

    def __init__(self, llm: LLM, limits: Limits | None = None, store: PrefixStore | None = None) -> None:
        self.llm = llm
        self.scheduler = Scheduler(llm.backend, limits, store)
        self._post: _Post | None = None

    async def chat(self, request: ChatRequest, asker: Asker) -> Events:
        """As ChatModel.chat."""
        use, params = request.tools, request.params
        if use is None:
            return await self._answer(lambda: [self._chat_tokens(request.messages, ())], params, request.n, asker)
        if params.form is not None:
            raise InvalidRequestError("an answer that may call tools cannot be held to another form; leave out the form, or the tools")
        held = replace(params, form=use.form())
        return await self._answer(lambda: [self._chat_tokens(request.messages, use.tools)], held, request.n, asker, reads_calls=True)

    async def complete(self, prompts: Sequence[Prompt], params: SamplingParams, n: int, asker: Asker) -> Events:
        """Continue texts or tokens, each n times; choices are counted through. Errors as of chat."""
        most = self.scheduler.limits.n_active + self.scheduler.limits.n_waiting
        if len(prompts) * n > most:
            raise InvalidRequestError(f"{len(prompts)} prompts, {n} times each, are more than may wait here ({most}); send fewer at once")
        return await self._answer(lambda: [self.llm.prompt_tokens(prompt) for prompt in prompts], params, n, asker)

    def _post_of(self, loop: asyncio.AbstractEventLoop) -> _Post:
        if self._post is None or self._post.loop is not loop:
            self._post = _Post(loop)
        return self._post

    def embed(self, prompts: Sequence[Prompt], cancelled: Signal) -> tuple[list[NDArray[np.float32]], int]:
        """A vector of length 1, float32 [n_embd], for each text, and their tokens together. It computes between the scheduler's steps.

        Args:
            cancelled: once set, no further text is begun.

        Raises:
            BackendUnavailableError: the engine gives no hidden states.
            ContextOverflowError: a text is too long.
        """
        tokens = [self.llm.prompt_tokens(prompt) for prompt in prompts]
        vectors = [embedding_of(self.llm.backend, np.asarray(each, np.int32)) for each in tokens if not cancelled.is_set()]
        return vectors, sum(map(len, tokens))

    def close(self, grace_s: float = 0.0) -> None:
        """End, after a time for what is under way."""
        self.scheduler.close(grace_s)
        self.llm.close()

    def _chat_tokens(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """A conversation as the model reads it, whose template may know no tools."""
        if has_tools(str(self.llm.metadata.get("tokenizer.chat_template", ""))):
            return self.llm.chat_tokens(messages, [tool.described() for tool in tools] or None)
        return self.llm.chat_tokens(written_out(messages, tools))

    def count_tokens(self, messages: Sequence[Message], tools: ToolUse | None) -> int:
        """Of a conversation as the model reads it."""
        return len(self._chat_tokens(messages, tools.tools if tools else ()))

    async def _answer(
        self, tokenize: Callable[[], list[list[int]]], params: SamplingParams, n: int, asker: Asker, reads_calls: bool = False
    ) -> Events:
        """Hand n generations of each prompt in; what they say as one stream of events.

        Args:
            reads_calls: calls of tools are to be told from text.
        """

        def prepare() -> list[Continuation]:
            return [
                self.llm.continuation(tokens, params if params.seed is None else replace(params, seed=params.seed + n * i + j))
                for i, tokens in enumerate(tokenize())
                for j in range(n)
            ]

        deadline = None if asker.timeout_s is None else monotonic() + asker.timeout_s
        texts = await asyncio.to_thread(prepare)  # long prompts and large grammars take their time
        news: asyncio.Queue[News] = asyncio.Queue()
        post = self._post_of(asyncio.get_running_loop())
        tickets = [Ticket(text, asker.client, partial(post.deliver, news, choice), deadline) for choice, text in enumerate(texts)]
        self.scheduler.submit(tickets)
        return Events(_events(tickets, news, n, reads_calls), lambda: _cancel(tickets))


class _Post:
    """From the scheduler's thread into the queues of a loop, which is woken once for all that a step brings."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._letters: deque[tuple[asyncio.Queue[News], News]] = deque()
        self._is_called = False

    def deliver(self, queue: asyncio.Queue[News], choice: int, what: Delta | EdgeLMError) -> None:
        """In the scheduler's thread."""
        self._letters.append((queue, (choice, what)))
        if not self._is_called:
            self._is_called = True
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                self.loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._is_called = False  # before looking: what comes from now on calls again
        while self._letters:
            queue, news = self._letters.popleft()
            queue.put_nowait(news)


async def _events(tickets: Sequence[Ticket], news: asyncio.Queue[News], n: int, reads_calls: bool) -> AsyncIterator[Event]:
    readers = [CallReader() if reads_calls else None for _ in tickets]
    prompts = tickets[::n]  # of each, the first ticket
    n_prompt = sum(ticket.text.n_prompt for ticket in prompts)
    yield Accepted(n_prompt)
    begin = perf_counter()
    first = 0.0
    n_unfinished, n_generated = len(tickets), 0
    while n_unfinished:
        choice, what = await news.get()
        if isinstance(what, EdgeLMError):
            raise what
        first = first or perf_counter()
        n_generated += len(what.token_ids)
        reader = readers[choice]
        if reader is None:
            if what.text or what.logprobs or what.certainties:
                yield TextDelta(choice, what.text, what.logprobs, what.certainties)
        else:
            for piece in (*reader.push(what.text), *(reader.finish() if what.finish_reason else ())):
                yield TextDelta(choice, piece) if isinstance(piece, str) else ToolCallDelta(choice, piece)
            if what.logprobs or what.certainties:
                yield TextDelta(choice, "", what.logprobs, what.certainties)
        if what.finish_reason is not None:
            n_unfinished -= 1
            calls = reader is not None and reader.n_calls and what.finish_reason == "stop"
            yield Finish(choice, "tool_calls" if calls else what.finish_reason, what.stop_string)
    yield Usage(n_prompt, sum(ticket.n_cached for ticket in prompts), n_generated, first - begin, perf_counter() - first)


def _cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()
