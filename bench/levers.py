"""What could bring a device to a wished speed that it does not reach: each lever with its arithmetic, and whether it suffices alone.

All figures are upper bounds. What a lever costs in quality, or in the time of a draft model, is not known here and not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgelm.bench.plan import Plan, make_plan, shape_model
from edgelm.bench.shapes import SHAPES
from edgelm.errors import InvalidRequestError
from edgelm.quant.blocks import FORMATS

MOST_SPECULATION = 6.5
"""By how much speculation has sped a model up at most where that was published: EAGLE-3 (Li et al. 2025, arXiv 2503.01840)."""


@dataclass(frozen=True)
class Lever:
    """One way to close the gap.

    Attributes:
        name: in a word or two.
        needed: the figure that the target asks of it, in its unit; None where no figure would do.
        unit: of it.
        suffices: whether it closes the gap by itself, at best.
        arithmetic: how that follows, for people.
    """

    name: str
    needed: float | None
    unit: str
    suffices: bool
    arithmetic: str


def find_levers(plan: Plan) -> list[Lever]:
    """All levers, in the order in which they are usually tried; none where the target is within reach."""
    return [] if plan.reach.gap <= 1 else [_fewer_bits(plan), _speculation(plan), _batching(plan), _smaller_model(plan)]


def bits(format_name: str) -> float:
    """Bits per weight of a number format, its scales included."""
    block = FORMATS[format_name]
    return 8 * block.n_bytes / block.n_elements


def rate(tokens_per_s: float) -> str:
    """A speed in three digits."""
    return f"{tokens_per_s:,.0f} tokens/s" if tokens_per_s >= 100 else f"{tokens_per_s:.3g} tokens/s"


def _arithmetic_stops(plan: Plan) -> str:
    """Why no saving of bytes helps: the multiplications alone take too long. "" where they do not, or that is not known."""
    allowed, peak = plan.reach.arithmetic_tokens_per_s, plan.device.macs_per_s
    if allowed is None or peak is None or allowed >= plan.target.tokens_per_s:
        return ""
    return f"the multiplications alone ({plan.need.macs_per_token / 1e9:.3g} G per token, at {peak / 1e9:.4g} G/s) allow {rate(allowed)}"


def _fewer_bits(plan: Plan) -> Lever:
    name, unit = "fewer bits", "bits per weight"
    kv_bytes, n_weights = plan.need.kv_bytes_per_token, plan.model.cost.n_weights
    budget = plan.device.bytes_per_s / plan.target.tokens_per_s
    if budget <= kv_bytes:
        text = f"{budget / 1e6:,.0f} MB per token can be read, but the KV cache alone takes {kv_bytes / 1e6:,.0f} MB"
        return Lever(name, None, unit, False, text)
    wanted = 8 * (budget - kv_bytes) / n_weights
    less_kv = f" less {kv_bytes / 1e6:,.0f} MB of KV cache" if kv_bytes > budget / 100 else ""
    text = (
        f"{plan.device.bytes_per_s / 1e9:.4g} GB/s / {plan.target.tokens_per_s:g} = {budget / 1e9:.3g} GB per token{less_kv}, over "
        f"{n_weights / 1e9:.3g} G weights: {wanted:.2f} bits per weight, where it has {8 * plan.model.weight_bytes / n_weights:.2f}"
    )
    if stop := _arithmetic_stops(plan):
        return Lever(name, wanted, unit, False, f"{text}; and {stop}")
    fitting = [name for name, block in FORMATS.items() if all(n % block.n_elements == 0 for n in plan.model.row_lengths)]
    if small_enough := [name for name in fitting if bits(name) <= wanted]:
        chosen = max(small_enough, key=bits)
        return Lever(name, wanted, unit, True, f"{text}; {chosen} has {bits(chosen):.2f}")
    smallest = min(fitting, key=bits)
    return Lever(name, wanted, unit, False, f"{text}; the smallest format here whose blocks fit, {smallest}, has {bits(smallest):.2f}")


def _speculation(plan: Plan) -> Lever:
    """Drafted tokens are checked together (Leviathan et al. 2023, arXiv 2211.17192): a step reads weights and KV cache once for all."""
    name, unit = "speculation", "tokens per step"
    steps = plan.reach.memory_tokens_per_s
    wanted = max(1.0, plan.target.tokens_per_s / steps)
    text = (
        f"a step reads the weights once, however many tokens it checks; {steps:.3g} steps/s must each give {wanted:.2f} tokens, "
        f"{wanted - 1:.2f} of them drafted and accepted"
    )
    if stop := _arithmetic_stops(plan):
        return Lever(name, wanted, unit, False, f"{text}; but {stop}")
    if wanted > MOST_SPECULATION:
        return Lever(
            name, wanted, unit, False, f"{text}; the most that was published is {MOST_SPECULATION:g} times (EAGLE-3, arXiv 2503.01840)"
        )
    if plan.reach.arithmetic_tokens_per_s is None:
        limit = "how many can be checked in a step is not known, because the device's multiplications are not"
    else:
        most = plan.reach.arithmetic_tokens_per_s / steps
        limit = f"the multiplications allow {most:.1f} checked tokens per step, so {wanted / most:.0%} or more of them must be accepted"
    return Lever(name, wanted, unit, True, f"{text}; {limit}; the draft's own time comes on top")


def _batching(plan: Plan) -> Lever:
    """n sequences share one reading of the weights; each reads its own KV cache."""
    name, unit = "batching", "sequences"
    need, wished, bandwidth = plan.need, plan.target.tokens_per_s, plan.device.bytes_per_s
    alone = f"one sequence stays at {rate(plan.reach.tokens_per_s)}"
    kv_rate = need.kv_bytes_per_token * wished
    if stop := _arithmetic_stops(plan):
        return Lever(name, None, unit, False, f"{stop} in all, however many sequences; {alone}")
    if kv_rate >= bandwidth:
        return Lever(name, None, unit, False, f"the KV caches alone take {kv_rate / 1e9:.4g} GB/s at {wished:g} tokens/s in all; {alone}")
    n = math.ceil(need.weight_bytes_per_token * wished / (bandwidth - kv_rate))
    each = bandwidth / (need.weight_bytes_per_token + n * need.kv_bytes_per_token)
    text = f"{n} together give {wished:g} tokens/s in all, at most {rate(each)} for each: throughput for several users, but {alone}"
    return Lever(name, n, unit, False, text)


def _smaller_model(plan: Plan) -> Lever:
    name, unit = "smaller model", "weights per token"
    fitting: list[Plan] = []
    for shape in SHAPES:
        try:
            other = make_plan(shape_model(shape, plan.model.format), plan.target, plan.device)
        except InvalidRequestError:  # its rows are not whole blocks of this format
            continue
        if other.reach.gap <= 1 and other.model.cost.n_weights < plan.model.cost.n_weights:
            fitting.append(other)
    if not fitting:
        return Lever(name, None, unit, False, f"none of the shapes that edgebench knows is small enough in {plan.model.format}")
    best = max(fitting, key=lambda other: other.model.cost.n_weights)
    text = (
        f"{best.model.name} in {best.model.format}: {best.need.bytes_per_token / 1e9:.3g} GB per token, "
        f"at most {rate(best.reach.tokens_per_s)}; another model gives other answers, so compare their quality"
    )
    return Lever(name, best.model.cost.n_weights, unit, True, text)
