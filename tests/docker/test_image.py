"""The image's steps are carried out, and the server that they install is started and asked, as the image says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from image_replay import Image, Replay, StepError
from platformdirs import user_cache_path

ROOT = Path(__file__).parents[2]
KEY = "key-of-the-test"
QUESTION = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, built as docker/Dockerfile says; pytest's own folders are closed to the image's user."""
    with tempfile.TemporaryDirectory(prefix="edgelm-image-") as folder:
        Path(folder).chmod(0o755)
        try:
            yield Replay(ROOT / "docker" / "Dockerfile", ROOT, Path(folder), user_cache_path()).build()
        except StepError as error:
            if _packages_can_be_fetched():
                raise
            pytest.skip(f"the package index cannot be reached, so nothing can be installed into the image: {error}")


def _packages_can_be_fetched() -> bool:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "setuptools", "--dest"]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([*command, folder], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def volume(image: Image, smollm2_path: Path) -> Path:
    """The image's volume, with the default model, which need not be fetched then, and without compiled kernels."""
    data = image.path("/data")
    (data / "models").mkdir()
    shutil.copy(smollm2_path, data / "models")
    if os.geteuid() == 0:
        for path in [data, *data.rglob("*")]:
            os.chown(path, 10001, 10001)
    return data


@dataclass(frozen=True)
class Running:
    """A server that was started from the image and is healthy."""

    process: subprocess.Popen[str]
    http: httpx.Client
    before: Mapping[str, tuple[int, int, int]]


@contextmanager
def running(image: Image, command: list[str] | None = None, **env: str) -> Iterator[Running]:
    """The image's server on a free port, as soon as its own health check finds it healthy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    before = image.unchanging()
    with image.start(command, {"EDGELM_PORT": port, **env}) as process:
        try:
            end = time.monotonic() + 120
            proxy = {"http_proxy": "http://127.0.0.1:1"}  # which is not for asking this machine
            while (check := image.run(image.config.health_check, {"EDGELM_PORT": port, **proxy})).returncode != 0:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < end, f"the health check never succeeded: {check.stderr}"
                time.sleep(0.2)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
                yield Running(process, http, before)
        finally:
            process.kill()


def test_the_image_answers_who_has_the_key_and_ends_when_it_is_told_to(image: Image, volume: Path) -> None:
    with running(image, EDGELM_API_KEY=KEY) as server:
        assert server.http.post("/v1/chat/completions", json=QUESTION).status_code == 401
        answer = server.http.post("/v1/chat/completions", json=QUESTION, headers={"Authorization": f"Bearer {KEY}"})
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        assert "<title>edgelm</title>" in server.http.get("/").text
        assert all(server.http.get(f"/web/{name}").status_code == 200 for name in ("page.js", "page.css", "markdown-it.js"))
        server.process.send_signal(signal.Signals[image.config.stop_signal])
        _, errors = server.process.communicate(timeout=30)
    assert server.process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in errors
    assert "http://0.0.0.0:" in errors
    assert "compiling" in errors
    assert list((volume / "kernels").rglob("*.kernel"))
    assert image.unchanging() == server.before, "something was written beside the volume and /tmp"


@pytest.mark.usefixtures("volume")
def test_the_image_serves_nobody_without_a_key(image: Image) -> None:
    with image.start() as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "give an API key (--api-key-file, or EDGELM_API_KEY)" in errors
    unhealthy = image.run(image.config.health_check, {"EDGELM_PORT": "1"})
    assert unhealthy.returncode == 1


def test_the_command_of_the_compose_file_serves_with_the_key_of_the_secret(image: Image, volume: Path) -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = compose["services"].values()
    for name in service["secrets"]:
        secret = image.path(f"/run/secrets/{name}")
        secret.parent.mkdir()
        secret.write_text(f"{KEY}\n", encoding="utf-8")
    with running(image, service["command"]) as server:
        assert server.http.get("/v1/models").status_code == 401
        models = server.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
        assert [(model["id"], model["state"]) for model in models] == [("smollm2-135m", "loaded")]
        kernels = {path: path.stat().st_mtime_ns for path in (volume / "kernels").rglob("*.kernel")}
    with running(image, service["command"]):
        assert {path: path.stat().st_mtime_ns for path in (volume / "kernels").rglob("*.kernel")} == kernels


def test_a_user_without_a_name_runs_what_is_installed(image: Image) -> None:
    assert image.shut_to_others() == []
    code = "import os, sys, edgelm; print(os.getuid(), edgelm.__file__, sys.prefix)"
    seen = image.run(["python", "-c", code])
    uid, package, prefix = seen.stdout.split()
    assert int(uid) == (10001 if os.geteuid() == 0 else os.getuid())
    assert prefix == str(image.path("/opt/edgelm"))
    assert package.startswith(prefix)
    assert image.run(["edgelm", "quantize", "--help"]).returncode == 0


def test_the_image_can_fetch_models_and_holds_no_sources_or_caches(image: Image) -> None:
    assert image.run(["python", "-m", "pip", "--version"]).returncode == 0  # `edgelm pull` fetches wheels with it
    assert sorted(path.name for path in image.root.iterdir()) == ["data", "opt", "root", "run", "tmp", "usr"]
    assert list(image.path("/root").iterdir()) == []
