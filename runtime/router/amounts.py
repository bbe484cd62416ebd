"""Requests, tokens and money: what they cost, and how much of each there may be.

Money is exact: whole numbers and decimals come in, and whole millionths of the currency are reckoned with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from edgelm.errors import InvalidRequestError

_MILLION = 10**6
_MOST_DECIMALS = 12
_MOST = 10**12  # of a limit
_MOST_PRICE = 10**6


@dataclass(frozen=True)
class BudgetLimits:
    """What may be spent; None for no bound, 0 for nothing at all. Tokens are those of input and output together.

    Raises:
        InvalidRequestError: a limit is no such number.
    """

    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    money_per_day: int | Decimal | None = None
    requests_per_month: int | None = None
    tokens_per_month: int | None = None
    money_per_month: int | Decimal | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_number(field.name, value, _MOST, whole=not field.name.startswith("money"))


@dataclass(frozen=True)
class Price:
    """Money for a million tokens of input and of output.

    Raises:
        InvalidRequestError: a price is no such number.
    """

    input: int | Decimal
    output: int | Decimal

    def __post_init__(self) -> None:
        check_number("the price of input", self.input, _MOST_PRICE, whole=False)
        check_number("the price of output", self.output, _MOST_PRICE, whole=False)

    def millionths(self, n_input: int, n_output: int) -> int:
        """What so many tokens cost, in millionths, rounded up: tokens times a price per million is just that."""
        return math.ceil(n_input * Fraction(self.input) + n_output * Fraction(self.output))


class Usage(NamedTuple):
    """Requests, tokens and money together."""

    requests: int
    tokens: int
    millionths: int

    @property
    def money(self) -> Decimal:
        """The millionths in units of the currency, exactly."""
        return money_of(self.millionths)


def check_number(name: str, value: object, most: int, whole: bool) -> None:
    """Refuse what is no amount. No float is one: 0.1 is none of its values.

    Raises:
        InvalidRequestError: it is none, or more than so much.
    """
    fits = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, Decimal) and not whole and value.is_finite():
        fits = int(value.as_tuple().exponent) >= -_MOST_DECIMALS
    if not fits or not 0 <= value <= most:  # type: ignore[operator]
        kind = "a whole number" if whole else f"a whole number or a Decimal of at most {_MOST_DECIMALS} decimals"
        raise InvalidRequestError(f"{name} is {value!r}; give {kind} from 0 to {most:,}")


def in_millionths(money: int | Decimal | None) -> int | None:
    """A limit, rounded down; None for none."""
    return None if money is None else math.floor(Fraction(money) * _MILLION)


def money_of(millionths: int) -> Decimal:
    """In units of the currency, exactly."""
    return Decimal(f"{millionths // _MILLION}.{millionths % _MILLION:06d}")  # a constructor is exact, whatever the decimal context
