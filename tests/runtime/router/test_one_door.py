"""An HTTP client anywhere but at the door fails the lint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WAYS_OUT = [
    "import httpx",
    "from httpx import AsyncClient",
    "def f():\n    import httpx\n    httpx.post('x')",
    "import urllib.request",
    "from urllib import request",
    "import http.client",
    "import requests",
    "import aiohttp",
    "import openai",
    "import asyncio\nasyncio.open_connection('x', 1)",
    "import socket\nsocket.create_connection(('x', 1))",
]


def ruff(code: str, file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--no-cache", "--stdin-filename", file, "-"]
    return subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", WAYS_OUT)
def test_a_way_out_elsewhere_fails_the_lint(code: str) -> None:
    found = ruff(code, "runtime/router/router.py")
    assert found.returncode == 1
    assert "TID251" in found.stdout
    assert ruff(code, "runtime/router/egress.py").returncode == 0


@pytest.mark.skipif(shutil.which("lint-imports", path=str(Path(sys.executable).parent)) is None, reason="import-linter is not installed")
def test_nothing_else_imports_a_client_on_any_path() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "one door out KEPT" in found.stdout
