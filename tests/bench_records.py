"""Made-up records with realistic figures, for tests of what reads records: reports, history, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelm.bench.record import (
    Conditions,
    Energy,
    EngineRun,
    Limits,
    LimitShare,
    Load,
    LoadLevel,
    Machine,
    Measurement,
    MeterInfo,
    MeterTrace,
    Model,
    Opening,
    Phase,
    Power,
    Quality,
    Record,
    Request,
    Sustain,
    Trial,
    Window,
)

MACHINE = Machine(
    cpu="AMD EPYC 7B13",
    n_cores=2,
    system="Linux 6.1.0",
    python="3.11.2",
    versions={"edgelm": "0.1.0", "numpy": "2.3.1", "numba": "0.62.1", "llama-cpp-python": "0.3.36"},
    governor=None,
    virtual="kvm",
    memory_bytes=24_600_000_000,
)
MODEL = Model("smollm2-135m-q4_1.gguf", 98_570_000, "ab" * 32, format="Q4_1", n_weights=134_400_000, n_weights_per_token=134_400_000)
ENGINES = {"cpu": 1.0, "llamacpp": 0.74, "onnx": 0.52}
"""Speed of each engine over the first's."""

RAPL = MeterInfo("rapl:package-0", "CPU package", "package", "vendor model", "energy", 0.001, 0.05, None, "Intel SDM 15.10")
DRAM = MeterInfo("rapl:dram", "memory", "component", "vendor model", "energy", 0.001, 0.1, None, "Intel SDM 15.10")
NOT_MEASURED = "no power meter answers: no /sys/class/powercap in a virtual machine; measure at the wall with a network plug (--meter)"

_DECODE, _PREFILL = 140.0, 520.0
_BYTES, _MACS = 98.6e6, 134.4e6
_WATTS = {1: 9.0, 2: 15.0}


def run_record(
    engines: Sequence[str] = ("cpu", "llamacpp", "onnx"),
    threads: Sequence[int] = (1, 2),
    prompts: Sequence[int] = (512,),
    depths: Sequence[int] = (0, 1024),
    repeat: int = 6,
    *,
    power: bool = True,
    quality: bool = True,
    limits: bool = True,
    scale: float = 1.0,
    seed: int = 0,
    **changed: Any,
) -> Record:
    """A record of `edgebench run`. `scale` multiplies every speed; `changed` are fields of the record."""
    rng = np.random.default_rng(seed)
    clock = 10.0
    measurements = []
    for n_threads in threads:
        for phase, n_prompt, depth in _cases(prompts, depths):
            for engine in engines:
                speed = ENGINES[engine] * scale * (1 if n_threads == 2 else 0.6) / (1 + depth / 8000)
                trials, clock = _trials(rng, phase, n_prompt, 0 if phase == "prefill" else 32, speed, repeat, clock)
                n_generate = 0 if phase == "prefill" else 32
                measured = Measurement(engine, n_threads, phase, n_prompt, n_generate, depth, trials)
                measured = replace(measured, energy=_energy(measured) if power else None, energy_reason="" if power else "no power meter")
                measurements.append(replace(measured, limit=_share(measured) if limits else None))
    record = Record(
        kind="run",
        id=f"{seed + 0xA1B2C3D4E5F6:012x}",
        started="2025-11-22T18:30:00+00:00",
        machine=MACHINE,
        settings={"backends": ",".join(engines), "threads": ",".join(map(str, threads)), "repeat": str(repeat)},
        model=MODEL,
        seconds=clock + 10,
        engines=tuple(_engine(engine, n) for engine in engines for n in threads),
        measurements=tuple(measurements),
        limits=tuple(Limits(n, 13e9 * n, 12.6e9 * n, 62e9 * n, 61e9 * n, "vpmaddubsw") for n in threads) if limits else (),
        power=_power(clock + 10) if power else Power(reason=NOT_MEASURED),
        quality=tuple(_quality(engine) for engine in engines) if quality else (),
    )
    return replace(record, **changed)


