"""`edgelm chat`: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from edgelm.runtime.commands import options

if TYPE_CHECKING:
    from edgelm.runtime.llm import LLM
    from edgelm.runtime.results import Delta
    from edgelm.runtime.sampling import SamplingParams

_HELP = "Type a message. /reset begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def chat(
    model: options.Model,
    system: options.System = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = None,
    backend: options.Backend = None,
    backend_option: options.BackendOption = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    precision: options.Precision = None,
) -> None:
    """Hold a conversation."""
    from edgelm.runtime.commands.loading import load
    from edgelm.runtime.sampling import SamplingParams

    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat_penalty, seed=seed, max_tokens=max_tokens
    )
    with load(model, backend, threads, ctx, precision, backend_option or []) as llm:
        _ = llm.chat_template  # a model without one should say so before the first question
        if sys.stdin is not None and sys.stdin.isatty():
            import readline  # noqa: F401  (line editing for input())

            print(_HELP, file=sys.stderr)
        Conversation(llm, params, system).run()


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._first = [{"role": "system", "content": system}] if system is not None else []
        self._messages = list(self._first)

    def run(self) -> None:
        """Read lines and answer them until the end of input or /exit."""
        while sys.stdin is not None:  # None: closed
            try:
                line = input("> " if sys.stdin.isatty() else "").strip()
            except EOFError:
                return
            if line == "/exit":
                return
            if line == "/reset":
                self._messages = list(self._first)
                print("The conversation begins anew.", file=sys.stderr)
            elif line.startswith("/"):
                print(_HELP, file=sys.stderr)
            elif line:
                self._answer(line)

    def _answer(self, line: str) -> None:
        from edgelm.errors import ContextOverflowError

        question = {"role": "user", "content": line}
        answer: list[str] = []
        try:
            with _interrupt_sets() as cancelled:
                for delta in self._llm.chat([*self._messages, question], self._params, stream=True, cancelled=cancelled):
                    print(delta.text, end="", flush=True)
                    answer.append(delta.text)
        except ContextOverflowError as error:
            print(
                f"The conversation is full: with this message it has {error.n_prompt_tokens} tokens, and the context holds {error.n_ctx}. "
                "The message was not added; /reset begins anew, or start `edgelm chat` with a larger --ctx.",
                file=sys.stderr,
            )
            return
        print()
        self._messages += [question, {"role": "assistant", "content": "".join(answer)}]
        self._explain(delta)

    def _explain(self, last: Delta) -> None:
        """Say why an answer ended where the text does not show it."""
        if last.finish_reason == "cancelled":
            print("[stopped]", file=sys.stderr)
        if last.finish_reason == "length" and last.timings is not None:
            n_generated = len(last.timings.token_times)
            is_full = (last.n_prompt_tokens or 0) + n_generated > self._llm.info.n_ctx
            what = "the context is full: /reset begins anew" if is_full else f"--max-tokens {n_generated} is reached"
            print(f"[the answer was cut off: {what}]", file=sys.stderr)


@contextmanager
def _interrupt_sets() -> Iterator[Event]:
    """An event that Ctrl-C sets instead of ending the process; a second Ctrl-C ends it."""
    pressed = Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
