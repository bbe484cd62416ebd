from __future__ import annotations

from dataclasses import replace

import pytest
from bench_records import load_record, run_record, sustain_record

from edgelm.bench.energy_figures import level_shares, measurement_share, sustain_share
from edgelm.bench.record import Energy, Measurement, Phase, Trial

ENERGY = Energy("wall", "measured", 2.0, 30.0, 10.0, 0.02)


def measurement(phase: Phase, n_prompt: int, stamps: tuple[float, ...]) -> Measurement:
    trials = (Trial(0.0, stamps), Trial(2.0, tuple(stamp + 2 for stamp in stamps)))
    n_generate = 0 if phase == "prefill" else len(stamps)
    return Measurement("cpu", 1, phase, n_prompt, n_generate, 0, trials, energy=ENERGY)


@pytest.mark.parametrize(
    ("measured", "unit", "gross_j", "tokens_per_j"),
    [
        (measurement("decode", 0, (0.2, 0.4, 0.6, 0.8, 1.0)), "generated token", 3.0, 10 / 30),
        (measurement("prefill", 100, (1.0,)), "prompt token", 0.15, 200 / 30),
        (measurement("both", 100, (0.5, 0.6, 0.7, 0.8, 1.0)), "request", 15.0, 210 / 30),
    ],
)
def test_energy_per_unit_of_work(measured: Measurement, unit: str, gross_j: float, tokens_per_j: float) -> None:
    share = measurement_share(measured)
    assert share is not None
    assert share.unit == unit
    assert share.gross_j == pytest.approx(gross_j)
    assert share.net_j == pytest.approx(gross_j / 3)
    assert share.tokens_per_j == pytest.approx(tokens_per_j)
    assert (share.watts, share.net_watts, share.uncertainty) == (15.0, 5.0, 0.02)


def test_without_idle_there_is_no_net_figure_and_without_energy_none_at_all() -> None:
    measured = measurement("prefill", 100, (1.0,))
    share = measurement_share(replace(measured, energy=replace(ENERGY, net_j=None)))
    assert share is not None
    assert (share.net_j, share.net_watts) == (None, None)
    assert measurement_share(replace(measured, energy=None)) is None
    assert measurement_share(replace(measured, trials=())) is None


def test_failed_requests_count_for_nothing() -> None:
    record = load_record((16,), 24)
    assert record.load is not None
    level = replace(record.load.levels[0], energy=ENERGY)
    request, token = level_shares(level)
    assert request.gross_j == pytest.approx(30 / 23)
    assert token.gross_j == pytest.approx(30 / (23 * 32))
    assert level_shares(replace(level, requests=())) == ()


def test_pieces_of_text_are_no_tokens() -> None:
    record = load_record((16,), 24)
    assert record.load is not None
    level = record.load.levels[0]
    level = replace(level, energy=ENERGY, requests=tuple(replace(request, counted=False) for request in level.requests))
    request, piece = level_shares(level)
    assert (request.tokens_per_j, piece.unit, piece.tokens_per_j) == (None, "piece of text", None)
    assert piece.gross_j == pytest.approx(30 / (23 * 32))


def test_a_long_run_counts_every_token() -> None:
    sustain = sustain_record(3).sustain[0]
    share = sustain_share(sustain)
    assert share is not None
    assert sustain.energy is not None
    assert share.gross_j == pytest.approx(sustain.energy.gross_j / len(sustain.stamps_s))
    assert measurement_share(run_record(power=False).measurements[0]) is None
