"""`edgelm serve` as its own process, with a real model."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from tiny_models import write_tiny

EDGELM = (sys.executable, "-c", "from edgelm.runtime.cli import main; main()")


@contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [*EDGELM, "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "Listening" in line)
            yield process, re.search(r"http://\S+(?=/v1)", line)[0]  # type: ignore[index]
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)


def refused(*arguments: str | Path) -> str:
    done = subprocess.run([*EDGELM, "serve", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def url(smollm2_path: Path) -> Iterator[str]:
    with serving(smollm2_path, "--name", "smol") as (_, url):
        yield url


def test_a_real_model_answers_the_official_client(url: str) -> None:
    question = [{"role": "user", "content": "Name the capital of France."}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        answer = client.chat.completions.create(model="smol", messages=question, temperature=0, max_tokens=20)  # type: ignore[arg-type]
    assert "Paris" in (answer.choices[0].message.content or "")


def test_many_ask_at_once_and_each_gets_its_own_answer(url: str) -> None:
    capitals = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Germany": "Berlin"}
    heard: dict[str, str] = {}

    def ask(country: str) -> None:
        question = [{"role": "user", "content": f"Name the capital of {country}."}]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            stream = client.chat.completions.create(model="smol", messages=question, temperature=0, max_tokens=20, stream=True)  # type: ignore[call-overload]
            heard[country] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    threads = [threading.Thread(target=ask, args=(country,)) for country in capitals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(capital in heard[country] for country, capital in capitals.items()), heard


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_answer_under_way_may_end_when_the_server_is_told_to(smollm2_path: Path, number: int) -> None:
    body = {"messages": [{"role": "user", "content": "Count to one hundred."}], "max_tokens": 60, "ignore_eos": True, "stream": True}
    with (
        serving(smollm2_path, "--grace", "30") as (process, url),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        process.wait(30)


def test_an_answer_that_takes_longer_is_ended(smollm2_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, "stream": True}
    with (
        serving(smollm2_path, "--grace", "1") as (process, url),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, last = (line for line in lines if line)
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "the model was closed"
        process.wait(20)


def test_a_folder_of_models_is_loaded_on_demand_and_unloaded_when_idle(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tiny(tmp_path / f"{name}.gguf", "llama")
    (tmp_path / "notes.txt").write_text("no model")
    with serving("--models-dir", tmp_path, "--keep-alive", "0.1") as (_, url), httpx.Client(base_url=url, timeout=60) as http:
        assert {model["id"]: model["state"] for model in http.get("/v1/models").json()["data"]} == {"one": "unloaded", "two": "unloaded"}
        answer = http.post("/v1/completions", json={"model": "two", "prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": True})
        assert answer.json()["usage"]["completion_tokens"] == 2
        assert http.get("/v1/models/one").json()["state"] == "unloaded"
        end = time.monotonic() + 20
        while http.get("/v1/models/two").json()["state"] != "unloaded":
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    assert "broken.gguf" in refused(tmp_path / "broken.gguf", "--port", "0")
    assert "holds no models" in refused("--models-dir", write_folder_without_models(tmp_path / "empty"))


def write_folder_without_models(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_others_need_a_key(smollm2_path: Path) -> None:
    assert "give an API key" in refused(smollm2_path, "--host", "0.0.0.0")


def test_a_port_in_use_is_said(smollm2_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot be listened at" in refused(smollm2_path, "--port", str(taken.getsockname()[1]))


def test_beginnings_outlive_the_server(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    place = ("--disk-cache", tmp_path / "cache")
    body = {"prompt": [*range(3, 203)], "max_tokens": 2, "ignore_eos": True, "temperature": 0}

    def ask(url: str, **changes: object) -> tuple[str, int]:
        answer = httpx.post(f"{url}/v1/completions", json=body | changes, timeout=60).json()
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with serving(tmp_path / "tiny.gguf", *place) as (_, url):
        text, n_cached = ask(url)
        assert n_cached == 0
        assert "another server" in refused(tmp_path / "tiny.gguf", *place, "--port", "0")
    with serving(tmp_path / "tiny.gguf", *place, "--cache", "1") as (process, url):
        assert ask(url) == (text, 199)
        for i in range(20):  # more than memory holds, so that some are being written
            ask(url, prompt=[4 + i, *range(3, 203)])
        process.kill()
    with serving(tmp_path / "tiny.gguf", *place) as (_, url):
        assert not list((tmp_path / "cache").rglob("*.unfinished"))
        assert ask(url) == (text, 199)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", "ключ".encode()])
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    command = [*EDGELM, "serve", "--api-key-file", str(tmp_path / "keys"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "key" in done.stderr
    assert "Traceback" not in done.stderr
