"""`edgelm run --route`: one answer, from this device or from a cloud."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgelm.runtime.chat_model import Asker, ChatRequest, Finish, Message, RouteDecision, TextDelta, Usage
from edgelm.runtime.commands.routing import deployed, router_of
from edgelm.runtime.local_model import LocalModel

if TYPE_CHECKING:
    from edgelm.runtime.llm import LLM
    from edgelm.runtime.privacy import ConsentRequest
    from edgelm.runtime.router.router import Router
    from edgelm.runtime.sampling import SamplingParams


def run_routed(
    open_llm: Callable[[], LLM], path: Path, config: Path, messages: Sequence[Message], params: SamplingParams, as_json: bool, stats: bool
) -> None:
    """Print the answer; a line on stderr tells where it is from, and why."""
    deployment = deployed(config)
    local = LocalModel(open_llm())
    try:
        router = router_of(deployment, local, path, _ask_person if sys.stdin is not None and sys.stdin.isatty() else None)
        asyncio.run(_answer(router, ChatRequest(messages, params), as_json, stats))
    finally:
        local.close()


async def _answer(router: Router, request: ChatRequest, as_json: bool, stats: bool) -> None:
    shows = not as_json and sys.stdout.isatty()  # a terminal's reader sees when something is taken back; a pipe's does not
    events = await router.chat(request, Asker(reading="restarts" if shows else "whole"))
    text, told, usage, reason = "", None, None, "stop"
    try:
        async for event in events:
            match event:
                case RouteDecision():
                    told = event
                    if event.is_restart:
                        text = ""
                        print(f"\n[taken back: {event.why}]", file=sys.stderr, flush=True)
                case TextDelta():
                    text += event.text
                    if shows:
                        print(event.text, end="", flush=True)
                case Finish():
                    reason = event.reason
                case Usage():
                    usage = event
    finally:
        events.close()
        await router.close()
    if as_json:
        print(json.dumps(_as_json(text, reason, told, usage), ensure_ascii=False))
        return
    print("" if shows else text)
    if stats and told is not None:
        print(_line(told), file=sys.stderr)


def _line(told: RouteDecision) -> str:
    where = "this device" if told.route == "local" else "the cloud"
    spent = f", {told.cloud_input} + {told.cloud_output} tokens there, cost {told.cost} {told.currency}" if told.cloud_input else ""
    confidence = "" if told.confidence is None else f"; confidence {told.confidence:.0%}"
    return f"[from {where}: {told.why}{confidence}; {told.local_tokens} tokens here in {told.local_s:.1f} s{spent}]"


def _as_json(text: str, reason: str, told: RouteDecision | None, usage: Usage | None) -> dict[str, Any]:
    route = None if told is None else {**vars(told), "cost": str(told.cost), "redacted": dict(told.redacted), "consent": None}
    return {"text": text, "finish_reason": reason, "edgelm": route, "usage": None if usage is None else vars(usage)}


async def _ask_person(question: ConsentRequest) -> bool:
    """Ask at the terminal, in a thread that Ctrl-C does not wait for; the end of the input is no consent."""
    found = ", ".join(f"{n} {kind}" for kind, n in question.entities.items())
    hidden = f", with {found} replaced" if found else ""
    text = f"The answer of this device is not trusted. Send {question.n_bytes} bytes{hidden} to {question.model} at {question.endpoint}?"
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bool] = loop.create_future()

    def tell(says_yes: bool) -> None:
        if not answered.done():
            answered.set_result(says_yes)

    def ask() -> None:
        try:
            says_yes = typer.confirm(text, default=False, err=True)
        except (typer.Abort, EOFError):
            says_yes = False
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, says_yes)

    print(file=sys.stderr)  # below what was shown of the answer
    threading.Thread(target=ask, daemon=True).start()
    return await answered
