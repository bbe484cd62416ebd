"""The fused graph, run by a plain ONNX Runtime session, against the reference forward pass."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
from numpy.typing import NDArray
from tiny_models import FORMATS, VARIANTS, write_tiny, write_variant

from edgelm.backends.onnx.export import ExportOptions, ExportReport, export_model
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.tokenizer import Tokenizer

TOKENS = np.random.default_rng(1).integers(3, 280, 48).astype(np.int32)
N_CTX = 512
QUANTIZED = [name for name in FORMATS if name not in ("F32", "F16", "BF16")]


class Graph:
    """model.onnx of a folder, and what it takes and gives."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.past = [tensor for tensor in self.session.get_inputs() if tensor.name.startswith("past_key_values.")]
        self.dtype = np.float16 if self.past[0].type == "tensor(float16)" else np.float32

    def empty(self, n_sequences: int, n_past: int = 0) -> list[NDArray[np.floating]]:
        return [np.zeros((n_sequences, tensor.shape[1], n_past, tensor.shape[3]), self.dtype) for tensor in self.past]

    def inputs(self, tokens: NDArray[np.int32], lengths: Sequence[int], rows: Sequence[int] | None) -> dict[str, NDArray[np.int64]]:
        """tokens [batch, n]; lengths: of each sequence after the call."""
        mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        given = {} if rows is None else {"logit_rows": np.array(rows, np.int64)}
        return {"input_ids": tokens.astype(np.int64), "attention_mask": mask.astype(np.int64), **given}

    def run(
        self,
        tokens: NDArray[np.int32],
        past: list[NDArray[np.floating]] | None = None,
        lengths: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
        output: str = "logits",
    ) -> tuple[NDArray[np.float32], list[NDArray[np.floating]]]:
        past = past or self.empty(len(tokens))
        lengths = lengths or [past[0].shape[2] + tokens.shape[1]] * len(tokens)
        cache = {tensor.name: array for tensor, array in zip(self.past, past, strict=True)}
        names = [output, *(tensor.name.replace("past_key_values", "present") for tensor in self.past)]
        result, *present = self.session.run(names, {**self.inputs(tokens, lengths, rows), **cache})
        return result, present


def export(path: Path, folder: Path, **options: object) -> tuple[Graph, ExportReport]:
    with GGUFFile(path) as file:
        report = export_model(file, folder, ExportOptions(n_ctx=N_CTX, **options))
    return Graph(folder), report


def reference(path: Path, tokens: NDArray[np.int32] = TOKENS) -> NDArray[np.float32]:
    with GGUFFile(path) as file:
        return ReferenceModel(file, N_CTX).logits(tokens)


