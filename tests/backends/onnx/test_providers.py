"""Execution providers: which are here, why others are not, and what their options may be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgelm.backends.onnx import provider_table
from edgelm.backends.onnx.options import ONNXOptions
from edgelm.backends.onnx.provider_table import PROVIDERS, find_provider, short_name
from edgelm.backends.onnx.providers import ort_message, require_provider, state, survey, unavailable_reason
from edgelm.backends.options import read_options
from edgelm.errors import BackendUnavailableError, InvalidRequestError


def add_provider(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str) -> str:
    """A plug-in provider whose wheel is the given module source; its name."""
    (folder / "some_plugin.py").write_text(module)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "some_plugin", raising=False)
    row = replace(find_provider("webgpu"), name="some", ort_name="SomeExecutionProvider", package="some-wheel", plugin="some_plugin")
    monkeypatch.setattr(provider_table, "PROVIDERS", {**PROVIDERS, "some": row})
    return "some"


def test_the_cpu_is_always_there() -> None:
    assert unavailable_reason("cpu") is None
    here = state("cpu")
    assert here.version.startswith("onnxruntime ")
    assert here.devices[0].startswith("CPU")


def test_every_provider_is_there_or_says_what_to_do() -> None:
    states = survey()
    assert [here.provider.name for here in states] == list(PROVIDERS)
    for here in states:
        assert here.reason is None or "; " in here.reason


def test_a_provider_of_another_platform() -> None:
    reason = unavailable_reason("nnapi")
    assert reason is not None
    assert reason.startswith("only Android can have it, and this is ")
    with pytest.raises(BackendUnavailableError, match="'nnapi' cannot be used: only Android"):
        require_provider("nnapi")


def test_a_provider_that_was_not_built_in() -> None:
    reason = unavailable_reason("xnnpack")
    assert reason is not None
    assert "was built without it; no wheel has it" in reason


def test_unknown_provider() -> None:
    with pytest.raises(InvalidRequestError, match="'tpu'; edgelm knows cpu, qnn"):
        unavailable_reason("tpu")


def test_a_plug_in_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = add_provider(monkeypatch, tmp_path, "")
    (tmp_path / "some_plugin.py").unlink()
    assert unavailable_reason(name) == "some-wheel is not installed; pip install onnxruntime-ep-webgpu"


PLUGINS = {
    "no library": ("def get_library_path(): return '/nowhere/libsome.so'", "cannot be loaded (Failed to load library /nowhere/libsome.so"),
    "not a library": (f"def get_library_path(): return {__file__!r}", "cannot be loaded"),
    "says so": ("def get_library_path(): raise RuntimeError('no library here')", "cannot be imported (no library here)"),
    "broken": ("import nothing_of_this_name", "cannot be imported (No module named"),
}


@pytest.mark.parametrize(("module", "text"), PLUGINS.values(), ids=PLUGINS.keys())
def test_a_plug_in_whose_library_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, text: str) -> None:
    name = add_provider(monkeypatch, tmp_path, module)
    reason = unavailable_reason(name)
    assert reason is not None
    assert text in reason
    assert "pip install --force-reinstall some-wheel" in reason


ASK_AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import onnxruntime
from edgelm.backends.onnx.providers import unavailable_reason

barrier = Barrier(8)

def ask(_):
    barrier.wait()
    return unavailable_reason("qnn")

with ThreadPoolExecutor(8) as pool:
    print(set(pool.map(ask, range(8))))
"""  # in a process of its own, where the plug-in is not registered yet


def test_a_plug_in_is_registered_once_whoever_asks() -> None:
    reason = unavailable_reason("qnn")
    if reason is not None:
        pytest.skip(f"the provider qnn: {reason}")
    assert subprocess.run([sys.executable, "-c", ASK_AT_ONCE], check=True, capture_output=True, text=True).stdout == "{None}\n"
    here = state("qnn")
    assert here.version.startswith("onnxruntime-qnn ")
    assert here.devices


def test_names() -> None:
    assert short_name("QNNExecutionProvider") == "qnn"
    assert short_name("AzureExecutionProvider") == "AzureExecutionProvider"


def test_messages_lose_their_codes() -> None:
    assert ort_message(RuntimeError("[ONNXRuntimeError] : 1 : FAIL : it\nbroke : here")) == "it broke : here"
    assert ort_message(RuntimeError("plain : text")) == "plain : text"


RIGHT = [
    ({"providers": "qnn,cpu", "qnn.htp_performance_mode": "burst"}, ("qnn", "cpu"), {"qnn": {"htp_performance_mode": "burst"}}),
    (
        {"providers": ("qnn",), "qnn": {"soc_model": "SM8550", "htp_arch": "73"}},
        ("qnn",),
        {"qnn": {"soc_model": "SM8550", "htp_arch": "73"}},
    ),
    ({"qnn.soc_model": 69}, (), {"qnn": {"soc_model": "69"}}),
    ({"nnapi.use_fp16": "1", "providers": "nnapi"}, ("nnapi",), {"nnapi": {"use_fp16": "1"}}),
    ({}, (), {}),
]


@pytest.mark.parametrize(("given", "providers", "options"), RIGHT)
def test_options(given: dict[str, object], providers: tuple[str, ...], options: dict[str, dict[str, str]]) -> None:
    read = read_options(ONNXOptions, given, "onnx")
    assert (read.providers, read.provider_options) == (providers, options)


WRONG = [
    ({"providers": "npu"}, "no execution provider is called 'npu'"),
    ({"providers": "cpu,cpu"}, "name each provider once"),
    ({"providers": "cpu", "qnn.vtcm_mb": "8"}, r"options of qnn were given \(vtcm_mb\)"),
    ({"qnn.speed": "11"}, "the provider qnn has no option 'speed'; it has backend_type"),
    ({"qnn.htp_arch": "70"}, "qnn.htp_arch is '70'; give one of 0, 68"),
    ({"qnn.vtcm_mb": "many"}, "qnn.vtcm_mb is 'many'; give a whole number"),
    ({"qnn.soc_model": "SM9999"}, "qnn.soc_model is 'SM9999'; give the chip's number with Qualcomm, or one of SM7675"),
    ({"qnn": {"backend_type": "htp", "backend_path": "libQnnHtp.so"}}, "only one of backend_type, backend_path"),
    ({"strict_provider": "maybe"}, "'strict_provider' is 'maybe'"),
    ({"cpu.threads": "1"}, "has no option 'cpu.threads'"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_wrong_options(given: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        read_options(ONNXOptions, given, "onnx")


def test_defaults_make_way_for_their_alternatives() -> None:
    row = find_provider("qnn")
    assert row.with_defaults({"vtcm_mb": "8"}) == {"backend_type": "htp", "vtcm_mb": "8"}
    assert row.with_defaults({"backend_path": "libQnnHtp.so"}) == {"backend_path": "libQnnHtp.so"}
