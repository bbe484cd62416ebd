"""What edgelm recognizes by itself: how people, their money and machines are reached, national ids, keys, and names that it is told."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.check_digits import iban, luhn
from edgelm.runtime.router.credentials import CREDENTIALS
from edgelm.runtime.router.national_ids import NATIONAL_IDS
from edgelm.runtime.router.patterns import BEGIN, END, Entity, PatternRecognizer
from edgelm.runtime.router.plain_text import PlainText
from edgelm.runtime.router.recognizer import Finding

_IBANS = {  # characters of an IBAN, by country (the registry of SWIFT)
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN = "|".join(f"(?:{'|'.join(codes.split())})\\d\\d(?:[ -]?[A-Z0-9]){{{length - 4}}}" for length, codes in _IBANS.items())
_CARD = r"(?:(?:4\d|5\d|2[2-7]|6\d|35)(?:[ -]?\d){14}|3[47](?:[ -]?\d){13}|3[0689](?:[ -]?\d){12}|4\d{12}|(?:4|5|6)\d(?:[ -]?\d){17})(?!\d)"
_COUNTRY = re.compile(  # the country calling codes of ITU-T E.164
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d|42\d|5[09]\d|6[789]\d|8[05789]\d|9[679]\d"
)
_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})(?!\d)|(?:19|20)\d\d[./-]\d{1,2}(?!\d)")
_PHONE_LABEL = (
    r"phone|\btel\b|\bmobile|\bcell(?:phone)?\b|\bfax|handy|telefon|whatsapp|\bsms|\bcall (?:me|us|him|her|them)\b|\btext me\b|"
    r"\bdial\b|portable"
)
_PHONE_HINTS = ("phone", "tel", "mobile", "cell", "fax", "handy", "whatsapp", "sms", "call", "text me", "dial", "portable")
_BIRTH_LABEL = (
    r"date.of.birth|birth.?da(?:te|y)|\bd\.?o\.?b\b|geburts(?:datum|tag)|fecha de nacimiento|date de naissance|data di nascita|"
    r"\b(?:i was|i am|i'm|ich bin|ich wurde|patient|customer)\b.{0,30}\b(?:born|geboren)\b"
)
_MONTH = r"(?:jan|feb|m[aä]r|apr|may|mai|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-zä]{0,7}"
_BIRTH_DATE = (
    rf"(?i:\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th|\.)? {_MONTH}\.?,? \d{{4}}|"
    rf"{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})"
)
_ACCOUNT_LABEL = (
    r"(?:account|acct|konto|routing|member|customer|policy|patient|medical record)\W{0,2}(?:no\b|number|nr|num|#|nummer|id)|\bmrn\b"
)


def _digits(text: str) -> str:
    return "".join(each for each in text if each.isdigit())


def _is_card(text: str) -> bool:
    digits = _digits(text)
    return luhn(digits) and len(set(digits)) > 1


def _is_iban(text: str) -> bool:
    return iban("".join(each for each in text if each.isalnum()).upper())


def _is_international(text: str) -> bool:
    digits = _digits(text).removeprefix("00") if text.startswith("00") else _digits(text)
    country = _COUNTRY.match(digits)
    return country is not None and len(digits) >= (11 if country[0] in "17" else 9)


def _is_national(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 12 and not _DATE.match(text)


def _is_called(text: str) -> bool:
    return not _DATE.match(text)


def _is_email(text: str) -> bool:
    return not text.startswith("git@") and ".." not in text  # git@ is how programs are fetched, and nobody's address


def _is_ipv4(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or text.startswith("255."))  # those and net masks are everybody's


def _is_ipv6(text: str) -> bool:
    looks_like_code = "." not in text and text.count(":") < 4 and len(text.partition(":")[0]) < 3  # as x[::2] and a::b
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not (looks_like_code or address.is_loopback or address.is_unspecified) and any(each.isdigit() for each in text)


CONTACTS = (
    Entity(
        "EMAIL",
        r"(?<![\w.%+-])[\w%+-][\w.%+-]{0,200}@(?:\w[\w-]{0,62}\.){1,8}[^\W\d_]{2,24}(?![\w(])",
        _is_email,
        hints=("@",),
    ),
    Entity("IBAN", f"{BEGIN}(?i:(?=[A-Z]{{2}}\\d\\d)(?:{_IBAN})){END}", _is_iban, n_digits=2),
    Entity("CARD", rf"(?<!\d)(?<!\d[.,]){_CARD}", _is_card, n_digits=13),
    Entity("PHONE", r"(?:(?<![\w+])|(?<=\\[nrt]))(?:\+|00(?=[1-9 ]))(?:[ ()./-]{0,3}\d){7,15}(?!\d)", _is_international, n_digits=7),
    Entity(
        "PHONE",
        rf"{BEGIN}(?:\+?1[ .-]?)?(?:\([2-9]\d{{2}}\) ?|[2-9]\d{{2}}[ .-])[2-9]\d{{2}}[ .-]\d{{4}}(?![\d-])",
        _is_called,
        n_digits=10,
    ),
    Entity("PHONE", rf"{BEGIN}(?<![.,])\(?0[1-9]\d{{0,4}}\)?(?:[ ./-]{{1,3}}\d{{2,8}}){{1,5}}(?!\d)", _is_national, n_digits=9),
    Entity("PHONE", rf"{BEGIN}(?<![.,])0(?!123456789)[1-9]\d{{8,9}}{END}", n_digits=10),
    Entity("PHONE", rf"{BEGIN}\(\d{{2}}\) ?9?\d{{4}}[- ]\d{{4}}{END}", n_digits=10),
    Entity("PHONE", rf"{BEGIN}(?<!\d[ ./-])\d(?:[ ()./-]{{0,2}}\d){{5,14}}{END}", _is_called, _PHONE_LABEL, _PHONE_HINTS, 6),
    Entity("IP_ADDRESS", r"(?:(?<![\w.])|(?<=\\[nrt]))\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)", _is_ipv4, hints=(".",), n_digits=0),
    Entity(
        "IP_ADDRESS",
        r"(?:(?<![\w:.])|(?<=\\[nrt]))(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:])",
        _is_ipv6,
        hints=(":",),
    ),
    Entity("MAC_ADDRESS", r"(?:(?<![\w:-])|(?<=\\[nrt]))(?i:[0-9a-f]{2}([:-])(?:[0-9a-f]{2}\1){4}[0-9a-f]{2})(?![\w:-])", hints=(":", "-")),
    Entity(
        "BIRTH_DATE",
        f"{BEGIN}{_BIRTH_DATE}{END}",
        None,
        _BIRTH_LABEL,
        ("birth", "dob", "d.o.b", "gebur", "geboren", "nacimiento", "naissance", "nascita", "born"),
        1,
    ),
    Entity(
        "ACCOUNT",
        rf"{BEGIN}\d(?:[ -]?\d){{4,19}}{END}",
        None,
        _ACCOUNT_LABEL,
        ("account", "acct", "konto", "routing", "member", "customer", "policy", "patient", "record", "mrn"),
        5,
    ),
)
"""How people, their money and their machines are reached."""


class CoreRecognizer:
    """Finds what edgelm knows by itself. Best effort, and no guarantee: what is written in a way that no pattern knows is not found.

    Args:
        names: of people, places, projects: whatever should not leave the device; in any case, with or without accents, as whole words,
            also before 's.

    Raises:
        InvalidRequestError: a name is shorter than two letters.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        known = [Entity("NAME", _names_pattern(names))] if names else []
        self._patterns = PatternRecognizer([*CREDENTIALS, *NATIONAL_IDS, *CONTACTS, *known])

    def find(self, text: str) -> Iterator[Finding]:
        """The findings, which may overlap."""
        return self._patterns.find(text)


def _names_pattern(names: Sequence[str]) -> str:
    words = [PlainText.of(name).text.split() for name in names]
    for name, parts in zip(names, words, strict=True):
        if sum(map(len, parts)) < 2:
            raise InvalidRequestError(f"{name!r} is too short for a name to be found; give at least two letters")
    longest_first = sorted({r"[\s._-]{0,3}".join(map(re.escape, parts)) for parts in words}, key=lambda each: (-len(each), each))
    return rf"(?:(?<![^\W_])|(?<=\\[nrt]))(?i:{'|'.join(longest_first)})(?![^\W_])"
