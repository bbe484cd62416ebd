"""Sources of every kind, quantized whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders
from packed_checkpoints import Packing, write_packed
from quantized_files import assert_nothing_made, kl, values
from tiny_folders import write_folder
from tiny_models import VARIANTS, write_tiny, write_variant

from edgelm.errors import InvalidRequestError
from edgelm.quant.blocks import FORMATS
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model
from edgelm.quant.work_folder import work_path
from edgelm.runtime.quantize import quantize
from edgelm.runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


FIRST_OF_ITS_KIND = {architecture: name for name, (architecture, _) in reversed(VARIANTS.items())}


@pytest.mark.parametrize("variant", [*FIRST_OF_ITS_KIND.values(), "llama-untied", "llama-biases", "phi3-longrope"])
def test_every_architecture_through_gptq(tmp_path: Path, text: Path, variant: str) -> None:
    source, out = write_variant(tmp_path / "m.gguf", variant, n_layers=4 if variant == "smollm3" else 2), tmp_path / "q.gguf"
    report = quantize(source, out, calibration=text, calibration_tokens=512, n_threads=1, output_format="q4_0")
    rounded = tmp_path / "r.gguf"
    quantize(source, rounded, method="round", n_threads=1, output_format="q4_0")
    assert report.method == "gptq"
    assert kl(source, out) < 0.9 * kl(source, rounded)


@pytest.mark.parametrize("source_format", ["F32", "F16", "BF16", "Q4_1", "Q4_K", "Q6_K"])
def test_gguf_sources(tmp_path: Path, source_format: str) -> None:
    source, out = write_tiny(tmp_path / "m.gguf", "llama", format=source_format, n_layers=1), tmp_path / "q.gguf"
    is_quantized = source_format[0] == "Q"
    if is_quantized:
        with pytest.raises(InvalidRequestError, match=r"blk\.0\.\S+ is \S+ in the source already.*--allow-requantize"):
            quantize(source, out, n_threads=1)
        assert_nothing_made(out)
        assert not work_path(out).exists()
    quantize(source, out, method="round", n_threads=1, allow_requantize=is_quantized)
    before = values(source)
    for name, after in values(out).items():
        wanted = FORMATS["Q8_0" if name == "token_embd.weight" else "Q4_0"]
        if after.ndim == 2:
            np.testing.assert_array_equal(after.reshape(-1), wanted.dequantize(wanted.quantize(before[name])), err_msg=name)
        else:
            np.testing.assert_array_equal(after, before[name], err_msg=name)


def test_folders_of_several_shards(tmp_path: Path) -> None:
    source, out = tmp_path / "folder", tmp_path / "q.gguf"
    write_folder(source, "LlamaForCausalLM", "BF16", n_shards=3)
    report = quantize(source, out, method="round", n_threads=1)
    before, after = values(source), values(out)
    assert before.keys() == after.keys()
    q = "blk.1.attn_q.weight"  # whose rows GGUF has in another order
    np.testing.assert_array_equal(after[q].reshape(-1), FORMATS["Q4_0"].dequantize(FORMATS["Q4_0"].quantize(before[q])))
    np.testing.assert_array_equal(after["blk.1.attn_q.bias"], before["blk.1.attn_q.bias"])
    assert report.notes == (
        "blk.1.ffn_down.weight and 1 more: the default is Q4_0, but rows of 48 are not whole blocks of 32: F16, 16 bits per weight instead "
        "of 4.5",
    )
    assert Tokenizer.from_gguf(out).encode("aa") == Tokenizer.from_metadata(open_model(source).metadata).encode("aa")
    with GGUFFile(out) as file:
        assert file.metadata["tokenizer.chat_template"] == "{{ messages[0].content }}"


@pytest.mark.parametrize("class_name", ["LlamaForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"])
def test_a_folder_becomes_what_its_gguf_file_becomes(tmp_path: Path, class_name: str) -> None:
    source, text = tmp_path / "folder", tmp_path / "text.txt"
    write_folder(source, class_name, "BF16")
    text.write_text("ab ba aab " * 200, encoding="utf-8")
    quantize(source, tmp_path / "float.gguf", format="keep")
    for out, path in (("direct.gguf", source), ("again.gguf", tmp_path / "float.gguf")):
        assert quantize(path, tmp_path / out, calibration=text, calibration_tokens=512, n_threads=1).scaled_channels
    direct, again = values(tmp_path / "direct.gguf"), values(tmp_path / "again.gguf")
    for name, wanted in direct.items():
        np.testing.assert_array_equal(again[name], wanted, err_msg=name)


PACKINGS = [
    Packing("awq", symmetric=False),
    Packing("awq", coarse=True, symmetric=False),
    Packing("gptq"),
    Packing("gptq", act_order=True),
    Packing("gptq_v2", bits=8),
    Packing("compressed-tensors", scale_type="BF16"),
]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_packed_checkpoints_are_kept_exactly(tmp_path: Path, packing: Packing) -> None:
    source, out = tmp_path / "folder", tmp_path / "q.gguf"
    write_packed(source, packing)
    report = quantize(source, out, format="keep", n_threads=1)
    before, after = values(source), values(out)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert all(tensor.error is None and tensor.reason == "kept as it is" for tensor in report.tensors)
    assert (report.method, bool(report.notes)) == ("keep", True)  # rows of 48 are always kept as float
    with GGUFFile(out) as file:
        assert file.metadata["edgelm.quantize.method"] == "keep"


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_codes_of_symmetric_checkpoints_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(tiny_folders, "N_FF", 64)
    source, out = tmp_path / "folder", tmp_path / "q.gguf"
    write_packed(source, Packing(method))
    report = quantize(source, out, n_threads=1)
    before, after = values(source), values(out)
    kept = [tensor for tensor in report.tensors if tensor.name.startswith("blk.")]
    assert {tensor.format for tensor in kept} == {"Q4_0"}
    for tensor in kept:
        assert tensor.error is None
        np.testing.assert_array_equal(after[tensor.name], before[tensor.name])
    assert not report.notes


@pytest.mark.parametrize("packing", [Packing("gptq", act_order=True), Packing("awq", symmetric=False)], ids=str)
def test_other_checkpoints_are_quantized_again_only_if_allowed(tmp_path: Path, packing: Packing) -> None:
    source, out = tmp_path / "folder", tmp_path / "q.gguf"
    write_packed(source, packing)
    with pytest.raises(InvalidRequestError, match="loses twice"):
        quantize(source, out, n_threads=1)
    assert_nothing_made(out)
    report = quantize(source, out, n_threads=1, allow_requantize=True)
    assert next(tensor for tensor in report.tensors if tensor.name == "blk.0.attn_q.weight").format == "Q4_0"
    assert all("rows of 48" in note for note in report.notes)


def test_our_facts_and_an_imatrix_of_the_source_do_not_outlive_it(tiny: Path, text: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{n}.gguf" for n in range(3))
    quantize(tiny, first, format="q8_0", method="search", calibration=text, calibration_tokens=512, n_threads=1)
    quantize(first, second, n_threads=1)
    quantize(first, third, format="keep", n_threads=1)
    with GGUFFile(second) as file:
        assert "edgelm.quantize.calibration.sha256" not in file.metadata
    with GGUFFile(third) as file:
        assert "edgelm.quantize.calibration.sha256" in file.metadata
