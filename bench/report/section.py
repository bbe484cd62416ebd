"""A table as text cells, the one form that the terminal, Markdown and HTML all show; and how numbers are written in it."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.bench.figures import Interval
from edgelm.bench.record import Measurement, Phase

NOTHING = "–"


@dataclass(frozen=True)
class Section:
    """A table, a remark, or both.

    Attributes:
        title: what it shows.
        columns: headings; rows: cells, as many as there are headings.
        n_names: leading columns that are names rather than numbers.
        remark: a sentence below it; all there is where nothing was measured.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    n_names: int = 1
    remark: str = ""


def number(value: float | None) -> str:
    """About three significant digits, for people."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return "0" if value == 0 else f"{value:#.3g}"


def percent(value: float | None) -> str:
    """A share as per cent."""
    return NOTHING if value is None else f"{number(value * 100)}%"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, without the unit."""
    return NOTHING if seconds is None else number(seconds * 1e3)


def megabytes(n_bytes: float | None) -> str:
    """Bytes as MB (10^6), without the unit."""
    return NOTHING if n_bytes is None else number(n_bytes / 1e6)


def spread(interval: Interval) -> str:
    """The interval's ends; of too few samples there are none."""
    return NOTHING if interval.low is None or interval.high is None else f"{number(interval.low)} to {number(interval.high)}"


def ratio(interval: Interval) -> str:
    """A ratio and its interval, with as many digits as tell one from the other."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2f}"
    digits = 3 if interval.high - interval.low < 0.05 else 2
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def case_name(phase: Phase, n_prompt: int, n_generate: int) -> str:
    """ "prefill 512", "decode 128", "both 512+128"."""
    tokens = {"prefill": f"{n_prompt}", "decode": f"{n_generate}", "both": f"{n_prompt}+{n_generate}"}
    return f"{phase} {tokens[phase]}"


def names(measurement: Measurement) -> tuple[str, str, str, str]:
    """The cells that name a measurement: threads, test, depth, engine (marked where it is not complete)."""
    mark = "" if measurement.state == "complete" else f" ({measurement.state})"
    case = case_name(measurement.phase, measurement.n_prompt, measurement.n_generate)
    return str(measurement.n_threads), case, str(measurement.depth), measurement.engine + mark


NAMES = ("threads", "test", "depth", "engine")
