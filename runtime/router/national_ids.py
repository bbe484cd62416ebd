"""Numbers by which states know people, with their check digits.

Numbers that any other number could be (because one in ten or eleven passes the check) count only in their usual grouping, or after a label.
"""

from __future__ import annotations

import re
from datetime import date

from edgelm.runtime.router.check_digits import luhn, mod_11_10, verhoeff, weighted
from edgelm.runtime.router.patterns import BEGIN, END, Entity

_SEPARATORS = re.compile(r"[^0-9A-Za-z]")
_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_FISCAL_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_HINTS = {"PASSPORT": ("pass",), "LICENCE": ("licen", "hrerschein"), "IN_AADHAAR": ("aadha", "uid")}
_CHINESE = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _compact(text: str) -> str:
    return _SEPARATORS.sub("", text).upper()


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _is_nhs(text: str) -> bool:
    digits = _compact(text)
    return (11 - weighted(digits, range(10, 1, -1)) % 11) % 11 == int(digits[-1])  # a remainder of 10 is no digit


def _is_german_tax_id(text: str) -> bool:
    digits = _compact(text)
    most = max(digits[:10].count(digit) for digit in set(digits[:10]))
    return most in (2, 3) and len(set(digits[:10])) >= 8 and mod_11_10(digits)


def _is_dni(text: str) -> bool:
    digits = _compact(text)
    number = digits[:-1].translate(str.maketrans("XYZ", "012"))
    return _DNI[int(number) % 23] == digits[-1]


def _is_codice_fiscale(text: str) -> bool:
    values = [int(each) if each.isdigit() else ord(each) - ord("A") for each in _compact(text)]
    return (sum(_FISCAL_ODD[value] for value in values[:15:2]) + sum(values[1:15:2])) % 26 == values[15]


def _is_nir(text: str) -> bool:
    digits = _compact(text).replace("2A", "19").replace("2B", "18")
    return 97 - int(digits[:13]) % 97 == int(digits[13:])


def _is_bsn(text: str) -> bool:
    digits = _compact(text)
    return int(digits) > 0 and weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _is_personnummer(text: str) -> bool:
    digits = _compact(text)[-10:]
    return _is_date(2000 + int(digits[:2]), int(digits[2:4]), int(digits[4:6]) % 60) and luhn(digits)  # 60 more in coordination numbers


def _is_cpf(text: str) -> bool:
    digits = _compact(text)
    checks = [10 * weighted(digits, range(n, 1, -1)) % 11 % 10 for n in (10, 11)]
    return len(set(digits)) > 1 and checks == [int(digits[9]), int(digits[10])]


def _is_pesel(text: str) -> bool:
    century, month = divmod(int(text[2:4]), 20)
    year = (1900, 2000, 2100, 2200, 1800)[century] + int(text[:2])
    return _is_date(year, month, int(text[4:6])) and weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _is_hetu(text: str) -> bool:
    return _is_date(2000 + int(text[4:6]), int(text[2:4]), int(text[:2])) and _HETU[int(text[:6] + text[7:10]) % 31] == text[10].upper()


def _is_belgian(text: str) -> bool:
    digits = _compact(text)
    return any(97 - int(century + digits[:9]) % 97 == int(digits[9:]) for century in ("", "2")) and int(digits[2:4]) % 20 <= 12


def _is_ahv(text: str) -> bool:
    return weighted(_compact(text), (1, 3) * 6 + (1,)) % 10 == 0


def _is_chinese(text: str) -> bool:
    born = _is_date(int(text[6:10]) or 1, int(text[10:12]), int(text[12:14]))
    return born and "10X98765432"[weighted(text[:17], _CHINESE) % 11] == text[17].upper()


def _is_norwegian(text: str) -> bool:
    digits = _compact(text)
    first = weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    return (
        _is_date(2000 + int(digits[4:6]), int(digits[2:4]), int(digits[:2]))
        and first == 0
        and (weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0)
    )


def _is_danish(text: str) -> bool:
    return _is_date(2000 + int(text[4:6]), int(text[2:4]), int(text[:2]))


NATIONAL_IDS = tuple(
    Entity(kind, f"{BEGIN}(?i:{pattern}){END}", check, label, _HINTS.get(kind, ()) if label else (), n_digits)
    for kind, n_digits, pattern, check, label in (
        ("US_SSN", 9, r"(?!000|666)\d{3}([- ])(?!00)\d{2}\1(?!0000)\d{4}", None, None),
        ("US_SSN", 9, r"(?!000|666)\d{3}(?!00)\d{2}(?!0000)\d{4}", None, r"ssn|social.?security|itin"),
        ("UK_NHS", 10, r"\d{3}([ -])\d{3}\1\d{4}", _is_nhs, None),
        ("UK_NHS", 10, r"\d{10}", _is_nhs, "nhs"),
        ("UK_NINO", 2, r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", None, None),
        ("DE_TAX_ID", 11, r"[1-9]\d(?:([ /]?)\d{3}\1\d{3}\1\d{3})", _is_german_tax_id, None),
        ("ES_DNI", 7, r"(?:\d{8}|[XYZ][ -]?\d{7})[ -]?[A-Z]", _is_dni, None),
        ("IT_FISCAL", 1, r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]", _is_codice_fiscale, None),
        ("FR_NIR", 3, r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", _is_nir, None),
        ("NL_BSN", 9, r"\d{9}|\d{4}[. ]\d{2}[. ]\d{3}", _is_bsn, r"bsn|burgerservice|sofi|citizen.?service"),
        ("SE_PNR", 10, r"(?:19|20)?\d{6}[-+]\d{4}|(?:19|20)\d{10}", _is_personnummer, None),
        ("SE_PNR", 10, r"\d{10}", _is_personnummer, r"person.?n(?:umme)?r"),
        ("IN_AADHAAR", 12, r"[2-9]\d{3}([ -])\d{4}\1\d{4}", lambda text: verhoeff(_compact(text)), None),
        ("IN_AADHAAR", 12, r"[2-9]\d{11}", verhoeff, r"aadhaa?r|\buid"),
        ("IN_PAN", 4, r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", None, None),
        ("BR_CPF", 11, r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", _is_cpf, None),
        ("PL_PESEL", 11, r"\d{11}", _is_pesel, None),
        ("FI_HETU", 6, r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", _is_hetu, None),
        ("BE_NRN", 11, r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}|\d{11}", _is_belgian, None),
        ("CH_AHV", 13, r"756(\.?)\d{4}\1\d{4}\1\d{2}", _is_ahv, None),
        ("CN_ID", 17, r"\d{17}[\dX]", _is_chinese, None),
        ("CA_SIN", 9, r"\d{3}-\d{3}-\d{3}", lambda text: luhn(_compact(text)), None),
        ("CA_SIN", 9, r"\d{3} ?\d{3} ?\d{3}", lambda text: luhn(_compact(text)), r"\bsin\b|social.?insurance"),
        ("NO_FNR", 11, r"\d{6} ?\d{5}", _is_norwegian, None),
        ("DK_CPR", 10, r"\d{6}-\d{4}", _is_danish, None),
        ("PASSPORT", 1, r"(?=[A-Z]{0,3}\d)[A-Z0-9]{6,10}", None, r"pass(?:port|eport|aporte|nummer)|reisepass"),
        ("LICENCE", 1, r"(?=[A-Z]{0,8}\d)[A-Z0-9-]{6,20}", None, r"driv(?:er|ing)\S{0,3} ?licen[cs]e|f.hrerschein"),
    )
)
"""Kind, digits at least, pattern, check and label; letters of either case."""
