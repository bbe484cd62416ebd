"""Calibration of tiny models: what is measured, files that llama.cpp takes, bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_folders import write_folder
from tiny_models import write_tiny

from edgelm.backends.block_steps import BlockSteps
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.imatrix import read_imatrix
from edgelm.runtime.calibrate import calibrate
from edgelm.runtime.calibration_windows import calibration_windows


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", n_layers=2, tied=False)


def test_the_sums_are_those_of_the_models_inputs(tiny: Path, text: Path, tmp_path: Path) -> None:
    told: list[float] = []
    report = calibrate(
        tiny, tmp_path / "i.gguf", text, n_tokens=1024, outer=True, n_threads=2, say=lambda _, done, of: told.append(done / of)
    )
    assert (report.n_weights, report.n_tokens, report.notes) == (15, 1024, ())
    assert told == [0, 0.5, 1]
    found = read_imatrix(report.target)
    with GGUFFile(tiny) as file:
        windows = calibration_windows(file.metadata, text, 1024, [])
        steps = BlockSteps(file, windows.shape[1])
        state = steps.begin(0, steps.embed(windows, {}), {})
        first = state.inputs.reshape(-1, 64)
        for layer in range(2):
            state = steps.begin(layer, state.stream, {})
            for step in steps.steps(layer, {}):
                state = step(state)
        last = state.inputs.reshape(-1, 64)
    for name, x in (("blk.0.attn_q.weight", first), ("blk.0.attn_v.weight", first), ("output.weight", last)):
        outer = found[name].outer
        assert outer is not None
        assert found[name].n_tokens == 1024
        np.testing.assert_allclose(outer, x.T @ x, rtol=1e-4, atol=1e-3)


def test_neither_threads_nor_outer_products_change_the_importances(tiny: Path, text: Path, tmp_path: Path) -> None:
    one, two, plain = (tmp_path / f"{n}.gguf" for n in range(3))
    calibrate(tiny, one, text, n_tokens=1024, outer=True, n_threads=1)
    calibrate(tiny, two, text, n_tokens=1024, outer=True, n_threads=2)
    calibrate(tiny, plain, text, n_tokens=1024, n_threads=1)
    assert one.read_bytes() == two.read_bytes()
    assert plain.stat().st_size < one.stat().st_size / 3
    for name, statistics in read_imatrix(plain).items():
        np.testing.assert_array_equal(statistics.squares, read_imatrix(one)[name].squares)


def test_folders_are_calibrated_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "Qwen3ForCausalLM", "BF16", n_shards=2)
    (tmp_path / "a.txt").write_text("a" * 600)
    report = calibrate(tmp_path / "folder", tmp_path / "i.gguf", tmp_path / "a.txt", n_threads=1)
    assert report.n_weights == 15
    assert report.notes == ("calibrated on all 512 tokens that fill whole windows of the text; 16,384 were asked for",)


def test_llama_cpp_takes_the_file(tiny: Path, text: Path, tmp_path: Path) -> None:
    from edgelm.bench.llama_quantize import llama_quantize

    calibrate(tiny, tmp_path / "i.gguf", text, n_tokens=512, n_threads=1)
    llama_quantize(tiny, tmp_path / "with.gguf", "iq4_nl", tmp_path / "i.gguf", pure=True)
    llama_quantize(tiny, tmp_path / "without.gguf", "iq4_nl", pure=True)
    with GGUFFile(tmp_path / "with.gguf") as informed, GGUFFile(tmp_path / "without.gguf") as blind:
        for name in read_imatrix(tmp_path / "i.gguf"):
            assert not np.array_equal(informed.tensors[name].data, blind.tensors[name].data)


def test_what_is_refused(tiny: Path, text: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    (tmp_path / "there.gguf").touch()
    with pytest.raises(InvalidRequestError, match="there already"):
        calibrate(tiny, tmp_path / "there.gguf", text)
    for source in (tiny, text):
        with pytest.raises(InvalidRequestError, match="what the work is done from"):
            calibrate(tiny, source, text, overwrite=True)
    for target, complaint in ((tmp_path, "is a folder"), (tmp_path / "none" / "i.gguf", "is no folder")):
        with pytest.raises(InvalidRequestError, match=complaint):
            calibrate(tiny, target, text, overwrite=True)
    with pytest.raises(InvalidRequestError, match="n_threads is -1"):
        calibrate(tiny, tmp_path / "i.gguf", text, n_threads=-1)
    with pytest.raises(ModelFileError):
        calibrate(text, tmp_path / "i.gguf", text)
    assert tiny.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


def test_the_command(tiny: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    command = (sys.executable, "-c", "from edgelm.runtime.cli import main; main()", "calibrate", str(tiny), str(out))
    done = subprocess.run((*command, "--text", str(text), "--tokens", "512"), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: importances of 15 matrices, from 512 tokens of text.txt\n"
    assert "100%" in done.stderr
    assert len(read_imatrix(out)) == 15
