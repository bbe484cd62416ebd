"""`edgebench load` as a process: what it prints, what it keeps, and its exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from scripted_server import ScriptedServer

from edgelm.bench.record_file import read_record

_COMMAND = "from edgelm.bench.cli import main; main()"


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _COMMAND, "load", *arguments, "--no-history", "--idle-seconds", "0"]
    variables = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def test_levels_are_printed_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    with ScriptedServer() as server:
        arguments = ("--concurrency", "1,2", "--requests", "3", "--ttft", "9000", "--json", str(out), "--api-key-env", "THE_KEY")
        process = start(server.url, *arguments, THE_KEY="sk-secret\n")
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "1 at once" in output
    assert "2 at once" in output
    assert "not measured" in output or "Energy" in output
    assert "Bearer sk-secret" in server.headers[-1]
    assert "sk-secret" not in output + errors + out.read_text()
    assert [level.concurrency for level in read_record(out).load.levels] == [1, 2]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    with ScriptedServer() as server:
        process = start(server.url, "--concurrency", "2,4", "--seconds", "100", "--json", str(out))
        while len(server.bodies) < 8:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    record = read_record(out)
    assert record.state == "interrupted"
    (level,) = record.load.levels
    assert level.state == "interrupted"
    assert "in flight were given up" in level.reason
    assert len(level.requests) >= 3
    assert not any(request.error for request in level.requests)  # what was given up is no failure of the server
    assert "interrupted" in output.lower()


def test_a_server_that_always_fails_is_exit_code_1(tmp_path: Path) -> None:
    with ScriptedServer(models=b'{"data": [{"id": "http_500"}]}') as server:
        process = start(server.url, "--concurrency", "1", "--requests", "2", "--json", str(tmp_path / "load.json"))
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "HTTP 500" in output
    assert read_record(tmp_path / "load.json").state == "failed"


def test_an_empty_variable_is_refused() -> None:
    process = start("http://127.0.0.1:1", "--api-key-env", "NO_SUCH_KEY")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("edgebench: ")
    assert "no such environment variable" in errors
