"""Whole quantizations of tiny models: files that every engine runs, sources of all kinds, bad input, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders
from gguf import GGUFReader
from packed_checkpoints import Packing, write_packed
from tiny_folders import write_folder
from tiny_models import CHAT_TEMPLATE, VARIANTS, write_tiny, write_variant

from edgelm.backends.engine_predictor import EnginePredictor
from edgelm.backends.reference import ReferenceModel
from edgelm.backends.registry import open_backend
from edgelm.errors import EdgeLMError, InsufficientMemoryError, InvalidRequestError, ModelFileError, UnsupportedModelError
from edgelm.quant.blocks import FORMATS
from edgelm.quant.divergence import divergence
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model
from edgelm.quant.work_folder import work_path
from edgelm.runtime.calibrate import calibrate
from edgelm.runtime.calibration_text import EVERYDAY, NOVEL
from edgelm.runtime.export import export
from edgelm.runtime.quantize import quantize
from edgelm.runtime.quantize_report import QuantizeReport
from edgelm.runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What a process wrote survives its death even if it is not on the disk yet; so waiting only takes time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 6,000 tokens of a tiny model."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(NOVEL + EVERYDAY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama", format="F16", embedding_format="F16")


def values(path: Path) -> dict[str, Array]:
    file = open_model(path)
    try:
        return {name: tensor.dequantize() for name, tensor in file.tensors.items()}
    finally:
        file.close()


def tokens(path: Path) -> Array:
    """Of the calibration text's first window, for only there is a tiny random model's quantization sure to be better than rounding."""
    return np.array(Tokenizer.from_gguf(path).encode(NOVEL)[:120], np.int32)


def logits(path: Path) -> Array:
    with GGUFFile(path) as file:
        return ReferenceModel(file).logits(tokens(path))


def kl(judge: Path, other: Path) -> float:
    return divergence(logits(judge), logits(other)).mean_kl


def edgelm(*arguments: str | Path, code: int = 0, limit: int | None = None) -> tuple[str, str]:
    """Run the command in a process of its own, which may write files of `limit` bytes."""
    limited = "" if limit is None else f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    command = (sys.executable, "-c", f"{limited}from edgelm.runtime.cli import main; main()", *map(str, arguments))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def assert_nothing_made(out: Path) -> None:
    assert not out.exists()
    assert not list(out.parent.glob("*.partial"))


# -- the file --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeReport]:
    out = tmp_path_factory.mktemp("quantized") / "q4_0.gguf"
    return out, quantize(tiny, out, calibration=text, calibration_tokens=1024, n_threads=1)


@pytest.mark.parametrize("engine", ["cpu", "llamacpp", "onnx"])
def test_every_engine_runs_the_file(quantized: tuple[Path, QuantizeReport], tiny: Path, tmp_path: Path, engine: str) -> None:
    model = quantized[0]
    if engine == "onnx":
        pytest.importorskip("onnx", reason="the package onnx is not installed")
        model = export(model, tmp_path / "onnx", precision="f32").folder
    with closing(open_backend(engine, model, n_threads=1, n_ctx=128, precision="f32" if engine == "cpu" else None)) as backend:
        found = np.concatenate(list(EnginePredictor(backend).logits(tokens(quantized[0]), 120)))
    wanted = logits(quantized[0])
    assert divergence(wanted, found).mean_kl < 0.1 * divergence(logits(tiny), wanted).mean_kl


def test_the_metadata_tell_how_the_file_was_made(quantized: tuple[Path, QuantizeReport], tiny: Path, text: Path) -> None:
    import hashlib

    from edgelm.version import __version__

    with GGUFFile(quantized[0]) as file, GGUFFile(tiny) as source:
        facts = {key.removeprefix("edgelm.quantize."): value for key, value in file.metadata.items() if key.startswith("edgelm.quantize.")}
        assert (facts["version"], facts["method"], facts["calibration.tokens"]) == (__version__, "gptq", 1024)
        assert facts["calibration.sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
        assert file.metadata["general.file_type"] == 2
        unchanged = {key for key in source.metadata if key not in ("general.file_type", "general.quantization_version")}
        for key in unchanged:
            np.testing.assert_array_equal(file.metadata[key], source.metadata[key], err_msg=key)
        assert file.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert Tokenizer.from_gguf(quantized[0]).encode("the hen <|im_end|>") == Tokenizer.from_gguf(tiny).encode("the hen <|im_end|>")
    assert GGUFReader(quantized[0]).get_field("edgelm.quantize.method") is not None


def test_the_report_is_true(quantized: tuple[Path, QuantizeReport], tiny: Path) -> None:
    path, report = quantized
    before, after = values(tiny), values(path)
    assert report.n_bytes == path.stat().st_size
    assert (report.method, report.n_tokens, report.notes) == ("gptq", 1024, ())
    assert {tensor.name for tensor in report.tensors} == {name for name, value in before.items() if value.ndim == 2}
    with GGUFFile(path) as file:
        n_bits = sum(8 * tensor.data.size for tensor in file.tensors.values() if len(tensor.shape) == 2)
        assert {tensor.name: tensor.format for tensor in report.tensors}.items() <= {
            n: t.format.name for n, t in file.tensors.items()
        }.items()
    assert report.bits_per_weight == pytest.approx(n_bits / sum(value.size for value in before.values() if value.ndim == 2))
    errors = {tensor.name: tensor.error for tensor in report.tensors}
    name = "token_embd.weight"
    assert errors[name] == pytest.approx(np.sum((before[name] - after[name]) ** 2) / np.sum(before[name] ** 2), rel=1e-4)
    assert all(error is not None and 0 < error < 0.02 for error in errors.values())
    assert report.seconds > 0
    assert 50e6 < report.peak_bytes < 4e9


# -- sources ---------------------------------------------------------------------------------------------------------------------------

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


# -- importance matrices ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imatrix(tiny: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    calibrate(tiny, target, text, n_tokens=1024, outer=True, n_threads=1)
    return target


def test_outer_products_of_a_file_serve_gptq(tiny: Path, imatrix: Path, tmp_path: Path) -> None:
    by_gptq, by_search = tmp_path / "g.gguf", tmp_path / "s.gguf"
    assert quantize(tiny, by_gptq, imatrix=imatrix, n_threads=1).method == "gptq"
    assert quantize(tiny, by_search, imatrix=imatrix, method="search", n_threads=1).method == "search"
    assert kl(tiny, by_gptq) < 0.9 * kl(tiny, by_search)
    with GGUFFile(by_gptq) as file:
        assert len(file.metadata["edgelm.quantize.imatrix.sha256"]) == 64


def test_importance_matrices_of_other_models(tiny: Path, text: Path, imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    wider = write_tiny(tmp_path / "wide.gguf", "llama", n_embd=128)
    with pytest.raises(InvalidRequestError, match=r"another model: it has 64 inputs for blk\.0\.attn_q\.weight, which has 128"):
        quantize(wider, out, imatrix=imatrix)
    fused = write_tiny(tmp_path / "fused.gguf", "phi3", n_layers=1)
    deeper = write_tiny(tmp_path / "deep.gguf", "llama", n_layers=4)
    other = tmp_path / "other.gguf"
    calibrate(fused, other, text, n_tokens=512, n_threads=1)
    assert "blk.3.attn_q.weight and 6 more: the importance matrix has nothing on it" in quantize(deeper, out, imatrix=imatrix).notes
    with pytest.raises(InvalidRequestError, match=r"no outer products.*calibrate --outer"):
        quantize(fused, out, imatrix=other, method="gptq", overwrite=True)
    with pytest.raises(ModelFileError, match="no importance matrix"):
        quantize(tiny, out, imatrix=tiny, overwrite=True)


# -- bad input -------------------------------------------------------------------------------------------------------------------------


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


# -- limits ----------------------------------------------------------------------------------------------------------------------------


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


# -- interruptions ---------------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from edgelm.runtime.quantize import quantize
def say(what, n_done, n_all):
    places.append(what)
    if (what, places.count(what)) == (sys.argv[4], int(sys.argv[5])):
        os.kill(os.getpid(), signal.SIGKILL)
places = []
quantize(sys.argv[1], sys.argv[2], calibration=sys.argv[3], calibration_tokens=1024, n_threads=1, say=say)
"""


