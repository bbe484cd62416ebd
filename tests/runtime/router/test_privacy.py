"""What leaves the device, looked at on the wire."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_faults import FAULTS
from cloud_server import CloudServer, answers, calls
from planted_secrets import NAMES, Planted, plant
from routed import DOUBTS, LOCAL, Heard, Routed, local_model

from edgelm.errors import InvalidRequestError
from edgelm.runtime.chat_model import ChatRequest, Finish, TextDelta, ToolCallDelta
from edgelm.runtime.privacy import Level
from edgelm.runtime.router.cloud_request import body_of
from edgelm.runtime.router.egress import Address
from edgelm.runtime.router.egress_verify import verify
from edgelm.runtime.router.entities import CoreRecognizer
from edgelm.runtime.router.recognizer import Finding
from edgelm.runtime.router.redact import Redactor
from edgelm.runtime.router.restoring import AnswerRestorer
from edgelm.runtime.router.strategy import Rule, Strategy
from edgelm.runtime.sampling import SamplingParams
from edgelm.runtime.tool_calls import CallPiece, Tool, ToolUse

N_PLANTED = 200


@pytest.mark.parametrize("strategy", [DOUBTS, Strategy(rules=[Rule("cloud", "all", min_tokens=0)], thinking="off", unknown="cloud")])
def test_never_opens_no_connection_whatever_the_cloud_would_do(strategy: Strategy, tmp_path: Path) -> None:
    for fault in FAULTS.values():
        with CloudServer(fault.behaviour) as cloud:
            own = Routed(tmp_path, cloud.url, Level.NEVER, strategy=strategy)
            assert own.router.cloud is None
            assert own.ask().text == LOCAL
            asker = Routed(tmp_path, cloud.url, Level.ALLOW, strategy=strategy).ask(level=Level.NEVER)
            assert asker.text == LOCAL
            assert cloud.n_connections == 0


def test_never_does_not_even_import_an_http_client(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from routed import Routed, LOCAL
from edgelm.runtime.privacy import Level
assert Routed(Path({str(tmp_path)!r}), "http://127.0.0.1:9/v1", Level.NEVER).ask().text == LOCAL
assert not {{"httpx", "httpcore", "requests", "aiohttp", "urllib3", "http.client", "urllib.request"}} & set(sys.modules), sys.modules.keys()
"""
    tests = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": f"{tests}:{tests.parent}", "PATH": "", "HOME": str(tmp_path)}
    )


def conversation(planted: list[Planted]) -> ChatRequest:
    """Secrets in every part of a request."""
    texts = [each.text for each in planted]
    part = len(texts) // 5
    tool = Tool("lookup", "Looks someone up.", {"type": "object", "properties": {"who": {"type": "string"}}})
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"who": texts[part : 2 * part], "note": "a call"}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You know: " + " ; ".join(texts[:part])},
        {"role": "user", "content": "Look them up."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": json.dumps({"found": texts[2 * part : 3 * part]})},
        {"role": "assistant", "content": "I found " + "\n".join(texts[3 * part : 4 * part])},
        {"role": "user", "content": "\n".join(f"And what of {text} ?" for text in texts[4 * part :])},
    ]
    return ChatRequest(messages, SamplingParams(max_tokens=32), tools=ToolUse([tool]))


def shapes(value: str) -> Iterator[str]:
    """A secret as it may stand on the wire."""
    yield value
    for _ in range(3):
        value = json.dumps(value)[1:-1]
        yield value
    yield json.dumps(value, ensure_ascii=False)[1:-1]


def redacting(folder: Path, url: str, strategy: Strategy = DOUBTS) -> Routed:
    names = Redactor((CoreRecognizer(NAMES),))
    return Routed(folder, url, Level.REDACT, strategy, local=local_model(n_ctx=1 << 16), redactor=names)


