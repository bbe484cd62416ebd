"""Whether an engine keeps its quality: the rise of perplexity against what was allowed, and whether the text was long enough to tell."""

from __future__ import annotations

import math

from edgelm.bench.figures import Interval
from edgelm.bench.record import Quality
from edgelm.quant.clustered import clusters, student_t


def perplexity_rise(quality: Quality) -> Interval:
    """By how much the perplexity lies above the reference's, relative, with its 95% interval."""
    reach = student_t(len(clusters(quality.n_tokens, quality.n_window))) * quality.se_log_ratio
    low, high = (math.expm1(quality.log_ratio + sign * reach) for sign in (-1, 1))
    return Interval(math.expm1(quality.log_ratio), low, high)


def quality_name(quality: Quality) -> str:
    """Who predicted, in words; with the model's name where it is not the record's."""
    model = f"{quality.model.name} with " if quality.model else ""
    return f"{model}{quality.engine} {quality.precision}"


def keeps_gate(log_ratio: float, gate: float) -> bool:
    """Whether the perplexity rises by no more than the gate, relative."""
    return log_ratio <= math.log1p(gate)


def is_undecided(quality: Quality) -> bool:
    """Whether the gate lies within the 95% interval of the rise, so that another text might end on its other side."""
    rise = perplexity_rise(quality)
    return quality.gate is not None and rise.low is not None and rise.high is not None and rise.low <= quality.gate < rise.high


def gate_verdict(quality: Quality) -> str:
    """One line for people; "" without a gate."""
    if quality.gate is None:
        return ""
    rise = perplexity_rise(quality)
    verdict = "keeps" if quality.passed else "DOES NOT KEEP"
    doubt = "; the interval has the gate in it, so more text is needed to be sure (--tokens)" if is_undecided(quality) else ""
    return (
        f"{quality_name(quality)} {verdict} the gate of {quality.gate:+.2%}: perplexity {rise.value:+.2%} "
        f"(95% interval {rise.low:+.2%} to {rise.high:+.2%}){doubt}"
    )
