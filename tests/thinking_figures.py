"""Figures of runtime/router/thinking.py: what more samples on this device are worth. Run by hand; needs reasoning-gym for tasks of its own.

python tests/thinking_figures.py MODEL made SECONDS           tasks that are made here, until the time is over
python tests/thinking_figures.py MODEL TASKS_FILE SECONDS     tasks of a file, one a line: {"task": kind, "prompt": ..., "answer": ...}
python tests/thinking_figures.py MODEL batches SECONDS        no tasks: what k samples of 40 tokens at once cost, beside one sample
Two more arguments may follow: the number of threads that compute, 0 for as many as edgelm chooses; and ways, separated by semicolons,
to measure these alone.

Every task is answered in every way, in an order that is drawn anew for each, so that what else the machine does meets all ways alike.
The prompt has been computed before, as it has for a first answer. Figures are ratios, with 95 % intervals from 2,000 bootstrap samples of
the tasks.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm import LLM, SamplingParams
from edgelm.runtime.chat_model import Asker, ChatRequest, Finish, TextDelta, Usage
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.router.answers import final_answer
from edgelm.runtime.router.thinking import ThinkingBudget, think
from edgelm.runtime.router.verification import self_verification
from edgelm.runtime.router.vote import Vote

Array = NDArray[np.float64]
ASKER = Asker("figures")
GREEDY = SamplingParams(temperature=0.0, max_tokens=80)
DRAWN = SamplingParams(max_tokens=80)
N_MADE = 200
AT_ONCE, ONE_BY_ONE = (4, 8, 16), (4, 8)


@dataclass(frozen=True)
class Task:
    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Tried:
    """A task that was answered in one way.

    Attributes:
        seconds, n_tokens: that it took; n_samples that came to their end.
        sureness: what the way says of itself: its share of the votes, or the self-verification's number.
    """

    is_right: bool
    seconds: float
    n_tokens: int
    n_samples: int
    sureness: float


Way = Callable[[ChatRequest], Awaitable[tuple[str | None, int, int, float]]]
"""Gives answer, tokens, samples and sureness."""


def made_tasks(n: int) -> Iterator[Task]:
    """Easy ones, for small models: n of each kind."""
    import reasoning_gym

    for entry in reasoning_gym.create_dataset("products", size=n, seed=11, min_terms=2, max_terms=2, min_digits=1, max_digits=1):
        yield Task("products", entry["question"], str(entry["answer"]))
    rng = random.Random(11)
    for _ in range(n):
        name, thing = rng.choice(["Ann", "Bob", "Tom", "Mia"]), rng.choice(["apples", "books", "coins", "pens"])
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        yield Task("more", f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", str(a + b))
        yield Task("fewer", f"{name} has {a + b} {thing} and loses {b}. How many {thing} are left?", str(a))
        yield Task("groups", f"There are {a} boxes with {b} {thing} each. How many {thing} are there in total?", str(a * b))
        a, b = rng.sample(range(10, 100), 2)
        yield Task("larger", f"Which number is larger, {a} or {b}? Say only the number.", str(max(a, b)))


def read_tasks(file: Path) -> Iterator[Task]:
    for line in file.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        yield Task(fields["task"], fields["prompt"], str(fields["answer"]))


async def answers(model: LocalModel, request: ChatRequest) -> tuple[list[str | None], int, list[str]]:
    """Of n samples: what they come to, their tokens, their texts."""
    texts: list[str] = [""] * request.n
    found: list[str | None] = [None] * request.n
    n_tokens = 0
    events = await model.chat(request, ASKER)
    async for event in events:
        match event:
            case TextDelta(choice, text):
                texts[choice] += text
            case Finish(choice, reason):
                found[choice] = final_answer(texts[choice]) if reason != "length" else None
            case Usage(n_generated=n_generated):
                n_tokens = n_generated
    events.close()
    return found, n_tokens, texts


def ways(model: LocalModel) -> dict[str, Way]:
    async def greedy(request: ChatRequest) -> tuple[str | None, int, int, float]:
        found, n_tokens, _ = await answers(model, replace(request, params=GREEDY))
        return found[0], n_tokens, 1, 0.0

    async def verified(request: ChatRequest) -> tuple[str | None, int, int, float]:
        found, n_tokens, texts = await answers(model, replace(request, params=GREEDY))
        p = await self_verification(model, request, texts[0], ASKER)
        return found[0], n_tokens + 1, 1, float("nan") if p is None else p

    def at_once(k: int) -> Way:
        async def way(request: ChatRequest) -> tuple[str | None, int, int, float]:
            found, n_tokens, _ = await answers(model, replace(request, n=k))
            vote = counted(found)
            return vote.leader, n_tokens, k, vote.share

        return way

    def one_by_one(k: int) -> Way:
        async def way(request: ChatRequest) -> tuple[str | None, int, int, float]:
            all_found, n = [], 0
            for _ in range(k):
                found, n_tokens, _ = await answers(model, request)
                all_found, n = all_found + found, n + n_tokens
            vote = counted(all_found)
            return vote.leader, n, k, vote.share

        return way

    def adaptive(samples: int, wave: int, after_greedy: bool) -> Way:
        async def way(request: ChatRequest) -> tuple[str | None, int, int, float]:
            first, n = None, 0
            if after_greedy:
                _, n, (first,) = await answers(model, replace(request, params=GREEDY))
            thought = await think(model, request, ASKER, ThinkingBudget(samples, wave, 16_000, 600.0), first)
            return thought.answer, thought.n_tokens + n, thought.n_samples, thought.agreement

        return way

    return {
        "greedy": greedy,
        "one sample": at_once(1),
        **{f"{k} at once": at_once(k) for k in AT_ONCE},
        **{f"{k} one by one": one_by_one(k) for k in ONE_BY_ONE},
        "adaptive, 16 in waves of 4": adaptive(16, 4, False),
        "adaptive, 16 in one wave": adaptive(16, 16, False),
        "greedy, then adaptive": adaptive(15, 5, True),
        "greedy, then 8 in one wave": adaptive(8, 8, True),
        "greedy, then 8 in waves of 4": adaptive(8, 4, True),
        "greedy, self-verified": verified,
    }


def counted(found: Iterable[str | None]) -> Vote:
    vote = Vote()
    for answer in found:
        vote = vote.plus(answer)
    return vote


async def measure(model: LocalModel, tasks: list[Task], seconds: float, names: str) -> dict[str, list[Tried]]:
    all_ways = {name: way for name, way in ways(model).items() if not names or name in ("one sample", *names.split(";"))}
    results: dict[str, list[Tried]] = {name: [] for name in all_ways}
    rng = random.Random(5)
    end = time.monotonic() + seconds
    for task in tasks:
        if time.monotonic() > end:
            break
        request = ChatRequest([{"role": "user", "content": task.prompt}], DRAWN)
        await answers(model, replace(request, params=replace(GREEDY, max_tokens=1)))
        for name in rng.sample(list(all_ways), len(all_ways)):
            begin = time.perf_counter()
            answer, n_tokens, n_samples, sureness = await all_ways[name](request)
            took = time.perf_counter() - begin
            is_right = answer is not None and answer == final_answer(task.answer)
            results[name].append(Tried(is_right, took, n_tokens, n_samples, sureness))
    return results


def auroc(sureness: Array, is_right: NDArray[np.bool_]) -> float:
    """That a right answer is surer than a wrong one, ties counting half; nan where there are none of one kind."""
    right, wrong = sureness[is_right][:, None], sureness[~is_right][None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean()) if right.size and wrong.size else float("nan")


def shown(figure: Callable[[NDArray[np.intp]], float], n: int) -> str:
    """A figure of the tasks, with its interval."""
    rng = np.random.default_rng(7)
    values = [figure(rng.integers(0, n, n)) for _ in range(2000)]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{figure(np.arange(n)):.3f} [{low:.3f}, {high:.3f}]"


def report(tasks: list[Task], results: dict[str, list[Tried]]) -> None:
    n = len(tasks)
    right = {name: np.array([each.is_right for each in tried]) for name, tried in results.items()}
    seconds = {name: np.array([each.seconds for each in tried]) for name, tried in results.items()}

    def per_second(name: str, chosen: NDArray[np.intp]) -> float:
        return float(right[name][chosen].mean() / seconds[name][chosen].mean())

    def against(name: str, base: str) -> str:
        def ratio(chosen: NDArray[np.intp]) -> float:
            below = per_second(base, chosen)
            return per_second(name, chosen) / below if below else float("nan")

        return shown(ratio, n)

    print(f"{n} tasks: " + ", ".join(sorted({task.kind for task in tasks})))
    for name, tried in results.items():
        accuracy = shown(lambda chosen, name=name: float(right[name][chosen].mean()), n)
        cost = shown(lambda chosen, name=name: float(seconds[name][chosen].mean() / seconds["one sample"][chosen].mean()), n)
        rest = f"tokens {np.mean([each.n_tokens for each in tried]):.0f}, samples {np.mean([each.n_samples for each in tried]):.1f}"
        print(f"{name:28} accuracy {accuracy}  seconds/one sample's {cost}  {rest}, {seconds[name].mean():.2f} s")
        print(
            f"{'':28} accuracy - one sample's {shown(lambda c, name=name: float(right[name][c].mean() - right['one sample'][c].mean()), n)}"
        )
    for k in (k for k in ONE_BY_ONE if {f"{k} at once", f"{k} one by one"} <= set(results)):
        print(f"accuracy per second, {k} at once / {k} one by one: {against(f'{k} at once', f'{k} one by one')}")
    for name in results:
        print(f"accuracy per second, {name} / one sample: {against(name, 'one sample')}")
    for name in results if "16 at once" in results else ():
        print(f"accuracy per second, {name} / 16 at once: {against(name, '16 at once')}")
    for name in results:
        sure = np.array([each.sureness for each in results[name]])
        known = np.flatnonzero(~np.isnan(sure))
        if known.size:
            figure = shown(lambda c, s=sure[known], r=right[name][known]: auroc(s[c], r[c]), known.size)
            print(f"AUROC of what it says of itself, {name}: {figure} ({known.size} tasks)")
    for kind in sorted({task.kind for task in tasks}):
        chosen = np.array([task.kind == kind for task in tasks])
        print(f"{kind}: " + ", ".join(f"{name} {right[name][chosen].mean():.2f}" for name in results))


async def batches(model: LocalModel, seconds: float) -> None:
    messages = [{"role": "user", "content": "Tell me a long story about a king, two daughters, a wood and a well."}]
    params = SamplingParams(max_tokens=40, ignore_eos=True)

    async def took(n: int) -> float:
        begin = time.perf_counter()
        await answers(model, ChatRequest(messages, params, n))
        return time.perf_counter() - begin

    await took(1)
    sizes = (1, 2, *AT_ONCE)
    rounds: list[list[float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        order = random.sample(sizes, len(sizes))
        times = {n: await took(n) for n in order}
        rounds.append([times[n] for n in sizes])
    table = np.array(rounds)
    for i, n in enumerate(sizes):

        def cost(chosen: NDArray[np.intp], i: int = i) -> float:
            return float(np.median(table[chosen, i] / table[chosen, 0]))

        speed = shown(lambda chosen, n=n, cost=cost: n / cost(chosen), len(table))
        print(f"{n} at once: {shown(cost, len(table))} of one sample's time, {speed} of its tokens per second ({len(table)} rounds)")


def main(model: str, source: str, seconds: str, n_threads: str = "0", names: str = "") -> None:
    local = LocalModel(LLM(model, n_threads=int(n_threads) or None))
    try:
        if source == "batches":
            asyncio.run(batches(local, float(seconds)))
            return
        tasks = list(made_tasks(N_MADE) if source == "made" else read_tasks(Path(source)))
        random.Random(3).shuffle(tasks)
        results = asyncio.run(measure(local, tasks, float(seconds), names))
        report(tasks[: len(results["one sample"])], results)
    finally:
        local.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
