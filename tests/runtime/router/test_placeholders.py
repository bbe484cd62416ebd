"""Values come back in place of their placeholders, however an answer is cut and a model has written them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgelm.runtime.router.placeholders import Placeholders, Restorer

ADDRESS = "alice@example.org"
PEM = '-----BEGIN PRIVATE KEY-----\nMIIE"\\vQ==\n-----END PRIVATE KEY-----'
VALUES: Mapping[str, str] = {"EMAIL_1_9f3a62c0": ADDRESS, "PRIVATE_KEY_2_9f3a62c0": PEM, "NAME_13_9f3a62c0": "É", "ID_NAME_14_9f3a62c0": ""}
ANSWER = (
    "Dear **NAME_13_9f3a62c0**, email_1_9F3A62C0: EMAIL\\_1\\_9f3a62c0 E EMAIL EMAIL_1 EMAIL_1_9f3a62c EMAILEMAIL_1_9f3a62c0 "
    "(EMAIL-1-9f3a62c0)`Private Key 2 9f3a62c0`ID_NAME_13_9f3a62c0 ID_NAME_14_9f3a62c0\\EMAIL_1_9f3a62c0abc "
    "EMAIL_2_9f3a62c0 EMAIL\\\\\\_1_9f3a62c0 EMAIL_1_"
)
RESTORED = (
    f"Dear **É**, {ADDRESS}: {ADDRESS} E EMAIL EMAIL_1 EMAIL_1_9f3a62c EMAIL{ADDRESS} "
    f"({ADDRESS})`{PEM}`ID_É \\{ADDRESS}abc EMAIL_2_9f3a62c0 EMAIL\\\\\\_1_9f3a62c0 EMAIL_1_"
)


def test_placeholders_are_numbered_plain_words() -> None:
    placeholders = Placeholders("9f3a62c0")
    names = [
        placeholders.of(value, kind) for value, kind in (("a", "EMAIL"), ("b", "us-ssn 2"), ("a", "NAME"), ("c", "12"), ("d", "K" * 99))
    ]
    assert names == ["EMAIL_1_9f3a62c0", "US_SSN_2_9f3a62c0", "EMAIL_1_9f3a62c0", "DATA_3_9f3a62c0", f"{'K' * 24}_4_9f3a62c0"]
    assert placeholders.values == {names[0]: "a", names[1]: "b", names[3]: "c", names[4]: "d"}
    assert placeholders.places(f"XUS_SSN_2_9f3a62c0,EMAIL_2_9f3a62c0 EMAIL_9_9f3a62c0 {names[0]}") == [(1, 18), (53, 69)]


def restored(pieces: Iterable[str], in_json: bool = False) -> str:
    restorer = Restorer(VALUES, in_json)
    return "".join([*(restorer.push(piece) for piece in pieces), restorer.finish()])


def test_an_answer_is_restored_however_it_is_cut() -> None:
    assert restored([ANSWER]) == RESTORED
    assert restored(ANSWER) == RESTORED
    for i in range(len(ANSWER)):
        assert restored([ANSWER[:i], ANSWER[i:]]) == RESTORED


@given(st.lists(st.integers(0, len(ANSWER)), max_size=20))
def test_an_answer_is_restored_in_any_pieces(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(ANSWER)]
    assert restored([ANSWER[start:end] for start, end in pairwise(ends)]) == RESTORED


SNIPPETS = ["EMAIL", "email", "_", "-", " ", "\\", "1", "9f3a62c0", "PRIVATE", "KEY", "2", "NAME", "13", "ID", "x", "ſ", "K"]


@given(st.lists(st.sampled_from(SNIPPETS)).map("".join), st.data())
def test_any_answer_is_the_same_whole_and_in_pieces(answer: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(answer)))
    assert restored(answer) == restored([answer]) == restored([answer[:cut], answer[cut:]])


def test_only_what_may_become_a_placeholder_is_held_back() -> None:
    restorer = Restorer(VALUES)
    assert restorer.push("Hello, ") == "Hello, "
    assert restorer.push("see") == "se"
    assert restorer.push(" E") == "e "
    assert restorer.push("MAIL_1_9f3a62c") == ""
    assert restorer.push("0") == ADDRESS
    assert restorer.push("!") == "!"
    assert restorer.push(" EMAIL_1_9f3a62c") == " "
    assert restorer.push("1") == "EMAIL_1_9f3a62c1"
    assert restorer.push("i") == ""
    assert restorer.finish() == "i"
    assert restorer.finish() == ""


def test_values_are_escaped_in_json() -> None:
    answer = json.dumps({"key": "PRIVATE_KEY_2_9f3a62c0", "md": "PRIVATE\\_KEY\\_2\\_9f3a62c0", "to": ["EMAIL_1_9f3a62c0"]})
    expected = {"key": PEM, "md": PEM, "to": [ADDRESS]}
    assert json.loads(restored([answer], in_json=True)) == expected
    assert json.loads(restored(answer, in_json=True)) == expected
    for i in range(len(answer)):
        assert json.loads(restored([answer[:i], answer[i:]], in_json=True)) == expected
