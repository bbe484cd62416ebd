"""The decoder over static graphs gives what the reference forward pass gives, however the tokens are cut and whatever the cache held."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tiny_models import VARIANTS, write_variant

from edgelm.backends.onnx.decoder import Run
from edgelm.backends.onnx.export import ExportOptions, export_model
from edgelm.backends.onnx.quantization import Quantization
from edgelm.backends.onnx.session import SessionSettings
from edgelm.backends.onnx.static_decoder import StaticDecoder, visible_keys
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import EdgeLMError, ModelFileError
from edgelm.quant.exported_folder import MANIFEST, ExportedFolder, write_manifest
from edgelm.quant.open_model import open_model

N_CTX, CHUNK = 64, 8
TOKENS = np.random.default_rng(0).integers(0, 288, 45).astype(np.int32)
SETTINGS = SessionSettings(n_threads=1)

Opened = tuple[StaticDecoder, ReferenceModel]
Open = Callable[..., Opened]


@pytest.fixture
def export(tmp_path: Path) -> Callable[[str, int], Path]:
    """Gives the exported folder of a tiny model."""

    def folder_of(variant: str, chunk: int = CHUNK) -> Path:
        model = write_variant(tmp_path / f"{variant}.gguf", variant)
        return export_model(open_model(model), tmp_path / variant, ExportOptions("nnapi", n_ctx=N_CTX, chunk=chunk)).folder

    return folder_of


@pytest.fixture
def opened(export: Callable[..., Path]) -> Open:
    """Gives the decoder of a tiny model with three slots, and the reference of the same model."""

    def open_variant(variant: str, chunk: int = CHUNK, n_ctx: int = N_CTX) -> Opened:
        folder = export(variant, chunk)
        decoder = StaticDecoder(ExportedFolder(folder), SETTINGS, n_ctx)
        decoder.reserve(3)
        return decoder, ReferenceModel(open_model(folder.with_suffix(".gguf")), N_CTX)

    return open_variant


def logits(decoder: StaticDecoder, slot: int, n_past: int, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Of all tokens of one run."""
    return decoder.run([Run(slot, n_past, tokens, np.arange(len(tokens)))], False)[0]


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_computes_what_the_reference_does(variant: str, opened: Open) -> None:
    decoder, reference = opened(variant)
    prompt = logits(decoder, 0, 0, TOKENS[:29])  # three whole pieces and one that is filled up
    singles = [logits(decoder, 0, i, TOKENS[i : i + 1]) for i in range(29, 37)]
    rest = logits(decoder, 0, 37, TOKENS[37:])
    assert_close(np.concatenate([prompt, *singles, rest]), reference.logits(TOKENS))
    (hidden,) = decoder.run([Run(1, 0, TOKENS, np.array([3, 44]))], True)
    assert_close(hidden, reference.hidden(TOKENS)[[3, 44]])


@pytest.mark.parametrize("variant", ["llama", "gemma3"])
def test_slots_do_not_touch_each_other(variant: str, opened: Open) -> None:
    decoder, reference = opened(variant)
    first, second = TOKENS[:21], TOKENS[::-1][:30]
    rows = [np.array([20]), np.array([0, 9, 29])]
    found = decoder.run([Run(2, 0, first, rows[0]), Run(0, 0, second, rows[1])], False)
    assert_close(found[0], reference.logits(first)[rows[0]])
    assert_close(found[1], reference.logits(second)[rows[1]])
    again = decoder.run([Run(0, 30, TOKENS[:1], np.array([0])), Run(2, 21, TOKENS[21:22], np.array([0]))], False)
    assert_close(again[1], reference.logits(TOKENS[:22])[-1:])


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
def test_what_a_slot_held_before_is_not_seen(variant: str, opened: Open) -> None:
    decoder, reference = opened(variant)
    logits(decoder, 0, 0, TOKENS[::-1].copy())
    found = logits(decoder, 0, 0, TOKENS[:11])
    assert_close(np.concatenate([found, logits(decoder, 0, 11, TOKENS[11:])]), reference.logits(TOKENS))


def test_a_copied_beginning_continues_as_the_original(opened: Open) -> None:
    decoder, reference = opened("gemma3")
    logits(decoder, 0, 0, TOKENS[:30])
    decoder.copy(0, 2, 20)
    other = np.concatenate([TOKENS[:20], TOKENS[:5]])
    assert_close(logits(decoder, 2, 20, other[20:]), reference.logits(other)[20:])
    assert_close(logits(decoder, 0, 30, TOKENS[30:]), reference.logits(TOKENS)[30:])


def test_the_context_can_be_filled_to_the_last_token(opened: Open) -> None:
    decoder, reference = opened("llama")
    tokens = np.resize(TOKENS, N_CTX)
    found = np.concatenate([logits(decoder, 0, 0, tokens[:59]), logits(decoder, 0, 59, tokens[59:])])
    assert_close(found, reference.logits(tokens))


def test_runs_without_outputs_store_their_tokens(opened: Open) -> None:
    decoder, reference = opened("llama")
    (nothing,) = decoder.run([Run(0, 0, TOKENS[:20], np.array([], np.int64))], False)
    assert nothing.shape == (0, 288)
    assert_close(logits(decoder, 0, 20, TOKENS[20:]), reference.logits(TOKENS)[20:])


def test_results_stay_as_they_are(opened: Open) -> None:
    decoder, reference = opened("llama")
    first = logits(decoder, 0, 0, TOKENS[:8])
    logits(decoder, 0, 8, TOKENS[8:16])
    assert_close(first, reference.logits(TOKENS[:8]))


