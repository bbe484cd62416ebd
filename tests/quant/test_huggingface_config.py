"""config.json of every architecture, as the keys of GGUF."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_folders import CLASSES, HEAD_DIM, N_EMBD, N_FF, N_HEADS, N_KV_HEADS, N_LAYERS, N_VOCAB, config, write_folder

from edgelm.backends.config import read_config
from edgelm.errors import EdgeLMError, ModelFileError, UnsupportedModelError
from edgelm.quant.huggingface import HuggingFaceFolder
from edgelm.quant.huggingface_config import ARCHITECTURES

EVERY_CLASS = pytest.mark.parametrize("class_name", CLASSES)


@EVERY_CLASS
def test_the_engine_reads_the_configuration(tmp_path: Path, class_name: str) -> None:
    write_folder(tmp_path, class_name)
    with HuggingFaceFolder(tmp_path) as model:
        config = read_config(model.metadata)
    assert config.architecture == ARCHITECTURES[class_name].name
    assert (config.n_layers, config.n_embd, config.n_ff) == (N_LAYERS, N_EMBD, N_FF)
    assert (config.n_heads, config.n_kv_heads) == (N_HEADS, N_KV_HEADS)
    assert config.head_dim == CLASSES[class_name].get("head_dim", N_EMBD // N_HEADS)
    assert (config.n_ctx_train, config.norm_eps) == (8192, 1e-6)


def test_every_key_is_one_that_gguf_knows(tmp_path: Path) -> None:
    known = {value for group in vars(gguf.Keys).values() if isinstance(group, type) for value in vars(group).values()}
    for class_name in CLASSES:
        write_folder(tmp_path / class_name, class_name)
        with HuggingFaceFolder(tmp_path / class_name) as model:
            arch = model.metadata["general.architecture"]
            keys = {key.replace(f"{arch}.", "{arch}.", 1) for key in model.metadata if not key.startswith("edgelm.")}
        assert keys <= known


def metadata_of(folder: Path, class_name: str, **changes: Any) -> dict[str, Any]:
    write_folder(folder, class_name, **changes)
    with HuggingFaceFolder(folder) as model:
        return dict(model.metadata)


def test_llama_keys(tmp_path: Path) -> None:
    metadata = metadata_of(tmp_path, "LlamaForCausalLM")
    assert {key: value for key, value in metadata.items() if key.startswith("llama.")} == {
        "llama.block_count": N_LAYERS,
        "llama.context_length": 8192,
        "llama.embedding_length": N_EMBD,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": N_HEADS,
        "llama.attention.head_count_kv": N_KV_HEADS,
        "llama.attention.key_length": HEAD_DIM,
        "llama.attention.value_length": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.freq_base": 500000.0,
        "llama.vocab_size": N_VOCAB,
    }


def test_granite_scales(tmp_path: Path) -> None:
    config = read_config(metadata_of(tmp_path, "GraniteForCausalLM", head_dim=999))
    assert (config.embedding_scale, config.residual_scale, config.attention_scale, config.logit_scale) == (12.0, 0.22, 0.015625, 0.125)
    assert config.head_dim == N_EMBD // N_HEADS


def test_gemma2_attention(tmp_path: Path) -> None:
    config = read_config(metadata_of(tmp_path, "Gemma2ForCausalLM"))
    assert (config.attention_softcap, config.logit_softcap, config.attention_scale) == (50.0, 30.0, 0.25)
    assert (config.sliding_window, config.local_layers) == (16, (True, False))
    off = read_config(metadata_of(tmp_path, "Gemma2ForCausalLM", attn_logit_softcapping=None))
    assert off.attention_softcap == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "rope_theta": None,
            "rope_local_base_freq": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ],
    ids=["rope_theta", "rope_parameters"],
)
def test_gemma3_rotary_bases_and_pattern(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = read_config(metadata_of(tmp_path, "Gemma3ForCausalLM", **changes))
    assert (config.rope.freq_base, config.local_rope.freq_base) == (1000000.0, 10000.0)
    assert config.local_layers == (True, False)
    step = read_config(metadata_of(tmp_path, "Gemma3ForCausalLM", layer_types=None, sliding_window_pattern=2, **changes))
    assert step.local_layers == (True, False)


def test_gemma3_linear_scaling_is_of_the_global_layers(tmp_path: Path) -> None:
    config = read_config(metadata_of(tmp_path, "Gemma3ForCausalLM", rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert (config.rope.position_scale, config.local_rope.position_scale) == (0.125, 1.0)


def test_yarn(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 30.0}
    rope = read_config(metadata_of(tmp_path, "Qwen2ForCausalLM", rope_scaling=scaling)).rope
    assert rope.yarn is not None
    assert (rope.yarn.factor, rope.yarn.beta_fast, rope.yarn.beta_slow, rope.original_context) == (4.0, 30.0, 1.0, 32768)
    assert rope.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    rope = read_config(metadata_of(tmp_path, "Qwen2ForCausalLM", rope_scaling=scaling | {"attention_factor": 1.5})).rope
    assert rope.magnitude == pytest.approx(1.5)


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_rotary_scaling_without_effect(tmp_path: Path, kind: str) -> None:
    rope = read_config(metadata_of(tmp_path, "MistralForCausalLM", rope_scaling={"type": kind, "factor": 2.0})).rope
    assert (rope.position_scale, rope.yarn, rope.freq_base) == (1.0, None, 10000.0)


def test_llama3_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    write_folder(tmp_path, "LlamaForCausalLM", rope_scaling=scaling)
    with HuggingFaceFolder(tmp_path) as model:
        factors = model.tensors["rope_freqs.weight"].dequantize()
        assert "llama.rope.scaling.type" not in model.metadata
    expected = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * math.pi * 500000.0 ** (i / HEAD_DIM)
        if wavelength < 8192 / 4.0:
            expected.append(1.0)
        elif wavelength > 8192 / 1.0:
            expected.append(32.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 32.0 + smooth))
    assert factors[0] == 1.0
    assert factors[-1] == 32.0
    np.testing.assert_allclose(factors, expected, rtol=1e-6)


def test_phi3_longrope(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 131072, "partial_rotary_factor": 0.75}
    write_folder(tmp_path, "Phi3ForCausalLM", **changes)
    with HuggingFaceFolder(tmp_path) as model:
        np.testing.assert_array_equal(model.tensors["rope_factors_long.weight"].dequantize(), np.float32([1, 2, 3, 4, 5, 6]))
        np.testing.assert_array_equal(model.tensors["rope_factors_short.weight"].dequantize(), np.float32([1, 1.1, 1.2, 1.3, 1.4, 1.5]))
        assert model.metadata["phi3.rope.dimension_count"] == 12
        assert model.metadata["phi3.rope.scaling.original_context_length"] == 4096
        assert model.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    scaling["long_factor"].append(7.0)
    write_folder(tmp_path, "Phi3ForCausalLM", **changes)
    with pytest.raises(ModelFileError, match=r"'long_factor'.*a list of 6 numbers"):
        HuggingFaceFolder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            UnsupportedModelError,
            "'MambaForCausalLM' is not supported; edgelm reads LlamaForCausalLM",
        ),
        ({"architectures": []}, ModelFileError, "'architectures' is \\[\\]"),
        ({"architectures": None}, ModelFileError, "'architectures' is None"),
        ({"hidden_size": None}, ModelFileError, "the key 'hidden_size' is missing"),
        ({"hidden_size": "32"}, ModelFileError, "'hidden_size' is '32', not a whole number"),
        ({"hidden_size": -32}, ModelFileError, "'hidden_size' is -32"),
        ({"hidden_size": 2**40}, ModelFileError, "'hidden_size' is 1099511627776"),
        ({"num_attention_heads": 0}, ModelFileError, "0 heads"),
        ({"head_dim": 2**30, "rope_scaling": {"rope_type": "llama3"}}, ModelFileError, "heads of 1073741824 channels"),
        ({"num_key_value_heads": 8}, ModelFileError, "8 KV heads"),
        ({"rms_norm_eps": float("nan")}, ModelFileError, "'rms_norm_eps' is nan"),
        ({"rms_norm_eps": True}, ModelFileError, "'rms_norm_eps' is True"),
        ({"rope_theta": 0}, ModelFileError, "'rope_theta' is 0"),
        ({"rope_scaling": [1]}, ModelFileError, "'rope_scaling' is \\[1\\], not an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, ModelFileError, "'factor' is missing"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2}}, UnsupportedModelError, "rotary scaling 'spiral'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 0}}, ModelFileError, "factor 0.0.*make no sense"),
        ({"hidden_act": "relu"}, UnsupportedModelError, "activation 'relu'"),
        ({"tie_word_embeddings": "yes"}, ModelFileError, "not true or false"),
        ({"quantization_config": {"quant_method": "fp8"}}, UnsupportedModelError, "'fp8'"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, ModelFileError, "rows, not two halves for each of 5 heads"),
        ({"eos_token_id": "2"}, ModelFileError, "'eos_token_id' is '2'"),
        ({"eos_token_id": [2, -1]}, ModelFileError, "'eos_token_id'"),
    ],
    ids=str,
)
def test_bad_config(tmp_path: Path, changes: dict[str, Any], kind: type[EdgeLMError], message: str) -> None:
    write_folder(tmp_path, "LlamaForCausalLM", **changes)
    with pytest.raises(kind, match=message) as caught, HuggingFaceFolder(tmp_path) as model:
        list(model.tensors.values())
    assert str(tmp_path) in str(caught.value)


def test_smollm3_with_other_layers_without_rotation(tmp_path: Path) -> None:
    write_folder(tmp_path, "SmolLM3ForCausalLM", no_rope_layers=[0, 1])
    with pytest.raises(UnsupportedModelError, match="no_rope_layers"):
        HuggingFaceFolder(tmp_path)


def test_gemma_layer_types_of_a_wrong_length(tmp_path: Path) -> None:
    write_folder(tmp_path, "Gemma3ForCausalLM", layer_types=["full_attention"])
    with pytest.raises(ModelFileError, match=r"'layer_types'.*a list of 2"):
        HuggingFaceFolder(tmp_path)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_folder(folder, "MistralForCausalLM")
    return folder


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(
    class_name=st.sampled_from(sorted(CLASSES)),
    changes=st.dictionaries(
        st.sampled_from(sorted({key for name in CLASSES for key in config(name)} | {"rope_scaling", "rope_parameters"})),
        JSON_VALUES,
        min_size=1,
    ),
)
def test_any_config_gives_a_clear_error_or_a_model(shared_folder: Path, class_name: str, changes: dict[str, Any]) -> None:
    path = shared_folder / "config.json"
    sound = path.read_text()
    path.write_text(json.dumps(config(class_name, **changes)))
    try:
        with HuggingFaceFolder(shared_folder) as model:
            list(model.tensors.values())
    except EdgeLMError:
        pass
    finally:
        path.write_text(sound)
