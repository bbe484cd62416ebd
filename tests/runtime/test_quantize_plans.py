"""Mixed precision from a budget to the file: plans are kept to, written, followed and changed; what was measured is not measured again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quantized_files import assert_nothing_made, edgelm, kl, values

from edgelm.errors import InsufficientMemoryError, InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.work_folder import work_path
from edgelm.runtime.quantize import quantize

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def damages(out: Path) -> Path:
    return out.with_name(f"{out.name}.damages.json")


def plan_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.plan.json")


@pytest.fixture(name="wishes")
def _wishes(text: Path) -> dict[str, Any]:
    return {"calibration": text, "calibration_tokens": 512, "n_threads": 1, "method": "search"}


@pytest.fixture(name="measured", scope="module")
def _measured(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The damages of the tiny model, measured once."""
    out = tmp_path_factory.mktemp("measured") / "q.gguf"
    quantize(tiny, out, bits_per_weight=6, calibration=text, calibration_tokens=512, n_threads=1, method="search")
    return damages(out)


@pytest.fixture(name="out")
def _out(tmp_path: Path, measured: Path) -> Path:
    """A target beside which damages are known already."""
    out = tmp_path / "q.gguf"
    damages(out).write_bytes(measured.read_bytes())
    return out


def formats(path: Path) -> dict[str, str]:
    with GGUFFile(path) as file:
        return {name: tensor.format.name for name, tensor in file.tensors.items() if len(tensor.shape) > 1}


@pytest.mark.parametrize("bits", [4.5, 5.25, 6.5])
def test_bits_per_weight(tiny: Path, out: Path, wishes: dict[str, Any], bits: float) -> None:
    """The embedding counts, too; the budget is used up to the gap between two formats of one matrix."""
    report = quantize(tiny, out, bits_per_weight=bits, **wishes)
    assert bits - 0.25 < report.bits_per_weight <= bits
    assert report.plan is not None
    assert formats(out) == {name: each.name for name, each in report.plan.formats.items()}
    assert json.loads(plan_of(out).read_text())["budget"] == {"kind": "bits per weight", "amount": bits}


def test_more_bytes_lose_less(tiny: Path, out: Path, wishes: dict[str, Any]) -> None:
    losses = []
    for bits in (4.5, 5.25, 6.5):
        quantize(tiny, out, bits_per_weight=bits, overwrite=True, **wishes)
        losses.append(kl(tiny, out))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("more", [0, 1, 5000])
def test_a_size_is_kept_to_the_byte(tiny: Path, out: Path, wishes: dict[str, Any], more: int) -> None:
    least = quantize(tiny, out, bits_per_weight=4.5, **wishes).n_bytes
    report = quantize(tiny, out, size=least + more, overwrite=True, **wishes)
    assert report.n_bytes == out.stat().st_size <= least + more
    with pytest.raises(InvalidRequestError, match="the smallest possible is"):
        quantize(tiny, out, size=least // 2, overwrite=True, **wishes)


def test_a_greatest_divergence_takes_the_fewest_bytes(tiny: Path, out: Path, wishes: dict[str, Any]) -> None:
    predicted = []
    for max_kl in (1.0, 1e-3):
        report = quantize(tiny, out, max_kl=max_kl, overwrite=True, **wishes)
        assert report.plan is not None
        assert report.plan.error <= max_kl
        predicted.append((report.n_bytes, report.plan.error))
    (small, much), (large, little) = predicted
    assert small < large
    assert little < much


def test_formats_that_are_named_are_not_planned(tiny: Path, out: Path, wishes: dict[str, Any]) -> None:
    quantize(tiny, out, bits_per_weight=5.5, embedding_format="q8_0", tensor_formats=["blk.*.ffn_down.weight=q4_1"], **wishes)
    found = formats(out)
    assert found["token_embd.weight"] == "Q8_0"
    assert {found[f"blk.{n}.ffn_down.weight"] for n in range(3)} == {"Q4_1"}


def test_a_plan_is_followed_and_may_be_changed(tiny: Path, out: Path, tmp_path: Path, wishes: dict[str, Any]) -> None:
    quantize(tiny, out, bits_per_weight=5, **wishes)
    again = tmp_path / "again.gguf"
    quantize(tiny, again, plan=plan_of(out), **wishes)
    assert again.read_bytes() == out.read_bytes()
    assert not damages(again).exists()  # nothing was measured
    fields = json.loads(plan_of(out).read_text())
    name = "blk.1.ffn_up.weight"
    n_weights = values(tiny)[name].size
    fields["tensors"][name] |= {"format": "Q8_0", "n_bytes": n_weights // 32 * 34}
    plan_of(again).write_text(json.dumps(fields))
    quantize(tiny, again, plan=plan_of(again), overwrite=True, **wishes)
    assert formats(again) == formats(out) | {name: "Q8_0"}


def told(said: list[str]) -> Callable[[str, int, int], None]:
    return lambda what, *_: said.append(what)


def test_damages_are_measured_once(tiny: Path, tmp_path: Path, wishes: dict[str, Any]) -> None:
    out, said = tmp_path / "q.gguf", list[str]()
    quantize(tiny, out, bits_per_weight=5, say=told(said), **wishes)
    assert any(what.startswith("probing") for what in said)
    assert not work_path(damages(out)).exists()
    said.clear()
    quantize(tiny, out, bits_per_weight=6, overwrite=True, say=told(said), **wishes)
    assert not any(what.startswith("probing") for what in said)
    with pytest.raises(InvalidRequestError, match="these damages were measured differently"):
        quantize(tiny, out, bits_per_weight=6, overwrite=True, **{**wishes, "calibration_tokens": 1024})


KILLED = """
import os, signal, sys
from edgelm.runtime.quantize import quantize
def say(what, n_done, n_all):
    if what == sys.argv[4]:
        os.kill(os.getpid(), signal.SIGKILL)
wishes = dict(bits_per_weight=5, calibration=sys.argv[3], calibration_tokens=512, n_threads=1, method="search")
quantize(sys.argv[1], sys.argv[2], say=say, **wishes)
"""


def test_killed_and_limited_measuring_goes_on(tiny: Path, text: Path, tmp_path: Path, wishes: dict[str, Any], measured: Path) -> None:
    out, said = tmp_path / "q.gguf", list[str]()
    with pytest.raises(InsufficientMemoryError, match=r"more than the 10 MB allowed.*larger --max-memory, and it goes on from here$"):
        quantize(tiny, out, bits_per_weight=5, max_memory=10_000_000, **wishes)
    for place in ("probing block 3 of 3", "comparing predictions"):
        command = (sys.executable, "-c", KILLED, str(tiny), str(out), str(text), place)
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert_nothing_made(out)
    assert not damages(out).exists()
    assert work_path(damages(out)).is_dir()
    quantize(tiny, out, bits_per_weight=5, say=told(said), **wishes)
    assert not any(what.startswith("probing") for what in said)
    there, wanted = (json.loads(path.read_text())["tensors"] for path in (damages(out), measured))
    assert there == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.gguf", "q.gguf.damages.json", "q.gguf.plan.json"]


def test_the_command_prints_the_plan(tiny: Path, out: Path, text: Path) -> None:
    wishes = ("--calibration", text, "--calibration-tokens", "512", "--threads", "1", "--method", "search")
    shown, _ = edgelm("quantize", tiny, out, "--bits-per-weight", "5", *wishes)
    lines = [line.split() for line in shown.splitlines()]
    assert next(line for line in lines if line[:1] == ["all"])
    assert out.exists()
