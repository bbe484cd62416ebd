"""Figures of the router that no command of edgelm gives. Run by hand:

python tests/router_figures.py decide PAIRS      milliseconds that the decision before an answer takes, over all prompts of a file
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from edgelm.runtime.router.difficulty import Difficulty
from edgelm.runtime.router.pairs import read_pairs
from edgelm.runtime.router.signals import signals_of


def decide(pairs: Path) -> None:
    """Signals and expected gain of one prompt after the other."""
    difficulty = Difficulty.default()
    prompts = [pair.messages for pair in read_pairs(pairs)]
    for messages in prompts[:100]:
        difficulty.gain(signals_of(messages))
    took = []
    for messages in prompts:
        begin = perf_counter()
        difficulty.gain(signals_of(messages))
        took.append(1000 * (perf_counter() - begin))
    long = [{"role": "user", "content": "Why? " * 20_000}]
    begin = perf_counter()
    difficulty.gain(signals_of(long))
    longest = 1000 * (perf_counter() - begin)
    median, late, most = np.percentile(took, [50, 99, 100])
    print(f"{len(took)} prompts: median {median:.2f} ms, p99 {late:.2f} ms, at most {most:.1f} ms; 100,000 characters {longest:.1f} ms")


if __name__ == "__main__":
    {"decide": decide}[sys.argv[1]](Path(sys.argv[2]))
