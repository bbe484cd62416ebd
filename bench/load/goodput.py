"""Figures of a level of load. A request that failed has no latency: it is counted as an error and nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.bench.record import Load, LoadLevel, Request

_BURST_S = 20e-6
"""Seconds per token below which no server decodes: the pieces were held back somewhere and came together."""


@dataclass(frozen=True)
class Quantiles:
    """Of a sample, in its own unit; None where it is too small for them: p95 needs 20 values, p99 100."""

    p50: float
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class LevelFigures:
    """What a level of load says.

    Attributes:
        n_requests, n_whole: that ended, and of them without an error.
        errors: how often each kind of error happened.
        requests_per_s, tokens_per_s: of whole answers, over the level's span; None without any.
        counted: whether the server counted the tokens; otherwise they are pieces of text.
        ttft, tpot, itl, end_to_end: seconds, of whole answers; from when a request was due.
        n_burst: whole answers of several tokens that came at once, so that their time per token is not known.
        good_share, good_per_s: requests that kept the targets, of all and per second; None without targets or requests.
        n_prompt, n_generated: tokens of a request, the median; None where the server does not say.
    """

    n_requests: int
    n_whole: int
    errors: Mapping[str, int]
    requests_per_s: float | None
    tokens_per_s: float | None
    counted: bool
    ttft: Quantiles | None
    tpot: Quantiles | None
    itl: Quantiles | None
    end_to_end: Quantiles | None
    n_burst: int
    good_share: float | None
    good_per_s: float | None
    n_prompt: float | None
    n_generated: float | None


def quantile(values: Sequence[float] | NDArray[np.float64], q: float) -> float | None:
    """A quantile with linear interpolation; None of a sample too small for it: a median needs 1 value, p95 needs 20, p99 needs 100."""
    needed = 1 if q <= 0.5 else round(1 / (1 - q))
    return float(np.quantile(values, q)) if len(values) >= needed else None


def ttft_s(request: Request) -> float:
    """From when the request was due to its first piece of text."""
    return request.stamps_s[0] - request.due_s


def tpot_s(request: Request) -> float | None:
    """Seconds per output token after the first.

    (last - first) / (n - 1) where each piece is a token; where n tokens came in p pieces, the first piece holds n / p of them, and the
    time is that of the others. None of an answer that came at once.
    """
    n_pieces = len(request.stamps_s)
    if n_pieces < 2 or request.n_generated < 2:
        return None
    n_later = request.n_generated * (1 - 1 / n_pieces)
    tpot = (request.stamps_s[-1] - request.stamps_s[0]) / n_later
    return tpot if tpot >= _BURST_S else None


def is_good(request: Request, load: Load) -> bool:
    """Whether the answer is whole and kept the targets. An answer that came at once kept every target of time per token."""
    if request.error:
        return False
    tpot = tpot_s(request) or 0.0
    return (load.ttft_target_s is None or ttft_s(request) <= load.ttft_target_s) and (
        load.tpot_target_s is None or tpot <= load.tpot_target_s
    )


def level_figures(level: LoadLevel, load: Load) -> LevelFigures:
    """The figures of one of the load's levels."""
    whole = [request for request in level.requests if not request.error]
    seconds = level.span.end_s - level.span.start_s
    tpots = {id(request): tpot_s(request) for request in whole}
    wants_targets = load.ttft_target_s is not None or load.tpot_target_s is not None
    n_good = sum(is_good(request, load) for request in level.requests) if wants_targets and level.requests else None
    pieces = [np.diff(request.stamps_s) for request in whole if tpots[id(request)] is not None]
    return LevelFigures(
        n_requests=len(level.requests),
        n_whole=len(whole),
        errors=dict(Counter(request.error for request in level.requests if request.error).most_common()),
        requests_per_s=len(whole) / seconds if whole else None,
        tokens_per_s=sum(request.n_generated for request in whole) / seconds if whole else None,
        counted=all(request.counted for request in whole),
        ttft=_quantiles([ttft_s(request) for request in whole]),
        tpot=_quantiles([tpot for tpot in tpots.values() if tpot is not None]),
        itl=_quantiles(np.concatenate(pieces).tolist() if pieces else []),
        end_to_end=_quantiles([request.ended_s - request.due_s for request in whole]),
        n_burst=sum(tpots[id(request)] is None and request.n_generated > 1 for request in whole),
        good_share=None if n_good is None else n_good / len(level.requests),
        good_per_s=None if n_good is None else n_good / seconds,
        n_prompt=_median([request.n_prompt for request in whole if request.n_prompt is not None]),
        n_generated=_median([request.n_generated for request in whole]),
    )


def _median(values: Sequence[int]) -> float | None:
    return float(np.median(values)) if values else None


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    p50 = quantile(values, 0.5)
    return None if p50 is None else Quantiles(p50, quantile(values, 0.95), quantile(values, 0.99))
