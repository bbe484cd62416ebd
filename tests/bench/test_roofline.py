from dataclasses import replace

import pytest

from edgelm.bench.record import EngineRun, Limits, LimitShare, Measurement, Model, Phase, TokenCost, Trial
from edgelm.bench.roofline import limit_share
from edgelm.errors import InvalidRequestError

# 1 GB of weights: 2 G weights at 4 bits, of which 0.5 G are the output layer
COST = TokenCost(
    n_weights=2_000_000_000, n_output_weights=500_000_000, weight_bytes=1_000_000_000, n_layers=10, n_heads=8, n_kv_heads=2, head_dim=50
)
MODEL = Model("m.gguf", 1_100_000_000, "0" * 64, format="Q4_0", token_cost=COST)
KV = 2 * 10 * 2 * 50 * 2
ENGINE = EngineRun("cpu", 2, precision="int8", bytes_per_token=1_000_000_000, kv_bytes_per_token=KV)
LIMITS = Limits(
    2, bytes_per_s=20e9, median_bytes_per_s=19e9, macs_per_s=200e9, median_macs_per_s=190e9, instruction="sdot", cache_bytes=32 << 20
)


def measured(phase: Phase, seconds: float, n_prompt: int = 0, n_generate: int = 0, depth: int = 0) -> Measurement:
    """Three trials, of which the median took so many seconds in all."""
    n = max(n_generate, 1)
    trials = tuple(Trial(10.0, tuple(10.0 + slow * seconds * (i + 1) / n for i in range(n))) for slow in (0.9, 1.0, 1.5))
    return Measurement("cpu", 2, phase, n_prompt, n_generate, depth, trials)


def share(measurement: Measurement, engine: EngineRun = ENGINE, model: Model = MODEL, limits: Limits = LIMITS) -> LimitShare:
    found = limit_share(measurement, engine, model, limits)
    assert found is not None
    return found


def test_decode_by_hand() -> None:
    found = share(measured("decode", 10.0, n_generate=100))  # 10 tokens/s
    n_bytes = 1e9 + KV * 50.5  # the i-th token sees i tokens
    assert found.bytes_per_token == pytest.approx(n_bytes)
    assert found.macs_per_token == pytest.approx(2e9 + 2 * 10 * 8 * 50 * 50.5)
    assert found.limit_tokens_per_s == pytest.approx(20e9 / n_bytes)
    assert found.fraction == pytest.approx(10 * n_bytes / 20e9)
    assert (found.bound_by, found.batch, found.reason) == ("memory", 1, "")


def test_a_context_adds_its_keys_and_values() -> None:
    deep = share(measured("decode", 10.0, n_generate=100, depth=1000))
    assert deep.bytes_per_token == pytest.approx(1e9 + KV * 1050.5)
    assert deep.limit_tokens_per_s < share(measured("decode", 10.0, n_generate=100)).limit_tokens_per_s


def test_a_window_bounds_them() -> None:
    windowed = replace(COST, n_layers=2, n_window_layers=8, window=100)
    found = share(measured("decode", 10.0, n_generate=1, depth=999), model=replace(MODEL, token_cost=windowed))
    assert found.bytes_per_token == pytest.approx(1e9 + KV * (0.2 * 1000 + 0.8 * 100))


def test_prefill_by_hand() -> None:
    found = share(measured("prefill", 10.0, n_prompt=400))  # 40 tokens/s
    macs = 400 * (1.5e9 + 2 * 10 * 8 * 50 * 200.5) + 0.5e9  # the output layer once
    assert found.macs_per_token == pytest.approx(macs / 400)
    assert found.bytes_per_token == pytest.approx((1e9 + KV * 400) / 400)  # the weights once
    assert found.limit_tokens_per_s == pytest.approx(400 * 200e9 / macs)
    assert found.fraction == pytest.approx(40 * macs / 400 / 200e9)
    assert (found.bound_by, found.batch) == ("arithmetic", 400)


def test_a_short_prefill_is_bound_by_memory() -> None:
    assert share(measured("prefill", 1.0, n_prompt=2)).bound_by == "memory"


