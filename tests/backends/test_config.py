import math
from typing import Any

import numpy as np
import pytest

from edgelm.backends.config import ARCHITECTURES, Yarn, read_config
from edgelm.errors import ModelFileError, UnsupportedModelError


def metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """Sound metadata; keys of `changes` have "__" for ".", and None removes a key."""
    keys: dict[str, Any] = {
        "context_length": 2048,
        "embedding_length": 64,
        "block_count": 8,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items() if value is not None}


def test_sizes_come_from_the_metadata() -> None:
    config = read_config(metadata())
    assert (config.n_layers, config.n_embd, config.n_ff, config.n_heads, config.n_kv_heads, config.head_dim) == (8, 64, 96, 4, 2, 16)
    assert config.n_ctx_train == 2048
    assert config.norm_eps == 1e-5


def test_optional_keys_have_their_defaults() -> None:
    config = read_config(metadata(attention__head_count_kv=None))
    assert config.n_kv_heads == 4
    assert (config.rope.n_dims, config.rope.freq_base, config.rope.position_scale, config.rope.magnitude) == (16, 10000.0, 1.0, 1.0)
    assert config.attention_scale == pytest.approx(0.25)
    assert (config.embedding_scale, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)
    assert (config.attention_softcap, config.logit_softcap, config.sliding_window) == (0.0, 0.0, 0)
    assert not any(config.local_layers)
    assert all(config.rope_layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_reads(architecture: str) -> None:
    assert read_config(metadata(architecture)).row is ARCHITECTURES[architecture]


def test_smollm3_rotates_three_layers_of_four() -> None:
    assert read_config(metadata("smollm3")).rope_layers == (True, True, True, False) * 2


def test_granite_scales() -> None:
    config = read_config(metadata("granite", embedding_scale=12.0, residual_scale=0.22, attention__scale=0.015625, logit_scale=8.0))
    assert (config.embedding_scale, config.residual_scale, config.attention_scale, config.logit_scale) == (12.0, 0.22, 0.015625, 0.125)


def test_granite_without_rotation() -> None:
    assert not any(read_config(metadata("granite", rope__scaling__finetuned=False)).rope_layers)


def test_gemma2_looks_through_its_window_in_every_other_layer() -> None:
    config = read_config(metadata("gemma2"))
    assert config.local_layers == (True, False) * 4
    assert (config.sliding_window, config.attention_softcap, config.logit_softcap) == (4096, 50.0, 30.0)
    assert config.embedding_scale == 8.0


def test_gemma3_has_one_global_layer_in_six_with_its_own_rotation() -> None:
    config = read_config(
        metadata("gemma3", attention__sliding_window=512, rope__freq_base=1e6, rope__scaling__type="linear", rope__scaling__factor=8.0)
    )
    assert config.local_layers == (True,) * 5 + (False,) + (True,) * 2
    assert (config.rope.freq_base, config.rope.position_scale) == (1e6, 0.125)
    assert (config.local_rope.freq_base, config.local_rope.position_scale) == (10000.0, 1.0)


def test_the_window_pattern_may_be_a_number_or_one_truth_value_per_layer() -> None:
    window = {"attention__sliding_window": 512}
    assert read_config(metadata("gemma3", **window, attention__sliding_window_pattern=2)).local_layers == (True, False) * 4
    pattern = np.array([False, True] * 4)
    assert read_config(metadata("gemma3", **window, attention__sliding_window_pattern=pattern)).local_layers == (False, True) * 4
    with pytest.raises(ModelFileError, match="sliding_window_pattern"):
        read_config(metadata("gemma3", **window, attention__sliding_window_pattern=pattern[:3]))


@pytest.mark.parametrize(("architecture", "n_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_widest_gemma_scales_attention_by_width_over_heads(architecture: str, n_layers: int) -> None:
    config = read_config(metadata(architecture, block_count=n_layers, attention__key_length=8, attention__value_length=8))
    assert config.attention_scale == pytest.approx(1 / math.sqrt(64 / 4))


def test_phi3_has_no_window_even_where_its_file_names_one() -> None:
    config = read_config(metadata("phi3", attention__sliding_window=2047, rope__dimension_count=12))
    assert config.sliding_window == 0
    assert config.rope.n_dims == 12


def test_yarn() -> None:
    config = read_config(metadata(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=512))
    assert config.rope.yarn == Yarn(4.0, 32.0, 1.0)
    assert config.rope.original_context == 512
    assert config.rope.magnitude == pytest.approx(1 + 0.1 * math.log(4))
    assert config.rope.position_scale == 1.0


def test_linear_scaling_under_the_old_key() -> None:
    assert read_config(metadata(rope__scale_linear=2.0)).rope.position_scale == 0.5


def test_layers_that_are_alike_may_be_listed_one_by_one() -> None:
    assert read_config(metadata(attention__head_count_kv=np.array([2] * 8))).n_kv_heads == 2
    with pytest.raises(UnsupportedModelError, match="head_count_kv"):
        read_config(metadata(attention__head_count_kv=np.array([2, 4] * 4)))


@pytest.mark.parametrize(
    "key",
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_key_is_named(key: str) -> None:
    keys = metadata()
    del keys[f"llama.{key}"]
    with pytest.raises(ModelFileError, match=f"llama.{key}"):
        read_config(keys)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 2**31),
        ("embedding_length", -64),
        ("embedding_length", "wide"),
        ("attention.head_count", 0),
        ("attention.layer_norm_rms_epsilon", math.nan),
        ("attention.layer_norm_rms_epsilon", 0.0),
        ("rope.freq_base", math.inf),
        ("rope.freq_base", 0.0),
        ("rope.scaling.factor", -2.0),
        ("rope.dimension_count", 18),
        ("rope.dimension_count", 7),
        ("feed_forward_length", np.array([], dtype=np.int32)),
        ("final_logit_softcapping", -1.0),
    ],
)
def test_a_senseless_value_is_named(key: str, value: object) -> None:
    with pytest.raises(ModelFileError, match=f"llama.{key}"):
        read_config(metadata() | {f"llama.{key}": value})


@pytest.mark.parametrize(
    "changes",
    [
        {"attention__head_count_kv": 3},
        {"attention__key_length": 15},
        {"attention__value_length": 32},
        {"rope__scaling__type": "dynamic"},
        {"expert_count": 8},
    ],
)
def test_sound_models_that_are_not_supported(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        read_config(metadata(**changes))


@pytest.mark.parametrize("architecture", ["mamba", None, 3, ["llama"]])
def test_an_unknown_architecture_lists_the_known_ones(architecture: object) -> None:
    with pytest.raises(UnsupportedModelError, match="llama, smollm3"):
        read_config(metadata() | {"general.architecture": architecture})