def test_killed_and_resumed_work_gives_the_same_file(
    tiny: Path, text: Path, quantized: tuple[Path, QuantizeReport], tmp_path: Path
) -> None:
    """Killed while channels are scaled; within a block, before its checkpoint; then between two blocks."""
    out = tmp_path / "q.gguf"
    for place, count in (("channels of block 3 of 3", 1), ("block 2 of 3", 4), ("block 3 of 3", 1)):
        command = (sys.executable, "-c", KILLED, str(tiny), str(out), str(text), place, str(count))
        assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
        assert_nothing_made(out)
    told: list[tuple[str, float]] = []
    resumed = quantize(
        tiny, out, calibration=text, calibration_tokens=1024, n_threads=2, say=lambda what, done, of: told.append((what, done / of))
    )
    assert out.read_bytes() == quantized[0].read_bytes()
    assert resumed.tensors == quantized[1].tensors
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


# -- the same work, otherwise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wishes", [{"method": "gptq", "format": "q4_1"}, {"method": "search", "format": "iq4_nl"}])
def test_the_number_of_threads_does_not_matter(tiny: Path, text: Path, tmp_path: Path, wishes: dict[str, Any]) -> None:
    one, two = tmp_path / "1.gguf", tmp_path / "2.gguf"
    for n_threads, out in ((1, one), (2, two)):
        quantize(tiny, out, calibration=text, calibration_tokens=1024, n_threads=n_threads, **wishes)
    assert one.read_bytes() == two.read_bytes()


def test_the_command(tiny: Path, text: Path, tmp_path: Path, quantized: tuple[Path, QuantizeReport]) -> None:
    out = tmp_path / "q.gguf"
    shown, said = edgelm("quantize", tiny, out, "--calibration", text, "--calibration-tokens", "1024", "--threads", "2")
    assert out.read_bytes() == quantized[0].read_bytes()
    assert "100%" in said
    lines = shown.splitlines()
    assert lines[0].split() == ["Q", "K", "V", "OUTPUT", "GATE", "UP", "DOWN"]
    assert lines[1].split() == ["BLOCK", *["Q4_0"] * 7]
    assert lines[2].split()[:2] == ["token_embd", "Q8_0"]
    assert lines[3].split()[0] == "0"
    assert max(map(len, lines[:6])) <= 80
    assert "method   gptq, channels scaled, calibrated on 1,024 tokens" in shown
    assert "5.17 bits per weight" in shown


def by_name(report: QuantizeReport) -> Callable[[str], str]:
    return {tensor.name: tensor.format for tensor in report.tensors}.__getitem__


def test_formats_of_single_tensors(tiny: Path, tmp_path: Path) -> None:
    report = quantize(
        tiny, tmp_path / "q.gguf", format="iq4_nl", embedding_format="q4_0", tensor_formats=["blk.*.ffn_down.weight=q5_0"], n_threads=1
    )
    format_of = by_name(report)
    assert [format_of(name) for name in ("token_embd.weight", "blk.2.ffn_down.weight", "blk.0.attn_q.weight")] == ["Q4_0", "Q5_0", "IQ4_NL"]
