"""Records: what a line says, that it says it in one way only, and how the head of a log is written."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from typing import Any

import pytest
from egress_logs import BODY, ENDED, SENT, Note
from hypothesis import given
from hypothesis import strategies as st

from edgelm.errors import InvalidRequestError
from edgelm.runtime.router.egress_record import MOST_LINE_BYTES, BrokenLineError, Head, Refused, Sent, decode, fields_of, record_after

TIME = "2025-02-28T23:02:03.000004Z"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=5,
)


def test_a_body_is_told_by_its_digest_unless_bodies_are_kept() -> None:
    fields = fields_of(SENT, keeps_bodies=False)
    assert (fields["kind"], fields["body_sha256"], fields["body_bytes"]) == ("sent", hashlib.sha256(BODY).hexdigest(), len(BODY))
    assert "body" not in fields
    assert "messages" not in repr(SENT)
    assert fields_of(SENT, keeps_bodies=True) == fields | {"body": BODY.decode()}


def test_money_is_written_exactly_and_without_exponent() -> None:
    sent = Sent("r", "e", "m", "l", "w", 1, b"", {}, 1, Decimal("1E-9"))
    assert fields_of(sent, keeps_bodies=False)["reserved_money"] == "0.000000001"


@given(st.dictionaries(st.text().map("field {}".format), JSON, max_size=4), st.integers(0, 10**6))
def test_a_record_is_read_back_from_its_line(fields: dict[str, Any], seq: int) -> None:
    last = Head(seq, hashlib.sha256(b"before").hexdigest())
    record = record_after(last, TIME, fields_of(Note(fields), keeps_bodies=False))
    assert (record.seq, record.prev, record.time, record.kind, record.fields) == (seq + 1, last.sha256, TIME, "note", fields)
    assert decode(record.line) == record
    assert b"\n" not in record.line
    assert record.head == Head(seq + 1, hashlib.sha256(record.line).hexdigest())


def test_the_hash_is_of_the_rest_in_canonical_form() -> None:
    content = json.loads(record_after(Head(), TIME, fields_of(ENDED, keeps_bodies=False)).line)
    told = content.pop("hash")
    assert hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == told


def test_a_line_is_read_in_no_other_form_than_it_is_written() -> None:
    line = record_after(Head(), TIME, fields_of(Refused("r", None, "private", "it is so"), keeps_bodies=False)).line
    others = {
        line.replace(b"it is so", b"it is no"): "changed",
        line.replace(b'"r"', b'"\\u0072"'): "changed",
        line + b" ": "changed",
        line.replace(b'"seq":1', b'"seq":true'): "malformed",
        line.replace(b'"seq":1', b'"seq":1,"seq":1'): "malformed",
        line[:-1]: "malformed",
        b"": "malformed",
        b"\xff": "malformed",
    }
    for other, kind in others.items():
        with pytest.raises(BrokenLineError) as caught:
            decode(other)
        assert caught.value.kind == kind, other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq": 5}, "its own seq"),
        ({"torn": 5, "hash": ""}, "its own hash, torn"),
        ({"seconds": 1.5}, "1.5 is no whole number"),
        ({"seconds": float("nan")}, "NaN"),
        ({"one": {1: 1, "1": 2}}, "stands in it twice|not supported between"),
        ({"one": object()}, "not JSON serializable"),
        ({"body": "x" * MOST_LINE_BYTES}, "longer than the 33,554,432 bytes"),
    ],
)
def test_fields_that_no_record_can_hold(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        record_after(Head(), TIME, fields_of(Note(fields), keeps_bodies=False))


def test_a_head_is_written_in_one_way() -> None:
    noted = Head(6, "5a" * 32)
    assert Head.parse(str(noted)) == noted
    assert Head.parse(str(Head())) == Head()
    for text in ("", str(noted).upper(), f"{noted}\n", f"0{noted}", f"0:{'5' * 64}", "6"):
        with pytest.raises(InvalidRequestError, match="no head"):
            Head.parse(text)
