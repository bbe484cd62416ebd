"""What a benchmark leaves behind: every raw timestamp, what was measured with and on, and what is not known.

All times are seconds of one monotonic clock (`time.perf_counter`) since the record's start, so that a step of the wall clock changes
nothing. Figures such as tokens per second are never stored alone: they are computed from the timestamps (bench/figures.py).
None means "not known", and a text beside it says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

VERSION = 1
"""Of the record's format. A reader refuses every other; see bench/record_file.py."""

State = Literal["complete", "interrupted", "failed"]
Phase = Literal["prefill", "decode", "both"]
Kind = Literal["measured", "vendor model", "estimate"]


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        cpu: the processor as its maker calls it.
        n_cores: physical cores that the process may use.
        system, python: names and versions.
        versions: of every package that computes.
        governor: of the CPU's frequency, None where the system does not tell.
        virtual: name of the hypervisor or container that was found, "" for none, None where it cannot be known.
        memory_bytes: of the machine.
        on_battery: whether it runs from a battery, None where the system does not tell.
    """

    cpu: str
    n_cores: int
    system: str
    python: str
    versions: Mapping[str, str]
    governor: str | None = None
    virtual: str | None = None
    memory_bytes: int | None = None
    on_battery: bool | None = None


@dataclass(frozen=True)
class Conditions:
    """The machine at one moment.

    Attributes:
        time_s: of the moment.
        mhz: mean of the cores' clocks now, None where the system does not tell.
        celsius: the hottest of the machine's sensors, None without one.
        steal_s: seconds, over all CPUs, that a hypervisor gave to others since the machine's start; None where the system does not tell.
    """

    time_s: float
    mhz: float | None = None
    celsius: float | None = None
    steal_s: float | None = None


@dataclass(frozen=True)
class TokenCost:
    """What one token costs, from the sizes in a model's file (bench/token_cost.py).

    Attributes:
        n_weights: weights that a decoded token multiplies: all matrices, without an embedding whose rows are only looked up.
        n_output_weights: of them, the output layer's, which a prefill needs for its last token alone.
        weight_bytes: bytes of the file that a decoded token reads; None where the file does not tell them.
        n_layers: layers that look at the whole context.
        n_window_layers, window: layers that look at the last `window` tokens only.
        n_heads, n_kv_heads, head_dim: of each layer's attention.
    """

    n_weights: int
    n_output_weights: int
    weight_bytes: int | None
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_window_layers: int = 0
    window: int = 0


@dataclass(frozen=True)
class Model:
    """What was measured.

    Attributes:
        name: of the file or folder, or of the shape.
        n_bytes, sha256: of the file, or of a folder's files one after the other, by name.
        is_random: whether its weights are random, made for a shape.
        format: number format of most weights, as GGUF names it.
        n_weights: weights in all matrices.
        n_weights_per_token: weights that one decoded token multiplies (without the embedding's rows that are only looked up).
        token_cost: what the file's sizes say of one token; None where they cannot be read.
    """

    name: str
    n_bytes: int
    sha256: str
    is_random: bool = False
    format: str = ""
    n_weights: int | None = None
    n_weights_per_token: int | None = None
    token_cost: TokenCost | None = None


@dataclass(frozen=True)
class Trial:
    """One timed repetition.

    Attributes:
        start_s: when it began.
        stamps_s: prefill: when the last token's logits were there; decode: when each token was known; both: when each generated token
            was known, of which the first ends the prefill.
        minor_faults, major_faults: page faults of the engine's process.
        switches: involuntary context switches of the engine's process.
        before, after: the machine at both ends.
    """

    start_s: float
    stamps_s: tuple[float, ...]
    minor_faults: int = 0
    major_faults: int = 0
    switches: int = 0
    before: Conditions | None = None
    after: Conditions | None = None


@dataclass(frozen=True)
class Opening:
    """A new process that opens the model and answers for the first time: the cold time to first token.

    Attributes:
        spawned_s: when the process was started.
        ready_s: when Python and the engine's code were loaded.
        opened_s: when the model was open.
        first_token_s: when the first token after the prompt was known; None if it did not get there.
        n_prompt: tokens of that prompt.
        cached: the fraction of the model's files that was in the page cache before; None where the system does not tell.
        peak_rss_bytes: of the process, after that token.
    """

    spawned_s: float
    ready_s: float
    opened_s: float
    first_token_s: float | None
    n_prompt: int
    cached: float | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class EngineRun:
    """One engine with one number of threads: what it says of itself, and how it began.

    Attributes:
        engine: one of edgelm's backends, or another program.
        is_peer: whether it is another program.
        version: of the package that computes.
        precision: of the activations; "" where the program does not say.
        weight_bytes, bytes_per_token, kv_bytes_per_token: as in edgelm.backends.base.ModelInfo; None where the program does not say.
        providers: nodes of a graph by execution provider.
        openings: new processes in turn; the last one went on to the measurements.
        peak_rss_bytes: of the process at its end.
    """

    engine: str
    n_threads: int
    is_peer: bool = False
    version: str = ""
    precision: str = ""
    weight_bytes: int | None = None
    bytes_per_token: int | None = None
    kv_bytes_per_token: int | None = None
    providers: Mapping[str, int] = field(default_factory=dict)
    openings: tuple[Opening, ...] = ()
    peak_rss_bytes: int | None = None
    state: State = "complete"
    reason: str = ""


@dataclass(frozen=True)
class Energy:
    """What all trials of a measurement took, by one meter.

    Attributes:
        meter: name of the meter, one of the record's traces.
        kind: what the meter's figures are.
        seconds: how long the trials lasted together.
        gross_j: energy in that time.
        net_j: the same without what the idle machine takes in that time; None if idle was not measured.
        uncertainty: relative, of gross_j: the meter's own and that of its sampling; None if not known.
    """

    meter: str
    kind: Kind
    seconds: float
    gross_j: float
    net_j: float | None = None
    uncertainty: float | None = None


@dataclass(frozen=True)
class LimitShare:
    """How near a measurement came to what the machine can do.

    Attributes:
        bound_by: what the limit is made of.
        bytes_per_token, macs_per_token: what one token of it reads and multiplies, KV cache at its mean depth included.
        limit_tokens_per_s: what the machine could do at most.
        fraction: speed over the limit; None if it cannot be said, or if it would exceed 1.
        reason: why fraction is None.
        batch: tokens of a prefill that are assumed to share one reading of the weights; 1 for decode.
    """

    bound_by: Literal["memory", "arithmetic"]
    bytes_per_token: float
    macs_per_token: float
    limit_tokens_per_s: float
    fraction: float | None
    reason: str = ""
    batch: int = 1


@dataclass(frozen=True)
class Measurement:
    """One phase of one engine at one number of threads and one depth; the engines of a record took turns.

    Attributes:
        n_prompt: tokens of a prefill (prefill, both).
        n_generate: tokens generated one by one (decode, both).
        depth: tokens that the context held before.
        energy: None if not measured; energy_reason says why.
    """

    engine: str
    n_threads: int
    phase: Phase
    n_prompt: int
    n_generate: int
    depth: int
    trials: tuple[Trial, ...]
    state: State = "complete"
    reason: str = ""
    energy: Energy | None = None
    energy_reason: str = ""
    limit: LimitShare | None = None


@dataclass(frozen=True)
class Limits:
    """What the machine can do at most with so many threads, as measured beside the engines.

    Attributes:
        bytes_per_s: reading memory in order, the best and the median of the trials.
        macs_per_s: multiplications of int8 by int8 added to int32, the best and the median.
        instruction: which instruction computes them.
        cache_bytes: of the last-level caches; None where the system does not tell.
    """

    n_threads: int
    bytes_per_s: float
    median_bytes_per_s: float
    macs_per_s: float
    median_macs_per_s: float
    instruction: str
    cache_bytes: int | None = None


@dataclass(frozen=True)
class MeterInfo:
    """One power meter.

    Attributes:
        name: unique in a record ("rapl:package-0").
        domain: what it covers, in words for people ("CPU package", "whole board", "wall socket").
        scope: the same in order of width; the widest measured one is the headline.
        kind: measured, a model of the vendor, or an estimate.
        quantity: whether it counts energy in joules or shows power in watts.
        period_s: how often it has a new value.
        uncertainty: relative, as its maker or the literature states; None if nobody does.
        within: name of the meter whose figure includes this one; never add the two.
        source: where the uncertainty and the kind are from.
    """

    name: str
    domain: str
    scope: Literal["component", "package", "module", "device", "wall"]
    kind: Kind
    quantity: Literal["energy", "power"]
    period_s: float
    uncertainty: float | None = None
    within: str | None = None
    source: str = ""


@dataclass(frozen=True)
class MeterTrace:
    """Everything a meter said.

    Attributes:
        times_s: when.
        values: joules since the first reading, wraps of the counter undone (quantity energy), or watts (quantity power).
        problem: why no energy is taken from it, "" if all is well.
    """

    meter: MeterInfo
    times_s: tuple[float, ...]
    values: tuple[float, ...]
    problem: str = ""


@dataclass(frozen=True)
class Window:
    """A span of time."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Power:
    """The meters of a record.

    Attributes:
        headline: name of the meter that energies are taken from; None if there is no usable one.
        reason: why nothing was measured, and how to get it.
        traces: of every meter read.
        idle: spans in which the machine did nothing: before the first engine and after the last.
        idle_w: watts of the headline meter in them, in order.
        assumed_w: a figure given by hand (--estimate-tdp); an assumption, used by no comparison.
    """

    headline: str | None = None
    reason: str = ""
    traces: tuple[MeterTrace, ...] = ()
    idle: tuple[Window, ...] = ()
    idle_w: tuple[float, ...] = ()
    assumed_w: float | None = None


@dataclass(frozen=True)
class PairedQuality:
    """One quality over another, paired token by token; standard errors are of windows of the text (se_).

    Attributes:
        log_ratio: ln(its perplexity / the other's).
        kl_ratio: its mean KL over the other's; None where the other's is 0.
    """

    log_ratio: float
    se_log_ratio: float
    kl_ratio: float | None
    se_kl_ratio: float | None


@dataclass(frozen=True)
class Quality:
    """What an engine's predictions of a text are worth, and how far they lie from a reference's.

    Standard errors are of means over windows of the text (se_); differences and ratios are paired, token by token.

    Attributes:
        reference: name of the reference model and how it computed.
        text, text_sha256: the text's file name and digest.
        n_tokens: predictions compared.
        n_window: tokens of context for each window.
        perplexity, reference_perplexity: exp of the mean negative log likelihood.
        log_ratio: ln(perplexity / reference_perplexity).
        mean_kl, median_kl, p99_kl, max_kl: KL(reference || engine) in nats.
        top_agreement: fraction of positions where both rank the same token first.
        gate: greatest rise of perplexity allowed, relative; None if none was asked for.
        passed: whether it stays below; None without a gate.
        model: what predicted; None for the record's model.
        beside_first: the pair of this one and the first of the record on the same windows; None for the first one itself.
    """

    engine: str
    precision: str
    reference: str
    text: str
    text_sha256: str
    n_tokens: int
    n_window: int
    perplexity: float
    se_perplexity: float
    reference_perplexity: float
    log_ratio: float
    se_log_ratio: float
    mean_kl: float
    se_mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top_agreement: float
    se_top_agreement: float
    gate: float | None = None
    passed: bool | None = None
    model: Model | None = None
    beside_first: PairedQuality | None = None


@dataclass(frozen=True)
class Request:
    """One request of a load test.

    Attributes:
        due_s: when it should have been sent (by the arrival process); sent_s: when it was.
        stamps_s: when each piece of text arrived.
        n_prompt, n_generated: tokens as the server counts them; where it does not (counted is False), n_generated is the number of pieces.
        ended_s: when the answer was whole or the request failed.
        error: "" or what went wrong, in a few words that can be counted ("HTTP 500", "connection lost").
    """

    due_s: float
    sent_s: float
    stamps_s: tuple[float, ...]
    ended_s: float
    n_prompt: int | None = None
    n_generated: int = 0
    counted: bool = True
    error: str = ""


@dataclass(frozen=True)
class LoadLevel:
    """One level of load.

    Attributes:
        concurrency: requests at once (closed loop); None for arrivals at a rate.
        rate: mean arrivals per second (Poisson); None for a closed loop.
        span: from the first request to the end of the last one.
        state, reason: whether it is complete; the reason also says what else should be known of its figures.
        before, after: the machine at both ends.
    """

    concurrency: int | None
    rate: float | None
    span: Window
    requests: tuple[Request, ...]
    state: State = "complete"
    reason: str = ""
    energy: Energy | None = None
    energy_reason: str = ""
    before: Conditions | None = None
    after: Conditions | None = None


@dataclass(frozen=True)
class Load:
    """A load test of a server.

    Attributes:
        url, model: as asked for.
        n_prompt, n_generate: tokens wanted per request.
        ttft_target_s, tpot_target_s: what a request must keep to count as good; None for no target.
    """

    url: str
    model: str
    n_prompt: int
    n_generate: int
    ttft_target_s: float | None
    tpot_target_s: float | None
    levels: tuple[LoadLevel, ...]


@dataclass(frozen=True)
class Sustain:
    """Decoding for minutes: does the speed hold?

    Attributes:
        span: from the first token to the last.
        stamps_s: when each token was known.
        conditions: the machine, about once a second.
        throttled: whether the steady state is below the first minute; None if it cannot be said.
        first_minute, steady: tokens per second.
        ratio_interval: 95% interval of steady / first_minute.
        reason: in words for people.
        rounds: spans in which it decoded, each from the same depth; speeds are tokens over the time in them.
    """

    engine: str
    n_threads: int
    span: Window
    stamps_s: tuple[float, ...]
    conditions: tuple[Conditions, ...]
    throttled: bool | None
    first_minute: float | None
    steady: float | None
    ratio_interval: tuple[float, float] | None
    reason: str = ""
    energy: Energy | None = None
    energy_reason: str = ""
    rounds: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Record:
    """One run of `edgebench run`, `load` or `sustain`.

    Attributes:
        id: 12 hexadecimal digits, made at random.
        started: wall clock at time 0, ISO 8601 with its offset from UTC.
        seconds: how long it took.
        clock_step_s: by how much the wall clock moved against the monotonic one meanwhile (a step, or a suspended machine).
        state, reason: complete, or why not; what is here was measured all the same.
        settings: the options of the command, by name.
    """

    kind: Literal["run", "load", "sustain"]
    id: str
    started: str
    machine: Machine
    settings: Mapping[str, str]
    model: Model | None = None
    seconds: float = 0.0
    clock_step_s: float = 0.0
    state: State = "complete"
    reason: str = ""
    engines: tuple[EngineRun, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    limits: tuple[Limits, ...] = ()
    power: Power = Power()
    quality: tuple[Quality, ...] = ()
    load: Load | None = None
    sustain: tuple[Sustain, ...] = ()
    version: int = VERSION
