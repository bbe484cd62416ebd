"""Many clients that come and go: does a server stay whole? Loopback only, and it ends by itself.

    python tests/soak_server.py http://127.0.0.1:8080 PID --clients 32 --seconds 600

Each client streams answers of random lengths to random prompts, half of which share a beginning, and closes a third of its connections
at a random time. Afterwards nothing may be under way, and the server's resident memory (of process PID) may not have grown after the
first minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter

import httpx
import psutil

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "his",
    "he",
    "it",
    "with",
    "is",
    "for",
    "as",
    "had",
    "you",
    "not",
    "be",
    "her",
    "on",
)
SHARED = " ".join(WORDS * 8)


async def client(http: httpx.AsyncClient, rng: random.Random, until: float, seen: Counter[str]) -> None:
    while time.monotonic() < until:
        words = " ".join(rng.choices(WORDS, k=rng.randint(1, 300)))
        prompt = SHARED + words if rng.random() < 0.5 else words
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": rng.randint(1, 200), "stream": True, "ignore_eos": True}
        leaves_after = rng.uniform(0, 4) if rng.random() < 1 / 3 else 60.0
        try:
            async with asyncio.timeout(leaves_after):
                seen[await ask(http, body)] += 1
        except TimeoutError:
            seen["left"] += 1
        except httpx.HTTPError as error:
            seen[f"error: {error!r}"] += 1


async def ask(http: httpx.AsyncClient, body: dict[str, object]) -> str:
    """How the answer ended."""
    last = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return f"error: HTTP {response.status_code}"
        async for line in response.aiter_lines():
            if line.startswith("data: {") and "error" in json.loads(line[6:]):
                return f"error: {line}"
            last = line or last
    return "whole" if last == "data: [DONE]" else f"error: ended with {last!r}"


async def watch(process: psutil.Process, begin: float, until: float, megabytes: list[tuple[float, float]]) -> None:
    while time.monotonic() < until:
        megabytes.append((time.monotonic() - begin, process.memory_info().rss / 1e6))
        await asyncio.sleep(5)


async def soak(url: str, pid: int, n_clients: int, seconds: float) -> None:
    begin = time.monotonic()
    until = begin + seconds
    seen: Counter[str] = Counter()
    megabytes: list[tuple[float, float]] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as http:
        clients = [client(http, random.Random(n), until, seen) for n in range(n_clients)]
        await asyncio.gather(watch(psutil.Process(pid), begin, until, megabytes), *clients)
        await asyncio.sleep(2)
        metrics = (await http.get("/metrics")).text
    for what, n in seen.most_common():
        print(f"{n:6} {what}")
    for at in (60, *range(120, int(seconds) + 1, 120)):
        print(
            f"{at:6} s: {max((mb for second, mb in megabytes if at - 60 <= second <= at), default=0):.0f} MB at most in the minute before"
        )
    print("\n".join(line for line in metrics.splitlines() if line.startswith(("edgelm_generations", "edgelm_prefix_cache_tokens"))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("pid", type=int)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    asyncio.run(soak(arguments.url, arguments.pid, arguments.clients, arguments.seconds))
