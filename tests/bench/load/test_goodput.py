"""Figures of a level, against hand arithmetic."""

from __future__ import annotations

import pytest

from edgelm.bench.load.goodput import level_figures, quantile, tpot_s
from edgelm.bench.load.notes import level_notes
from edgelm.bench.record import Load, LoadLevel, Request, Window


def answer(due: float, first: float, gap: float, n: int, late: float = 0.0, **changes: object) -> Request:
    stamps = tuple(due + first + i * gap for i in range(n))
    fields = {"due_s": due, "sent_s": due + late, "stamps_s": stamps, "ended_s": stamps[-1] + 0.1, "n_prompt": 9, "n_generated": n}
    return Request(**(fields | changes))


def failed(due: float, error: str, stamps: tuple[float, ...] = ()) -> Request:
    return Request(due, due, stamps, due + 99, n_generated=len(stamps), counted=False, error=error)


def load(ttft: float | None = None, tpot: float | None = None, n_generate: int = 11) -> Load:
    return Load("http://host/v1", "m", 9, n_generate, ttft, tpot, ())


def level(*requests: Request, rate: float | None = None, seconds: float = 10.0) -> LoadLevel:
    return LoadLevel(None if rate else 2, rate, Window(0.0, seconds), requests)


def test_figures_of_whole_answers() -> None:
    figures = level_figures(level(answer(0, 0.5, 0.1, 11), answer(1, 1.5, 0.2, 11), answer(2, 2.5, 0.3, 11)), load())
    assert (figures.n_requests, figures.n_whole, dict(figures.errors)) == (3, 3, {})
    assert figures.ttft.p50 == pytest.approx(1.5)
    assert figures.tpot.p50 == pytest.approx(0.2)
    assert figures.itl.p50 == pytest.approx(0.2)
    assert figures.end_to_end.p50 == pytest.approx(1.5 + 10 * 0.2 + 0.1)
    assert figures.requests_per_s == pytest.approx(0.3)
    assert figures.tokens_per_s == pytest.approx(3.3)
    assert (figures.ttft.p95, figures.ttft.p99) == (None, None)
    assert figures.itl.p95 == pytest.approx(0.3)
    assert (figures.good_share, figures.good_per_s) == (None, None)
    assert (figures.n_prompt, figures.n_generated) == (9, 11)


def test_goodput_counts_failed_requests_as_not_good() -> None:
    requests = [answer(0, 0.5, 0.1, 11), answer(1, 1.5, 0.1, 11), answer(2, 0.5, 0.3, 11), failed(3, "HTTP 500")]
    assert level_figures(level(*requests), load(ttft=1.0, tpot=0.2)).good_share == pytest.approx(0.25)
    assert level_figures(level(*requests), load(ttft=1.0)).good_share == pytest.approx(0.5)
    assert level_figures(level(*requests), load(tpot=0.2)).good_share == pytest.approx(0.5)
    assert level_figures(level(*requests), load(ttft=1.0)).good_per_s == pytest.approx(0.2)


def test_a_failed_request_is_in_no_latency_and_no_speed() -> None:
    good = [answer(i, 0.5, 0.1, 11) for i in range(3)]
    bad = [failed(0, "timeout in mid-stream", (50.0, 60.0)), failed(1, "HTTP 500"), failed(2, "HTTP 500")]
    alone, mixed = level_figures(level(*good), load()), level_figures(level(*good, *bad), load())
    for name in ("ttft", "tpot", "itl", "end_to_end", "tokens_per_s", "requests_per_s", "counted"):
        assert getattr(alone, name) == getattr(mixed, name), name
    assert dict(mixed.errors) == {"HTTP 500": 2, "timeout in mid-stream": 1}
    assert (mixed.n_requests, mixed.n_whole) == (6, 3)


def test_nothing_but_failures_has_no_figures() -> None:
    figures = level_figures(level(failed(0, "HTTP 500"), failed(1, "HTTP 500")), load(ttft=1.0))
    assert figures.ttft is figures.tpot is figures.itl is figures.end_to_end is figures.tokens_per_s is figures.requests_per_s is None
    assert figures.good_share == 0
    assert level_notes(load(), level(failed(0, "HTTP 500"), failed(1, "HTTP 500"))) == ("every request failed: 2 times HTTP 500",)


def test_an_answer_that_came_at_once_has_no_time_per_token() -> None:
    burst = answer(0, 2.0, 0.0, 11)
    figures = level_figures(level(burst, answer(1, 0.5, 0.1, 11)), load(tpot=0.01))
    assert tpot_s(burst) is tpot_s(answer(0, 2.0, 1e-7, 11)) is None
    assert figures.tpot.p50 == pytest.approx(0.1)
    assert figures.itl.p50 == pytest.approx(0.1)
    assert figures.n_burst == 1
    assert any("all at once" in note for note in level_notes(load(), level(burst)))


def test_one_token_has_no_time_per_token_and_is_no_burst() -> None:
    figures = level_figures(level(answer(0, 0.5, 0.1, 1)), load(n_generate=1))
    assert (figures.tpot, figures.n_burst) == (None, 0)
    assert figures.ttft.p50 == pytest.approx(0.5)


@pytest.mark.parametrize("tokens_per_piece", [1, 2, 4])
def test_several_tokens_in_a_piece(tokens_per_piece: int) -> None:
    """32 tokens at 0.05 s each, of which a piece comes as soon as it is full."""
    stamps = tuple(1 + 0.05 * tokens_per_piece * i for i in range(32 // tokens_per_piece))
    assert tpot_s(Request(0, 0, stamps, 9, 9, 32)) == pytest.approx(0.05)


def test_quantiles_need_their_samples() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.5) == 3.0
    assert (quantile(range(19), 0.95), quantile(range(99), 0.99)) == (None, None)
    assert quantile(range(20), 0.95) == pytest.approx(18.05)
    assert quantile(range(101), 0.99) == pytest.approx(99)


@pytest.mark.parametrize(
    ("requests", "rate", "says"),
    [
        ((answer(0, 0.5, 0.1, 4),), None, "answers had 4 tokens in the median, of 11 allowed"),
        ((answer(0.1, 0.5, 0.1, 11, late=0.3),), 1.0, "up to 300 ms after it was due"),
        (tuple(answer(i / 10, i, 0.1, 11) for i in range(1, 13)), 10.0, "answers took 3.1 s at first and 12.1 s at last"),
    ],
)
def test_notes(requests: tuple[Request, ...], rate: float | None, says: str) -> None:
    assert any(says in note for note in level_notes(load(), level(*requests, rate=rate)))


def test_no_notes_on_a_sound_level() -> None:
    assert level_notes(load(), level(*(answer(i, 0.5, 0.1, 11) for i in range(9)))) == ()
    assert level_notes(load(), level(*(answer(i, 0.5, 0.1, 11) for i in range(1, 11)), rate=1.0)) == ()
