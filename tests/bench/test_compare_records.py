from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench_records import MACHINE, MODEL, load_record, run_record, sustain_record

from edgelm.bench.compare_records import Comparison, compare_records
from edgelm.bench.compare_samples import Sample, ratio
from edgelm.bench.record import Power, Record
from edgelm.errors import InvalidRequestError


def small(**changed: Any) -> Record:
    return run_record(("cpu", "onnx"), (2,), depths=(0,), **changed)


def verdicts(comparison: Comparison) -> set[str]:
    return {change.verdict for change in comparison.changes}


def test_a_slower_record_is_seen_and_fails_the_gate() -> None:
    comparison = compare_records(small(seed=1), small(seed=2, scale=0.85), gate=0.05)
    assert verdicts(comparison) == {"slower"}
    assert len(comparison.changes) == 6
    assert len(comparison.failures) == 6
    assert all(change.ratio and change.ratio.value == pytest.approx(0.85, abs=0.03) for change in comparison.changes)
    faster = compare_records(small(seed=1), small(seed=2, scale=1.2), gate=0.05)
    assert verdicts(faster) == {"faster"}
    assert faster.failures == ()


def test_a_fall_within_the_gate_is_kept_and_without_a_gate_nothing_fails() -> None:
    assert compare_records(small(seed=1), small(seed=2, scale=0.93), gate=0.2).failures == ()
    assert compare_records(small(seed=1), small(seed=2, scale=0.5)).failures == ()


def test_the_same_speed_shows_no_difference() -> None:
    record = small()
    comparison = compare_records(record, record, gate=0.01)
    assert verdicts(comparison) == {"no difference seen"}
    assert comparison.differences == ()
    assert comparison.failures == ()


def test_only_equal_tests_of_equal_engines_are_paired() -> None:
    new = run_record(("onnx", "llamacpp"), (2,), prompts=(512, 1024), depths=(0,))
    comparison = compare_records(small(), new)
    assert {change.name for change in comparison.changes} == {
        "decode 32 at depth 0, onnx, 2 threads",
        "prefill 512 at depth 0, onnx, 2 threads",
        "both 512+32 at depth 0, onnx, 2 threads",
    }
    assert any("cpu" in name for name in comparison.only_old)
    assert any("prefill 1024" in name for name in comparison.only_new)


def test_records_of_different_kinds_or_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="one record is of edgebench run, the other of edgebench load"):
        compare_records(small(), load_record())
    with pytest.raises(InvalidRequestError, match="nothing in common"):
        compare_records(run_record(("cpu",), (1,), quality=False), run_record(("cpu",), (2,), quality=False))


def test_what_differs_is_said() -> None:
    machine = replace(MACHINE, governor="powersave", virtual="", versions={**MACHINE.versions, "numba": "0.63"})
    new = small(machine=machine, model=replace(MODEL, sha256="ef" * 32), settings={"busy": "True"}, state="interrupted", reason="Ctrl-C")
    said = "\n".join(compare_records(small(), new).differences)
    for words in ("MODEL", "efefef", "governor: not known, then powersave", "virtual machine: kvm, then none", "numba: 0.62.1, then 0.63"):
        assert words in said
    assert "setting busy: not known, then True" in said
    assert "the second record is interrupted (Ctrl-C)" in said


def test_a_gate_on_what_cannot_be_judged_is_not_kept() -> None:
    old, new = small(), small(repeat=2)
    comparison = compare_records(old, new, gate=0.05)
    assert verdicts(comparison) == {"cannot be told"}
    assert len(comparison.failures) == 6
    failed = replace(small().measurements[0], trials=(), state="failed", reason="it crashed")
    crashed = replace(old, measurements=(failed, *old.measurements[1:]), state="failed")
    assert compare_records(old, crashed, gate=0.05).failures == (
        "decode 32 at depth 0, cpu, 2 threads, tokens/s: the second record has no figure (failed)",
    )
    lost = replace(old, measurements=old.measurements[1:], state="interrupted")
    assert "not in the second record, which is interrupted" in compare_records(old, lost, gate=0.05).failures[0]
    assert compare_records(old, replace(lost, state="complete"), gate=0.05).failures == ()


