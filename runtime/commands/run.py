"""`edgelm run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelm.runtime.commands import options

if TYPE_CHECKING:
    from edgelm.runtime.llm import LLM
    from edgelm.runtime.results import Completion, Timings
    from edgelm.runtime.sampling import SamplingParams


def run(
    model: options.Model,
    prompt: Annotated[str | None, typer.Argument(help="The question or text; - or a pipe reads it from stdin.")] = None,
    system: options.System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object when done, instead of streaming text.")] = False,
    stats: Annotated[bool, typer.Option(help="Print a line of statistics to stderr.")] = True,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 40,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.05,
    repeat_penalty: options.RepeatPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    logprobs: Annotated[int | None, typer.Option(help="With --json: log probabilities of the tokens and of the n best.")] = None,
    route: options.Route = None,
    backend: options.Backend = None,
    backend_option: options.BackendOption = None,
    threads: options.Threads = None,
    ctx: options.Ctx = None,
    precision: options.Precision = None,
) -> None:
    """Answer one prompt, streaming the text to stdout."""
    text = _read_prompt(prompt)
    if raw and system is not None:
        raise typer.BadParameter("--system needs the chat template, which --raw leaves out")
    from edgelm.runtime.commands.loading import load, locate
    from edgelm.runtime.sampling import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop or (),
        logprobs=logprobs,
    )
    if route is not None:
        if raw:
            raise typer.BadParameter("--route answers conversations, and --raw is none; leave out one of them")
        from edgelm.runtime.commands.routed_run import run_routed

        messages = [{"role": "system", "content": system}] if system is not None else []

        def opened() -> LLM:
            return load(model, backend, threads, ctx, precision, backend_option or [])

        return run_routed(opened, locate(model), route, [*messages, {"role": "user", "content": text}], params, as_json, stats)
    with load(model, backend, threads, ctx, precision, backend_option or []) as llm:
        completion = _answer(llm, text, system, raw, params, show=not as_json)
    if as_json:
        print(json.dumps(_as_json(model, completion), ensure_ascii=False))
    elif stats:
        print(_statistics(completion), file=sys.stderr)
    return None


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):  # None: closed
        raise typer.BadParameter("give a PROMPT, or pipe one in")
    text = sys.stdin.buffer.read().decode("utf-8", errors="replace").rstrip("\n")
    if not text:
        raise typer.BadParameter("the prompt on stdin is empty")
    return text


def _answer(llm: LLM, text: str, system: str | None, raw: bool, params: SamplingParams, show: bool) -> Completion:
    from edgelm.runtime.results import collect

    if raw or not llm.metadata.get("tokenizer.chat_template"):
        if system is not None:
            raise typer.BadParameter("this model has no chat template, so it takes no --system message")
        deltas = llm.generate(text, params, stream=True)
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        deltas = llm.chat([*messages, {"role": "user", "content": text}], params, stream=True)
    seen = []
    for delta in deltas:
        seen.append(delta)
        if show:
            print(delta.text, end="", flush=True)
    if show:
        print()
    return collect(seen)


def _as_json(model: str, completion: Completion) -> dict[str, Any]:
    timings = {**asdict(completion.timings), **_derived(completion.timings)}
    return {"model": model, **asdict(completion), "timings": timings}


def _derived(timings: Timings) -> dict[str, float]:
    return {"tokens_per_second": timings.tokens_per_second, "time_to_first_token": timings.time_to_first_token}


def _statistics(completion: Completion) -> str:
    timings = completion.timings
    line = f"[{completion.n_prompt_tokens} tokens read in {timings.prefill_s:.2f} s, {completion.n_generated} written"
    if timings.tokens_per_second:
        line += f" at {timings.tokens_per_second:.1f} tokens/s"
    reason = {"length": ", ended by the token limit", "cancelled": ", interrupted"}.get(completion.finish_reason, "")
    return f"{line}{reason}; model loaded in {timings.load_s:.2f} s]"
