"""Amounts: exact, never below what is spent, and refused where they make no sense."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.amounts import BudgetLimits, Price, Usage, in_millionths


@given(
    prices=st.tuples(*[st.decimals(0, 1000, places=9)] * 2),
    tokens=st.tuples(*[st.integers(0, 10**9)] * 2),
)
def test_no_cost_is_below_the_exact_one_or_a_millionth_above(prices: tuple[Decimal, Decimal], tokens: tuple[int, int]) -> None:
    cost = Price(*prices).millionths(*tokens)
    with localcontext(prec=60):
        exact = tokens[0] * prices[0] + tokens[1] * prices[1]
        assert exact <= cost < exact + 1


@given(st.integers(0, 10**18))
def test_millionths_are_told_exactly(millionths: int) -> None:
    money = Usage(1, 1, millionths).money
    assert in_millionths(money) == millionths
    assert f"{money:f}".partition(".")[2] == f"{millionths % 10**6:06d}"


def test_a_bound_is_rounded_down() -> None:
    assert in_millionths(Decimal("0.0000019")) == 1
    assert in_millionths(3) == 3_000_000
    assert in_millionths(None) is None


@pytest.mark.parametrize(
    "limits", [{name: value} for name in ("requests_per_day", "money_per_month") for value in (-1, 1.0, True, "1", 10**13, Decimal("NaN"))]
)
def test_limits_that_make_no_sense(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=f"{next(iter(limits))} is "):
        BudgetLimits(**limits)


@pytest.mark.parametrize("value", [-1, 0.15, Decimal("-0.1"), Decimal("Infinity"), Decimal("1e-13"), Decimal("1e7"), None])
def test_prices_that_make_no_sense(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="price of output is"):
        Price(0, value)


def test_requests_and_tokens_are_whole() -> None:
    with pytest.raises(InvalidRequestError, match=r"tokens_per_day is .*a whole number"):
        BudgetLimits(tokens_per_day=Decimal(5))  # type: ignore[arg-type]
