from dataclasses import replace

import pytest

from edgelm.bench.levers import Lever, bits, find_levers
from edgelm.bench.plan import Device, Plan, Target, make_plan, shape_model


def plan_for(
    bandwidth: float,
    macs: float | None = None,
    tokens_per_s: float = 45,
    name: str = "llama-2-7b",
    format_name: str = "Q4_0",
    depth: int = 0,
) -> Plan:
    return make_plan(shape_model(name, format_name), Target(tokens_per_s, depth), Device(bandwidth, macs, "made up"))


def levers_of(plan: Plan) -> dict[str, Lever]:
    return {lever.name: lever for lever in find_levers(plan)}


def test_a_target_within_reach_needs_no_lever() -> None:
    assert find_levers(plan_for(200e9, 400e9)) == []


def test_bits_of_the_formats() -> None:
    assert (bits("Q4_0"), bits("Q8_0"), bits("IQ4_XS"), bits("F16")) == (4.5, 8.5, 4.25, 16)


def test_fewer_bits_suffice_from_f16() -> None:
    plan = plan_for(100e9, tokens_per_s=20, format_name="F16")
    lever = levers_of(plan)["fewer bits"]
    assert lever.needed == pytest.approx(8 * (100e9 / 20 - plan.need.kv_bytes_per_token) / plan.model.cost.n_weights)
    assert lever.suffices
    assert "6.05 bits per weight" in lever.arithmetic
    assert "Q5_1 has 6.00" in lever.arithmetic  # the largest that is small enough
    lower = replace(plan.model, weight_bytes=int(lever.needed * plan.model.cost.n_weights / 8))
    assert make_plan(lower, plan.target, plan.device).reach.gap == pytest.approx(1, rel=1e-6)


def test_fewer_bits_do_not_suffice_below_the_smallest_format() -> None:
    lever = levers_of(plan_for(27e9))["fewer bits"]
    assert lever.needed == pytest.approx(8 * 27e9 / 45 / 6_607_077_376, rel=0.01)
    assert not lever.suffices
    assert "IQ4_XS, has 4.25" in lever.arithmetic


def test_formats_whose_blocks_do_not_fit_are_not_advised() -> None:
    lever = levers_of(plan_for(1e9, name="qwen2.5-0.5b"))["fewer bits"]
    assert "Q4_0, has 4.50" in lever.arithmetic  # rows of 896 are not whole blocks of 256


def test_a_long_context_can_leave_nothing_for_the_weights() -> None:
    levers = levers_of(plan_for(27e9, depth=4000))
    assert levers["fewer bits"].needed is None
    assert "KV cache alone" in levers["fewer bits"].arithmetic
    assert levers["batching"].needed is None


def test_speculation_must_fill_the_gap() -> None:
    plan = plan_for(100e9)
    lever = levers_of(plan)["speculation"]
    assert lever.needed == pytest.approx(plan.reach.gap)
    assert lever.suffices
    assert "not known" in lever.arithmetic  # how many tokens can be checked
    assert not levers_of(plan_for(10e9))["speculation"].suffices  # more than ever was published


def test_speculation_checks_no_more_than_can_be_multiplied() -> None:
    plan = plan_for(100e9, macs=594.7e9)
    lever = levers_of(plan)["speculation"]
    assert plan.reach.arithmetic_tokens_per_s == pytest.approx(90, rel=1e-3)
    assert lever.suffices
    assert "50% or more of them must be accepted" in lever.arithmetic


@pytest.mark.parametrize("name", ["fewer bits", "speculation", "batching"])
def test_no_saving_of_bytes_helps_where_multiplications_take_too_long(name: str) -> None:
    lever = levers_of(plan_for(27e9, macs=100e9))[name]
    assert not lever.suffices
    assert "multiplications alone" in lever.arithmetic


def test_batching_is_for_throughput() -> None:
    plan = plan_for(27e9, depth=200)
    lever = levers_of(plan)["batching"]
    assert not lever.suffices
    assert "one sequence stays" in lever.arithmetic
    weights, kv = plan.need.weight_bytes_per_token, plan.need.kv_bytes_per_token
    assert lever.needed is not None
    n = int(lever.needed)
    speeds = [count * 27e9 / (weights + count * kv) for count in (n - 1, n)]
    assert speeds[0] < 45 <= speeds[1]


def test_the_largest_shape_that_is_fast_enough_is_named() -> None:
    lever = levers_of(plan_for(27e9))["smaller model"]
    assert lever.suffices
    assert lever.arithmetic.startswith("tinyllama-1.1b in Q4_0: 0.599 GB")
    fastest = plan_for(27e9, name="tinyllama-1.1b")
    assert fastest.reach.gap <= 1


def test_no_shape_may_be_small_enough() -> None:
    lever = levers_of(plan_for(1e9, tokens_per_s=500))["smaller model"]
    assert not lever.suffices
    assert lever.needed is None
