"""What a person should know of a level of load beside its figures, in words."""

from __future__ import annotations

from collections.abc import Iterator

from edgelm.bench.load.goodput import LevelFigures, level_figures
from edgelm.bench.record import Load, LoadLevel

_KEPT_UP = 0.9
_LATE_S = 0.02
_SHORT = 0.9


def level_notes(load: Load, level: LoadLevel) -> tuple[str, ...]:
    """Everything that makes the level's figures mean something else than they seem to."""
    figures = level_figures(level, load)
    if not figures.n_requests:
        return ("no request ended",)
    if not figures.n_whole:
        return (f"every request failed: {_times(figures)}",)
    return tuple(_notes(load, level, figures))


def _notes(load: Load, level: LoadLevel, figures: LevelFigures) -> Iterator[str]:
    whole = [request for request in level.requests if not request.error]
    if figures.errors:
        yield f"{figures.n_requests - figures.n_whole} of {len(level.requests)} requests failed: {_times(figures)}"
    if not figures.counted:
        yield "the server does not count tokens, so pieces of text were counted"
    if figures.n_burst:
        yield f"{figures.n_burst} of {figures.n_whole} answers came all at once, so their time per token is not known"
    if level.rate is not None and figures.n_whole > 1:
        yield from _behind(level, figures)
    if figures.counted and figures.n_generated is not None and figures.n_generated < _SHORT * load.n_generate:
        yield f"answers had {figures.n_generated:.0f} tokens in the median, of {load.n_generate} allowed; try --ignore-eos"
    late = max(request.sent_s - request.due_s for request in whole)
    if level.rate is not None and late > _LATE_S:
        yield f"a request was sent up to {late * 1e3:.0f} ms after it was due; the wait is part of its latency"


def _behind(level: LoadLevel, figures: LevelFigures) -> Iterator[str]:
    """Arrivals that outrun the server: the longer such a test, the greater its latencies, so they say little of the server."""
    dues = [request.due_s for request in level.requests]
    arrived = len(dues) / (max(dues) - level.span.start_s)
    if figures.requests_per_s is not None and figures.requests_per_s < _KEPT_UP * arrived:
        yield (
            f"{arrived:.3g} requests arrived per second, but only {figures.requests_per_s:.3g} were answered: where a server falls behind, "
            "latencies grow with the length of the test"
        )


def _times(figures: LevelFigures) -> str:
    return ", ".join(f"{n} times {kind}" for kind, n in figures.errors.items())
