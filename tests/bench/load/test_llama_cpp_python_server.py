"""llama-cpp-python's own server, with a tiny model, under load."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from tiny_models import write_tiny

from edgelm.bench.load.client import Endpoint, Server
from edgelm.bench.load.goodput import level_figures
from edgelm.bench.load.run import LoadTest, measure_load
from edgelm.bench.power.session import PowerWishes

pytest.importorskip("starlette_context", reason="llama-cpp-python's server is not installed (pip install 'llama-cpp-python[server]')")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    model = write_tiny(folder / "tiny.gguf", "llama", n_ctx=1024)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": model, "host": "127.0.0.1", "port": port, "n_ctx": 1024, "n_threads": 1, "interrupt_requests": "false"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *arguments], stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/v1/models", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(10)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.TransportError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
    pytest.fail("the server does not answer")


@pytest.mark.parametrize(("endpoint", "load"), [("chat", {"concurrency": (1, 3)}), ("completions", {"rates": (20.0,)})])
def test_a_load_test(url: str, endpoint: Endpoint, load: dict[str, tuple[float, ...]]) -> None:
    server = Server(url, endpoint, n_generate=24, timeout_s=60)
    record = measure_load(LoadTest(server, **load, n_prompt=8, n_requests=6), lambda _text, _done: None, PowerWishes(idle_s=0))
    assert record.state == "complete"
    assert record.load.model.endswith("tiny.gguf")
    for level in record.load.levels:
        figures = level_figures(level, record.load)
        assert figures.n_requests == 6
        assert set(figures.errors) <= {"empty answer"}  # random weights may end a text at once
        assert figures.n_whole >= 3
        assert not figures.counted  # this server does not count the tokens of a stream
        assert 0 < figures.ttft.p50 < figures.end_to_end.p50
