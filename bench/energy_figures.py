"""What a token and a request cost: energy over what was done with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgelm.bench.record import Energy, LoadLevel, Measurement, Sustain

Unit = Literal["generated token", "prompt token", "request", "piece of text"]


@dataclass(frozen=True)
class EnergyShare:
    """Energy of one unit of work.

    Attributes:
        unit: what was done.
        gross_j: joules per unit.
        net_j: without what the idle machine takes; None if idle was not measured.
        watts, net_watts: mean power meanwhile.
        tokens_per_j: of gross energy; prompt and generated tokens both count where both were computed. None of a request without tokens.
        uncertainty: relative, of gross_j; None if not known.
    """

    unit: Unit
    gross_j: float
    net_j: float | None
    watts: float
    net_watts: float | None
    tokens_per_j: float | None
    uncertainty: float | None


def measurement_share(measurement: Measurement) -> EnergyShare | None:
    """J per prompt token (prefill), per generated token (decode) or per request (both); None without energy or trials."""
    energy, trials = measurement.energy, measurement.trials
    if energy is None or not trials:
        return None
    n_generated = sum(len(trial.stamps_s) for trial in trials)
    if measurement.phase == "decode":
        return _share(energy, "generated token", n_generated, n_generated)
    n_prompt = measurement.n_prompt * len(trials)
    if measurement.phase == "prefill":
        return _share(energy, "prompt token", n_prompt, n_prompt)
    return _share(energy, "request", len(trials), n_prompt + n_generated)


def level_shares(level: LoadLevel) -> tuple[EnergyShare, ...]:
    """J per answered request and per generated token of a level of load; failed requests cost too, but count for nothing.

    Where the server does not count tokens, pieces of text take their place, and tokens per joule are not known.
    """
    answered = [request for request in level.requests if not request.error]
    n_generated = sum(request.n_generated for request in answered)
    is_counted = all(request.counted for request in answered)
    n_tokens = n_generated if is_counted else 0
    shares = (
        _share(level.energy, "request", len(answered), n_tokens),
        _share(level.energy, "generated token" if is_counted else "piece of text", n_generated, n_tokens),
    )
    return tuple(share for share in shares if share is not None)


def sustain_share(sustain: Sustain) -> EnergyShare | None:
    """J per generated token of a long run; None without energy."""
    return _share(sustain.energy, "generated token", len(sustain.stamps_s), len(sustain.stamps_s))


def _share(energy: Energy | None, unit: Unit, n_units: int, n_tokens: int) -> EnergyShare | None:
    if energy is None or n_units == 0 or energy.seconds <= 0:
        return None
    net = energy.net_j
    return EnergyShare(
        unit=unit,
        gross_j=energy.gross_j / n_units,
        net_j=None if net is None else net / n_units,
        watts=energy.gross_j / energy.seconds,
        net_watts=None if net is None else net / energy.seconds,
        tokens_per_j=n_tokens / energy.gross_j if n_tokens and energy.gross_j > 0 else None,
        uncertainty=energy.uncertainty,
    )
