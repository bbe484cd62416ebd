"""Downloads from a hub: a real HTTP server on this machine, which drops connections, forgets ranges and lies."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgelm.errors import DownloadError
from edgelm.runtime.download import pull
from edgelm.runtime.settings import Settings

DATA = os.urandom(3_000_000)
NAME = "hf:owner/repo/model file.gguf"


@dataclass
class Hub:
    """What the server does, and what it saw."""

    data: bytes = DATA
    sha256: str | None = field(default_factory=lambda: hashlib.sha256(DATA).hexdigest())
    drop_after: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 200
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    endpoint: str = ""


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, send: bool) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            hub.tokens.append(self.headers.get("Authorization"))
            if self.path.startswith("/owner/") and hub.status == 200:  # as the hub: to the storage, with its own headers
                self.send_response(302)
                self.send_header("Location", "/storage/file")
                if hub.sha256:
                    self.send_header("X-Linked-Etag", f'"{hub.sha256}"')
                    self.send_header("X-Linked-Size", str(len(hub.data)))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if hub.status != 200:
                self.send_response(hub.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_file(send)

        def send_file(self, send: bool) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked and hub.ranges else 0
            body = hub.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"storage"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if send:
                n = hub.drop_after.pop(0) if hub.drop_after else len(body)
                self.wfile.write(body[:n])
                self.close_connection = n < len(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub)) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("edgelm.runtime.hub._PAUSE_SECONDS", 0.0)
    return Settings(tmp_path, hub.endpoint, "secret")


def stored(settings: Settings) -> list[Path]:
    return [file for file in settings.models.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_a_file_is_fetched_and_verified(hub: Hub, settings: Settings) -> None:
    seen: list[tuple[int, int | None]] = []
    file = pull(NAME, lambda done, total: seen.append((done, total)), settings)
    assert file == settings.models / "hf/owner/repo/model file.gguf"
    assert file.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert stored(settings) == [file]
    assert hub.requests[0] == ("HEAD", "/owner/repo/resolve/main/model%20file.gguf", None)
    assert set(hub.tokens) == {"Bearer secret"}


def test_dropped_connections_are_resumed_where_they_broke(hub: Hub, settings: Settings) -> None:
    hub.drop_after = [1_000_000, 500_000]
    assert pull(NAME, settings=settings).read_bytes() == DATA
    assert [asked for method, path, asked in hub.requests if method == "GET" and path == "/storage/file"] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
    ]


def test_a_later_pull_goes_on_where_the_first_gave_up(hub: Hub, settings: Settings) -> None:
    hub.drop_after = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="what was fetched is kept"):
        pull(NAME, settings=settings)
    assert [file.stat().st_size for file in stored(settings)] == [1_000_000]
    hub.requests.clear()
    assert pull(NAME, settings=settings).read_bytes() == DATA
    assert [asked for method, _, asked in hub.requests if method == "GET"] == ["bytes=1000000-"] * 2


def test_a_server_that_ignores_ranges_starts_over(hub: Hub, settings: Settings) -> None:
    hub.ranges = False
    hub.drop_after = [1_000_000]
    assert pull(NAME, settings=settings).read_bytes() == DATA


def test_content_that_changed_meanwhile_starts_over(hub: Hub, settings: Settings) -> None:
    hub.drop_after = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(DownloadError):
        pull(NAME, settings=settings)
    hub.data = os.urandom(2_000_000)
    hub.sha256 = hashlib.sha256(hub.data).hexdigest()
    assert pull(NAME, settings=settings).read_bytes() == hub.data


def test_wrong_content_is_removed(hub: Hub, settings: Settings) -> None:
    hub.sha256 = "a" * 64
    with pytest.raises(DownloadError, match=f"should be {'a' * 64}"):
        pull(NAME, settings=settings)
    assert stored(settings) == []


def test_a_file_without_an_announced_hash(hub: Hub, settings: Settings) -> None:
    hub.sha256 = None
    assert pull(NAME, settings=settings).read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "check the spelling"), (503, "try again later")]
)
def test_refusals_say_what_to_do(hub: Hub, settings: Settings, status: int, advice: str) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=f"answered {status} .*{advice}"):
        pull(NAME, settings=settings)
    assert stored(settings) == []


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="check the network and HF_ENDPOINT"):
        pull(NAME, settings=Settings(tmp_path, "http://127.0.0.1:9"))
    assert not (tmp_path / "models/hf/owner/repo/model file.gguf").exists()


def test_two_pulls_at_once_fetch_once(hub: Hub, settings: Settings) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(pull(NAME, settings=settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(method == "GET" and path == "/storage/file" for method, path, _ in hub.requests) == 1


def test_offline_nothing_is_fetched(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_OFFLINE", "1")
    with pytest.raises(DownloadError, match="EDGELM_OFFLINE"):
        pull(NAME, settings=settings)
    assert hub.requests == []
