from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench_records import MACHINE, MODEL, load_record, run_record, sustain_record

from edgelm.bench.record import Conditions, Machine, Record
from edgelm.bench.report.doubts import doubts

QUIET = run_record(("cpu",), (2,), depths=(0,), machine=replace(MACHINE, virtual="", governor="performance"), settings={"within": "0.5"})


def with_trials(record: Record, **fields: Any) -> Record:
    found = (replace(m, trials=tuple(replace(t, **fields) for t in m.trials)) for m in record.measurements)
    return replace(record, measurements=tuple(found))


def test_a_quiet_machine_leaves_no_doubt() -> None:
    assert doubts(QUIET) == ()


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (replace(QUIET.machine, virtual="kvm"), "virtual machine or container (kvm)"),
        (replace(QUIET.machine, on_battery=True), "on battery"),
        (replace(QUIET.machine, n_cores=1), "2 threads shared 1 core"),
        (replace(QUIET.machine, governor="powersave"), "governor was powersave"),
    ],
)
def test_the_machine_can_cast_doubt(machine: Machine, words: str) -> None:
    (note,) = doubts(replace(QUIET, machine=machine))
    assert words in note


def test_what_is_not_known_is_no_accusation() -> None:
    assert doubts(replace(QUIET, machine=replace(QUIET.machine, virtual=None, governor=None, on_battery=None))) == ()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (replace(QUIET, clock_step_s=-3600.0), "wall clock moved by -3,600 s"),
        (replace(QUIET, state="interrupted", reason="Ctrl-C"), "INTERRUPTED: Ctrl-C"),
        (replace(QUIET, model=replace(MODEL, is_random=True)), "random weights"),
        (replace(QUIET, settings={"within": "0.001"}), "intervals are wider than ±0.100%"),
        (replace(QUIET, settings={"within": "0.1%"}), "intervals are wider than ±0.100%"),
        (with_trials(QUIET, major_faults=2), "page faults in the trials had to wait for the disk"),
        (
            with_trials(QUIET, before=Conditions(0.0, steal_s=1.0), after=Conditions(1.0, steal_s=1.5)),
            "hypervisor gave 9.00 s of this machine's processor time to others within 18.0 s",
        ),
        (
            replace(QUIET, engines=(replace(QUIET.engines[0], state="failed", reason="signal 11"),)),
            "cpu with 2 threads: failed (signal 11)",
        ),
        (replace(QUIET, measurements=tuple(replace(m, trials=m.trials[:2]) for m in QUIET.measurements)), "fewer than 3 trials"),
        (
            replace(QUIET, measurements=(replace(QUIET.measurements[0], energy=None, energy_reason="too short"), *QUIET.measurements[1:])),
            "1 measurement without energy: too short",
        ),
    ],
)
def test_the_run_can_cast_doubt(record: Record, words: str) -> None:
    assert words in "\n".join(doubts(record))


def test_a_falling_clock_is_noticed() -> None:
    slow = [
        replace(m, trials=tuple(replace(t, after=Conditions(t.stamps_s[-1], mhz=3400 - 100 * n)) for t in m.trials))
        for n, m in enumerate(QUIET.measurements * 3)
    ]
    assert "clock fell from" in "\n".join(doubts(replace(QUIET, measurements=tuple(slow))))


def test_load_and_sustain_can_cast_doubt() -> None:
    record = load_record()
    assert record.load is not None
    levels = (replace(record.load.levels[0], state="interrupted", reason="Ctrl-C"), *record.load.levels[1:])
    assert "1 at once: interrupted (Ctrl-C)" in "\n".join(doubts(replace(record, load=replace(record.load, levels=levels))))
    assert "THROTTLED" in "\n".join(doubts(sustain_record()))
    (sustain,) = sustain_record().sustain
    assert sustain.energy is not None
    gross = replace(sustain, energy=replace(sustain.energy, net_j=None), energy_reason="no rest before")
    assert "1 measurement without net energy: no rest before." in doubts(replace(sustain_record(), sustain=(gross,)))
    assert "THROTTLED" not in "\n".join(doubts(sustain_record(throttled=False)))
