"""What `edgelm quantize` refuses, and what it says it does instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import assert_nothing_made, kl, logits, values
from tiny_folders import write_folder
from tiny_models import write_tiny

from edgelm.errors import EdgeLMError, InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.work_folder import work_path
from edgelm.runtime.calibration_text import EVERYDAY
from edgelm.runtime.quantize import quantize

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def overwrite(path: Path, name: str, rows: slice, values: Array | float) -> None:
    """Replace some rows of a float32 tensor where it lies."""
    with GGUFFile(path) as file:
        changed = file.tensors[name].dequantize()
        start = path.read_bytes().index(file.tensors[name].data.tobytes())
    changed[rows] = values
    with path.open("r+b") as raw:
        raw.seek(start)
        raw.write(changed.tobytes())


def damaged(path: Path, name: str, value: float) -> Path:
    """A model with a wrong row, or element of a vector."""
    write_tiny(path, "llama", n_layers=2)
    overwrite(path, name, slice(3, 4), value)
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "token_embd.weight"])
@pytest.mark.parametrize("method", ["round", "search", "gptq"])
def test_weights_that_are_not_finite(tmp_path: Path, text: Path, value: float, name: str, method: str) -> None:
    source, out = damaged(tmp_path / "m.gguf", name, value), tmp_path / "q.gguf"
    wishes: dict[str, Any] = {"calibration": text, "calibration_tokens": 512} if method == "gptq" else {}
    with pytest.raises(InvalidRequestError, match=f"{name}: there are weights that are infinite or not a number"):
        quantize(source, out, method=method, n_threads=1, **wishes)
    assert_nothing_made(out)


def test_kept_values_are_checked_too(tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    for name, wishes in (("output_norm.weight", {}), ("blk.0.attn_q.weight", {"format": "keep"})):
        source = damaged(tmp_path / "m.gguf", name, np.nan)
        with pytest.raises(InvalidRequestError, match=f"{name}: there are weights"):
            quantize(source, out, n_threads=1, **wishes)
        assert_nothing_made(out)


def test_weights_too_large_for_float16(tmp_path: Path) -> None:
    name, out = "blk.0.attn_q.weight", tmp_path / "q.gguf"
    source = damaged(tmp_path / "m.gguf", name, 1e8)
    for block_format, method in (("f16", "search"), ("q4_0", "round"), ("q4_0", "search")):
        with pytest.raises(InvalidRequestError, match=f"{name}: .*(too large for|float16)"):
            quantize(source, out, format=block_format, method=method, n_threads=1, restart=True)
    assert_nothing_made(out)
    quantize(source, out, format="bf16", n_threads=1, restart=True)
    assert values(out)[name].max() == pytest.approx(1e8, rel=0.01)


def test_rows_of_zeros_and_inputs_of_zeros(tmp_path: Path, text: Path) -> None:
    source, out = write_tiny(tmp_path / "m.gguf", "llama", n_layers=2), tmp_path / "q.gguf"
    zeroed = {"blk.0.attn_v.weight": slice(None), "blk.1.ffn_up.weight": slice(0, 40), "blk.1.attn_k.weight": slice(0, 1)}
    for name, rows in zeroed.items():
        overwrite(source, name, rows, 0)
    report = quantize(source, out, calibration=text, calibration_tokens=512, n_threads=1)
    after = values(out)
    assert all(not after[name][rows].any() for name, rows in zeroed.items())
    assert np.isfinite(logits(out)).all()
    unknown = "its inputs are zero throughout the calibration text, which says nothing about them"
    assert report.notes == (f"blk.0.attn_output.weight: {unknown}",)


def test_calibration_texts(tiny: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "q.gguf", tmp_path / "text.txt"
    for content, complaint in ((b"", "has 0 tokens"), (b"the hen", "has 4 tokens; give 256"), (b"\xff\xfe\x00a" * 999, "cannot be read")):
        text.write_bytes(content)
        with pytest.raises(InvalidRequestError, match=complaint):
            quantize(tiny, out, calibration=text)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InvalidRequestError, match="cannot be read"):
            quantize(tiny, out, calibration=missing)
    text.write_text(EVERYDAY[:600], encoding="utf-8")
    report = quantize(tiny, out, calibration=text, n_threads=1)  # fewer tokens than inputs of ffn_down
    assert report.notes == (f"calibrated on all {report.n_tokens} tokens that fill whole windows of the text; 16,384 were asked for",)


def test_targets(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "there.gguf").touch()
    (tmp_path / "link.gguf").symlink_to(tiny)
    for name, complaint in (
        ("folder.gguf", "is a folder"),
        ("there.gguf", "is there already"),
        ("link.gguf", "what the work is done from"),
        ("none/q.gguf", "is no folder"),
        ("q.bin", r"ends in \.gguf"),
    ):
        with pytest.raises(InvalidRequestError, match=complaint):
            quantize(tiny, tmp_path / name, method="round", overwrite=name in ("folder.gguf", "link.gguf"))
    quantize(tiny, tmp_path / "there.gguf", method="round", n_threads=1, overwrite=True)
    assert kl(tiny, tmp_path / "there.gguf") < 1


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        ({"format": "q9_9"}, "there is no format 'q9_9'"),
        ({"method": "magic"}, "give one of round, search, gptq"),
        ({"method": "gptq"}, "needs a calibration text"),
        ({"method": "round", "calibration": "text.txt"}, "looks at no text"),
        ({"calibration": "text.txt", "imatrix": "i.gguf"}, "not both"),
        ({"format": "keep", "embedding_format": "q8_0"}, "keep changes no matrix"),
        ({"tensor_formats": ["blk.9.*=q8_0"]}, "no tensor fits the pattern"),
        ({"bits_per_weight": 4.5, "size": 10**6, "calibration": "text.txt"}, "give one of bits per weight, size and greatest divergence"),
        ({"format": "q4_0", "bits_per_weight": 4.5, "calibration": "text.txt"}, "one of them"),
        ({"plan": "p.json", "max_kl": 0.1, "calibration": "text.txt"}, "one of them"),
        ({"bits_per_weight": 4.5}, "4.5 bits per weight needs a calibration text"),
        ({"max_kl": -1.0, "calibration": "text.txt"}, "no budget; give a number above zero"),
        ({"n_threads": 0}, "n_threads is 0"),
        ({"max_memory": -1}, "max_memory is -1"),
        ({"calibration": "text.txt", "calibration_tokens": 0}, "calibration_tokens is 0"),
    ],
)
def test_wishes_that_make_no_sense(tiny: Path, tmp_path: Path, wishes: dict[str, Any], complaint: str) -> None:
    (tmp_path / "i.gguf").touch()
    out = tmp_path / "q.gguf"
    here = {name: tmp_path / value if name in ("calibration", "imatrix") else value for name, value in wishes.items()}
    with pytest.raises(EdgeLMError, match=complaint) if "imatrix" not in wishes else pytest.raises(EdgeLMError):
        quantize(tiny, out, **here)
    assert_nothing_made(out)
    assert not work_path(out).exists()


def test_models_that_no_engine_would_run_are_refused_before_the_work(tmp_path: Path) -> None:
    source, out = tmp_path / "folder", tmp_path / "q.gguf"
    write_folder(source, "LlamaForCausalLM")
    (source / "tokenizer.json").unlink()
    with pytest.raises((ModelFileError, UnsupportedModelError), match="tokenizer"):
        quantize(source, out, method="round")
    with pytest.raises(ModelFileError, match="no model file"):
        quantize(tmp_path / "none.gguf", out)
    assert_nothing_made(out)
    assert not work_path(out).exists()
