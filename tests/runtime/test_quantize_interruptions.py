"""Limits of memory and disk, kills and interrupts: what is done stays, and nothing half done is left as a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import assert_nothing_made, edgelm, kl, values
from tiny_models import write_tiny

from edgelm.errors import InsufficientMemoryError, InvalidRequestError, ModelFileError
from edgelm.quant.work_folder import work_path
from edgelm.runtime.quantize import quantize

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_memory_limit_stops_the_work_which_then_goes_on(tiny: Path, text: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "q.gguf", tmp_path / "whole.gguf"
    wishes: dict[str, Any] = {"calibration": text, "calibration_tokens": 512, "n_threads": 1}
    with pytest.raises(InsufficientMemoryError, match=r"more than the 10 MB allowed.*larger --max-memory.*--method search"):
        quantize(tiny, out, max_memory=10_000_000, **wishes)
    assert_nothing_made(out)
    quantize(tiny, out, max_memory=64_000_000_000, **wishes)
    quantize(tiny, whole, **wishes)
    assert out.read_bytes() == whole.read_bytes()
    assert not work_path(out).exists()


@pytest.mark.parametrize("limit", [15_000, 70_000])
def test_a_full_disk(tiny: Path, tmp_path: Path, limit: int) -> None:
    """The first limit stops the work at the embedding; the second at the file that is the result."""
    out = tmp_path / "q.gguf"
    _, complaint = edgelm("quantize", tiny, out, "--method", "round", "--threads", "1", code=1, limit=limit)
    assert "free space" in complaint
    assert_nothing_made(out)
    assert work_path(out).is_dir()
    quantize(tiny, out, method="round", n_threads=1)
    assert out.stat().st_size > 70_000
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


MEMORY = """
import sys
from edgelm.runtime.quantize import quantize
def peak(source):
    return quantize(source, sys.argv[3], method="search", n_threads=2, overwrite=True).peak_bytes
small, large = peak(sys.argv[1]), peak(sys.argv[2])
print(large - small)
"""


def test_memory_is_bounded_whatever_the_model_takes(tiny: Path, tmp_path: Path) -> None:
    """A model of 160 MB in float32, two thirds of it one tensor."""
    source = write_tiny(
        tmp_path / "m.gguf", "llama", format="F16", embedding_format="F16", n_embd=512, n_ff=1536, n_heads=8, n_vocab=52_000
    )
    n_values = sum(value.size for value in values(source).values())
    command = (sys.executable, "-c", MEMORY, str(tiny), str(source), str(tmp_path / "q.gguf"))
    more = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < more < 0.9 * 4 * n_values  # as a whole it would take 1.4 times that


KILLED = """
import os, signal, sys
from edgelm.runtime.quantize import quantize
def say(what, n_done, n_all):
    places.append(what)
    if (what, places.count(what)) == (sys.argv[4], int(sys.argv[5])):
        os.kill(os.getpid(), signal.SIGKILL)
places = []
quantize(sys.argv[1], sys.argv[2], calibration=sys.argv[3], calibration_tokens=1024, n_threads=1, embedding_format="q4_0", say=say)
"""


def test_killed_and_resumed_work_gives_the_same_file(tiny: Path, text: Path, tmp_path: Path) -> None:
    """Killed while channels are scaled; before the embedding; within a block, before its checkpoint; then between two blocks."""
    out, whole = tmp_path / "q.gguf", tmp_path / "whole.gguf"
    wishes: dict[str, Any] = {"calibration": text, "calibration_tokens": 1024, "embedding_format": "q4_0"}
    wanted = quantize(tiny, whole, n_threads=1, **wishes)
    for place, count in (("channels of block 3 of 3", 1), ("token_embd.weight", 1), ("block 2 of 3", 4), ("block 3 of 3", 1)):
        command = (sys.executable, "-c", KILLED, str(tiny), str(out), str(text), place, str(count))
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
        assert_nothing_made(out)
    told: list[tuple[str, float]] = []
    resumed = quantize(tiny, out, n_threads=2, say=lambda what, done, of: told.append((what, done / of)), **wishes)
    assert out.read_bytes() == whole.read_bytes()
    assert resumed.tensors == wanted.tensors
    assert told[0][0] == "block 3 of 3"
    assert 0.6 < told[0][1] < 0.7
    assert not work_path(out).exists()


def test_an_interrupt(tiny: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    wishes = ("--calibration", str(text), "--calibration-tokens", "5000", "--format", "q4_1", "--threads", "1")
    command = (sys.executable, "-c", "from edgelm.runtime.cli import main; main()", "quantize", str(tiny), str(out), *wishes)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(work_path(out).glob("*.bin")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert f"interrupted; the same command goes on from here. What is done is in {work_path(out)}" in said
    assert "Traceback" not in said
    assert_nothing_made(out)


def test_a_source_that_changed_meanwhile(tiny: Path, text: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "q.gguf"
    source.write_bytes(tiny.read_bytes())
    wishes: dict[str, Any] = {"calibration": text, "calibration_tokens": 512, "n_threads": 1}

    def stop(what: str, _: int, __: int) -> None:
        if what == "block 2 of 3":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, say=stop, **wishes)
    source.rename(tmp_path / "away.gguf")
    with pytest.raises(ModelFileError, match="no model file"):
        quantize(source, out, **wishes)
    write_tiny(source, "llama", format="F16", embedding_format="F16", seed=1)
    with pytest.raises(InvalidRequestError, match="unfinished work of other settings"):
        quantize(source, out, **wishes)
    with pytest.raises(InvalidRequestError, match="unfinished work of other settings"):
        quantize(tmp_path / "away.gguf", out, **{**wishes, "calibration_tokens": 1024})
    quantize(source, out, restart=True, **wishes)
    assert kl(source, out) < kl(tiny, out)
