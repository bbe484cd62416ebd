from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bench_records import load_record, run_record, sustain_record

from edgelm.bench.record import Record
from edgelm.bench.record_checks import impossibilities
from edgelm.bench.record_file import decode_record, encode_record
from edgelm.errors import RecordError

RUN = run_record(("cpu",), (2,), depths=(0,), repeat=3)
BARE = run_record(power=False, quality=False, limits=False)
LOAD = load_record((4,), 8)
SUSTAIN = sustain_record(4)


@pytest.mark.parametrize("record", [RUN, LOAD, SUSTAIN, BARE])
def test_a_real_record_says_nothing_impossible_and_comes_back(record: Record) -> None:
    assert list(impossibilities(record)) == []
    assert decode_record(encode_record(record), "it") == record


def pair(**changes: float | None) -> dict[str, float | None]:
    """Of the first quality beside itself."""
    return {"log_ratio": 0.0, "se_log_ratio": 0.0, "kl_ratio": 1.0, "se_kl_ratio": 0.0, **changes}


def _trial(fields: Any) -> Any:
    return fields["measurements"][0]["trials"][0]


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        (RUN, lambda r: r.update(id="x"), "12 hexadecimal"),
        (RUN, lambda r: r.update(started="yesterday"), "ISO 8601"),
        (RUN, lambda r: r.update(started="2025-11-22T18:30:00"), "offset from UTC"),
        (RUN, lambda r: r.update(seconds=-1.0), "before it began"),
        (RUN, lambda r: _trial(r)["stamps_s"].reverse(), "measurements.0: trials.0: stamps_s: time runs backwards"),
        (RUN, lambda r: _trial(r).update(start_s=1e6), "time runs backwards"),
        (RUN, lambda r: _trial(r).update(stamps_s=[]), "0 of 32 timestamps"),
        (RUN, lambda r: _trial(r)["stamps_s"].append(1e6), "33 of 32 timestamps"),
        (RUN, lambda r: _trial(r).update(stamps_s=32 * [_trial(r)["start_s"]]), "took no time"),
        (RUN, lambda r: _trial(r)["stamps_s"].pop(5), "31 of 32 timestamps"),
        (BARE, lambda r: r["measurements"][0]["trials"].append(_trial(r)), "two trials at the same time"),
        (RUN, lambda r: r["measurements"].append(r["measurements"][0]), "the same one twice"),
        (RUN, lambda r: r["measurements"][0].update(n_threads=3), "none of the record's engines"),
        (RUN, lambda r: r.update(seconds=0.1), "outside of the run"),
        (RUN, lambda r: r["measurements"][0]["limit"].update(limit_tokens_per_s=1e5), "not the speed over the limit"),
        (RUN, lambda r: _trial(r).update(minor_faults=-1), "below 0"),
        (RUN, lambda r: _trial(r).update(start_s="1.5"), "valid number"),
        (RUN, lambda r: r["measurements"][0].update(n_threads=0), "too small"),
        (RUN, lambda r: r["measurements"][0]["energy"].update(gross_j=-1.0), "below 0"),
        (RUN, lambda r: r["measurements"][0]["energy"].update(net_j=1e9), "more than gross"),
        (RUN, lambda r: r["measurements"][0]["energy"].update(meter="wall"), "none of the record's meters"),
        (RUN, lambda r: r["measurements"][0]["limit"].update(fraction=1.01), "of what is possible"),
        (RUN, lambda r: r["limits"][0].update(bytes_per_s=0.0), "0 or less"),
        (RUN, lambda r: r["power"].update(headline="wall"), "none of the record's meters"),
        (RUN, lambda r: r["power"]["traces"][0]["times_s"].pop(), "times, but"),
        (RUN, lambda r: r["power"]["traces"][0]["values"].reverse(), "energy runs backwards"),
        (RUN, lambda r: r["quality"][0].update(top_agreement=1.5), "no share"),
        (RUN, lambda r: r["quality"][0].update(passed=False), "contradicts the gate"),
        (RUN, lambda r: r["quality"][0].update(mean_kl=-0.1), "below 0"),
        (RUN, lambda r: r["quality"][0].update(beside_first=pair(se_log_ratio=-1.0)), "below 0"),
        (RUN, lambda r: r["quality"][0].update(beside_first=pair(log_ratio=0.5)), "not that of the two perplexities"),
        (RUN, lambda r: r["quality"][0].update(beside_first=pair(kl_ratio=2.0)), "not that of the two divergences"),
        (RUN, lambda r: r["quality"][0].update(beside_first=pair(kl_ratio=None)), "without its error"),
        (RUN, lambda r: r["engines"][0]["openings"][0].update(ready_s=99.0), "follow each other"),
        (LOAD, lambda r: r.update(kind="run"), "another command"),
        (LOAD, lambda r: r["load"]["levels"][0].update(rate=1.0), "either concurrency or rate"),
        (LOAD, lambda r: r["load"]["levels"][0]["requests"][0].update(ended_s=0.0), "time runs backwards"),
        (LOAD, lambda r: r["load"]["levels"][0]["requests"][0].update(stamps_s=[]), "without text"),
        (SUSTAIN, lambda r: r["sustain"][0]["stamps_s"].reverse(), "time runs backwards"),
        (SUSTAIN, lambda r: r["sustain"][0].update(ratio_interval=[1.0, 0.5]), "wrong way round"),
        (SUSTAIN, lambda r: r["sustain"][0].update(steady=0.0), "speed of 0"),
    ],
)
def test_what_cannot_be_is_refused(record: Record, change: Callable[[Any], object], message: str) -> None:
    fields = json.loads(encode_record(record))
    change(fields)
    with pytest.raises(RecordError, match=message):
        decode_record(json.dumps(fields), "it")


def test_a_meter_that_admits_a_problem_may_say_anything() -> None:
    fields = json.loads(encode_record(RUN))
    fields["power"]["traces"][0]["values"].reverse()
    fields["power"]["traces"][0]["problem"] = "its counter went backwards"
    assert decode_record(json.dumps(fields), "it").power.traces[0].problem
