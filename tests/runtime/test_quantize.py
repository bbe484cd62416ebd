"""Whole quantizations of tiny models: files that every engine runs, importance matrices, and what does not change the result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from quantized_files import edgelm, kl, logits, tokens, values
from tiny_models import CHAT_TEMPLATE, write_tiny

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.engine_predictor import EnginePredictor
from edgelm.backends.registry import open_backend
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.divergence import divergence
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.calibrate import calibrate
from edgelm.runtime.export import export
from edgelm.runtime.quantize import quantize
from edgelm.runtime.quantize_report import QuantizeReport
from edgelm.runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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


@pytest.mark.parametrize(("method", "part"), [("search", 0.97), ("gptq", 0.85)])
def test_an_embedding_that_is_the_output_layer_is_quantized_for_its_inputs_there(
    tiny: Path, text: Path, tmp_path: Path, method: str, part: float
) -> None:
    plain, known = tmp_path / "plain.gguf", tmp_path / "known.gguf"
    quantize(tiny, plain, format="f16", embedding_format="q4_0", method="search")
    quantize(tiny, known, format="f16", embedding_format="q4_0", method=method, calibration=text, calibration_tokens=2048)
    with GGUFFile(tiny) as file:
        steps = BlockSteps(file, 120)
        stream = steps.embed(tokens(tiny)[None], {})
        for layer in range(steps.n_layers):
            state = steps.begin(layer, stream, {})
            for step in steps.steps(layer, {}):
                state = step(state)
            stream = state.stream
        outputs = steps.end(stream).inputs[0]

    def lost(path: Path) -> float:
        change = values(path)["token_embd.weight"] - values(tiny)["token_embd.weight"]
        return float(np.square(outputs @ change.T).mean())

    assert lost(known) < part * lost(plain)


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
