"""A server with a router before its model: who answered is told, and levels, consent and restarts are a client's to ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from byte_model import says
from cloud_server import CloudServer, answers, cut_off
from routed import DOUBTS, LOCAL, FixedTrust, Routed
from served import MakeServed, Served

from edgelm.runtime.privacy import Level
from edgelm.runtime.router.strategy import Strategy
from edgelm.runtime.server.access import Access

CLOUD = "from the cloud"
TRUSTS = Strategy(trust=FixedTrust(confidence=0.9, first_look=0.9), thinking="off")


def serve(
    make_served: MakeServed, folder: Path, cloud: CloudServer, *args: Any, level: Level = Level.ALLOW, strategy: Strategy = DOUBTS
) -> Served:
    return make_served(says(LOCAL), *args, front=lambda model: Routed(folder, cloud.url, level, strategy, local=model).router)


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def told(response: httpx.Response) -> dict[str, Any]:
    edgelm: dict[str, Any] = response.json()["edgelm"]
    return edgelm


@pytest.mark.parametrize(("strategy", "route", "text"), [(DOUBTS, "cloud", CLOUD), (TRUSTS, "local", LOCAL)])
def test_every_protocol_tells_who_answered(strategy: Strategy, route: str, text: str, make_served: MakeServed, tmp_path: Path) -> None:
    confidence = {"cloud": 0.1, "local": 0.9}[route]
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud, strategy=strategy)
        messages = [{"role": "user", "content": "hi"}]
        asked = {
            "/v1/chat/completions": {"messages": messages},
            "/v1/responses": {"input": "hi"},
            "/v1/messages": {"messages": messages, "max_tokens": 64, "model": ""},
        }
        for path, body in asked.items():
            whole = served.http.post(path, json=body)
            assert told(whole)["route"] == route
            assert text in whole.text
            assert (whole.headers["x-edgelm-route"], whole.headers["x-edgelm-confidence"]) == (route, f"{confidence:.3f}")
            stream = served.http.post(path, json={**body, "stream": True})
            assert stream.headers["x-edgelm-route"] == route
            assert f'"route":"{route}"' in stream.text
        spent = told(served.chat("hi"))
        assert spent["local_tokens"] == len(LOCAL)
        assert spent["cloud_tokens"] == ({"input": 20, "output": 5} if route == "cloud" else {"input": 0, "output": 0})


def test_the_official_clients_read_it(make_served: MakeServed, tmp_path: Path) -> None:
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud)
        client = served.openai()
        answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == CLOUD
        assert answer.model_extra is not None
        assert answer.model_extra["edgelm"]["route"] == "cloud"
        pieces = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == CLOUD
        with client.responses.stream(model="scripted", input="hi") as events:
            assert events.get_final_response().output_text == CLOUD
        said = served.anthropic().messages.create(model="scripted", max_tokens=64, messages=[{"role": "user", "content": "hi"}])
        assert said.content[0].text == CLOUD  # type: ignore[union-attr]


def test_an_answer_is_taken_back_only_where_the_client_understands_it(make_served: MakeServed, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud)
        plain = chunks(served.http.post("/v1/chat/completions", json=body))
        aware = chunks(served.http.post("/v1/chat/completions", json=body, headers={"x-edgelm-restarts": "yes"}))

    def texts(parts: list[dict[str, Any]]) -> list[str]:
        found = [""]
        for part in parts:
            if part.get("edgelm", {}).get("restart"):
                found.append("")
            found[-1] += part["choices"][0]["delta"].get("content") or ""
        return found

    assert texts(plain) == [CLOUD]
    assert texts(aware) == [LOCAL, CLOUD]
    assert [part["choices"][0]["finish_reason"] for part in aware][-1] == "stop"


@pytest.mark.parametrize("aware", [True, False])
def test_a_cloud_that_breaks_off_leaves_the_local_answer(aware: bool, make_served: MakeServed, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with CloudServer(cut_off()) as cloud:
        served = serve(make_served, tmp_path, cloud)
        parts = chunks(served.http.post("/v1/chat/completions", json=body, headers={"x-edgelm-restarts": "yes"} if aware else {}))
    edgelm = [part["edgelm"] for part in parts if "edgelm" in part]
    assert [each["restart"] for each in edgelm] == ([False, True, True, False] if aware else [False, False])
    assert "cut off" in edgelm[-1]["fault"]
    last = max((i for i, part in enumerate(parts) if part.get("edgelm", {}).get("restart")), default=0)
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts[last:]) == LOCAL


def test_a_request_can_keep_itself_here_and_cannot_let_itself_out(make_served: MakeServed, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud, level=Level.REDACT)
        assert served.http.get("/v1/models").json()["data"][0]["routed"] is True
        kept = served.http.post("/v1/chat/completions", json=body, headers={"x-edgelm-privacy": "never"})
        assert (told(kept)["route"], cloud.n_connections) == ("local", 0)
        secret = {"messages": [{"role": "user", "content": "I am jane@example.org"}]}
        freed = served.http.post("/v1/chat/completions", json=secret, headers={"x-edgelm-privacy": "allow"})
        assert told(freed)["redacted"] == {"EMAIL": 1}
        assert b"jane@" not in cloud.wire
        wrong = served.http.post("/v1/chat/completions", json=body, headers={"x-edgelm-privacy": "sometimes"})
        assert (wrong.status_code, "never, ask, redact or allow" in wrong.text) == (400, True)


def test_a_key_has_a_level(make_served: MakeServed, tmp_path: Path) -> None:
    access = Access(keys=("free", "clinic"), levels={"clinic": Level.NEVER})
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud, access)
        for header, value in (("Authorization", "Bearer clinic"), ("x-api-key", "clinic")):
            kept = served.http.post("/v1/chat/completions", json=body, headers={header: value, "x-edgelm-privacy": "allow"})
            assert (told(kept)["route"], cloud.n_connections) == ("local", 0)
        assert told(served.http.post("/v1/chat/completions", json=body, headers={"x-api-key": "free"}))["route"] == "cloud"
        assert served.http.post("/v1/chat/completions", json=body).status_code == 401


def test_consent_over_http(make_served: MakeServed, tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud, level=Level.ASK)
        question = told(served.http.post("/v1/chat/completions", json=body))["consent"]
        assert (question["endpoint"], question["model"], cloud.n_connections) == (cloud.url.removesuffix("/v1"), "strong", 0)
        headers = {"x-edgelm-consent": question["id"]}
        other = {"messages": [{"role": "user", "content": "something else"}]}
        assert told(served.http.post("/v1/chat/completions", json=other, headers=headers))["route"] == "local"
        question = told(served.http.post("/v1/chat/completions", json=body))["consent"]
        agreed = served.http.post("/v1/chat/completions", json=body, headers={"x-edgelm-consent": question["id"]})
        assert told(agreed)["route"] == "cloud"


def test_counters(make_served: MakeServed, tmp_path: Path) -> None:
    with CloudServer(answers(CLOUD), cut_off()) as cloud:
        served = serve(make_served, tmp_path, cloud)
        served.chat("hi")
        served.chat("hi")
        text = served.http.get("/metrics").text
    assert 'edgelm_routed_total{model="scripted",reason="not confident",route="cloud"} 1.0' in text
    assert 'edgelm_routed_total{model="scripted",reason="cloud failed",route="local"} 1.0' in text
    assert 'edgelm_cloud_tokens_total{kind="input",model="scripted"} 20.0' in text
    assert 'edgelm_cloud_faults_total{model="scripted"} 1.0' in text
    assert 'edgelm_cloud_cost_total{model="scripted"}' in text


def test_texts_and_embeddings_are_never_routed(make_served: MakeServed, tmp_path: Path) -> None:
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud)
        assert served.http.post("/v1/completions", json={"prompt": "hi"}).status_code == 200
        assert served.http.post("/v1/embeddings", json={"input": "hi", "model": "scripted"}).status_code == 200
        assert cloud.n_connections == 0


def test_without_a_router_nothing_is_said_of_one(make_served: MakeServed) -> None:
    served = make_served(says(LOCAL))
    assert served.http.get("/v1/models").json()["data"][0]["routed"] is False
    response = served.chat("hi")
    assert "edgelm" not in response.json()
    assert "x-edgelm-route" not in response.headers


def test_nobody_s_wish_to_redact_is_lost_by_a_stricter_one(make_served: MakeServed, tmp_path: Path) -> None:
    access = Access(keys=("clinic",), levels={"clinic": Level.REDACT})
    body = {"messages": [{"role": "user", "content": "I am jane@example.org"}]}
    headers = {"x-api-key": "clinic", "x-edgelm-privacy": "ask"}
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud, access)
        question = told(served.http.post("/v1/chat/completions", json=body, headers=headers))["consent"]
        assert question["entities"] == {"EMAIL": 1}
        agreed = served.http.post("/v1/chat/completions", json=body, headers={**headers, "x-edgelm-consent": question["id"]})
        assert told(agreed)["route"] == "cloud"
        assert b"jane@" not in cloud.wire


def test_of_several_headers_the_strictest_holds(make_served: MakeServed, tmp_path: Path) -> None:
    with CloudServer() as cloud:
        served = serve(make_served, tmp_path, cloud)
        headers = [("x-edgelm-privacy", "allow"), ("x-edgelm-privacy", "never")]
        kept = served.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]}, headers=headers)
        assert (told(kept)["route"], cloud.n_connections) == ("local", 0)