@pytest.mark.parametrize("seed", [1, 2])
def test_none_of_the_planted_secrets_is_on_the_wire(seed: int, tmp_path: Path) -> None:
    planted = plant(seed, N_PLANTED)
    with CloudServer() as cloud:
        heard = redacting(tmp_path, cloud.url).ask(conversation(planted))
    assert heard.told.route == "cloud", heard.told
    wire = cloud.wire.decode()
    digits = "".join(each for each in wire if each.isalnum())
    assert not [each for each in planted if any(shape in wire for shape in shapes(each.value))]
    assert not [each for each in planted if len(each.compact) >= 10 and each.compact.isdigit() and each.compact in digits]
    logged = (tmp_path / "egress.jsonl").read_text()
    assert not [each for each in planted if each.value in logged]


@pytest.mark.parametrize("seed", [3])
def test_what_was_replaced_is_put_back_in_a_stream_of_single_characters(seed: int, tmp_path: Path) -> None:
    planted = plant(seed, 26)
    texts = [each.text for each in planted]
    with CloudServer(lambda send, over: answers("", list(cloud.bodies[-1]["messages"][-1]["content"]))(send, over)) as cloud:
        request = ChatRequest([{"role": "user", "content": "\n".join(texts)}], SamplingParams(max_tokens=32))
        for reading in ("whole", "restarts"):
            heard = redacting(tmp_path, cloud.url).ask(request, reading=reading)
            assert heard.text == "\n".join(texts)
    assert not [each for each in planted if each.value in cloud.wire.decode()]


def test_what_was_replaced_is_put_back_under_every_split_of_an_answer_and_of_a_call() -> None:
    planted = plant(4, 30)
    pem = next(each.value for each in planted if "PRIVATE KEY" in each.value)  # with line ends, that JSON escapes
    email = next(each.value for each in planted if each.kind == "email")
    request = ChatRequest([{"role": "user", "content": f"{pem} and {email}"}])
    redaction = Redactor((CoreRecognizer(NAMES),)).redact(request)
    sent = str(redaction.request.messages[0]["content"])
    arguments = json.dumps({"key": sent})
    for cut in range(len(sent) + 1):
        restorer = AnswerRestorer(redaction)
        events = [one for piece in (sent[:cut], sent[cut:]) for one in restorer.push(TextDelta(0, piece))]
        assert Heard([*events, *restorer.push(Finish(0, "stop"))]).text == f"{pem} and {email}"
    for cut in range(len(arguments) + 1):
        restorer = AnswerRestorer(redaction)
        pieces = (CallPiece(0, arguments[:cut], "call_1", "f"), CallPiece(0, arguments[cut:]))
        events = [one for piece in pieces for one in restorer.push(ToolCallDelta(0, piece))]
        heard = Heard([*events, *restorer.push(Finish(0, "tool_calls"))])
        assert json.loads(heard.calls[0]) == {"key": f"{pem} and {email}"}


def test_what_only_looks_like_a_placeholder_is_shown_at_the_end() -> None:
    redaction = Redactor((CoreRecognizer(),)).redact(ChatRequest([{"role": "user", "content": "a@example.org"}]))
    restorer = AnswerRestorer(redaction)
    sent = str(redaction.request.messages[0]["content"])
    assert sent.startswith("EMAIL_1_")
    events = [*restorer.push(TextDelta(0, f"see {sent[:-3]}")), *restorer.push(Finish(0, "stop"))]
    assert Heard(events).text == f"see {sent[:-3]}"


def test_the_arguments_of_a_call_are_put_back(tmp_path: Path) -> None:
    tool = Tool("mail", "Sends a mail.", {"type": "object", "properties": {"to": {"type": "string"}}})
    secret = "jane.doe@example.org"

    def call(send: Any, over: Any) -> None:
        (placeholder,) = re.findall(r"\S+", cloud.bodies[-1]["messages"][0]["content"])[-1:]
        calls("mail", ['{"to": "', *placeholder, '"}'])(send, over)

    with CloudServer(call) as cloud:
        request = ChatRequest([{"role": "user", "content": f"Write to {secret}"}], SamplingParams(max_tokens=32), tools=ToolUse([tool]))
        heard = redacting(tmp_path, cloud.url).ask(request)
    assert json.loads(heard.calls[0]) == {"to": secret}
    assert secret not in cloud.wire.decode()


