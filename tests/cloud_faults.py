"""The ways in which a cloud fails."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_server import DONE, USAGE, Behaviour, cut_off, drips, event, hangs, huge, says, status


@dataclass(frozen=True)
class Fault:
    """
    Attributes:
        told: is part of the explanation.
        n_sent: requests that the endpoint sees.
        is_open: how the attempt ended is not known, so that its worst case stays reserved.
    """

    behaviour: Behaviour
    told: str
    n_sent: int = 1
    is_open: bool = True


STREAM = "text/event-stream"
PIECE = {"index": 0, "function": {"arguments": "{"}}
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
FAULTS = {
    "hangs before its head": Fault(hangs(), "sent nothing for"),
    "hangs in mid-stream": Fault(hangs(2), "sent nothing for"),
    "drips without an end": Fault(drips(), "took too long"),
    "cut off in mid-stream": Fault(cut_off(), "cut off before its end"),
    "cut off before any text": Fault(says(STREAM, b""), "cut off before its end"),
    "done without an end": Fault(says(STREAM, event({"content": "x"}) + DONE), "cut off before its end"),
    "closes without a word": Fault(lambda *_: None, "broke the connection off"),
    "401": Fault(status("401 Unauthorized"), "HTTP 401; check the API key", is_open=False),
    "403": Fault(status("403 Forbidden"), "HTTP 403; check the API key", is_open=False),
    "404": Fault(status("404 Not Found"), "HTTP 404; check the address", is_open=False),
    "429 without end": Fault(status("429 Too Many Requests"), "HTTP 429 (rate limit)", n_sent=3, is_open=False),
    "429, come much later": Fault(status("429 Too Many Requests", Retry_After="3600"), "HTTP 429", is_open=False),
    "503 without end": Fault(status("503 Service Unavailable", Retry_After="0"), "HTTP 503", n_sent=3, is_open=False),
    "500": Fault(status("500 Internal Server Error"), "HTTP 500"),
    "502": Fault(status("502 Bad Gateway"), "HTTP 502"),
    "504": Fault(status("504 Gateway Timeout"), "HTTP 504"),
    "redirect": Fault(status("307 Temporary Redirect", Location="http://127.0.0.1:1/"), "points elsewhere", is_open=False),
    "204": Fault(lambda send, _: send(b"HTTP/1.1 204 No Content\r\n\r\n"), "is no answer"),
    "a web page": Fault(says("text/html", b"<html>log in</html>"), "'text/html', which is no answer"),
    "JSON that is cut off": Fault(says("application/json", b'{"choices": [{"mess'), "no JSON object"),
    "JSON of another kind": Fault(
        says("application/json", b'{"choices": [{"message": 7, "finish_reason": "stop"}]}'), "not of OpenAI's form"
    ),
    "a stream of nonsense": Fault(says(STREAM, b"data: {]\n\n"), "no JSON object"),
    "a stream of no UTF-8": Fault(says(STREAM, b"data: \xff\xfe\n\n"), "no UTF-8"),
    "an error in the stream": Fault(says(STREAM, event({"content": "x"}) + b'data: {"error": {"code": "overloaded"}}\n\n'), "(overloaded)"),
    "an error that repeats a secret": Fault(says(STREAM, b'data: {"error": {"code": "key sk-secret"}}\n\n'), "(no code)"),
    "filtered": Fault(says(STREAM, event({"content": "x"}) + event({}, "content_filter") + DONE), "ended its answer early"),
    "tokens below zero": Fault(
        says(STREAM, event({}, "stop", usage={"prompt_tokens": -1, "completion_tokens": 1})), "not of OpenAI's form"
    ),
    "tokens without end": Fault(
        says(STREAM, event({}, "stop") + b'data: {"usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}\n\n'), "not of OpenAI's form"
    ),
    "empty": Fault(says(STREAM, event({}, "length") + DONE), "is empty"),
    "calls mixed up": Fault(says(STREAM, event({"tool_calls": [CALL, {**CALL, "index": 1}, PIECE]})), "not of OpenAI's form"),
    "text within a call": Fault(
        says(STREAM, event({"tool_calls": [CALL]}) + event({"content": "x"}) + event({"tool_calls": [PIECE]})), "not of OpenAI's form"
    ),
    "usage of a part": Fault(says(STREAM, event({"content": "x"}, usage=USAGE)), "cut off before its end"),
    "429, with a date beyond all years": Fault(
        status("429 Too Many Requests", Retry_After="Mon, 01 Jan 2024 00:00:00 +99999999999999999"), "HTTP 429", n_sent=3, is_open=False
    ),
    "huge": Fault(huge(3 << 20), "larger than 1,048,576 bytes"),
    "compressed": Fault(says(STREAM, b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
    "no HTTP": Fault(lambda send, _: send(b"SSH-2.0-OpenSSH_9.9\r\n"), "broke the connection off"),
    "endless head": Fault(lambda send, _: send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000), "broke the connection off"),
}
