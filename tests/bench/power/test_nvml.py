"""The NVIDIA driver's library is one of our own, compiled for the test: the calls go the real way, through nvidia-ml-py and ctypes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIBRARY = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
static int is(const char *name) { const char *mode = getenv("FAKE_GPU"); return mode && !strcmp(mode, name); }
static int n_open = 0, n_read = 0;
int nvmlInitWithFlags(unsigned flags) { if (is("unloaded")) return 9; n_open++; return 0; }
int nvmlShutdown(void) { if (n_open <= 0) return 1; n_open--; return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : code == 15 ? "GPU is lost" : "Driver Not Loaded"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = is("none") ? 0 : is("two") ? 2 : 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) { *gpu = (void *)(size_t)(index + 1); return 0; }
int nvmlDeviceGetName(void *gpu, char *name, unsigned size) { snprintf(name, size, "Fake GPU %d", (int)(size_t)gpu); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *mj) {
    if (is("old") || is("blind")) return 3;
    if (is("lost") && n_read++ > 0) return 15;
    *mj = 123456000ULL * (size_t)gpu + 500;
    return 0;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *mw) { if (is("blind")) return 3; *mw = 71250; return 0; }
"""

PROGRAM = """
import json, sys
from pathlib import Path
from edgelm.bench.power.base import AbsentMeter
from edgelm.bench.power.nvml import discover_nvml
from edgelm.errors import MeterError
out = []
for meter in discover_nvml(Path(sys.argv[1])):
    if isinstance(meter, AbsentMeter):
        out.append({"name": meter.name, "reason": meter.reason, "advice": meter.advice})
        continue
    try:
        value = meter.read().value
    except MeterError as error:
        value = str(error)
    info = meter.info
    meter.close()
    meter.close()
    said = {"name": info.name, "domain": info.domain, "scope": info.scope, "quantity": info.quantity, "kind": info.kind}
    out.append(said | {"value": value})
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to make a driver's library with")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    return folder


def ask(library: Path, mode: str) -> Any:
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "FAKE_GPU": mode}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(library)], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_every_gpu_counts_its_own_energy(library: Path) -> None:
    first, second = ask(library, "two")
    assert (first["name"], first["quantity"], first["scope"], first["kind"]) == ("nvml:0", "energy", "component", "measured")
    assert (first["value"], second["value"]) == (123456.5, 246912.5)
    assert first["domain"] == "Fake GPU 1: GPU board with its memory, without the computer"


def test_an_older_gpu_shows_power(library: Path) -> None:
    (meter,) = ask(library, "old")
    assert (meter["quantity"], meter["value"]) == ("power", 71.25)


@pytest.mark.parametrize(("mode", "said"), [("blind", "Not Supported"), ("none", "knows no GPU"), ("unloaded", "Driver Not Loaded")])
def test_what_cannot_be_measured_is_said(library: Path, mode: str, said: str) -> None:
    (absent,) = ask(library, mode)
    assert said in absent["reason"]


def test_a_gpu_that_is_lost_meanwhile(library: Path) -> None:
    (meter,) = ask(library, "lost")
    assert "GPU is lost" in meter["value"]


def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    (absent,) = ask(tmp_path, "")
    assert "no NVIDIA driver answers" in absent["reason"]
    assert absent["advice"] == ""