def test_both_is_a_prefill_and_then_a_decode() -> None:
    prefill, decode = share(measured("prefill", 10.0, n_prompt=400)), share(measured("decode", 10.0, n_generate=99, depth=400))
    both = share(measured("both", 20.0, n_prompt=400, n_generate=100))
    seconds = 400 / prefill.limit_tokens_per_s + 99 / decode.limit_tokens_per_s  # the first token comes with the prefill
    assert both.limit_tokens_per_s == pytest.approx(500 / seconds)
    assert both.fraction == pytest.approx(500 / 20 / (500 / seconds))
    assert both.bytes_per_token == pytest.approx((400 * prefill.bytes_per_token + 99 * decode.bytes_per_token) / 500)
    alone = share(measured("both", 20.0, n_prompt=400, n_generate=1))
    assert alone.limit_tokens_per_s == pytest.approx(401 * prefill.limit_tokens_per_s / 400)


def test_above_the_limit_there_is_no_figure() -> None:
    found = share(measured("decode", 4.0, n_generate=100))  # 25 tokens/s of at most 20
    assert found.fraction is None
    assert "1.25 times the limit" in found.reason
    assert "must be wrong" in found.reason
    just = share(measured("decode", 5.0, n_generate=100))
    assert just.fraction is None  # a thousandth above is above, too
    assert "limit" in just.reason


def test_weights_in_the_cache_are_told() -> None:
    found = share(measured("decode", 10.0, n_generate=100), limits=replace(LIMITS, cache_bytes=1_000_000_000))
    assert found.fraction is None
    assert "last-level cache (1000 MB)" in found.reason
    unknown = share(measured("decode", 10.0, n_generate=100), limits=replace(LIMITS, cache_bytes=None))
    assert unknown.fraction is not None


@pytest.mark.parametrize("phase", ["prefill", "both"])
@pytest.mark.parametrize(
    ("precision", "format_name", "word"),
    [("f32", "Q4_0", "f32"), ("", "Q4_0", "not known"), ("uint16", "Q8_0", "uint16"), ("int8", "F16", "F16")],
)
def test_the_int8_peak_is_no_limit_of_floats(phase: Phase, precision: str, format_name: str, word: str) -> None:
    engine, model = replace(ENGINE, precision=precision), replace(MODEL, format=format_name)
    found = share(measured(phase, 20.0, n_prompt=400, n_generate=10), engine, model)
    assert found.fraction is None
    assert word in found.reason
    assert found.bound_by == "memory"


def test_decode_in_floats_is_still_bound_by_memory() -> None:
    slow = replace(LIMITS, macs_per_s=1e9)  # an int8 peak that would bound an int8 engine
    found = share(measured("decode", 10.0, n_generate=100), replace(ENGINE, precision="f32"), limits=slow)
    assert found.bound_by == "memory"
    assert found.fraction == pytest.approx(0.5, rel=1e-3)
    assert share(measured("decode", 1000.0, n_generate=100), limits=slow).bound_by == "arithmetic"


def test_nodes_on_another_processor_have_no_share() -> None:
    found = share(measured("decode", 10.0, n_generate=100), replace(ENGINE, providers={"cpu": 3, "qnn": 200}))
    assert found.fraction is None
    assert "qnn" in found.reason
    assert share(measured("decode", 10.0, n_generate=100), replace(ENGINE, providers={"cpu": 3, "qnn": 0})).fraction is not None


def test_an_engine_that_does_not_tell_its_weights_reads_the_files() -> None:
    found = share(measured("decode", 10.0, n_generate=100), replace(ENGINE, bytes_per_token=None))
    assert found.fraction == share(measured("decode", 10.0, n_generate=100)).fraction


def test_an_engine_that_does_not_tell_its_cache_has_no_share() -> None:
    found = share(measured("decode", 10.0, n_generate=100), replace(ENGINE, kv_bytes_per_token=None))
    assert found.fraction is None
    assert "KV cache" in found.reason


def test_without_sizes_or_trials_there_is_nothing_to_say() -> None:
    decode = measured("decode", 10.0, n_generate=100)
    assert limit_share(decode, ENGINE, replace(MODEL, token_cost=None), LIMITS) is None
    assert limit_share(replace(decode, trials=()), ENGINE, MODEL, LIMITS) is None
    unknown = replace(MODEL, token_cost=replace(COST, weight_bytes=None))
    assert limit_share(decode, replace(ENGINE, bytes_per_token=None), unknown, LIMITS) is None
    assert limit_share(decode, ENGINE, unknown, LIMITS) is not None


def test_limits_of_other_threads_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="1 threads"):
        limit_share(measured("decode", 10.0, n_generate=100), ENGINE, MODEL, replace(LIMITS, n_threads=1))
