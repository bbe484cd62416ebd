"""Check digits: by which a number that means something is told from any other."""

from __future__ import annotations

from collections.abc import Sequence

_TURNS = (  # the permutation of Verhoeff's code (1969), applied 0 to 7 times
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)


def luhn(digits: str) -> bool:
    """Of payment cards and many ids (ISO/IEC 7812): every second digit from the right counts twice."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def iban(text: str) -> bool:
    """Of bank accounts (ISO 13616): with the first four characters at the end and letters as 10 to 35, it is 1 modulo 97."""
    return int("".join(str(int(each, 36)) for each in text[4:] + text[:4])) % 97 == 1


def verhoeff(digits: str) -> bool:
    """Verhoeff (1969): the product of the digits' permutations in the dihedral group of order 10 is its identity."""
    product = 0
    for place, digit in enumerate(reversed(digits)):
        product = _dihedral(product, int(_TURNS[place % 8][int(digit)]))
    return product == 0


def _dihedral(a: int, b: int) -> int:
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


def mod_11_10(digits: str) -> bool:
    """Of German tax ids (ISO 7064, MOD 11,10)."""
    product = 10
    for digit in digits[:-1]:
        product = 2 * ((int(digit) + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(digits[-1])


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The sum of digits times weights, as far as both go."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))