def test_what_cannot_be_redacted_stays_here(tmp_path: Path) -> None:
    class Broken:
        def find(self, text: str) -> Iterator[Finding]:
            raise RuntimeError(text)

    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url, Level.REDACT, redactor=Redactor((Broken(),)))
        heard = routed.ask("my secret text")
        assert cloud.n_connections == 0
    assert heard.text == LOCAL
    assert "RuntimeError" in (heard.told.fault or "")
    assert "secret" not in repr(heard.events)
    assert [(each.kind, each.fields["reason"]) for each in routed.records] == [("refused", "not redacted")]
    assert "secret" not in (tmp_path / "egress.jsonl").read_text()


def test_the_key_is_in_its_header_and_nowhere_else(tmp_path: Path) -> None:
    with CloudServer() as cloud:
        heard = Routed(tmp_path, cloud.url, key=lambda: "sk-very-secret").ask()
    head, _, body = cloud.received[0].partition(b"\r\n\r\n")
    assert head.count(b"sk-very-secret") == 1
    assert b"\r\nAuthorization: Bearer sk-very-secret\r\n" in head + b"\r\n"
    assert b"sk-very-secret" not in body
    assert "sk-very-secret" not in repr(heard.events) + (tmp_path / "egress.jsonl").read_text()


def test_the_environment_s_proxies_and_passwords_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with CloudServer() as proxy, CloudServer() as cloud:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        heard = Routed(tmp_path, cloud.url, key=lambda: None).ask()
        assert (proxy.n_connections, cloud.n_connections) == (0, 1)
    assert heard.told.route == "cloud"
    assert b"authorization" not in cloud.wire.lower()


@pytest.mark.parametrize(
    "url",
    [
        "http://cloud.example/v1",
        "ftp://cloud.example",
        "https://user:key@cloud.example/v1",
        "cloud.example",
        "",
        "https://a..b/v1",
        "https://a b/v1",
        "https://a:99999/v1",
    ],
)
def test_addresses_that_would_show_text_or_keys_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        Address(url)


def test_a_log_that_cannot_be_written_keeps_everything_here(tmp_path: Path) -> None:
    (tmp_path / "egress.jsonl").mkdir()
    with CloudServer() as cloud:
        routed = Routed(tmp_path, cloud.url)
        heard = routed.ask()
        assert cloud.n_connections == 0
    assert (heard.text, heard.told.reason) == (LOCAL, "cloud failed")
    assert routed.budget.spent().day.reserved.requests == 0


def test_what_was_sent_is_what_was_logged_before(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(send: Any, over: Any) -> None:
        seen.append(len(routed.records))
        answers("from the cloud")(send, over)

    with CloudServer(look) as cloud:
        routed = Routed(tmp_path, cloud.url)
        routed.ask()
    assert seen == [1]
    body = cloud.received[0].partition(b"\r\n\r\n")[2]
    sent, ended = routed.records
    assert sent.fields["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert sent.fields["body_bytes"] == len(body)
    assert (ended.fields["outcome"], ended.fields["tokens"]) == ("answered", 25)
    assert verify(tmp_path / "egress.jsonl").problem is None


def test_the_text_before_a_call_is_whole_before_the_call_begins() -> None:
    redaction = Redactor((CoreRecognizer(),)).redact(ChatRequest([{"role": "user", "content": "a@example.org"}]))
    restorer = AnswerRestorer(redaction)
    said = [TextDelta(0, "Let me look up the date"), ToolCallDelta(0, CallPiece(0, "{}", "call_1", "f")), Finish(0, "tool_calls")]
    events = [one for each in said for one in restorer.push(each)]
    kinds = [type(event).__name__ for event in events]
    assert kinds.index("ToolCallDelta") > max(i for i, kind in enumerate(kinds) if kind == "TextDelta")
    assert Heard(events).text == "Let me look up the date"


def test_half_a_surrogate_pair_is_written_as_json_can() -> None:
    request = ChatRequest([{"role": "user", "content": "a \ud800 b"}])
    assert json.loads(body_of(request, "m", 5))["messages"][0]["content"] == "a \ud800 b"
