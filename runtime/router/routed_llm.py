"""A model on this device with a router before it, for programs that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from edgelm.errors import ClosedError
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.chat_model import Asker, ChatRequest, Finish, Message, RouteDecision, TextDelta, ToolCallDelta
from edgelm.runtime.llm import LLM
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.privacy import ConsentRequest, Level
from edgelm.runtime.router.config import read_config
from edgelm.runtime.router.deployment import Deployment
from edgelm.runtime.router.local_answer import whole_calls
from edgelm.runtime.router.router import Router
from edgelm.runtime.router.trust import trust_of
from edgelm.runtime.sampling import SamplingFields, SamplingParams
from edgelm.runtime.settings import read_settings
from edgelm.runtime.tool_calls import CallPiece, ToolUse

T = TypeVar("T")


@dataclass(frozen=True)
class RoutedAnswer:
    """An answer, and where it is from.

    Attributes:
        calls: of tools, whole.
        decision: who answered, why, and what it took.
    """

    text: str
    calls: tuple[CallPiece, ...]
    finish_reason: str
    decision: RouteDecision


class RoutedLLM:
    """Answers on this device, and asks a cloud where the answer is not to be trusted and the configuration allows it.

        with RoutedLLM("smollm2-135m", "route.toml") as llm:
            answer = llm.chat([{"role": "user", "content": "Why is the sky blue?"}])
            print(answer.text, answer.decision.route, answer.decision.why)

    Args:
        model: as LLM takes it.
        config: a TOML file, as `edgelm serve --route` takes it.
        ask_person: asks a person, at level ask; is called in a thread. None leaves the question in the answer's decision.
        loading: as LLM's other arguments.

    Raises:
        EdgeLMError: as LLM, and where the configuration makes no sense.
    """

    def __init__(
        self, model: str | Path, config: str | Path, ask_person: Callable[[ConsentRequest], bool] | None = None, **loading: Any
    ) -> None:
        self._deployment = Deployment(read_config(Path(config)))
        after, thinking = self._deployment.config.after, self._deployment.config.thinking.mode
        trust, self.unknown_because = trust_of(
            resolve_model(model), read_settings().home, after.calibration, after.threshold, thinking != "off"
        )
        self._local = LocalModel(LLM(model, **loading))
        asks = None if ask_person is None else _in_thread(ask_person)
        self.router: Router = self._deployment.router(self._local, trust, asks)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edgelm-router", daemon=True)
        self._thread.start()
        self._is_closed = False

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: ToolUse | None = None,
        level: Level = Level.ALLOW,
        consent: str | None = None,
        timeout_s: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> RoutedAnswer:
        """One answer, whole.

        Args:
            params: how tokens are chosen; or its fields by name.
            level: how much of this conversation may leave, if less than the configuration allows.
            consent: the id of a question that an earlier answer of this conversation carried, where a person has agreed.
            timeout_s: for everything.

        Raises:
            ClosedError: it was closed.
            EdgeLMError: as ChatModel.chat.
        """
        if self._is_closed:
            raise ClosedError("the router was closed; open it anew")
        request = ChatRequest(messages, params or SamplingParams(**fields), tools=tools)
        asker = Asker(timeout_s=timeout_s, levels=(level,), consent=consent, reading="whole")
        return self._run(self._answer(request, asker))

    async def _answer(self, request: ChatRequest, asker: Asker) -> RoutedAnswer:
        events = await self.router.chat(request, asker)
        try:
            everything = [event async for event in events]
        finally:
            events.close()
        text = "".join(event.text for event in everything if isinstance(event, TextDelta))
        calls = whole_calls([event.piece for event in everything if isinstance(event, ToolCallDelta)])
        reason = next(event.reason for event in everything if isinstance(event, Finish))
        return RoutedAnswer(text, calls, reason, [event for event in everything if isinstance(event, RouteDecision)][-1])

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ClosedError("the router was closed before the answer was whole; open it anew") from None
        except BaseException:
            future.cancel()  # whoever asked has left, by Ctrl-C for one
            raise

    def close(self) -> None:
        """Unload the model, and close the connections. Closing twice is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._local.close()

    async def _end(self) -> None:
        """Let nobody wait for ever."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._deployment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _in_thread(ask: Callable[[ConsentRequest], bool]) -> Callable[[ConsentRequest], Awaitable[bool]]:
    async def asked(question: ConsentRequest) -> bool:
        return await asyncio.to_thread(ask, question)

    return asked
