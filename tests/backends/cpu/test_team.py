"""The thread team: it meets, sleeps, survives a busy machine and ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_models import write_variant

from edgelm.backends.base import Chunk
from edgelm.backends.cpu.engine import CPUBackend
from edgelm.errors import BackendUnavailableError
from edgelm.quant.gguf_file import GGUFFile

TOKEN = [Chunk(0, np.array([3], np.int32))]


def team_threads() -> int:
    return sum(thread.name.startswith("edgelm-") for thread in threading.enumerate())


def open_tiny(path: Path, n_threads: int) -> CPUBackend:
    return CPUBackend(GGUFFile(write_variant(path, "llama")), n_threads=n_threads)


def test_an_idle_team_sleeps_and_wakes(tmp_path: Path) -> None:
    backend = open_tiny(tmp_path / "model.gguf", 2)
    backend.forward(TOKEN)
    time.sleep(0.2)
    process = psutil.Process()
    before = process.cpu_times().user
    time.sleep(0.5)
    assert process.cpu_times().user - before < 0.25  # a member that went on spinning would take the whole half second
    assert np.isfinite(backend.forward(TOKEN)).all()
    backend.close()


def test_close_ends_the_threads(tmp_path: Path) -> None:
    before = team_threads()
    backend = open_tiny(tmp_path / "model.gguf", 4)
    assert team_threads() == before + 3
    backend.close()
    assert team_threads() == before


def test_a_forgotten_team_ends_too(tmp_path: Path) -> None:
    before = team_threads()
    backend = open_tiny(tmp_path / "model.gguf", 3)
    backend.forward(TOKEN)
    del backend
    gc.collect()
    deadline = time.monotonic() + 10
    while team_threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert team_threads() == before


def _spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_more_threads_than_free_cores_still_finish(tmp_path: Path) -> None:
    """Barriers that only spin would need minutes here: every thread must wait for ones that have no core."""
    n_cores = len(psutil.Process().cpu_affinity() or [0])
    context = multiprocessing.get_context("spawn")
    hogs = [context.Process(target=_spin, args=(60,)) for _ in range(n_cores)]
    for hog in hogs:
        hog.start()
    try:
        backend = open_tiny(tmp_path / "model.gguf", 2 * n_cores)
        started = time.monotonic()
        for _ in range(20):
            backend.forward(TOKEN)
        assert time.monotonic() - started < 30
        backend.close()
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of newer Pythons, about threads; that is the point here
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_gets_an_error_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    backend = open_tiny(tmp_path / "model.gguf", 2)
    backend.forward(TOKEN)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            backend.forward(TOKEN)
        except BackendUnavailableError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert "forked" in answer.read()
    os.waitpid(child, 0)
    backend.close()
