"""What a person should know of a level of load beside its figures, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgelm.bench.load.goodput import LevelFigures, level_figures
from edgelm.bench.record import Load, LoadLevel, Request

_GREW = 2.0
_LATE_S = 0.02
_SHORT = 0.9


def level_notes(load: Load, level: LoadLevel) -> tuple[str, ...]:
    """Everything that makes the level's figures mean something else than they seem to. (What was counted, and errors, figures show.)"""
    figures = level_figures(level, load)
    if not figures.n_requests:
        return ("no request ended",)
    if not figures.n_whole:
        return (f"every request failed: {_times(figures)}",)
    return tuple(_notes(load, level, figures))


def _notes(load: Load, level: LoadLevel, figures: LevelFigures) -> Iterator[str]:
    whole = [request for request in level.requests if not request.error]
    if figures.n_burst:
        yield f"{figures.n_burst} of {figures.n_whole} answers came all at once, so their time per token is not known"
    if level.rate is not None:
        yield from _behind(whole)
    if figures.counted and figures.n_generated is not None and figures.n_generated < _SHORT * load.n_generate:
        yield f"answers had {figures.n_generated:.0f} tokens in the median, of {load.n_generate} allowed; try --ignore-eos"
    late = max(request.sent_s - request.due_s for request in whole)
    if level.rate is not None and late > _LATE_S:
        yield f"a request was sent up to {late * 1e3:.0f} ms after it was due; the wait is part of its latency"


def _behind(whole: Sequence[Request]) -> Iterator[str]:
    """Arrivals that outrun the server: the longer such a test, the greater its latencies, so they say little of the server."""
    times = [request.ended_s - request.due_s for request in whole]
    quarter = len(times) // 4
    if quarter < 2:
        return
    early, late = float(np.median(times[:quarter])), float(np.median(times[-quarter:]))
    if late > _GREW * early:
        yield (
            f"answers took {early:.3g} s at first and {late:.3g} s at last: the server falls behind at this rate, and the longer the test, "
            "the greater the latencies"
        )


def _times(figures: LevelFigures) -> str:
    return ", ".join(f"{n} times {kind}" for kind, n in figures.errors.items())