def test_room_for_more_slots_keeps_what_is_there(opened: Open) -> None:
    decoder, reference = opened("llama")
    logits(decoder, 1, 0, TOKENS[:30])
    decoder.reserve(5)
    assert_close(logits(decoder, 1, 30, TOKENS[30:]), reference.logits(TOKENS)[30:])
    assert_close(logits(decoder, 4, 0, TOKENS[:9]), reference.logits(TOKENS[:9]))


def test_without_a_graph_for_prompts_tokens_are_read_one_by_one(opened: Open) -> None:
    decoder, reference = opened("llama", chunk=1)
    assert_close(logits(decoder, 0, 0, TOKENS[:9]), reference.logits(TOKENS[:9]))


def test_prompts_are_read_in_as_few_runs_as_possible(export: Callable[..., Path], tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, profile=str(tmp_path / "runs"))
    decoder = StaticDecoder(ExportedFolder(export("llama")), settings, N_CTX)
    decoder.reserve(1)
    logits(decoder, 0, 0, TOKENS[:20])
    logits(decoder, 0, 20, TOKENS[20:21])
    decoder.close()
    profiles = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs*.json"))]
    assert sorted(sum(event["name"] == "model_run" for event in events) for events in profiles) == [1, 3]


def test_what_the_decoder_says_of_itself(opened: Open) -> None:
    decoder, reference = opened("llama", n_ctx=40)
    c = reference.config
    assert (decoder.n_ctx, decoder.n_vocab) == (40, 288)
    assert decoder.kv_bytes_per_token == 2 * 4 * c.n_layers * c.n_kv_heads * c.head_dim
    assert 0.4 < decoder.bytes_per_token / decoder.weight_bytes < 0.6  # prefill.onnx and decode.onnx have the same weights
    assert decoder.weight_bytes > 2 * 4 * 288 * c.n_embd
    assert set(decoder.providers) == {"cpu"}
    decoder.close()
    decoder.close()


def quantize_borders(folder: Path) -> None:
    """Make the decode graph of a folder take its mask and give its results in whole numbers, as graphs for NPUs do."""
    model = onnx.load(folder / "decode.onnx")
    graph, parameters = model.graph, {}
    for tensor, kind, quantization in (
        (graph.input[2], "Dequantize", Quantization("uint16", 25.0 / 65535, 65535)),
        (graph.output[0], "Quantize", Quantization("uint16", 60.0 / 65535, 30000)),
        (graph.output[1], "Quantize", Quantization("int16", 20.0 / 32767, 0)),
    ):
        name, real = tensor.name, f"{tensor.name}.real"
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [real if other == name else other for other in names]
        dtype = np.dtype(quantization.type)
        scale, zero = (np.array(quantization.scale, np.float32), np.array(quantization.zero_point, dtype))
        graph.initializer.extend([numpy_helper.from_array(scale, f"{name}.scale"), numpy_helper.from_array(zero, f"{name}.zero")])
        ends = (name, real) if kind == "Dequantize" else (real, name)
        node = helper.make_node(f"{kind}Linear", [ends[0], f"{name}.scale", f"{name}.zero"], [ends[1]])
        graph.node.insert(0 if kind == "Dequantize" else len(graph.node), node)
        tensor.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
        parameters[name] = dataclasses.asdict(quantization)
    model.opset_import[0].version, model.ir_version = 21, 10
    manifest = ExportedFolder(folder).manifest
    onnx.save(model, folder / "decode.onnx")
    write_manifest(folder, dataclasses.replace(manifest, details={"quantization": parameters}))


def test_a_quantized_graph_is_given_codes_and_gives_real_values(export: Callable[..., Path]) -> None:
    folder = export("llama", 1)
    quantize_borders(folder)
    decoder = StaticDecoder(ExportedFolder(folder), SETTINGS, N_CTX)
    decoder.reserve(1)
    reference = ReferenceModel(open_model(folder.with_suffix(".gguf")), N_CTX)
    np.testing.assert_allclose(logits(decoder, 0, 0, TOKENS[:9]), reference.logits(TOKENS[:9]), rtol=0, atol=2e-3)
    (hidden,) = decoder.run([Run(0, 0, TOKENS[:9], np.arange(9))], True)
    np.testing.assert_allclose(hidden, reference.hidden(TOKENS[:9]), rtol=0, atol=2e-3)


def test_a_damaged_folder_is_refused(export: Callable[..., Path]) -> None:
    folder = export("llama")
    manifest = json.loads((folder / MANIFEST).read_text())

    def opening_says(text: str, **changes: object) -> None:
        (folder / MANIFEST).write_text(json.dumps(manifest | changes))
        with pytest.raises(EdgeLMError, match=text) as caught:
            StaticDecoder(ExportedFolder(folder), SETTINGS, 8)
        assert isinstance(caught.value, ModelFileError)

    opening_says(r"past_key_values\.0\.key of shape \[1, 2, 16, 128\].*float.*\[1, 2, 16, 64\]", n_ctx=128)
    opening_says("should have a tensor input_ids", graphs=[{"file": "prefill.onnx", "n_tokens": 1}])
    opening_says("no fixed number of tokens", graphs=[{"file": "prefill.onnx", "n_tokens": None}])
    opening_says("quantization are damaged", details={"quantization": {"logits": {"scale": 1.0}}})
    opening_says("quantization are damaged", details={"quantization": {"logits": 1}})


def test_a_token_sees_the_filled_past_and_the_tokens_before_it() -> None:
    def drawn(window: int) -> list[str]:
        return ["".join(".x"[seen] for seen in row) for row in visible_keys(3, 4, 5, window).astype(int)]

    assert drawn(100) == ["xxx..x...", "xxx..xx..", "xxx..xxx.", "xxx..xxxx"]
    assert drawn(2) == ["..x..x...", ".....xx..", "......xx.", ".......xx"]