def relative_difference(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert given.shape == wanted.shape
    return float(np.abs(given - wanted).max() / np.abs(wanted).max())


def divergence(given: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Mean KL divergence of the given distribution from the wanted one, in nats."""

    def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
        shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return logs

    p, q = log_softmax(wanted), log_softmax(given)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_prompt_and_single_tokens_equal_the_reference(tmp_path: Path, variant: str) -> None:
    path = write_variant(tmp_path / "m.gguf", variant)
    graph, _ = export(path, tmp_path / "out", precision="f32")
    n = 40  # beyond the sliding windows of the tiny models
    prompt, past = graph.run(TOKENS[None, :n], rows=range(n))
    steps = []
    for token in TOKENS[n:]:
        logits, past = graph.run(np.array([[token]], np.int32), past)
        steps.append(logits[0, 0])
    assert relative_difference(np.concatenate([prompt[0], np.stack(steps)]), reference(path)) < 1e-5


@pytest.mark.parametrize("tensor_format", FORMATS)
def test_every_format_is_exact_where_activations_are_float(tmp_path: Path, tensor_format: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", n_layers=2, format=tensor_format, embedding_format=tensor_format)
    graph, report = export(path, tmp_path / "out", precision="f32")
    logits, _ = graph.run(TOKENS[None], rows=range(len(TOKENS)))
    assert relative_difference(logits[0], reference(path)) < 1e-5
    assert all(entry.exact for entry in report.formats)


@pytest.mark.parametrize("tensor_format", QUANTIZED)
def test_every_format_is_near_the_reference_where_activations_are_int8(tmp_path: Path, tensor_format: str) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", n_layers=2, format=tensor_format, embedding_format=tensor_format)
    graph, report = export(path, tmp_path / "out")
    logits, _ = graph.run(TOKENS[None], rows=range(len(TOKENS)))
    assert divergence(logits[0], reference(path)) < 2e-3
    assert all(entry.exact and "codes" in entry.stored for entry in report.formats)


def test_a_prompt_in_pieces_gives_what_it_gives_whole(tmp_path: Path) -> None:
    graph, _ = export(write_variant(tmp_path / "m.gguf", "gemma3"), tmp_path / "out", precision="f32")
    whole, _ = graph.run(TOKENS[None])
    _, past = graph.run(TOKENS[None, :20])
    pieces, _ = graph.run(TOKENS[None, 20:], past)
    assert relative_difference(pieces, whole) < 1e-5


@pytest.mark.parametrize("variant", ["llama", "llama-head-dim", "gemma3", "qwen3"])
def test_sequences_of_unequal_lengths_run_together(tmp_path: Path, variant: str) -> None:
    graph, _ = export(write_variant(tmp_path / "m.gguf", variant), tmp_path / "out", precision="f32")
    lengths, new = (31, 7, 20), np.array([[5], [6], [7]], np.int32)
    past = graph.empty(3, max(lengths) + 1)  # room for the new token, as in a cache
    wanted = []
    for slot, length in enumerate(lengths):
        _, alone = graph.run(TOKENS[None, :length])
        for target, source in zip(past, alone, strict=True):
            target[slot, :, :length] = source[0]
        wanted.append(graph.run(new[slot : slot + 1], alone)[0][0])
    logits, _ = graph.run(new, past, [length + 1 for length in lengths])
    assert relative_difference(logits, np.stack(wanted)) < 1e-5


@pytest.mark.parametrize("variant", ["llama", "llama-head-dim"])
def test_prompts_of_unequal_lengths_run_together(tmp_path: Path, variant: str) -> None:
    graph, _ = export(write_variant(tmp_path / "m.gguf", variant), tmp_path / "out", precision="f32")
    padded = np.zeros((2, 30), np.int32)
    padded[0], padded[1, :12] = TOKENS[:30], TOKENS[18:30]
    logits, _ = graph.run(padded, lengths=[30, 12], rows=[11, 29])
    wanted = [graph.run(TOKENS[None, :30])[0][0, 0], graph.run(TOKENS[None, 18:30])[0][0, 0]]
    assert relative_difference(np.stack([logits[0, 1], logits[1, 0]]), np.stack(wanted)) < 1e-5


def test_keys_and_values_are_written_in_place(tmp_path: Path) -> None:
    path = write_variant(tmp_path / "m.gguf", "llama")
    graph, _ = export(path, tmp_path / "out", precision="f32")
    cache = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.empty(1, 64)]
    addresses = [value.data_ptr() for value in cache]
    for start, stop in ((0, 40), (40, 41), (41, 42)):
        binding = graph.session.io_binding()
        for name, array in graph.inputs(TOKENS[None, start:stop], [stop], None).items():
            binding.bind_cpu_input(name, array)
        for tensor, value in zip(graph.past, cache, strict=True):
            binding.bind_ortvalue_input(tensor.name, value)
            binding.bind_ortvalue_output(tensor.name.replace("past_key_values", "present"), value)
        binding.bind_output("logits", "cpu")
        graph.session.run_with_iobinding(binding)
    logits = binding.get_outputs()[-1].numpy()
    assert [value.data_ptr() for value in cache] == addresses
    assert relative_difference(logits[0], reference(path)[41:42]) < 1e-5


def test_rows_give_logits_and_hidden_states_as_asked(tmp_path: Path) -> None:
    path = write_variant(tmp_path / "m.gguf", "granite")
    graph, _ = export(path, tmp_path / "out", precision="f32")
    with GGUFFile(path) as file:
        hidden = ReferenceModel(file, N_CTX).hidden(TOKENS)
    assert relative_difference(graph.run(TOKENS[None], rows=[3, 40], output="hidden_states")[0][0], hidden[[3, 40]]) < 1e-5
    assert relative_difference(graph.run(TOKENS[None])[0][0], reference(path)[-1:]) < 1e-5
    assert graph.run(TOKENS[None], rows=[])[0].shape == (1, 0, 288)


def test_keys_and_values_may_be_float16(tmp_path: Path) -> None:
    path = write_variant(tmp_path / "m.gguf", "gemma3")
    graph, report = export(path, tmp_path / "out", precision="f32", kv_type="f16")
    prompt, past = graph.run(TOKENS[None, :-1])
    assert past[0].dtype == np.float16
    step, _ = graph.run(TOKENS[None, -1:], past)
    assert divergence(np.stack([prompt[0, 0], step[0, 0]]), reference(path)[-2:]) < 1e-4
    assert report.manifest.kv_type == "f16"


def test_a_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    for tied in (True, False):
        path = write_tiny(tmp_path / f"{tied}.gguf", "llama", format="Q4_0", embedding_format="Q8_0", tied=tied, n_vocab=4000)
        export(path, tmp_path / str(tied))
    sizes = [(tmp_path / str(tied) / "model.onnx.data").stat().st_size for tied in (True, False)]
    one = 4000 * 64 * 36 // 32  # codes in 8 bits, a float32 scale per 32
    assert one <= sizes[1] - sizes[0] < one + 128


def test_requantizing_is_asked_for_and_told(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", format="F16", embedding_format="Q4_1")
    _, exact = export(path, tmp_path / "exact")
    graph, smaller = export(path, tmp_path / "smaller", requantize="q8_0")
    told = {entry.format: (entry.stored, entry.exact, entry.n_matrices) for entry in smaller.formats}
    assert told == {"Q4_1": ("4-bit codes and offsets", True, 1), "F16": ("Q8_0 in 8-bit codes", False, 21)}
    assert sum(entry.bytes_after for entry in smaller.formats) < sum(entry.bytes_after for entry in exact.formats) / 2
    assert ["F16" in note and "--requantize" in note for note in exact.notes] == [True]
    assert smaller.notes == ()
    logits, _ = graph.run(TOKENS[None], rows=range(len(TOKENS)))
    assert 0 < divergence(logits[0], reference(path)) < 2e-3


def test_heads_of_a_size_that_attention_does_not_take_are_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", head_dim=12)
    with pytest.raises(UnsupportedModelError, match="12 channels"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_smollm2_with_int8_activations_is_near_the_reference(smollm2_path: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "data" / "evaluation.txt").read_text(encoding="utf-8")[:600]
    with GGUFFile(smollm2_path) as file:
        tokens = np.array(Tokenizer.from_metadata(file.metadata).encode(text)[:128], np.int32)
    graph, _ = export(smollm2_path, tmp_path / "out")
    logits, _ = graph.run(tokens[None], rows=range(len(tokens)))
    assert divergence(logits[0], reference(smollm2_path, tokens)) < 5e-3


@pytest.mark.parametrize("variant", ["llama", "phi3-longrope", "gemma2", "gemma3"])
def test_onnxruntime_genai_gives_the_same_tokens(tmp_path: Path, variant: str) -> None:
    graph, _ = export(write_variant(tmp_path / "m.gguf", variant), tmp_path / "out")
    model = onnxruntime_genai.Model(str(tmp_path / "out"))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(TOKENS) + 24, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens([int(token) for token in TOKENS])
    given = []
    while not generator.is_done():
        generator.generate_next_token()
        given.append(int(generator.get_next_tokens()[0]))
    wanted, tokens, past = [], TOKENS[None], None
    for _ in given:
        logits, past = graph.run(tokens, past)
        wanted.append(int(logits[0, 0].argmax()))
        tokens = np.array([wanted[-1:]], np.int32)
    assert given == wanted
    assert given
