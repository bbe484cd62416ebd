"""Personal data and secrets that belong to nobody, to be planted where they must not get out.

The check digits are computed here by trying all of them against sums written down anew, so that a mistake in the code under test does not
repeat itself here.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = ("Zoë Brandström", "Ignacio Quiñones", "Wilhelmina Achterberg", "Tadeusz Wójcik", "Oluwaseun Adebayo", "Projekt Nordlicht")
"""What a user might want to keep to themselves; to be given to the recognizer."""

_ALNUM = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Planted:
    """
    Attributes:
        kind: of the secret, roughly; recognizers may call it something else.
        value: what must not get out.
        text: how somebody would write it: the value, after its label where it has one.
    """

    kind: str
    value: str
    text: str

    @property
    def compact(self) -> str:
        """The value without its separators."""
        return "".join(each for each in self.value if each.isalnum())


def plant(seed: int, n: int) -> list[Planted]:
    """n secrets, of all kinds in turn; no value twice, but for the names, which are some of NAMES."""
    random = Random(seed)
    planted: list[Planted] = []
    seen: set[str] = set()
    while len(planted) < n:
        kind, write = _KINDS[len(planted) % len(_KINDS)]
        value, label = write(random)
        if value not in seen or kind == "name":
            seen.add(value)
            planted.append(Planted(kind, value, f"{label}{value}{'@db.example.org/main' if kind == 'login' else ''}"))
    return planted


def _digits(random: Random, n: int, first: str = string.digits) -> str:
    return random.choice(first) + "".join(random.choices(string.digits, k=n - 1))


def _alnum(random: Random, n: int) -> str:
    return "".join(random.choices(_ALNUM, k=n - 1)) + random.choice(string.digits)


def _grouped(text: str, sizes: tuple[int, ...], separator: str) -> str:
    pieces = iter(text)
    return separator.join("".join(next(pieces) for _ in range(size)) for size in sizes)


def _until(make: Callable[[], str], fits: Callable[[str], bool]) -> str:
    while True:
        text = make()
        if fits(text):
            return text


def _sum(text: str, *weights: int) -> int:
    return sum(int(each) * weight for each, weight in zip(text, weights, strict=False))


def _day(random: Random, style: str) -> str:
    return style.format(y=random.randrange(50, 99), m=random.randrange(1, 13), d=random.randrange(1, 29))


def _luhn(digits: str) -> bool:
    return sum(int(each) if i % 2 == 0 else (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(each)] for i, each in enumerate(reversed(digits))) % 10 == 0


def _email(random: Random) -> tuple[str, str]:
    domain = random.choice(("example.org", "mail.example.com", "kanzlei-beispiel.de", "exämple.net"))
    return f"{_alnum(random, 6)}{random.choice('._+-')}{_alnum(random, 5)}@{domain}", ""


def _phone(random: Random) -> tuple[str, str]:
    d = _digits
    return random.choice(
        (
            lambda: (f"+49 {d(random, 3, '1')} {d(random, 8)}", ""),
            lambda: (f"+1-{d(random, 3, '2345678')}-{d(random, 3, '2345678')}-{d(random, 4)}", ""),
            lambda: (f"({d(random, 3, '2345678')}) {d(random, 3, '2345678')}-{d(random, 4)}", ""),
            lambda: (f"+44 (0)20 {d(random, 4, '1234567')} {d(random, 4)}", ""),
            lambda: (f"0{d(random, 3, '123456789')} {d(random, 7)}", ""),
            lambda: ("0" + " ".join((d(random, 1, "123456"), *(d(random, 2) for _ in range(4)))), ""),
            lambda: (f"0049{d(random, 11, '1')}", ""),
            lambda: (d(random, 10, "6789"), "mobile: "),
        )
    )()


def _iban(random: Random) -> tuple[str, str]:
    country, n = random.choice((("DE", 18), ("GB", 18), ("FR", 23), ("NL", 14), ("NO", 11), ("PL", 24)))
    account = ("".join(random.choices(string.ascii_uppercase, k=4)) if country in ("GB", "NL") else "") + _digits(random, n)
    account = account[:n]

    def remainder(check: int) -> int:
        return int("".join(str(int(each, 36)) for each in f"{account}{country}{check:02d}")) % 97

    text = f"{country}{next(check for check in range(2, 99) if remainder(check) == 1):02d}{account}"
    if random.random() < 0.5:
        text = " ".join(text[i : i + 4] for i in range(0, len(text), 4))
    return text, ""


def _card(random: Random) -> tuple[str, str]:
    first, n, sizes = random.choice((("4", 16, (4, 4, 4, 4)), ("52", 16, (4, 4, 4, 4)), ("37", 15, (4, 6, 5)), ("6011", 16, (4, 4, 4, 4))))
    digits = _until(lambda: first + _digits(random, n - len(first)), _luhn)
    return _grouped(digits, sizes, random.choice(("", " ", "-"))), ""


def _address(random: Random) -> tuple[str, str]:
    if random.random() < 0.5:
        return f"{random.choice((10, 85, 172, 203))}.{'.'.join(str(random.randrange(1, 255)) for _ in range(3))}", ""
    return "2001:db8:" + ":".join(f"{random.randrange(4096, 65536):x}" for _ in range(6)), ""


def _key(random: Random) -> tuple[str, str]:
    upper = string.ascii_uppercase + "234567"
    return random.choice(
        (
            lambda: "AKIA" + "".join(random.choices(upper, k=16)),
            lambda: "ghp_" + _alnum(random, 36),
            lambda: "github_pat_" + _alnum(random, 22) + "_" + _alnum(random, 59),
            lambda: "sk-proj-" + _alnum(random, 48),
            lambda: "sk-ant-api03-" + _alnum(random, 90) + "-AA",
            lambda: f"xoxb-{_digits(random, 12)}-{_digits(random, 12)}-{_alnum(random, 24)}",
            lambda: "AIza" + _alnum(random, 35),
            lambda: "sk_live_" + _alnum(random, 24),
        )
    )(), ""


def _jwt(random: Random) -> tuple[str, str]:
    head, body = ({"alg": "HS256", "typ": "JWT"}, {"sub": _digits(random, 10), "name": _alnum(random, 12)})
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (head, body)]
    return ".".join([*parts, _alnum(random, 43)]), ""


def _pem(random: Random) -> tuple[str, str]:
    kind = random.choice(("RSA ", "EC ", "OPENSSH ", ""))
    body = base64.b64encode(random.randbytes(144)).decode()
    lines = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----", ""


def _password(random: Random) -> tuple[str, str]:
    label = random.choice(
        ("password = ", "DB_PASSWORD=", "Passwort: ", "My password is ", "api_key: ", "client_secret = ", "Authorization: Bearer ")
    )
    return _alnum(random, 14), label


def _login(random: Random) -> tuple[str, str]:
    return f"{_alnum(random, 6)}:{_alnum(random, 10)}", "postgres://"


def _ssn(random: Random) -> tuple[str, str]:
    return f"{_digits(random, 3, '12345')}-{random.randrange(1, 100):02d}-{random.randrange(1, 10000):04d}", ""


def _nhs(random: Random) -> tuple[str, str]:
    number = _until(lambda: _digits(random, 10), lambda text: _sum(text, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1) % 11 == 0)
    return _grouped(number, (3, 3, 4), " "), "NHS number "


def _nino(random: Random) -> tuple[str, str]:
    return f"{random.choice(('AB', 'CE', 'JG', 'PX'))}{_digits(random, 6)}{random.choice('ABCD')}", ""


def _steuer_id(random: Random) -> tuple[str, str]:
    def make() -> str:
        ten = random.sample(string.digits, 9)
        ten.insert(random.randrange(9), random.choice(ten))
        return "".join(ten) + random.choice(string.digits)

    def fits(text: str) -> bool:
        product = 10
        for each in text[:10]:
            total = (int(each) + product) % 10
            product = (total if total else 10) * 2 % 11
        return text[0] != "0" and (11 - product) % 10 == int(text[10])

    return _until(make, fits), "Steuer-ID "


def _dni(random: Random) -> tuple[str, str]:
    first = random.choice(("", "X", "Y", "Z"))
    digits = _digits(random, 7 if first else 8)
    return f"{first}{digits}{'TRWAGMYFPDXBNJZSQVHLCKE'[int({'X': '0', 'Y': '1', 'Z': '2', '': ''}[first] + digits) % 23]}", ""


def _codice_fiscale(random: Random) -> tuple[str, str]:
    odd = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (*_ODD_DIGITS, *_ODD_LETTERS), strict=True))
    head = "".join(random.choices("BCDFGLMNPRSTV", k=6)) + f"{random.randrange(100):02d}{random.choice('ABCDEHLMPRST')}"
    text = head + f"{random.randrange(1, 29):02d}H{_digits(random, 3)}"
    total = sum(odd[each] for each in text[0::2]) + sum(int(each, 36) - (0 if each.isdigit() else 10) for each in text[1::2])
    return text + string.ascii_uppercase[total % 26], ""


_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _nir(random: Random) -> tuple[str, str]:
    text = f"{random.choice('12')}{_day(random, '{y:02d}{m:02d}')}75{_digits(random, 6)}"
    text += f"{97 - int(text) % 97:02d}"
    return (_grouped(text, (1, 2, 2, 2, 3, 3, 2), " ") if random.random() < 0.5 else text), ""


def _bsn(random: Random) -> tuple[str, str]:
    return _until(lambda: _digits(random, 9, "123456789"), lambda text: _sum(text, 9, 8, 7, 6, 5, 4, 3, 2, -1) % 11 == 0), "BSN: "


def _personnummer(random: Random) -> tuple[str, str]:
    text = _until(lambda: _day(random, "{y:02d}{m:02d}{d:02d}") + _digits(random, 4), _luhn)
    return f"{text[:6]}-{text[6:]}", ""


def _aadhaar(random: Random) -> tuple[str, str]:
    return _grouped(_until(lambda: _digits(random, 12, "23456789"), _verhoeff), (4, 4, 4), " "), ""


def _verhoeff(digits: str) -> bool:
    """By the tables of the literature, where the code under test computes the first and shifts none."""
    product = (
        "0123456789",
        "1234067895",
        "2340178956",
        "3401289567",
        "4012395678",
        "5987604321",
        "6598710432",
        "7659821043",
        "8765932104",
        "9876543210",
    )
    permutation = ["0123456789", "1576283094"]
    while len(permutation) < 8:
        permutation.append("".join(permutation[-1][int(each)] for each in permutation[1]))
    state = 0
    for place, digit in enumerate(reversed(digits)):
        state = int(product[state][int(permutation[place % 8][int(digit)])])
    return state == 0


def _cpf(random: Random) -> tuple[str, str]:
    text = _digits(random, 9)
    for n in (10, 11):
        rest = _sum(text, *range(n, 1, -1)) % 11
        text += str(0 if rest < 2 else 11 - rest)
    return f"{text[:3]}.{text[3:6]}.{text[6:9]}-{text[9:]}", ""


def _pesel(random: Random) -> tuple[str, str]:
    def make() -> str:
        return _day(random, "{y:02d}{m:02d}{d:02d}") + _digits(random, 5)

    return _until(make, lambda text: _sum(text, 1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1) % 10 == 0), ""


def _birth(random: Random) -> tuple[str, str]:
    return _day(random, "{d:02d}.{m:02d}.19{y:02d}"), "Date of birth: "


def _name(random: Random) -> tuple[str, str]:
    return random.choice(NAMES), "I am "


_KINDS: tuple[tuple[str, Callable[[Random], tuple[str, str]]], ...] = (
    ("email", _email),
    ("phone", _phone),
    ("iban", _iban),
    ("card", _card),
    ("ip", _address),
    ("key", _key),
    ("jwt", _jwt),
    ("pem", _pem),
    ("password", _password),
    ("login", _login),
    ("ssn", _ssn),
    ("nhs", _nhs),
    ("nino", _nino),
    ("steuer_id", _steuer_id),
    ("dni", _dni),
    ("codice_fiscale", _codice_fiscale),
    ("nir", _nir),
    ("bsn", _bsn),
    ("personnummer", _personnummer),
    ("aadhaar", _aadhaar),
    ("cpf", _cpf),
    ("pesel", _pesel),
    ("birth", _birth),
    ("name", _name),
)
