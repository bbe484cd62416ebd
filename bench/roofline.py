"""How near a measurement came to what the machine can do: the roofline of Williams, Waterman and Patterson (CACM 52(4), 2009).

A step cannot end before its bytes are read nor before its multiplications are done, so its least time is the longer of the two.

decode   reads all weights and the context's KV cache for each token.
prefill  reads the weights once, and the KV cache once, for all tokens of the prompt together: the least that any engine can do. The output
         layer is computed for the last token alone.
both     is a prefill that gives the first generated token, and a decode for each further one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgelm.bench.figures import speeds
from edgelm.bench.record import EngineRun, Limits, LimitShare, Measurement, Model, TokenCost
from edgelm.bench.token_cost import attention_macs, mean_context
from edgelm.errors import InvalidRequestError

_FLOATS = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True)
class Work:
    """What some tokens that are computed alike take together."""

    n_tokens: int
    n_bytes: float
    n_macs: float

    def seconds(self, limits: Limits, has_int8_limit: bool) -> tuple[float, Literal["memory", "arithmetic"]]:
        """The least time, and what it is made of."""
        memory, arithmetic = self.n_bytes / limits.bytes_per_s, self.n_macs / limits.macs_per_s
        return (arithmetic, "arithmetic") if has_int8_limit and arithmetic > memory else (memory, "memory")


def limit_share(measurement: Measurement, engine: EngineRun, model: Model, limits: Limits) -> LimitShare | None:
    """Share of the limit that the median trial reached; None without a trial, or where the model's sizes are not known.

    Raises:
        InvalidRequestError: the limits are of another number of threads.
    """
    if limits.n_threads != measurement.n_threads:
        raise InvalidRequestError(f"limits of {limits.n_threads} threads say nothing of a measurement with {measurement.n_threads}")
    cost = model.token_cost
    weight_bytes = engine.bytes_per_token or (cost.weight_bytes if cost else None)
    if not measurement.trials or cost is None or weight_bytes is None:
        return None
    parts = _parts(measurement, cost, weight_bytes, engine.kv_bytes_per_token or 0)
    has_int8_limit = engine.precision == "int8" and model.format not in _FLOATS
    times = [part.seconds(limits, has_int8_limit) for part in parts]
    n_tokens = sum(part.n_tokens for part in parts)
    limit = n_tokens / sum(seconds for seconds, _ in times)
    fraction: float | None = float(np.median(speeds(measurement))) / limit
    reason = _obstacle(measurement, engine, model, limits, weight_bytes, has_int8_limit)
    if not reason and fraction is not None and fraction > 1:
        reason = (
            f"the speed is {fraction:.2f} times the limit, so the measured limit or the count of bytes must be wrong: "
            "another process may have slowed the machine when its limits were measured, or a part of the model was read from a cache"
        )
    return LimitShare(
        bound_by=max(times)[1],
        bytes_per_token=sum(part.n_bytes for part in parts) / n_tokens,
        macs_per_token=sum(part.n_macs for part in parts) / n_tokens,
        limit_tokens_per_s=limit,
        fraction=None if reason else fraction,
        reason=reason,
        batch=1 if measurement.phase == "decode" else measurement.n_prompt,
    )


def decode_work(cost: TokenCost, weight_bytes: int, kv_bytes: int, depth: int, n_tokens: int) -> Work:
    """n_tokens tokens one by one, after a context of `depth`. kv_bytes is what one token adds to the KV cache of all layers."""
    context = mean_context(cost, depth, n_tokens)
    return Work(n_tokens, n_tokens * (weight_bytes + kv_bytes * context), n_tokens * (cost.n_weights + attention_macs(cost, context)))


def prefill_work(cost: TokenCost, weight_bytes: int, kv_bytes: int, depth: int, n_tokens: int) -> Work:
    """n_tokens tokens at once, after a context of `depth`."""
    n_layers = cost.n_layers + cost.n_window_layers
    held = (cost.n_layers * depth + cost.n_window_layers * min(depth, cost.window)) / n_layers
    inner = cost.n_weights - cost.n_output_weights
    n_macs = n_tokens * (inner + attention_macs(cost, mean_context(cost, depth, n_tokens))) + cost.n_output_weights
    return Work(n_tokens, weight_bytes + kv_bytes * (held + n_tokens), n_macs)


def _parts(measurement: Measurement, cost: TokenCost, weight_bytes: int, kv_bytes: int) -> Sequence[Work]:
    n_prompt, depth = measurement.n_prompt, measurement.depth
    if measurement.phase == "decode":
        return [decode_work(cost, weight_bytes, kv_bytes, depth, measurement.n_generate)]
    prefill = prefill_work(cost, weight_bytes, kv_bytes, depth, n_prompt)
    if measurement.phase == "prefill":
        return [prefill]
    if measurement.n_generate == 1:
        return [Work(n_prompt + 1, prefill.n_bytes, prefill.n_macs)]
    decode = decode_work(cost, weight_bytes, kv_bytes, depth + n_prompt, measurement.n_generate - 1)
    # the prefill gives the first generated token with it
    return [Work(n_prompt + 1, prefill.n_bytes, prefill.n_macs), decode]


def _obstacle(measurement: Measurement, engine: EngineRun, model: Model, limits: Limits, weight_bytes: int, has_int8_limit: bool) -> str:
    """Why no share of the limit can be told; "" where it can."""
    elsewhere = [name for name, n_nodes in engine.providers.items() if name != "cpu" and n_nodes]
    if elsewhere:
        return f"parts of the model run on {', '.join(elsewhere)}, whose limits were not measured"
    if engine.kv_bytes_per_token is None:
        return "the engine does not say how many bytes its KV cache takes"
    if limits.cache_bytes is not None and weight_bytes <= limits.cache_bytes:
        return (
            f"the weights ({weight_bytes / 1e6:.0f} MB) fit the processor's last-level cache ({limits.cache_bytes / 1e6:.0f} MB), "
            "so memory's speed is not their limit"
        )
    if measurement.phase != "decode" and not has_int8_limit:
        what = f"{model.format} weights are" if model.format in _FLOATS else f"precision {engine.precision or '(not known)'} is"
        return f"{what} not computed in int8, whose peak is what was measured"
    return ""
