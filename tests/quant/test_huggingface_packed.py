"""AWQ, GPTQ and compressed-tensors checkpoints: every value as the layout says it, and layouts that are not understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from packed_checkpoints import Layer, Packing, change_config, packed_tensors, write_packed
from safetensors.numpy import save_file
from tiny_folders import N_HEADS, N_KV_HEADS, write_folder, write_json

from edgelm.errors import ClosedError, EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant import huggingface_packed
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.gguf_metadata import encode_metadata
from edgelm.quant.gguf_writer import TensorSource, write_gguf
from edgelm.quant.huggingface import HuggingFaceFolder

Q = "model.layers.0.self_attn.q_proj"
SPREAD = "act-order groups are spread over the row; kept as float"
NOT_FLOAT16 = "scales are not all float16; kept as float"
IN_Q5_0 = "zero points times scales are not all float16; kept exactly, in Q5_0"

# The format that rows of 64 columns come in, and why it is not the one of the codes.
CASES: dict[str, tuple[Packing, str, str]] = {
    "awq": (Packing("awq", symmetric=False), "Q5_0", IN_Q5_0),
    "awq coarse": (Packing("awq", symmetric=False, coarse=True), "Q4_1", ""),
    "awq symmetric": (Packing("awq"), "Q4_0", ""),
    "awq whole rows": (Packing("awq", group_size=-1), "Q4_0", ""),
    "awq groups of 16": (Packing("awq", group_size=16), "F32", "groups end within blocks of 32 columns; kept as float"),
    "gptq": (Packing("gptq"), "Q4_0", ""),
    "gptq listed": (Packing("gptq", listed=True), "Q4_0", ""),
    "gptq v2": (Packing("gptq_v2"), "Q4_0", ""),
    "gptq asymmetric": (Packing("gptq", symmetric=False), "Q5_0", IN_Q5_0),
    "gptq v2 asymmetric": (Packing("gptq_v2", symmetric=False), "Q5_0", IN_Q5_0),
    "gptq act-order": (Packing("gptq", act_order=True), "F32", SPREAD),
    "gptq act-order, one group": (Packing("gptq", act_order=True, group_size=-1), "Q4_0", ""),
    "gptq 8 bits": (Packing("gptq", bits=8), "Q8_0", ""),
    "gptq v2 8 bits asymmetric": (
        Packing("gptq_v2", bits=8, symmetric=False),
        "F32",
        "zero points of 8-bit codes are not all 128; kept as float",
    ),
    "gptq 8 bits act-order": (Packing("gptq", bits=8, act_order=True), "F32", SPREAD),
    "packed": (Packing("compressed-tensors"), "Q4_0", ""),
    "packed whole rows": (Packing("compressed-tensors", group_size=-1, scale_type="BF16"), "Q4_0", ""),
    "packed float32": (Packing("compressed-tensors", scale_type="F32"), "F32", NOT_FLOAT16),
    "packed asymmetric": (Packing("compressed-tensors", symmetric=False), "Q5_0", IN_Q5_0),
    "packed asymmetric bfloat16": (Packing("compressed-tensors", symmetric=False, scale_type="BF16"), "Q5_0", IN_Q5_0),
    "packed act-order": (Packing("compressed-tensors", act_order=True), "F32", SPREAD),
    "packed act-order asymmetric": (Packing("compressed-tensors", act_order=True, symmetric=False), "F32", SPREAD),
    "packed 8 bits": (Packing("compressed-tensors", bits=8), "Q8_0", ""),
    "packed 8 bits whole rows": (Packing("compressed-tensors", bits=8, group_size=-1), "Q8_0", ""),
}
GGUF_NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"} | {
    f"{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")
}


def gguf_name(name: str) -> str:
    parts = name.split(".")
    return f"blk.{parts[2]}.{GGUF_NAMES[parts[4]]}.weight"


def expected(name: str, layer: Layer) -> NDArray[np.float32]:
    """The values in the rows' order of a llama model, written row by row."""
    values = layer.values()
    if "q_proj" not in name and "k_proj" not in name:
        return values
    n_heads = N_HEADS if "q_proj" in name else N_KV_HEADS
    head_dim = len(values) // n_heads
    return values[[head * head_dim + i + half * head_dim // 2 for head in range(n_heads) for i in range(head_dim // 2) for half in (0, 1)]]


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_the_layouts_own(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_packed, "_CHUNK_VALUES", 1500)  # so that these layers are large ones, unpacked in parts
    packing, block, note = CASES[case]
    layers = write_packed(tmp_path, packing)
    with HuggingFaceFolder(tmp_path) as model:
        notes = model.notes
        for name, layer in layers.items():
            tensor = model.tensors[gguf_name(name)]
            np.testing.assert_array_equal(tensor.dequantize(), expected(name, layer))
            assert (tensor.name, tensor.shape) == (gguf_name(name), layer.codes.shape)
            if layer.codes.shape[1] == 48:
                assert tensor.format.name == "F32"
                assert notes[gguf_name(name)] == "rows of 48 values are no whole blocks of 32; kept as float"
            else:
                assert (tensor.format.name, notes.get(gguf_name(name), "")) == (block, note)
        assert model.tensors["token_embd.weight"].format.name == "F16"
        assert set(notes) <= set(model.tensors)
    with pytest.raises(ClosedError):
        _ = model.notes


def test_fused_layers_and_shards(tmp_path: Path) -> None:
    packing = Packing("gptq")
    layers = write_packed(tmp_path, packing, "Phi3ForCausalLM")
    tensors, _ = packed_tensors(packing, "Phi3ForCausalLM")
    (tmp_path / "model.safetensors").unlink()
    # Parts of one layer in different files.
    homes = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(homes.values()):
        save_file({name: tensor for name, tensor in tensors.items() if homes[name] == shard}, tmp_path / shard)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": homes})
    with HuggingFaceFolder(tmp_path) as model:
        tensor = model.tensors["blk.1.attn_qkv.weight"]
        assert tensor.format.name == "Q4_0"
        np.testing.assert_array_equal(tensor.dequantize(), layers["model.layers.1.self_attn.qkv_proj.weight"].values())


def test_some_layers_may_be_plain(tmp_path: Path) -> None:
    tensors, layers = packed_tensors(Packing("awq"), "MistralForCausalLM")
    write_packed(tmp_path, Packing("awq"))
    plain = layers[f"{Q}.weight"].values()
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{Q}.")}
    save_file(rest | {f"{Q}.weight": plain}, tmp_path / "model.safetensors")
    with HuggingFaceFolder(tmp_path) as model:
        np.testing.assert_array_equal(np.sort(model.tensors["blk.0.attn_q.weight"].dequantize(), axis=0), np.sort(plain, axis=0))
        assert model.tensors["blk.0.attn_k.weight"].format.name == "Q4_0"


def test_older_files_have_unpacked_zero_points(tmp_path: Path) -> None:
    packing = Packing("compressed-tensors", symmetric=False)
    layers = write_packed(tmp_path, packing)
    tensors, _ = packed_tensors(packing, "MistralForCausalLM")
    for name, layer in layers.items():
        tensors[f"{name}_zero_point"] = (layer.zeros - 8).astype(np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with HuggingFaceFolder(tmp_path) as model:
        for name, layer in layers.items():
            np.testing.assert_array_equal(model.tensors[gguf_name(name)].dequantize(), expected(name, layer))


def test_layers_of_different_schemes(tmp_path: Path) -> None:
    """Each has the scheme that its shapes call for."""
    few, many = Packing("compressed-tensors"), Packing("compressed-tensors", bits=8, group_size=-1)
    layers = write_packed(tmp_path, few)
    other, other_layers = packed_tensors(many, "MistralForCausalLM")
    mixed = {name: array for name, array in packed_tensors(few, "MistralForCausalLM")[0].items() if ".mlp." not in name}
    save_file(mixed | {name: array for name, array in other.items() if ".mlp." in name}, tmp_path / "model.safetensors")
    groups = {str(i): packing.config["config_groups"]["group_0"] for i, packing in enumerate((many, few))}
    change_config(tmp_path, config_groups=groups)
    layers |= {name: layer for name, layer in other_layers.items() if ".mlp." in name}
    with HuggingFaceFolder(tmp_path) as model:
        assert {model.tensors[f"blk.0.{name}.weight"].format.name for name in ("attn_q", "ffn_up")} == {"Q4_0", "Q8_0"}
        for name, layer in layers.items():
            np.testing.assert_array_equal(model.tensors[gguf_name(name)].dequantize(), expected(name, layer))


def test_an_order_that_was_not_used_is_marked_by_minus_one(tmp_path: Path) -> None:
    packing = Packing("compressed-tensors", listed=True)
    layers = write_packed(tmp_path, packing)
    tensors, _ = packed_tensors(packing, "MistralForCausalLM")
    tensors[f"{Q}.weight_g_idx"] = np.full(64, -1, np.int32)
    save_file(tensors, tmp_path / "model.safetensors")
    with HuggingFaceFolder(tmp_path) as model:
        np.testing.assert_array_equal(model.tensors["blk.0.attn_q.weight"].dequantize(), expected(Q, layers[f"{Q}.weight"]))


@pytest.mark.parametrize(
    ("file_name", "packing", "legacy"),
    [
        ("quantize_config.json", Packing("gptq"), {"bits": 4, "group_size": 32, "desc_act": 0, "is_marlin_format": False}),
        ("quant_config.json", Packing("awq"), {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}),
    ],
)
def test_files_of_older_programs(tmp_path: Path, file_name: str, packing: Packing, legacy: dict[str, Any]) -> None:
    layers = write_packed(tmp_path, packing)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UnsupportedModelError, match=r"qweight' has the type I32; edgelm reads F32"):
        HuggingFaceFolder(tmp_path)
    write_json(tmp_path / file_name, legacy)
    with HuggingFaceFolder(tmp_path) as model:
        np.testing.assert_array_equal(model.tensors["blk.0.attn_q.weight"].dequantize(), expected(Q, layers[f"{Q}.weight"]))


def test_blocks_survive_a_gguf_file(tmp_path: Path) -> None:
    layers = write_packed(tmp_path / "folder", Packing("gptq"))
    path = tmp_path / "m.gguf"
    with HuggingFaceFolder(tmp_path / "folder") as model:
        metadata, n_entries = encode_metadata(model.metadata, "Q4_0")
        sources = [TensorSource(t.name, t.shape, t.format, lambda t=t: [t.data]) for t in model.tensors.values()]  # type: ignore[misc]
        write_gguf(path, metadata, n_entries, sources)
    with GGUFFile(path) as file:
        for name, layer in layers.items():
            np.testing.assert_array_equal(file.tensors[gguf_name(name)].dequantize(), expected(name, layer))


# -- what is not understood ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packing", "changes", "message"),
    [
        (Packing("gptq"), {"bits": 3}, "codes of 3 bits cannot be read, only 4 and 8"),
        (Packing("gptq"), {"checkpoint_format": "marlin"}, "the GPTQ layout 'marlin'"),
        (Packing("gptq"), {"is_marlin_format": True}, "the GPTQ layout 'marlin'"),
        (Packing("gptq"), {"pack_dtype": "int16"}, "words of the type 'int16'"),
        (Packing("gptq"), {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"the GPTQ rule '\+:\.\*down"),
        (Packing("awq"), {"bits": 8}, "codes of 8 bits cannot be read, only 4"),
        (Packing("awq"), {"version": "gemv"}, "the AWQ layout 'gemv'"),
        (Packing("awq"), {"version": "exllama"}, "the AWQ layout 'exllama'"),
        (Packing("awq"), {"backend": "llm-awq"}, "the AWQ layout 'llm-awq'"),
        (Packing("awq"), {"quant_method": "fp8"}, "weights quantized by 'fp8'"),
        (Packing("awq"), {"quant_method": "bitsandbytes"}, "weights quantized by 'bitsandbytes'"),
        (Packing("compressed-tensors"), {"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        (Packing("compressed-tensors"), {"format": "marlin-24"}, "format 'marlin-24'"),
        (Packing("compressed-tensors"), {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        (Packing("compressed-tensors"), {"transform_config": {"config_groups": {"u": {}}}}, "transformed when the model runs"),
    ],
    ids=str,
)
def test_layouts_that_are_not_read_are_named(tmp_path: Path, packing: Packing, changes: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, "MistralForCausalLM", quantization_config=packing.config | changes)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        HuggingFaceFolder(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_bits": 3}, UnsupportedModelError, "codes of 3 bits"),
        ({"type": "float"}, UnsupportedModelError, "type 'float'"),
        ({"strategy": "tensor"}, UnsupportedModelError, "strategy 'tensor'"),
        ({"strategy": "channel"}, UnsupportedModelError, "strategy 'channel' with a group size of 32"),
        ({"group_size": 0}, ModelFileError, "'group_size' is 0"),
        ({"actorder": "up"}, ModelFileError, "'actorder' is 'up'"),
        ({"symmetric": 1}, ModelFileError, "'symmetric' is 1"),
    ],
    ids=str,
)
def test_schemes_that_are_not_read_are_named(tmp_path: Path, changes: dict[str, Any], kind: type[EdgeLMError], message: str) -> None:
    config = Packing("compressed-tensors").config
    config["config_groups"]["group_0"]["weights"] |= changes
    write_folder(tmp_path, "MistralForCausalLM", quantization_config=config)
    with pytest.raises(kind, match=message):
        HuggingFaceFolder(tmp_path)


def test_a_zero_point_that_programs_read_in_different_ways(tmp_path: Path) -> None:
    packing = Packing("gptq", symmetric=False)
    write_packed(tmp_path, packing)
    tensors, _ = packed_tensors(packing, "MistralForCausalLM")
    tensors[f"{Q}.qzeros"] = np.full_like(tensors[f"{Q}.qzeros"], -1)
    save_file(tensors, tmp_path / "model.safetensors")
    with HuggingFaceFolder(tmp_path) as model, pytest.raises(UnsupportedModelError, match=r"q_proj\.qzeros' has 15.*gptq_v2"):
        _ = model.tensors["blk.0.attn_q.weight"]


# -- parts that do not go together -----------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, NDArray[Any]]], object]


def without(part: str) -> Change:
    return lambda tensors: tensors.pop(f"{Q}.{part}")


def replaced(part: str, array: NDArray[Any]) -> Change:
    return lambda tensors: tensors.update({f"{Q}.{part}": array})


def filled(part: str, value: float, at: int = 0) -> Change:
    def change(tensors: dict[str, NDArray[Any]]) -> None:
        tensors[f"{Q}.{part}"] = tensors[f"{Q}.{part}"].copy()
        tensors[f"{Q}.{part}"].flat[at] = value

    return change


GPTQ, AWQ, PACKED = Packing("gptq", act_order=True), Packing("awq"), Packing("compressed-tensors", symmetric=False, act_order=True)


@pytest.mark.parametrize(
    ("packing", "change", "message"),
    [
        *((GPTQ, without(part), rf"{part}' is missing") for part in ("scales", "qzeros", "g_idx")),
        *((AWQ, without(part), rf"{part}' is missing") for part in ("scales", "qzeros")),
        *((PACKED, without(f"weight_{part}"), rf"weight_{part}' is missing") for part in ("scale", "shape", "zero_point", "g_idx")),
        (GPTQ, filled("g_idx", -1), r"g_idx' has group -1 to 1, where there are 0 to 1"),
        (GPTQ, filled("g_idx", 2), r"g_idx' has group 0 to 2"),
        (PACKED, filled("weight_g_idx", -1), r"weight_g_idx' has group -1 to 1"),
        (GPTQ, filled("scales", np.nan), r"scales' has a scale that is infinite or not a number"),
        (AWQ, filled("scales", np.inf), r"scales' has a scale that is infinite or not a number"),
        (PACKED, filled("weight_scale", -np.inf), r"weight_scale' has a scale that is infinite"),
        (GPTQ, replaced("g_idx", np.zeros(63, np.int32)), r"g_idx' has the shape \(63,\), not \(64\)"),
        (GPTQ, replaced("g_idx", np.zeros(64, np.float32)), r"g_idx' has the type F32, not whole numbers"),
        (GPTQ, replaced("qzeros", np.zeros((2, 11), np.int32)), r"qzeros' has the shape \(2, 11\), not \(2, 12\)"),
        (GPTQ, replaced("qzeros", np.zeros((2, 12), np.int64)), r"qzeros' has the type I64, not I32"),
        (GPTQ, replaced("scales", np.zeros((2, 95), np.float16)), r"scales' has the shape \(2, 95\), not \(any, 96\)"),
        (GPTQ, replaced("scales", np.zeros((2, 96), np.int32)), r"scales' has the type I32, not one of floats"),
        (GPTQ, replaced("qweight", np.zeros((8, 96, 1), np.int32)), r"qweight' has the shape \(8, 96, 1\)"),
        (GPTQ, replaced("qweight", np.zeros((0, 96), np.int32)), r"qweight' has the shape \(0, 96\)"),
        (AWQ, replaced("qweight", np.zeros((65, 12), np.int32)), "2 groups, not those of 32 columns in rows of 65"),
        (AWQ, replaced("weight", np.zeros((96, 64), np.float16)), "both packed and plain"),
        (AWQ, replaced("extra", np.zeros(3, np.int32)), r"extra' has the type I32"),
        (PACKED, replaced("weight_shape", np.array([95, 64])), "says 95 rows of 64, where there are 96"),
        (PACKED, replaced("weight_shape", np.array([96, -64])), "says 96 rows of -64"),
        (
            PACKED,
            replaced("weight_shape", np.array([96, 2**62])),
            r"weight_packed' has 8 words and 2 scales for a row of 4611686018427387904",
        ),
        (PACKED, replaced("weight_scale", np.zeros((96, 3), np.float16)), "8 words and 3 scales for a row of 64"),
        (PACKED, replaced("weight_zero_point", np.zeros((96, 2), np.int32)), r"weight_zero_point' has the shape \(96, 2\), not \(12, 2\)"),
    ],
)
def test_parts_that_do_not_go_together(tmp_path: Path, packing: Packing, change: Change, message: str) -> None:
    write_packed(tmp_path, packing)
    tensors, _ = packed_tensors(packing, "MistralForCausalLM")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    kind = UnsupportedModelError if "extra" in message else ModelFileError
    with pytest.raises(kind, match=message) as caught, HuggingFaceFolder(tmp_path) as model:
        _ = model.tensors["blk.0.attn_q.weight"]
    assert str(tmp_path) in str(caught.value)
    assert Q in str(caught.value)


# -- fuzzing ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["awq", "gptq", "compressed-tensors"])
def shared_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_packed(folder, Packing(request.param))
    return folder


KEYS = ("quant_method", "bits", "group_size", "version", "desc_act", "checkpoint_format", "format", "config_groups", "dynamic")
VALUES = (
    st.none() | st.booleans() | st.integers(-2, 40) | st.sampled_from([2**31, 2**70, 32.0, "gptq", "awq", "gptq_v2", [], {}, {"a": {}}])
)


@settings(max_examples=80, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_description_gives_a_clear_error_or_a_model(shared_folder: Path, changes: dict[str, Any]) -> None:
    path = shared_folder / "config.json"
    sound = path.read_text()
    change_config(shared_folder, **changes)
    try:
        with HuggingFaceFolder(shared_folder) as model:
            tensor = model.tensors["blk.0.attn_q.weight"]
            assert tensor.data.size == tensor.format.nbytes(tensor.shape)
    except EdgeLMError:
        pass
    finally:
        path.write_text(sound)
