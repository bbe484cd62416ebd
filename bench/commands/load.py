"""`edgebench load`: how a server holds up under many requests."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from edgelm.bench.commands import options
from edgelm.bench.commands.outcome import finish, with_progress_bar
from edgelm.bench.load.client import Endpoint, Server
from edgelm.bench.load.run import LoadTest, measure_load
from edgelm.bench.power.session import PowerWishes
from edgelm.errors import InvalidRequestError


def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of an OpenAI-compatible server, such as http://localhost:8080.")],
    concurrency: Annotated[str, typer.Option(metavar="N,N", help="Requests at once, level by level.", show_default="1,4,16")] = "",
    rate: Annotated[str, typer.Option(metavar="R,R", help="Instead: arrivals per second (Poisson), level by level.")] = "",
    endpoint: Annotated[Endpoint, typer.Option(help="Ask for chat completions, or for completions of plain text.")] = "chat",
    model: Annotated[str, typer.Option(help="Its name on the server.", show_default="the first that it lists")] = "",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of a prompt, about.")] = 128,
    generate: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 128,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Ask for answers of full length (vLLM, llama-server).")] = False,
    same_prompt: Annotated[bool, typer.Option("--same-prompt", help="Ask the same each time, so that a prefix cache may help.")] = False,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Of each level.", show_default="8 for each client, at least 16; 64 arrivals")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Send no request later than this in a level.")] = None,
    warmup: Annotated[int, typer.Option(min=1, help="Requests before the first level, not counted.")] = 2,
    ttft: Annotated[float | None, typer.Option(metavar="MS", help="Goodput: most milliseconds to the first token.")] = None,
    tpot: Annotated[float | None, typer.Option(metavar="MS", help="Goodput: most milliseconds per token after it.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for a whole request, from when it was due.")] = 600.0,
    in_flight: Annotated[int, typer.Option(min=1, help="With --rate: most requests at once; the others wait, and it counts.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and prompts.")] = 0,
    api_key_env: Annotated[str, typer.Option(metavar="NAME", help="Environment variable that holds the API key.")] = "",
    local: Annotated[
        bool | None, typer.Option("--local/--remote", help="Whether the meters here measure the server.", show_default="by its address")
    ] = None,
    meter: options.Meters = None,
    estimate_tdp: options.EstimateTdp = None,
    idle_seconds: options.IdleSeconds = None,
    json_file: options.Json = None,
    html: options.Html = None,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Keep the record for edgebench history.")] = True,
) -> None:
    """Latency, tokens per second, goodput and errors of an OpenAI-compatible server under load."""
    if concurrency and rate:
        raise InvalidRequestError("give either --concurrency (requests at once) or --rate (arrivals per second)")
    server = Server(url, endpoint, model, generate, timeout, ignore_eos, key=_key(api_key_env))
    test = LoadTest(
        server,
        concurrency=() if rate else options.numbers(concurrency or "1,4,16", "--concurrency", 1),
        rates=_rates(rate) if rate else (),
        n_prompt=prompt,
        n_requests=requests,
        seconds=seconds,
        in_flight=in_flight,
        n_warmup=warmup,
        ttft_target_s=None if ttft is None else ttft / 1e3,
        tpot_target_s=None if tpot is None else tpot / 1e3,
        seed=seed,
        same_prompt=same_prompt,
        local=local,
    )
    power = PowerWishes(tuple(meter or ()), estimate_tdp, idle_seconds)
    record = with_progress_bar(lambda progress: measure_load(test, progress, power))
    finish(record, json_file, html, history)


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InvalidRequestError(f"--rate is {text!r}; give numbers separated by commas, such as 0.5,1,2") from None


def _key(variable: str) -> str:
    """The key, without the line end that files of keys have.

    Raises:
        InvalidRequestError: there is no such variable.
    """
    if variable and not os.environ.get(variable, "").strip():
        raise InvalidRequestError(f"--api-key-env is {variable}, but there is no such environment variable; set it to the key")
    return os.environ.get(variable, "").strip() if variable else ""
