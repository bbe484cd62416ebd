from __future__ import annotations

from pathlib import Path

import pytest

from edgelm.errors import InvalidRequestError
from edgelm.quant.block_format import BlockFormat
from edgelm.quant.blocks import BF16, F16, F32, FORMATS, IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from edgelm.quant.open_model import open_model
from edgelm.quant.tensor_formats import FormatRules, bits_per_weight, parse_format, parse_override

DOWN = "blk.3.ffn_down.weight"


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight", "output_norm.weight"])
def test_vectors_stay_float32_whatever_the_rules_say(name: str) -> None:
    rules = FormatRules(Q4_0, overrides=(("*", Q8_0),))
    assert rules.resolve(name, (576,)).format is F32


def test_matrices_get_the_default() -> None:
    resolved = FormatRules(Q4_0).resolve(DOWN, (576, 1536))
    assert resolved.format is Q4_0
    assert resolved.reason == "the default"
    assert not resolved.is_stand_in


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_embedding_and_output_are_kept_finer(name: str) -> None:
    assert FormatRules(Q4_0).resolve(name, (1000, 64)).format is Q8_0
    assert FormatRules(F16).resolve(name, (1000, 64)).format is F16


def test_embedding_and_output_as_asked() -> None:
    rules = FormatRules(Q4_0, embedding=Q5_0, output=Q5_1)
    assert rules.resolve("token_embd.weight", (1000, 64)).format is Q5_0
    assert rules.resolve("output.weight", (1000, 64)).format is Q5_1


def test_patterns_win_and_the_last_of_them() -> None:
    rules = FormatRules(Q4_0, embedding=Q8_0, overrides=(("*", Q4_1), ("blk.*.ffn_down.weight", Q5_0), ("blk.3.*", Q5_1)))
    assert rules.resolve("token_embd.weight", (1000, 64)).format is Q4_1
    assert rules.resolve("blk.1.ffn_down.weight", (64, 64)).format is Q5_0
    resolved = rules.resolve(DOWN, (64, 64))
    assert resolved.format is Q5_1
    assert "blk.3.*" in resolved.reason


@pytest.mark.parametrize(
    ("wanted", "width", "found"),
    [
        (Q4_K, 512, Q4_K),
        (Q4_K, 576, IQ4_NL),
        (IQ4_XS, 576, IQ4_NL),
        (Q5_K, 576, Q5_0),
        (Q6_K, 576, Q5_1),
        (Q4_K, 48, F16),
        (Q4_0, 48, F16),
        (Q8_0, 33, F16),
        (BF16, 33, BF16),
    ],
)
def test_widths_that_a_format_does_not_hold_fall_to_another(wanted: BlockFormat, width: int, found: BlockFormat) -> None:
    resolved = FormatRules(wanted).resolve(DOWN, (10, width))
    assert resolved.format is found
    assert resolved.is_stand_in == (found is not wanted)
    if resolved.is_stand_in:
        assert f"rows of {width} are not whole blocks of {wanted.n_elements}: {found.name}" in resolved.reason


def test_stand_ins_keep_the_size() -> None:
    plain = [f for f in FORMATS.values() if f.n_elements == 32]
    for wanted in (Q4_K, Q5_K, Q6_K, IQ4_XS):
        stand_in = FormatRules(wanted).resolve(DOWN, (10, 32)).format
        nearest = min(abs(bits_per_weight(f) - bits_per_weight(wanted)) for f in plain)
        assert abs(bits_per_weight(stand_in) - bits_per_weight(wanted)) == nearest


def test_every_tensor_of_real_models_has_a_format_that_holds_it(smollm2_path: Path, gemma3_path: Path) -> None:
    for path in (smollm2_path, gemma3_path):
        model = open_model(path)
        try:
            for tensor in model.tensors.values():
                resolved = FormatRules(Q4_K).resolve(tensor.name, tensor.shape)
                resolved.format.nbytes(tensor.shape)
                assert (resolved.format is F32) == (len(tensor.shape) == 1)
        finally:
            model.close()


@pytest.mark.parametrize(("text", "found"), [("q4_0", Q4_0), ("Q4_K", Q4_K), (" iq4_nl ", IQ4_NL), ("f16", F16), ("Bf16", BF16)])
def test_formats_by_name_in_any_case(text: str, found: BlockFormat) -> None:
    assert parse_format(text) is found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q4_k_m", r"q4_k_m is no format.*give q4_k for the plain format, or --bits-per-weight 4\.8"),
        ("Q5_K_S", r"give q5_k for the plain format, or --bits-per-weight 5\.5"),
        ("q3_k_m", "there is no format 'q3_k_m'; choose one of F32, F16"),
        ("int4", "there is no format 'int4'"),
        ("", "there is no format ''"),
    ],
)
def test_other_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_format(text)


def test_overrides_as_text() -> None:
    assert parse_override("blk.*.ffn_down.weight=q5_0") == ("blk.*.ffn_down.weight", Q5_0)
    for text in ("ffn_down", "=q4_0"):
        with pytest.raises(InvalidRequestError, match="is not PATTERN=FORMAT"):
            parse_override(text)


def test_pattern_that_fits_no_tensor_is_refused() -> None:
    names = ["token_embd.weight", "blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    FormatRules(Q4_0, overrides=(("blk.*.ffn_down.weight", Q5_0),)).check_patterns(names)
    with pytest.raises(InvalidRequestError, match=r"'ffn_dwn'.* the model has token_embd\.weight, blk\.\*\.ffn_down\.weight$"):
        FormatRules(Q4_0, overrides=(("ffn_dwn", Q5_0),)).check_patterns(names)