def load_record(levels: Sequence[int] = (1, 4, 16), n_requests: int = 24, *, scale: float = 1.0, seed: int = 0, **changed: Any) -> Record:
    """A record of `edgebench load` in a closed loop; one request of the last level fails."""
    rng = np.random.default_rng(seed)
    clock, made = 1.0, []
    for concurrency in levels:
        requests, free = [], [clock] * concurrency
        for index in range(n_requests):
            start = free[index % concurrency]
            first = start + rng.lognormal(np.log(0.25 * concurrency**0.7 / scale), 0.1)
            stamps = first + np.concatenate([[0], np.cumsum(rng.lognormal(np.log(0.008 * concurrency**0.6 / scale), 0.1, 31))])
            failed = concurrency == levels[-1] and index == 5
            texts = () if failed else tuple(map(float, stamps))
            ended = float(first if failed else stamps[-1])
            requests.append(Request(start, start, texts, ended, 128, len(texts), True, "HTTP 500" if failed else ""))
            free[index % concurrency] = ended
        span = Window(clock, max(free))
        clock = span.end_s + 1
        made.append(LoadLevel(concurrency, None, span, tuple(requests), energy_reason="no power meter"))
    load = Load("http://127.0.0.1:8000", "smollm2-135m", 128, 32, 1.0, 0.05, tuple(made))
    record = Record("load", f"{seed + 0xB00000000000:012x}", "2025-11-22T19:00:00+00:00", MACHINE, {"concurrency": "1,4,16"}, seconds=clock)
    return replace(record, load=load, power=Power(reason=NOT_MEASURED), **changed)


def sustain_record(minutes: float = 4, *, throttled: bool = True, power: bool = True, seed: int = 0, **changed: Any) -> Record:
    """A record of `edgebench sustain`; throttled, its speed falls by a fifth after 90 seconds."""
    rng = np.random.default_rng(seed)
    end = minutes * 60
    stamps, now = [], 1.0
    while now < end:
        now += rng.lognormal(np.log(0.05), 0.05) / (0.8 if throttled and now > 90 else 1.0)
        stamps.append(now)
    times = np.arange(1.0, end, 1.0)
    conditions = tuple(
        Conditions(float(t), 3400 if t < 90 or not throttled else 2700, float(45 + 40 * (1 - np.exp(-t / 40))), 0.0) for t in times
    )
    span = Window(1.0, float(stamps[-1]))
    seconds = span.end_s - span.start_s
    energy = Energy(RAPL.name, RAPL.kind, seconds, 14.0 * seconds, 9.0 * seconds, 0.06) if power else None
    steady = 16.0 if throttled else 20.0
    interval = (0.79, 0.81) if throttled else (0.99, 1.01)
    text = f"speed fell from 20.0 to {steady:.1f} tokens/s" if throttled else "the steady state keeps the first minute's speed"
    texts = tuple(map(float, stamps))
    rounds = tuple(Window(begin, ended) for begin, ended in zip((1.0, *texts[79::80]), texts[79::80], strict=False))
    measured = Sustain("cpu", 2, span, texts, conditions, throttled, 20.0, steady, interval, text, energy, "", rounds)
    record = Record("sustain", f"{seed + 0xC00000000000:012x}", "2025-11-22T20:00:00+00:00", MACHINE, {"minutes": str(minutes)}, MODEL)
    made = _power(end) if power else Power(reason=NOT_MEASURED)
    return replace(record, seconds=end + 1, sustain=(measured,), engines=(_engine("cpu", 2),), power=made, **changed)


def _cases(prompts: Sequence[int], depths: Sequence[int]) -> list[tuple[Phase, int, int]]:
    cases: list[tuple[Phase, int, int]] = [("decode", 0, depth) for depth in depths]
    cases += [("prefill", n, depth) for n in prompts for depth in depths]
    return [*cases, ("both", prompts[0], 0)]


