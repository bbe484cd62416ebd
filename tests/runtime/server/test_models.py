"""Which models there are, and their loading."""

from __future__ import annotations

import openai
import pytest
from byte_model import says
from served import MakeServed, Served


@pytest.fixture
def served(make_served: MakeServed) -> Served:
    return make_served(says("x"))


def test_models_are_listed(served: Served) -> None:
    client = served.openai()
    assert [model.id for model in client.models.list()] == ["scripted"]
    assert client.models.retrieve("scripted").owned_by == "edgelm"
    with pytest.raises(openai.NotFoundError, match="this server has scripted"):
        client.models.retrieve("other")


def test_a_model_is_loaded_and_unloaded(served: Served) -> None:
    assert served.http.get("/v1/models/scripted").json()["state"] == "unloaded"
    loaded = served.http.post("/models/load", json={"model": "scripted"}).json()
    assert (loaded["state"], loaded["meta"]["n_ctx"]) == ("loaded", 512)
    assert served.http.post("/models/unload", json={"model": "scripted"}).json()["state"] == "unloaded"
    assert served.http.post("/models/unload", json={"model": "other"}).status_code == 404


def test_the_server_is_well(served: Served) -> None:
    response = served.http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_what_was_done_is_counted(served: Served) -> None:
    for _ in range(2):
        served.chat("a" * 50)
    lines = served.http.get("/metrics").text.splitlines()
    assert 'edgelm_requests_total{model="scripted"} 2.0' in lines
    assert 'edgelm_generated_tokens_total{model="scripted"} 2.0' in lines
    assert 'edgelm_generations_active{model="scripted"} 0.0' in lines
    assert any(line.startswith("edgelm_time_to_first_token_seconds_bucket") for line in lines)
    cached = next(line for line in lines if line.startswith("edgelm_cached_tokens_total"))
    assert float(cached.split()[-1]) >= 50
    assert "aaa" not in "".join(lines)


def test_the_models_are_described(served: Served) -> None:
    served.chat()
    scripted = served.http.get("/props").json()["models"]["scripted"]
    assert (scripted["backend"], scripted["n_ctx"], scripted["n_parallel"]) == ("scripted", 512, 16)


def test_every_field_is_described(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    fields = [(name, field, told) for name, schema in schemas.items() for field, told in schema.get("properties", {}).items()]
    assert len(fields) > 30
    assert [(name, field) for name, field, told in fields if "description" not in told] == []
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(operation["summary"] and "422" not in operation["responses"] for operation in operations)
