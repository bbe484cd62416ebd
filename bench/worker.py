"""The process of one engine: it opens the model, runs trials when it is told to, and answers with raw timestamps.

Requests are lines of JSON on stdin; answers are lines of JSON on the pipe whose number is the only argument, because engines print things.
The process ends when stdin does, so it never outlives the benchmark.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def main() -> None:
    """Serve requests until stdin ends."""
    with os.fdopen(int(sys.argv[1]), "w") as pipe:

        def send(answer: Answer) -> None:
            pipe.write(json.dumps(answer) + "\n")
            pipe.flush()

        for answer in _answers(send):
            send(answer)


def _answers(send: Callable[[Answer], None]) -> Iterator[Answer]:
    from edgelm.bench.contestants import Contestant, load_code, open_runner
    from edgelm.errors import EdgeLMError

    try:
        request = json.loads(sys.stdin.readline())
        contestant = Contestant(**(request["contestant"] | {"model": Path(request["contestant"]["model"])}))
        load_code(contestant)
        ready = time.perf_counter()
        found = open_runner(contestant, lambda line: send({"progress": line}))
        runner, opened = found.runner, time.perf_counter()
        runner.hold(())
        runner.prefill(prompt_tokens(request["n_prompt"], runner.n_vocab))
        first_token = time.perf_counter()
        times = {"ready": ready, "opened": opened, "first_token": first_token}
        what = {"engine": asdict(found.engine), "is_plain_llama_cpp": found.is_plain_llama_cpp}
        yield times | what | {"peak_rss": peak_rss(), "files": [str(path.absolute()) for path in found.files]}
        for line in sys.stdin:
            yield _serve(runner, json.loads(line))
    except EdgeLMError as error:
        yield {"error": str(error)}


def _serve(runner: Any, request: dict[str, Any]) -> Answer:
    if request["do"] == "hold":
        runner.hold(prompt_tokens(request["n_tokens"], runner.n_vocab))
        return {}
    if request["do"] == "peak_rss":
        return {"peak_rss": peak_rss()}
    prompt = prompt_tokens(request["n_prompt"], runner.n_vocab)
    before = resource.getrusage(resource.RUSAGE_SELF)
    start, stamps = _trial(runner, request["phase"], prompt, request["n_generate"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "start": start,
        "stamps": stamps,
        "minor_faults": after.ru_minflt - before.ru_minflt,
        "major_faults": after.ru_majflt - before.ru_majflt,
        "switches": after.ru_nivcsw - before.ru_nivcsw,
    }


def _trial(runner: Any, phase: str, prompt: list[int], n_generate: int) -> tuple[float, list[float]]:
    """When it began, and when each result was there."""
    clock = time.perf_counter
    stamps = []
    start = clock()
    if phase == "decode":
        for _ in runner.decode(1, n_generate):
            stamps.append(clock())
        return start, stamps
    token = runner.prefill(prompt)
    stamps.append(clock())
    if phase == "both":
        for _ in runner.decode(token, n_generate - 1):
            stamps.append(clock())
    return start, stamps


def prompt_tokens(n: int, n_vocab: int) -> list[int]:
    """The prompt of every trial: what its tokens are does not change how long they take."""
    return [(100 + i % 500) % n_vocab for i in range(n)]


def peak_rss() -> int:
    """Bytes of memory that this process held at most."""
    try:
        status = Path("/proc/self/status").read_text()
        # getrusage's maximum would be that of the process which started this one, where it was larger
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
