"""Nothing that was found leaves the device, and all of it comes back."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_secrets import NAMES, Planted, plant

from edgelm.errors import RedactionError
from edgelm.runtime.chat_model import ChatRequest
from edgelm.runtime.form import Form
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.recognizer import Finding
from edgelm.runtime.router.redact import Redaction, Redactor
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import Tool, ToolUse

REDACTOR = Redactor([CoreRecognizer(NAMES)])
PLANTED = plant(11, 264)
EMAIL = "alice@example.org"
CARD = "4111 1111 1111 1111"
PEM = '-----BEGIN PRIVATE KEY-----\nMIIE"\\vQ==\n-----END PRIVATE KEY-----'


def asks(*contents: Any, **more: Any) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": content} for content in contents], **more)


def calls(arguments: Any, name: str = "f") -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def redact(*contents: Any, **more: Any) -> Redaction:
    return REDACTOR.redact(asks(*contents, **more))


def written(request: ChatRequest) -> str:
    """All that a request says, as JSON would carry it."""
    tools = [] if request.tools is None else [tool.described() for tool in request.tools.tools]
    form = request.params.form
    return json.dumps([request.messages, request.params.stop, None if form is None else form.text, tools], ensure_ascii=False)


class Finds:
    """Finds given words, however they stand."""

    def __init__(self, *words: str) -> None:
        self._words = words

    def find(self, text: str) -> Iterable[Finding]:
        return [Finding(text.index(word), text.index(word) + len(word), "WORD") for word in self._words if word in text]


def conversation(planted: list[Planted]) -> ChatRequest:
    """Secrets in every place of a conversation in turn."""
    shares = [planted[i::8] for i in range(8)]
    said = [" and also ".join(each.text for each in share) for share in shares]
    named = {each.text: [each.text, {"deeper": f"so {each.text}."}] for each in shares[4]}
    return ChatRequest(
        [
            {"role": "system", "content": said[0]},
            {"role": "user", "content": said[1]},
            {"role": "assistant", "content": f"I see: {said[2]}"},
            {"role": "user", "content": [{"type": "text", "text": said[3][:100]}, {"type": "text", "text": said[3][100:]}]},
            calls(named),
            {"role": "tool", "content": json.dumps([each.text for each in shares[5]]), "tool_call_id": "c1"},
            calls(json.dumps({"note": [each.text for each in shares[6]]}, indent=1)),
            {"role": "tool", "content": f"It says {said[7]}", "tool_call_id": "c1"},
        ]
    )


def test_nothing_that_was_planted_gets_out() -> None:
    redaction = REDACTOR.redact(conversation(PLANTED))
    out = written(redaction.request) + repr(redaction)
    plain = "".join(each for each in out if each.isalnum())
    for each in PLANTED:
        assert each.value not in out, each
        assert json.dumps(each.value)[1:-1] not in out, each
        assert json.dumps(each.value, ensure_ascii=False)[1:-1] not in out, each
        assert each.compact not in plain, each
    assert sum(redaction.counts.values()) > 200


def test_all_of_it_comes_back() -> None:
    request = conversation(PLANTED)
    redaction = REDACTOR.redact(request)
    for before, after in zip(request.messages, redaction.request.messages, strict=True):
        assert before["role"] == after["role"]
        match before["content"]:
            case str(text):
                restored = redaction.restore(after["content"], in_json=text.startswith("["))
                assert restored == text or json.loads(restored) == json.loads(text)
            case list(parts):
                assert [redaction.restore(part["text"]) for part in after["content"]] == ["".join(part["text"] for part in parts)]
            case None:
                was, now = (message["tool_calls"][0]["function"]["arguments"] for message in (before, after))
                was, now = (value if isinstance(value, str) else json.dumps(value) for value in (was, now))
                assert json.loads(redaction.restore(now, in_json=True)) == json.loads(was)


def test_a_placeholder_tells_the_kind_and_the_same_value_has_the_same_one() -> None:
    redaction = redact(f"{EMAIL} or bob@example.org", f"<{EMAIL}>", [{"type": "text", "text": f"{CARD} of {EMAIL}"}])
    first, second, third = (message["content"] for message in redaction.request.messages)
    one, two = first.split(" or ")
    assert one.startswith("EMAIL_1_")
    assert two.startswith("EMAIL_2_")
    assert second == f"<{one}>"
    (part,) = third
    assert part["text"].startswith("CARD_3_")
    assert part["text"].endswith(one)
    assert redaction.counts == {"EMAIL": 2, "CARD": 1}


@given(st.lists(st.sampled_from([*(each.text for each in PLANTED[:48]), "and", "EMAIL", "_", "1", " ", "\n", '"', "\\", "é"]), max_size=12))
def test_any_text_comes_back_as_it_was(pieces: list[str]) -> None:
    text = " ".join(pieces)
    redaction = redact(text)
    assert redaction.restore(redaction.request.messages[0]["content"]) == text


def test_each_request_has_its_own() -> None:
    assert redact(EMAIL).request.messages != redact(EMAIL).request.messages


def test_what_only_looks_like_a_placeholder_is_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = iter(["fadedbee", "abad1dea", "0badcafe"])  # the first has no digit, the second is in the text
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(tags))
    text = f"EMAIL_1_deadbeef EMAIL_1_ABAD1DEA EMAIL_9_00000000 {EMAIL}"
    redaction = redact(text)
    assert redaction.request.messages[0]["content"] == text.replace(EMAIL, "EMAIL_1_0badcafe")
    assert redaction.restore("EMAIL_1_deadbeef EMAIL_2_0badcafe CARD_1_0badcafe EMAIL_1_0badcafe") == (
        f"EMAIL_1_deadbeef EMAIL_2_0badcafe CARD_1_0badcafe {EMAIL}"
    )


def test_a_request_without_findings_says_the_same() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 12 * 34?", "name": "somebody"},
        calls('{"a":  [1, 2.50, true, null, {"b": "c"}]}'),
        {"role": "tool", "content": '{"x": 408 }', "tool_call_id": "c1"},
        {"role": "assistant", "content": [], "refusal": None},
        calls(""),
        calls({}),
    ]
    tools = ToolUse(
        [Tool("f", "Counts.", {"type": "object", "properties": {"type": {"type": ["string", "null"]}, "password": {"maxLength": 128}}})]
    )
    params = SamplingParams(stop=("x",), form=Form.json_schema({"type": "object"}))
    redaction = REDACTOR.redact(ChatRequest(messages, params, 3, tools))
    assert redaction.request == ChatRequest(messages, params, 3, tools)
    assert redaction.counts == {}
    assert redaction.restore("EMAIL_1_00000000") == "EMAIL_1_00000000"


def test_json_is_read_with_its_labels_and_stays_json() -> None:
    arguments = {
        "password": "correct horse",
        "card": 4111111111111111,
        "phone": 15551234,
        EMAIL: "x",
        "list": [CARD, 7],
        "ok": True,
        "n": 1.5,
    }
    for given_as in (arguments, json.dumps(arguments)):
        redaction = REDACTOR.redact(ChatRequest([calls(given_as)]))
        out = redaction.request.messages[0]["tool_calls"][0]["function"]["arguments"]
        value = json.loads(out) if isinstance(out, str) else out
        kinds = [name.partition("_")[0] for name in (value["password"], value["card"], value["phone"], list(value)[3], value["list"][0])]
        assert kinds == ["PASSWORD", "CARD", "PHONE", "EMAIL", "CARD"]
        assert (value["list"][1], value["ok"], value["n"]) == (7, True, 1.5)
        restored = json.loads(redaction.restore(json.dumps(value), in_json=True))
        assert restored == arguments | {"card": "4111111111111111", "phone": "15551234"}


def test_escapes_of_json_hide_nothing() -> None:
    request = ChatRequest([{"role": "tool", "content": '{"a": "\\u0061lice\\u0040example.org", "b": "Zo\\u00eb Brandstr\\u00f6m"}'}])
    redaction = REDACTOR.redact(request)
    assert redaction.counts == {"EMAIL": 1, "NAME": 1}
    assert set(json.loads(redaction.request.messages[0]["content"])) == {"a", "b"}


def test_tools_stops_names_and_forms_are_read() -> None:
    schema = {
        "type": "object",
        "description": f"ask {EMAIL}",
        "properties": {"to": {"type": "string", "enum": [EMAIL, "nobody"], "default": EMAIL}, "password": {"const": "hunter22"}},
        "examples": [{"card": 4111111111111111}],
    }
    redaction = REDACTOR.redact(
        ChatRequest(
            [{"role": "user", "content": "hi", "name": EMAIL}],
            SamplingParams(stop=["\n", EMAIL], form=Form.json_schema(schema)),
            tools=ToolUse([Tool("f", f"mails {EMAIL}", schema)], must=True),
        )
    )
    out = written(redaction.request)
    for value in (EMAIL, "hunter22", "4111111111111111"):
        assert value not in out
    request = redaction.request
    name = request.messages[0]["name"]
    assert name.startswith("EMAIL_1_")
    assert request.params.stop == ("\n", name)
    assert request.params.form is not None
    assert request.tools is not None
    assert request.tools.must
    assert request.tools.tools[0].parameters == json.loads(request.params.form.text)
    assert request.tools.tools[0].parameters["properties"]["to"] == {"type": "string", "enum": [name, "nobody"], "default": name}


def test_a_value_that_is_recognized_once_is_replaced_everywhere() -> None:
    redaction = REDACTOR.redact(
        ChatRequest(
            [
                {"role": "user", "content": "zq7Kx9pLw2 is what? My password is zq7Kx9pLw2. xzq7Kx9pLw2y"},
                calls({"zq7Kx9pLw2": "zq7Kx9pLw2"}),
                {"role": "user", "content": PEM.replace('"\\', "")},
                {"role": "user", "content": "NHS number 943 476 5919"},
                {"role": "user", "content": "as 9434765919"},
            ],
            tools=ToolUse([Tool("f", "zq7Kx9pLw2")]),
        )
    )
    out = written(redaction.request)
    assert "zq7Kx9pLw2" not in out
    assert "9434765919" not in out
    assert redaction.counts["PASSWORD"] == 1


def test_a_value_is_replaced_where_json_escapes_it_too() -> None:
    value = 'é"b\nc'
    texts = [f"raw {value}.", f"one {json.dumps(value)}", f"two {json.dumps(value, ensure_ascii=False)}"]
    redaction = Redactor([Finds(value)]).redact(asks(*texts))
    contents = [message["content"] for message in redaction.request.messages]
    assert [content.partition("WORD_")[0] for content in contents] == ["raw ", 'one "', 'two "']
    assert [redaction.restore(content) for content in contents] == texts


def test_what_covers_a_placeholder_and_marks_around_it_is_left_alone() -> None:
    class Around:
        def find(self, text: str) -> Iterable[Finding]:
            return [Finding(0, len(text), "ALL")] if text.startswith("<WORD") else []

    redaction = Redactor([Finds("abc"), Around()]).redact(asks("<abc> !"))
    assert redaction.counts == {"WORD": 1}


def test_a_result_that_is_json_stays_json() -> None:
    result = '{"card": 4111111111111111, "password": "a \\"b\\" c"}'
    redaction = REDACTOR.redact(ChatRequest([{"role": "tool", "content": result}]))
    value = json.loads(redaction.request.messages[0]["content"])
    assert (value["card"][:7], value["password"][:11]) == ("CARD_1_", "PASSWORD_2_")
    assert json.loads(redaction.restore(json.dumps(value), in_json=True))["password"] == 'a "b" c'


def test_a_word_is_not_replaced_inside_other_words() -> None:
    redaction = redact('{"password": "secre"} secrets; password: "turtle", turtles')
    assert "secrets;" in redaction.request.messages[0]["content"]
    assert redaction.request.messages[0]["content"].endswith(", turtles")


@pytest.mark.parametrize(
    "request_",
    [
        asks("x", params=SamplingParams(form=Form("regex", f"{EMAIL}|x"))),
        asks("x", params=SamplingParams(form=Form("gbnf", f'root ::= "{EMAIL}"'))),
        asks("x", params=SamplingParams(form=Form.json_schema({"properties": {"a": {"pattern": f"^{EMAIL}$"}}}))),
        asks("x", tools=ToolUse([Tool("f_123-45-6789")])),
        asks("x", tools=ToolUse([Tool("f", "", {"patternProperties": {EMAIL: {}}})])),
        asks(f"password: zq7Kx9pLw2 {EMAIL}", tools=ToolUse([Tool("zq7Kx9pLw2")])),
        ChatRequest([calls({}, name="f_123-45-6789")]),
    ],
)
def test_what_cannot_be_rewritten_keeps_the_request_here(request_: ChatRequest) -> None:
    with pytest.raises(RedactionError, match="cannot be rewritten") as caught:
        REDACTOR.redact(request_)
    assert not any(secret in str(caught.value) for secret in (EMAIL, "123-45-6789", "zq7Kx9pLw2"))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "more": "y"}]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": b"x"},
        {"role": "user", "content": {"text": "x"}},
        {"role": "user", "content": "x", "audio": {}},
        {"role": "user", "content": "x", "name": 5},
        {"role": EMAIL, "content": "x"},
        {"content": "x"},
        "x",
        calls("{"),
        calls('{"a": 1, "a": 2}'),
        calls(None),
        calls({"a": b"x"}),
        calls({"a": 1 << 300}),
        calls({1: "x"}),
        calls(json.loads("[" * 100 + "]" * 100)),
        calls({"a": json.loads("[" * 100 + "]" * 100)}),
        calls("[" * 100_000),
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [{"type": "web_search"}]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": "x"}]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"arguments": "{}"}}]},
    ],
)  # fmt: skip
def test_what_is_not_understood_keeps_the_request_here(message: Any) -> None:
    with pytest.raises(RedactionError, match="on this device only") as caught:
        REDACTOR.redact(ChatRequest([message]))
    assert EMAIL not in str(caught.value)


def test_a_recognizer_that_fails_keeps_the_request_here() -> None:
    class Fails:
        def find(self, text: str) -> Iterable[Finding]:
            yield Finding(0, 1, "X")
            raise ValueError(text)

    with pytest.raises(RedactionError, match=r"failed at messages\[0\].content \(ValueError\)") as caught:
        Redactor([CoreRecognizer(), Fails()]).redact(asks(f"hi {EMAIL}"))
    assert EMAIL not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (0, 0), (2, 1), (0, 4)])
def test_findings_outside_the_text_keep_the_request_here(start: int, end: int) -> None:
    class Finder:
        def find(self, text: str) -> Iterable[Finding]:
            return [Finding(start, end, "X")] if len(text) == 3 else []

    with pytest.raises(RedactionError, match="outside the text"):
        Redactor([Finder()]).redact(asks("abc"))


def test_what_is_found_again_and_again_keeps_the_request_here() -> None:
    class NeverContent:
        def find(self, text: str) -> Iterable[Finding]:
            place = next((i for i, each in enumerate(text) if each in "uvwxyz"), None)
            return [] if place is None else [Finding(place, place + 1, "LETTER")]

    assert Redactor([NeverContent()]).redact(asks("u v")).counts == {"LETTER": 2}
    with pytest.raises(RedactionError, match="still found after"):
        Redactor([NeverContent()]).redact(asks("u v w x y z"))


def test_what_appears_once_other_things_are_gone_is_found_too() -> None:
    class AfterPlaceholders:
        def find(self, text: str) -> Iterable[Finding]:
            place = text.find("WORD_1_")
            return [] if place < 0 else [Finding(place, len(text), "REST")]

    redaction = Redactor([Finds("abc"), AfterPlaceholders()]).redact(asks("abc tail"))
    content = redaction.request.messages[0]["content"]
    assert "tail" not in content
    assert redaction.restore(content) == "abc tail"
    assert redaction.counts == {"WORD": 1, "REST": 1}


def test_overlapping_recognizers_leave_nothing() -> None:
    redaction = Redactor([Finds("Alice S"), Finds("e Smith")]).redact(asks("I am Alice Smith."))
    content = redaction.request.messages[0]["content"]
    assert content.startswith("I am WORD_1_")
    assert content.endswith(".")
    assert redaction.restore(content) == "I am Alice Smith."


def test_every_field_of_a_request_was_thought_of() -> None:
    """Whoever adds a field must tell request_texts.py of the texts in it."""
    assert {each.name for each in fields(ChatRequest)} == {"messages", "params", "n", "tools"}
    assert {each.name for each in fields(ToolUse)} == {"tools", "must", "several"}
    assert {each.name for each in fields(Tool)} == {"name", "description", "parameters"}
    assert {each.name for each in fields(Form)} == {"kind", "text"}
    with_text = {each.name for each in fields(SamplingParams) if "str" in str(each.type) or "Form" in str(each.type)}
    assert with_text == {"stop", "form"}


def test_originals_are_not_shown() -> None:
    redaction = redact(f"{EMAIL} {CARD}")
    assert EMAIL not in repr(redaction)
    assert CARD not in repr(redaction)