def test_a_missed_quality_gate_fails_without_a_speed_gate() -> None:
    new = small()
    new = replace(new, quality=(replace(new.quality[0], log_ratio=0.05, passed=False), *new.quality[1:]))
    comparison = compare_records(small(), new)
    assert comparison.failures == ("quality of cpu int8: perplexity rises by more than the 1.00% that were allowed",)
    assert len(comparison.qualities) == 2


def test_quality_on_another_text_is_not_compared() -> None:
    new = small()
    new = replace(new, quality=tuple(replace(q, text_sha256="00" * 32) for q in new.quality))
    comparison = compare_records(small(), new)
    assert comparison.qualities == ()
    assert "another text" in comparison.remarks[0]


def test_quality_of_several_models_and_windows_is_compared_each_with_its_own() -> None:
    record = small()
    assert record.model
    first, other = record.quality[0], replace(record.model, name="other.gguf")
    several = (first, replace(first, n_window=2048, mean_kl=0.5), replace(first, model=other, mean_kl=0.6))
    comparison = compare_records(replace(record, quality=several), replace(record, quality=several[::-1]))
    assert [(change.old, change.new) for change in comparison.qualities] == [(quality, quality) for quality in several]
    lost = compare_records(replace(record, quality=several), replace(record, quality=several[:1]))
    assert len(lost.qualities) == 1
    assert "another text" in lost.remarks[0]


def test_energy_is_compared_for_the_same_kind_of_meter_only() -> None:
    old, new = small(seed=1), small(seed=2, scale=0.5)
    energies = compare_records(old, new).energies
    assert len(energies) == 6
    assert all(e.ratio == pytest.approx(2, rel=0.05) and e.verdict == "more" for e in energies)
    assert energies[0].meter == "CPU package (vendor model)"
    assert energies[0].uncertainty == pytest.approx(0.06 * 2**0.5)
    wall = replace(new, measurements=tuple(replace(m, energy=replace(m.energy, kind="measured")) for m in new.measurements if m.energy))
    comparison = compare_records(old, wall)
    assert comparison.energies == ()
    assert "CPU package (vendor model), then CPU package (measured)" in comparison.remarks[0]


def test_assumed_watts_are_no_energy() -> None:
    old, new = small(power=False), small(power=False)
    assumed = [replace(record, power=Power(reason="none", assumed_w=15.0)) for record in (old, new)]
    comparison = compare_records(*assumed)
    assert comparison.energies == ()
    assert "none was measured" in comparison.remarks[0]


def test_load_compares_throughput_latency_and_goodput() -> None:
    comparison = compare_records(load_record((1, 4), 40, seed=1), load_record((1, 4), 40, seed=2, scale=0.5), gate=0.1)
    by_figure = {(change.name[:1], change.figure): change for change in comparison.changes}
    speed, wait = by_figure["1", "tokens/s"], by_figure["1", "TTFT p50 s"]
    assert speed.verdict == wait.verdict == "slower"
    assert speed.ratio is not None
    assert wait.ratio is not None
    assert speed.ratio.value == pytest.approx(0.5, rel=0.1)
    assert wait.ratio.value == pytest.approx(2, rel=0.1)
    assert wait.below_gate
    assert ("1", "goodput/s (TTFT 1 s, TPOT 50 ms)") in by_figure
    other = load_record((1, 4), 40)
    assert other.load is not None
    other = replace(other, load=replace(other.load, ttft_target_s=2.0))
    assert not any("goodput" in change.figure for change in compare_records(load_record((1, 4), 40), other).changes)


def test_sustained_speeds_are_compared_in_their_steady_state() -> None:
    comparison = compare_records(sustain_record(6, throttled=False), sustain_record(6), gate=0.1)
    (change,) = comparison.changes
    assert (change.figure, change.verdict, change.below_gate) == ("steady tokens/s", "slower", True)
    assert change.old == pytest.approx(20, rel=0.02)
    assert change.new == pytest.approx(16, rel=0.02)


def test_a_ratio_to_nothing_is_no_number() -> None:
    zero, some = Sample("x", np.zeros(5), "mean"), Sample("x", np.ones(5), "mean")
    assert ratio(some, zero) is None
    mostly_zero = Sample("x", np.array([0, 0, 0, 0, 1.0]), "mean")
    found = ratio(some, mostly_zero)
    assert found is not None
    assert (found.low, found.high) == (None, None)
