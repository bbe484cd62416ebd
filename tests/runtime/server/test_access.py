"""Who may ask the server, and how much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from byte_model import says
from served import MakeServed

from edgelm.errors import InvalidRequestError
from edgelm.runtime.loopback import is_loopback
from edgelm.runtime.server.access import Access

KEY = "a-key"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "a.localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    Access(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org", ""])
def test_other_machines_need_one(host: str) -> None:
    with pytest.raises(InvalidRequestError, match="give an API key"):
        Access(host)
    Access(host, [KEY])


@pytest.mark.parametrize("key", ["", "ключ", "a\nb"])
def test_a_key_must_fit_a_header(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="API key"):
        Access("0.0.0.0", [key])


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"authorization": f"bearer {KEY}"}])
def test_a_key_opens(make_served: MakeServed, headers: dict[str, str]) -> None:
    served = make_served(says("x"), Access(keys=["other", KEY]))
    assert served.http.get("/v1/models", headers=headers).status_code == 200


def test_the_page_and_the_documentation_are_shown_to_everybody(make_served: MakeServed) -> None:
    served = make_served(says("x"), Access(keys=[KEY]))
    for path in ("/", "/web/page.js", "/docs", "/openapi.json", "/health"):
        assert served.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer x"}, {"X-API-Key": "a-kez"}, {"X-API-Key": b"\xff"}]
)
def test_without_it_nothing_is_told(make_served: MakeServed, headers: dict[str, str]) -> None:
    served = make_served(says("x"), Access(keys=[KEY]))
    for path in ("/v1/models", "/metrics", "/props", "/nowhere", "/docs/../v1/models", "/web/../v1/models"):
        response = served.http.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert served.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403), ("[", 403)]
)
def test_a_name_that_was_made_to_point_here_is_refused(make_served: MakeServed, host: str, status: int) -> None:
    assert make_served(says("x")).http.get("/v1/models", headers={"Host": host}).status_code == status


def test_pages_of_others_may_not_ask_unless_they_are_named(make_served: MakeServed) -> None:
    served = make_served(says("x"), Access(origins=["https://friend.example"]))
    assert served.http.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert served.http.get("/v1/models", headers={"Origin": "null"}).status_code == 403
    assert served.http.get("/v1/models", headers={"Origin": served.url}).status_code == 200
    friend = served.http.get("/v1/models", headers={"Origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    asks_first = {
        "Origin": "https://friend.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert served.http.options("/v1/chat/completions", headers=asks_first).status_code == 200


def test_without_such_pages_no_header_lets_them(make_served: MakeServed) -> None:
    assert "access-control-allow-origin" not in make_served(says("x")).http.get("/v1/models").headers


def test_a_request_is_bounded_with_and_without_a_length(make_served: MakeServed) -> None:
    served = make_served(says("x"), Access(max_body=1000))

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    for content in (b" " * 2000, pieces()):
        response = served.http.post("/v1/chat/completions", content=content)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert served.chat().status_code == 200
