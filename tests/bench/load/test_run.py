"""A whole load test: its record, its settings, its states."""

from __future__ import annotations

from pathlib import Path

import pytest
from power_machine import DrawnMeter
from scripted_server import LATE_S, N_TOKENS, ScriptedServer

from edgelm.bench.energy_figures import level_shares
from edgelm.bench.load.client import Server
from edgelm.bench.load.goodput import level_figures
from edgelm.bench.load.run import LoadTest, is_this_machine, measure_load
from edgelm.bench.power.session import PowerWishes
from edgelm.bench.record import Record
from edgelm.bench.record_file import encode_record, read_record, write_record
from edgelm.errors import InvalidRequestError, MeasurementError


def _measure(url: str, script: str = "good", **changes: object) -> Record:
    fields = {"concurrency": (1, 2), "n_prompt": 4, "n_requests": 4} | changes
    return measure_load(
        LoadTest(Server(url, model=script, timeout_s=20, key="sk-secret"), **fields), lambda _text, _done: None, PowerWishes(idle_s=0)
    )


def test_a_record_of_levels(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        record = _measure(server.url, ttft_target_s=LATE_S / 2)
    write_record(tmp_path / "load.json", record)
    assert read_record(tmp_path / "load.json") == record
    assert (record.kind, record.state, len(record.id)) == ("load", "complete", 12)
    assert [level.concurrency for level in record.load.levels] == [1, 2]
    assert record.load.levels[0].span.end_s <= record.load.levels[1].span.start_s
    assert record.load.levels[0].before.time_s <= record.load.levels[0].after.time_s
    assert all(len(level.requests) == 4 for level in record.load.levels)
    assert all(level.energy is not None or level.energy_reason for level in record.load.levels)
    assert record.settings["url"] == record.load.url == server.url + "/v1"
    assert record.settings["has_key"] == "True"
    assert "sk-secret" not in encode_record(record)


def test_goodput_of_a_server_that_is_late_half_of_the_time() -> None:
    """The late answers begin after 1.5 s at the soonest; the others have 0.7 s of time in hand."""
    with ScriptedServer() as server:
        record = _measure(server.url, "good,good,late", concurrency=(4,), n_requests=4, n_warmup=2, ttft_target_s=LATE_S / 2)
    (level,) = record.load.levels  # two warm-ups took "good" twice; then late, good, good, late
    figures = level_figures(level, record.load)
    assert figures.good_share == pytest.approx(0.5)
    assert figures.n_generated == N_TOKENS
    assert sorted(request.stamps_s[0] - request.due_s >= LATE_S for request in level.requests) == [False, False, True, True]


def test_a_known_power_is_found_in_joules_per_token() -> None:
    meter = DrawnMeter(5.0)

    def work_or_rest(text: str, _done: float) -> None:
        meter.draw(5.0 if text == "resting" else 25.0)

    with ScriptedServer() as server:
        test = LoadTest(Server(server.url, model="late", timeout_s=20), concurrency=(2,), n_prompt=4, n_requests=2, n_warmup=1)
        record = measure_load(test, work_or_rest, PowerWishes(found=[meter], idle_s=1.0))
    (level,) = record.load.levels
    assert level.energy is not None, level.energy_reason
    request, token = level_shares(level)
    seconds = level.span.end_s - level.span.start_s
    assert (request.watts, request.gross_j) == (pytest.approx(25, rel=0.05), pytest.approx(25 * seconds / 2, rel=0.05))
    assert (token.unit, token.gross_j) == ("generated token", pytest.approx(request.gross_j / N_TOKENS))
    assert record.power.idle_w == (pytest.approx(5, rel=0.1), pytest.approx(5, rel=0.1))
    assert token.net_j == pytest.approx(token.gross_j * 20 / 25, rel=0.05)


def test_rates() -> None:
    with ScriptedServer() as server:
        record = _measure(server.url, concurrency=(), rates=(50.0, 100.0), n_requests=5)
    assert [(level.concurrency, level.rate, len(level.requests)) for level in record.load.levels] == [(None, 50.0, 5), (None, 100.0, 5)]


def test_every_request_fails() -> None:
    with ScriptedServer() as server:
        record = _measure(server.url, "http_500")
    assert record.state == "failed"
    assert "every request failed: 4 times HTTP 500" in record.reason
    assert [level.state for level in record.load.levels] == ["failed", "failed"]
    assert "sk-secret" not in encode_record(record)


def test_a_server_elsewhere_has_no_energy_here() -> None:
    with ScriptedServer() as server:
        record = _measure(server.url, local=False)
    assert record.load.levels[0].energy is None
    assert "another machine" in record.load.levels[0].energy_reason


def test_nobody_there() -> None:
    with pytest.raises(MeasurementError, match="start the server"):
        _measure("http://127.0.0.1:1")


def test_which_addresses_are_here() -> None:
    assert is_this_machine("http://127.0.0.1:8080")
    assert is_this_machine("http://[::1]:8080/v1")
    assert not is_this_machine("http://192.0.2.1:8080")  # of documents (RFC 5737), no machine's


@pytest.mark.parametrize(
    "changes",
    [
        {"concurrency": ()},
        {"rates": (1.0,)},
        {"concurrency": (0,)},
        {"concurrency": (), "rates": (-1.0,)},
        {"concurrency": (), "rates": (float("nan"),)},
        {"seconds": 0.0},
        {"n_requests": 0},
        {"n_warmup": 0},
        {"n_prompt": 0},
        {"ttft_target_s": -1.0},
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        _measure("http://127.0.0.1:1", **changes)


def test_how_long_a_level_lasts() -> None:
    test = LoadTest(Server("http://host"), concurrency=(1,))
    assert [test.bounds(n).n_requests for n in (1, 2, 16, None)] == [16, 16, 128, 64]
    assert LoadTest(Server("http://host"), concurrency=(1,), seconds=3.0).bounds(1).n_requests is None