def _trials(
    rng: np.random.Generator, phase: Phase, n_prompt: int, n_generate: int, speed: float, repeat: int, clock: float
) -> tuple[tuple[Trial, ...], float]:
    trials = []
    for _ in range(repeat):
        start, drift = clock, rng.lognormal(0, 0.01)
        first = start + (n_prompt / _PREFILL if phase != "decode" else 1 / _DECODE) / speed * drift
        gaps = rng.lognormal(0, 0.08, max(n_generate - 1, 0)) / (_DECODE * speed) * drift
        stamps = first + np.concatenate([[0.0], np.cumsum(gaps)])
        clock = float(stamps[-1]) + 0.1
        before, after = Conditions(start, 3400.0, 52.0, 1.0), Conditions(float(stamps[-1]), 3390.0, 53.0, 1.0)
        trials.append(Trial(start, tuple(map(float, stamps)), 12, 0, 2, before, after))
    return tuple(trials), clock


def _energy(measured: Measurement) -> Energy:
    seconds = sum(trial.stamps_s[-1] - trial.start_s for trial in measured.trials)
    watts = _WATTS[measured.n_threads]
    return Energy(RAPL.name, RAPL.kind, seconds, watts * seconds, (watts - 4) * seconds, 0.06)


def _share(measured: Measurement) -> LimitShare:
    n = measured.n_threads
    n_bytes = _BYTES + 46_080 * measured.depth if measured.phase == "decode" else _BYTES / 512
    by_memory, by_arithmetic = 13e9 * n / n_bytes, 62e9 * n / _MACS
    speed = float(np.median([len(t.stamps_s) / (t.stamps_s[-1] - t.start_s) for t in measured.trials]))
    if measured.phase != "decode":
        speed = float(np.median([measured.n_prompt / (t.stamps_s[0] - t.start_s) for t in measured.trials]))
    limit = min(by_memory, by_arithmetic)
    if measured.phase == "both":
        return LimitShare("memory", n_bytes, _MACS, limit, None, "prefill and decode have different limits")
    fraction = speed / limit if speed < limit else None
    bound = "memory" if by_memory < by_arithmetic else "arithmetic"
    return LimitShare(bound, n_bytes, _MACS, limit, fraction, "" if fraction else "it would exceed 100%")


def _engine(engine: str, n_threads: int) -> EngineRun:
    openings = []
    for index, cached in enumerate((0.0, 0.01, 1.0)):
        start = index * 3.0
        ready, opened = start + 0.9, start + 0.9 + (0.5 if cached < 0.5 else 0.08)
        openings.append(Opening(start, ready, opened, opened + 1.0 / n_threads, 512, cached, 310_000_000))
    return EngineRun(
        engine=engine,
        n_threads=n_threads,
        version="0.1.0",
        precision="int8",
        weight_bytes=98_000_000,
        bytes_per_token=int(_BYTES),
        kv_bytes_per_token=46_080,
        openings=tuple(openings),
        peak_rss_bytes=320_000_000,
    )


def _power(end: float) -> Power:
    times = np.arange(0.0, end, 0.5)
    watts = np.where(times < 8, 4.0, 14.0 + np.sin(times / 20))
    joules = np.concatenate([[0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * 0.5)])
    traces = (
        MeterTrace(RAPL, tuple(map(float, times)), tuple(map(float, joules))),
        MeterTrace(DRAM, tuple(map(float, times)), tuple(map(float, joules * 0.1))),
    )
    return Power("rapl:package-0", "", traces, (Window(0.0, 8.0),), (4.0,))


def _quality(engine: str) -> Quality:
    kl = {"cpu": 0.0041, "llamacpp": 0.0044, "onnx": 0.0093}[engine]
    return Quality(
        engine=engine,
        precision="int8",
        reference="smollm2-135m-f32.gguf on llamacpp",
        text="prose.txt",
        text_sha256="cd" * 32,
        n_tokens=4096,
        n_window=512,
        perplexity=18.31,
        se_perplexity=0.42,
        reference_perplexity=18.25,
        log_ratio=0.0033,
        se_log_ratio=0.0009,
        mean_kl=kl,
        se_mean_kl=kl / 20,
        median_kl=kl / 2,
        p99_kl=kl * 9,
        max_kl=kl * 60,
        top_agreement=0.953,
        se_top_agreement=0.003,
        gate=0.01,
        passed=True,
    )
