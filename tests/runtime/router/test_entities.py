"""What the built-in recognizer finds, and what it leaves alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_secrets import NAMES, Planted, plant

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.plain_text import PlainText
from edgelm.runtime.router.recognizer import Finding, merged

CORE = CoreRecognizer(NAMES)
PLANTED = plant(7, 480)


def found(text: str, recognizer: CoreRecognizer = CORE) -> list[tuple[str, str]]:
    return [(text[each.start : each.end], each.kind) for each in merged(recognizer.find(text))]


def covers(text: str, value: str) -> bool:
    start = text.index(value)
    return any(each.start <= start and start + len(value) <= each.end for each in merged(CORE.find(text)))


@pytest.mark.parametrize("kind", sorted({each.kind for each in PLANTED}))
def test_everything_planted_is_found(kind: str) -> None:
    for planted in PLANTED:
        if planted.kind == kind:
            for text in (
                planted.text,
                f"Hello, {planted.text}. Bye",
                f"a\n{planted.text}\nb",
                f"({planted.text})",
                f'{{"x": "y\\n{planted.text}"}}',
            ):
                assert covers(text, planted.value), text


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("Mail alice.b+c@mail.example.co.uk.", "alice.b+c@mail.example.co.uk", "EMAIL"),
        ("<mailto:alice@example.org>", "alice@example.org", "EMAIL"),
        ("call +49 (0)30/1234567 now", "+49 (0)30/1234567", "PHONE"),
        ("phone 555-2671 now", "555-2671", "PHONE"),
        ("DE89 3704 0044 0532 0130 00 is mine", "DE89 3704 0044 0532 0130 00", "IBAN"),
        ("gb82west12345698765432", "gb82west12345698765432", "IBAN"),
        ("12 4111-1111-1111-1111 123", "4111-1111-1111-1111", "CARD"),
        ("5000 4111 1111 1111 1111", "4111 1111 1111 1111", "CARD"),
        ("card=378282246310005;", "378282246310005", "CARD"),
        ("at 10.1.2.3:8080", "10.1.2.3", "IP_ADDRESS"),
        ("ping fe80::1ff:fe23:4567:890a", "fe80::1ff:fe23:4567:890a", "IP_ADDRESS"),
        ("is 00:1A:2b:3c:4D:5e up", "00:1A:2b:3c:4D:5e", "MAC_ADDRESS"),
        ("id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE", "API_KEY"),
        ("https://bob:s3cr3t@host.example/x", "bob:s3cr3t@host.example", "CREDENTIALS"),
        ('{"password": "correct horse battery"}', "correct horse battery", "PASSWORD"),
        ("**Password:** hunter", "hunter", "PASSWORD"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG", "SECRET"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz", "TOKEN"),
        ("PIN: 4711", "4711", "PIN"),
        ("SSN 123456789", "123456789", "US_SSN"),
        ("NHS number 943 476 5919", "943 476 5919", "UK_NHS"),
        ("ab 12 34 56 c", "ab 12 34 56 c", "UK_NINO"),
        ("86 095 742 719", "86 095 742 719", "DE_TAX_ID"),
        ("12345678-Z", "12345678-Z", "ES_DNI"),
        ("RSSMRA85T10A562S", "RSSMRA85T10A562S", "IT_FISCAL"),
        ("BSN van de klant: 111222333", "111222333", "NL_BSN"),
        ("811218-9876", "811218-9876", "SE_PNR"),
        ("529.982.247-25", "529.982.247-25", "BR_CPF"),
        ("131052-308T", "131052-308T", "FI_HETU"),
        ("756.9217.0769.85", "756.9217.0769.85", "CH_AHV"),
        ("11010519491231002X", "11010519491231002X", "CN_ID"),
        ("passport number C01X00T47", "C01X00T47", "PASSPORT"),
        ("I was born on 14 March 1979", "14 March 1979", "BIRTH_DATE"),
        ("account number 12345678", "12345678", "ACCOUNT"),
    ],
)
def test_a_kind_is_told(text: str, value: str, kind: str) -> None:
    assert found(text) == [(value, kind)]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # Luhn
        "GB83 WEST 1234 5698 7654 32",  # mod 97
        "RSSMRA85T10A562T",
        "12345678A",
        "529.982.247-26",
        "756.9217.0769.84",
        "110105194912310021",
        "811318-9876",  # no such month
        "1.2.3.256",
        "000-12-3456 and 123-00-4567",
        "+83 1234 56789",  # no such country
    ],
)
def test_what_fails_its_check_is_left_alone(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog; in 2023 it did so 1,234 times, at 9:30 and at 12:45:10.",
        "What is 12345 * 6789 + 83810205? And 3.141592653589793 - 2.718281828459045? Solve x^2 - 5x + 6 = 0 for x in [0, 10].",
        "Version 3.11.4 follows 3.11.3, and v1.2.3.4 was tagged on 2024-01-15T10:30:00Z (12/05/2023, 15.01.2024 08:30:11).",
        "It costs $1,234,567.89, or EUR 99.95, or 1 000 000 yen; 1700000000 and 1700000000000 are times.",
        "def login(password: str, token: Optional[str] = None) -> None:\n    password = get_password(user)\n    self.token = config.token",
        "password = os.environ['PASSWORD']; api_key = settings.api_key; secret = ${SECRET}; PASSWORD=<your password>; password: string;",
        "max_tokens=4096, the next token: hello, key = value, tokens: 12345678901",
        "The password is required. A password must be long. Forgot your password? Pass the word.",
        "std::vector<int> a; x = a[1:2]; b = c @ d.T; pip install git+ssh://git@github.com/o/r; npm i react@18.2.0; 127.0.0.1:80 ::1",
        "550e8400-e29b-41d4-a716-446655440000 da39a3ee5e6b4b0d3255bfef95601890afd80709 0xdeadbeef",
        "Einstein was born on 14 March 1879 in Ulm. ISBN 978-3-16-148410-0. Figure 12.3.4, pages 100-200, 1914-1918, 50-50.",
        "The basic understanding-of-things bearer of news. See https://example.org/a/b?c=1#d, room 0815, area 51, 10 20 30 40.",
        "x[::2], d[2::], max_tokens=30).text, bytes_per_token=1_000_000_000, token_count: 123456; '0123456789'; 2.4999999999999996",
        "def f(password: bool, authorization = request.headers.get('x')): call(2026, '2026-05-01 12:00:00'); password = '****'",
        "0.0180.0360.0184100 in the phone dialect https://json-schema.org/draft/2020-12/schema; cell 4567",
        "Matrix [[1, 2, 3], [4, 5, 6]] times [7 8 9]; 1/2 + 1/3 = 5/6; 6.02214076e23; 299792458 m/s; 0.1 + 0.2; 2147483647",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("an ａｌｉｃｅ＠ｅｘａｍｐｌｅ．ｏｒｇ!", "ａｌｉｃｅ＠ｅｘａｍｐｌｅ．ｏｒｇ"),
        ("４１１１１１１１１１１１１１１１", "４１１１１１１１１１１１１１１１"),
        ("4111\u00a01111\u202f1111\u20111111", "4111\u00a01111\u202f1111\u20111111"),
        ("a 41\u200b11111111\u00ad11\ufeff1111 b", "41\u200b11111111\u00ad11\ufeff1111"),
        ("ali\u2060ce@example.org", "ali\u2060ce@example.org"),
        ("٤١١١١١١١١١١١١١١١", "٤١١١١١١١١١١١١١١١"),
        ('"\\u0061lice\\u0040example.org"', "\\u0061lice\\u0040example.org"),
        ("jose\u0301@example.org", "jose\u0301@example.org"),
    ],
)
def test_unicode_does_not_hide_it(text: str, value: str) -> None:
    assert [each for each, _ in found(text)] == [value]


@pytest.mark.parametrize(
    "written",
    [
        "Zoë Brandström",
        "zoe brandstrom",
        "ZOE\u0308 BRANDSTRÖM",
        "Zoë\nBrandström",
        "Zoë_Brandström",
        "ZoëBrandström",
        "zoe.brandstrom",
        "Zo\\u00eb Brandstr\\u00f6m",
    ],
)
def test_a_name_is_found_however_it_is_written(written: str) -> None:
    for text in (f"ask {written}'s boss", f"{written}", f"C:\\users\\{written}\\x", f'"to:\\n{written}"'):
        assert found(text) == [(written, "NAME")]


def test_a_name_is_a_whole_word() -> None:
    core = CoreRecognizer(["Ann", "Anna Lee"])
    assert found("Annabel and Joann met Ann and Anna Lee, not Annals", core) == [("Ann", "NAME"), ("Anna Lee", "NAME")]


@pytest.mark.parametrize("name", ["", " ", "x", "\u200b\u200b"])
def test_a_name_that_would_be_everywhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="at least two letters"):
        CoreRecognizer([name])


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "1",
            "1 ",
            "1-",
            "a.",
            "a@a.",
            "://a:",
            "0:",
            "eyJa.",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----a",
            'password="',
        ),
        *("api_key=a1", "(0", "+1", "phone 1 ", "DE12 ", "\u200b", "１", "\\u0041"),
    ],
)
def test_hostile_texts_are_read_to_their_end(piece: str) -> None:
    hostile = piece * (100_000 // len(piece))
    assert covers(f"{hostile}\n\nalice@example.org", "alice@example.org")


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    for each in CORE.find(text):
        assert 0 <= each.start < each.end <= len(text)


@given(st.text())
def test_plain_text_leads_back(text: str) -> None:
    plain = PlainText.of(text)
    for i in range(len(plain.text)):
        start, end = plain.original(i, i + 1)
        assert plain.text[i] in PlainText.of(text[start:end]).text


def test_findings_that_overlap_become_one_of_the_longest_ones_kind() -> None:
    findings = [Finding(5, 9, "B"), Finding(0, 6, "A"), Finding(20, 22, "D"), Finding(8, 18, "C"), Finding(20, 22, "E")]
    assert merged(findings) == [Finding(0, 18, "C"), Finding(20, 22, "D")]
    assert merged([]) == []


def test_planting_is_the_same_for_the_same_seed() -> None:
    assert plant(3, 60) == plant(3, 60)
    assert plant(3, 60) != plant(4, 60)
    assert Planted("card", "41 11", "card 41 11").compact == "4111"
