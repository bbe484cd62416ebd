"""Figures of one level of load, from its requests' timestamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.record import Load, LoadLevel, Request


@dataclass(frozen=True)
class LevelFigures:
    """One level of load.

    Attributes:
        seconds: from the first request due to the last answer's end.
        answered, failed: requests.
        ttft_s: from when a request was due to its first piece of text, of the answered ones that had text [n].
        tpot_s: per token after the first, of those with at least two tokens [n].
        tokens_per_s, requests_per_s: of answered requests, over `seconds`.
        good_per_s: answered requests per second that kept both targets.
        good: for every request, whether it was answered and kept the targets.
    """

    seconds: float
    answered: int
    failed: int
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    tokens_per_s: float
    requests_per_s: float
    good_per_s: float
    good: NDArray[np.bool_]


def level_figures(load: Load, level: LoadLevel) -> LevelFigures | None:
    """Figures of a level; None where no request was sent."""
    if not level.requests:
        return None
    answered = [r for r in level.requests if not r.error]
    seconds = max(r.ended_s for r in level.requests) - min(min(r.due_s for r in level.requests), level.span.start_s)
    good = np.array([_is_good(load, r) for r in level.requests])
    tpot = [value for r in answered if (value := _tpot_s(r)) is not None]
    return LevelFigures(
        seconds=seconds,
        answered=len(answered),
        failed=len(level.requests) - len(answered),
        ttft_s=np.array([r.stamps_s[0] - r.due_s for r in answered if r.stamps_s], np.float64),
        tpot_s=np.array(tpot, np.float64),
        tokens_per_s=sum(r.n_generated for r in answered) / seconds,
        requests_per_s=len(answered) / seconds,
        good_per_s=float(good.sum()) / seconds,
        good=good,
    )


def _tpot_s(request: Request) -> float | None:
    if request.n_generated < 2 or len(request.stamps_s) < 2:
        return None
    return (request.stamps_s[-1] - request.stamps_s[0]) / (request.n_generated - 1)


def _is_good(load: Load, request: Request) -> bool:
    if request.error or not request.stamps_s:
        return False
    tpot = _tpot_s(request)
    in_time = load.ttft_target_s is None or request.stamps_s[0] - request.due_s <= load.ttft_target_s
    return in_time and (load.tpot_target_s is None or tpot is None or tpot <= load.tpot_target_s)
