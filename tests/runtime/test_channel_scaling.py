"""Channels scaled by `edgelm quantize`: when, of what, and that the model stays the same."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import write_tiny

from edgelm import calibrate, quantize
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.quantize_report import QuantizeReport

Array = NDArray[np.float32]
NORM = "blk.0.ffn_norm.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose norms make some channels much larger than others."""
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", format="F16", embedding_format="F16")
    rng = np.random.default_rng(1)
    with GGUFFile(path) as file:
        norms = [tensor.dequantize() for name, tensor in file.tensors.items() if name.endswith("_norm.weight")]
    with path.open("r+b") as raw:
        for values in norms:
            raw.seek(path.read_bytes().index(values.tobytes()))
            raw.write(np.exp(rng.standard_normal(values.shape)).astype(np.float32).tobytes())
    return path


def norm(path: Path) -> Array:
    with GGUFFile(path) as file:
        return file.tensors[NORM].dequantize()


def error(report: QuantizeReport) -> float:
    """Of the layers' outputs, on average."""
    return fmean(tensor.error for tensor in report.tensors if tensor.error is not None and tensor.name.startswith("blk."))


@pytest.mark.parametrize("method", ["search", "gptq"])
def test_channels_are_scaled_where_a_text_is_given(tiny: Path, text: Path, tmp_path: Path, method: str) -> None:
    scaled, plain = tmp_path / "scaled.gguf", tmp_path / "plain.gguf"
    report = quantize(tiny, scaled, method=method, calibration=text, calibration_tokens=1024)
    assert report.scaled_channels
    unscaled = quantize(tiny, plain, method=method, calibration=text, calibration_tokens=1024, scale_channels=False)
    assert not unscaled.scaled_channels
    np.testing.assert_array_equal(norm(plain), norm(tiny))
    assert np.abs(norm(scaled) - norm(tiny)).max() > 0.05
    assert error(report) < 0.95 * error(unscaled)
    with GGUFFile(scaled) as file, GGUFFile(plain) as other:
        assert file.metadata["edgelm.quantize.scaled_channels"] is True
        assert "edgelm.quantize.scaled_channels" not in other.metadata


def test_importance_matrices_serve_too(tiny: Path, text: Path, tmp_path: Path) -> None:
    imatrix, scaled, plain = tmp_path / "i.gguf", tmp_path / "scaled.gguf", tmp_path / "plain.gguf"
    calibrate(tiny, imatrix, text=text, n_tokens=1024)
    assert error(quantize(tiny, scaled, imatrix=imatrix)) < 0.95 * error(quantize(tiny, plain, imatrix=imatrix, scale_channels=False))


def test_what_is_kept_is_not_scaled(tiny: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    quantize(tiny, out, calibration=text, calibration_tokens=1024, tensor_formats=["blk.0.ffn_up.weight=f16"])
    np.testing.assert_array_equal(norm(out), norm(tiny))
    with GGUFFile(out) as file, GGUFFile(tiny) as source:
        np.testing.assert_array_equal(file.tensors["blk.0.ffn_up.weight"].data, source.tensors["blk.0.ffn_up.weight"].data)
        assert (
            np.abs(file.tensors["blk.1.ffn_norm.weight"].dequantize() - source.tensors["blk.1.ffn_norm.weight"].dequantize()).max() > 0.05
        )


def test_without_inputs_nothing_can_be_scaled(tiny: Path, tmp_path: Path) -> None:
    assert not quantize(tiny, tmp_path / "q.gguf").scaled_channels
    with pytest.raises(InvalidRequestError, match="give a calibration text or an importance matrix"):
        quantize(tiny, tmp_path / "r.gguf", scale_channels=True)
