"""Channels scaled with the inverse folded into what feeds them: the same function, less error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import VARIANTS, write_tiny, write_variant

from edgelm.backends.block_steps import BlockSteps
from edgelm.backends.reference import ReferenceModel
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import F16, F32, FORMATS, BlockFormat
from edgelm.quant.channel_folds import HeadSizes, folds_of, model_folds
from edgelm.quant.channel_scaling import ALPHAS, ChannelScaling, choose_scaling, scale_model, scaled_inputs
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.input_statistics import InputAccumulator, InputStatistics
from edgelm.quant.matrix import LinearInputs, Method, quantize_matrix
from edgelm.quant.model_file import ModelFile, Tensor
from edgelm.quant.row_threads import RowThreads

Array = NDArray[np.float32]
TOKENS = np.random.default_rng(1).integers(3, 280, 64).astype(np.int32)
Q4_0 = FORMATS["Q4_0"]


@dataclass(frozen=True)
class Changed:
    """A model file with some tensors exchanged."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def drop_pages(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def threads() -> Iterator[RowThreads]:
    with RowThreads(1) as row_threads:
        yield row_threads


def with_tensors(file: ModelFile, tensors: Mapping[str, Tensor]) -> Changed:
    return Changed(file.path, file.metadata, {**file.tensors, **tensors})


def scale_channels(
    tensors: Mapping[str, Tensor],
    layer: int,
    heads: HeadSizes,
    statistics: Mapping[str, InputStatistics],
    formats: Mapping[str, BlockFormat],
    method: Method,
    threads: RowThreads,
) -> tuple[dict[str, Tensor], list[ChannelScaling]]:
    """The tensors of one block that change, and what was chosen for each of its folds."""
    changed: dict[str, Tensor] = {}
    chosen = []
    for fold in folds_of(tensors, layer, heads):
        known = next((statistics[name] for name in fold.consumers if name in statistics), None)
        scaling = choose_scaling(fold, tensors, known, formats, method, threads)
        chosen.append(scaling)
        if scaling.alpha:
            changed |= fold.apply({**tensors, **changed}, scaling.factors)
    return changed, chosen


def scaled_statistics(statistics: InputStatistics, scaling: ChannelScaling) -> InputStatistics:
    inputs = scaled_inputs(LinearInputs(statistics.squares, statistics.outer), scaling.factors[scaling.fold.source])
    if inputs.hessian is None:
        return InputStatistics(statistics.n_tokens, inputs.squares)
    outer: Array = np.triu(inputs.hessian) + np.triu(inputs.hessian, 1).T
    return InputStatistics(statistics.n_tokens, outer.diagonal().copy(), outer)


def head_sizes(file: ModelFile) -> HeadSizes:
    config = ReferenceModel(file).config
    return HeadSizes(config.n_heads, config.n_kv_heads, config.head_dim)


def collect(file: ModelFile, outer: bool = False) -> dict[str, InputStatistics]:
    """Statistics of the inputs of every linear layer, on TOKENS."""
    model = BlockSteps(file, len(TOKENS))
    statistics: dict[str, InputStatistics] = {}
    stream = model.embed(TOKENS[None], {})
    for layer in range(model.n_layers):
        state = model.begin(layer, stream, {})
        for names, step in zip(model.linear_groups(layer), model.steps(layer, {}), strict=True):
            accumulator = InputAccumulator(names[0], state.inputs.shape[-1], outer)
            accumulator.add(state.inputs[0])
            statistics |= dict.fromkeys(names, accumulator.finish())
            state = step(state)
        stream = state.stream
    return statistics


def linear_formats(file: ModelFile, block_format: BlockFormat) -> dict[str, BlockFormat]:
    return {name: block_format for name, tensor in file.tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2}


def assert_same_function(file: ModelFile, tensors: Mapping[str, Tensor]) -> None:
    logits, wanted = (ReferenceModel(each).logits(TOKENS) for each in (with_tensors(file, tensors), file))
    assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()


def vector(name: str, values: Array) -> Tensor:
    return Tensor(name, values.shape, F32, np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_any_factors_keeps_the_function(tmp_path: Path, variant: str) -> None:
    rng = np.random.default_rng(5)
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        tensors = dict(file.tensors)
        n_layers = ReferenceModel(file).config.n_layers
        for layer in range(n_layers):
            folds = folds_of(tensors, layer, head_sizes(file))
            assert [fold.obstacle for fold in folds] == [""] * 4
            for fold in folds:
                changed = fold.apply(tensors, np.exp(rng.standard_normal(fold.n_channels)).astype(np.float32))
                assert any(np.abs(changed[name].dequantize() - tensors[name].dequantize()).max() > 0.1 for name in fold.consumers)
                tensors |= changed
        assert_same_function(file, tensors)


@pytest.mark.parametrize(
    ("architecture", "variations"), [("phi3", {"qkv_bias": True}), ("phi3", {"n_kv_heads": 1}), ("gemma3", {"qkv_bias": True})]
)
def test_folds_of_fused_biases_and_shared_heads(tmp_path: Path, architecture: str, variations: dict[str, Any]) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", architecture, ffn_bias=architecture != "gemma3", **variations)) as file:
        values = folds_of(file.tensors, 0, head_sizes(file))[1]
        factors = np.linspace(0.1, 10, values.n_channels, dtype=np.float32)
        assert_same_function(file, values.apply(file.tensors, factors))
        assert sum(rows.name.endswith(".bias") for rows in values.producers) == int("qkv_bias" in variations)


@pytest.mark.parametrize("variant", ["llama-biases", "qwen3", "phi3", "gemma3"])
@pytest.mark.parametrize("outer", [False, True])
def test_chosen_scaling_keeps_the_function(tmp_path: Path, variant: str, outer: bool, threads: RowThreads) -> None:
    with GGUFFile(write_variant(tmp_path / "m.gguf", variant)) as file:
        statistics, formats = collect(file, outer), linear_formats(file, Q4_0)
        changed: dict[str, Tensor] = {}
        alphas = []
        for layer in range(3):
            tensors, chosen = scale_channels(file.tensors, layer, head_sizes(file), statistics, formats, Method(), threads)
            alphas += [each.alpha for each in chosen]
            changed |= tensors
        assert max(alphas) > 0
        assert all(tensor.format is F32 for tensor in changed.values())
        assert_same_function(file, changed)


def one_fold(n_in: int, weights: Array, squares: Array, norm: Array | None = None) -> tuple[dict[str, Tensor], dict[str, InputStatistics]]:
    """A block of which only the feed-forward's input can be folded."""
    tensors = {
        "blk.0.ffn_norm.weight": vector("blk.0.ffn_norm.weight", np.ones(n_in, np.float32) if norm is None else norm),
        "blk.0.ffn_up.weight": vector("blk.0.ffn_up.weight", weights),
        "blk.0.ffn_down.weight": vector("blk.0.ffn_down.weight", weights.T),
    }
    return tensors, {"blk.0.ffn_up.weight": InputStatistics(100, squares)}


SIZES = HeadSizes(2, 1, 16)


def choose(tensors: Mapping[str, Tensor], statistics: Mapping[str, InputStatistics], threads: RowThreads, **formats: BlockFormat) -> Any:
    names = {f"blk.0.{name}.weight": block_format for name, block_format in (formats or {"ffn_up": Q4_0}).items()}
    return scale_channels(tensors, 0, SIZES, statistics, names, Method(), threads)


def salient(n_rows: int = 300, n_in: int = 64) -> tuple[Array, Array]:
    """Weights, and sums of squares of inputs of which a few are large: what AWQ is for."""
    weights = np.random.default_rng(2).standard_normal((n_rows, n_in)).astype(np.float32)
    squares = np.ones(n_in, np.float32)
    squares[::16] = 400
    return weights, squares


def test_large_inputs_gain_by_scaling_as_much_as_predicted(threads: RowThreads) -> None:
    weights, squares = salient(128)  # not more rows than are looked at, so that the prediction is exact
    tensors, statistics = one_fold(64, weights, squares)
    changed, chosen = choose(tensors, statistics, threads)
    scaling = chosen[2]
    assert scaling.alpha > 0
    assert 0.1 < scaling.gain < 1
    assert scaling.factors[0] > 1 > scaling.factors[1]
    assert set(changed) == {"blk.0.ffn_norm.weight", "blk.0.ffn_up.weight"}
    np.testing.assert_allclose(changed["blk.0.ffn_up.weight"].dequantize(), weights * scaling.factors, rtol=1e-6)
    np.testing.assert_allclose(changed["blk.0.ffn_norm.weight"].dequantize() * scaling.factors, 1, rtol=1e-6)
    after = {name: scaled_statistics(each, scaling) for name, each in statistics.items()}
    _, second = choose({**tensors, **changed}, after, threads)
    assert second[2].gain < 0.1, "what was won cannot be won again"


def test_gptq_chooses_nearly_the_best_of_all(threads: RowThreads) -> None:
    rng = np.random.default_rng(3)
    weights, squares = salient(128)
    x = (rng.standard_normal((500, 16)) @ rng.standard_normal((16, 64)) + rng.standard_normal((500, 64))) * np.sqrt(squares)
    outer: Array = (x.T @ x).astype(np.float32)
    outer = np.triu(outer) + np.triu(outer, 1).T
    known = InputStatistics(500, outer.diagonal().copy(), outer)
    tensors, _ = one_fold(64, weights, squares)
    scaling = choose(tensors, {"blk.0.ffn_up.weight": known}, threads)[1][2]

    def error(each: ChannelScaling) -> float:
        changed = each.fold.apply(tensors, each.factors)["blk.0.ffn_up.weight"].dequantize()
        after = scaled_statistics(known, each).outer
        assert after is not None
        inputs = LinearInputs.of(after / np.float32(500), Method().damping, threads)
        matrix = quantize_matrix(changed, Q4_0, Method("gptq", n_sweeps=0), inputs, threads)
        return matrix.error * matrix.energy

    others = [replace(scaling, factors=scaling.factors ** np.float32(alpha / scaling.alpha)) for alpha in ALPHAS]
    errors = [error(each) for each in others]
    assert error(scaling) < 0.7 * errors[0]
    assert error(scaling) < 1.03 * min(errors)


def test_equal_inputs_are_left_alone(threads: RowThreads) -> None:
    weights, squares = salient()
    tensors, statistics = one_fold(64, weights, np.ones_like(squares))
    changed, chosen = choose(tensors, statistics, threads)
    assert changed == {}
    assert (chosen[2].alpha, chosen[2].gain, chosen[2].skipped) == (0.0, 0.0, "")
    np.testing.assert_array_equal(chosen[2].factors, 1)


def test_heads_that_share_values_share_factors(tmp_path: Path, threads: RowThreads) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama", n_kv_heads=2)) as file:
        squares = np.ones(64, np.float32)
        squares[[0, 5, 16]] = 900  # heads 0 and 1 share values; 0 and 16 are one channel of theirs
        statistics = {"blk.0.attn_output.weight": InputStatistics(10, squares)}
        scaling = scale_channels(file.tensors, 0, head_sizes(file), statistics, linear_formats(file, Q4_0), Method(), threads)[1][1]
    assert scaling.factors.shape == (32,)
    assert scaling.factors[0] > scaling.factors[5] > scaling.factors[1] == scaling.factors[31]


def test_folds_that_cannot_be_made_say_why(threads: RowThreads) -> None:
    tensors, statistics = one_fold(64, *salient())
    _, chosen = choose(tensors, statistics, threads, ffn_up=Q4_0, ffn_down=Q4_0)
    assert [each.skipped for each in chosen] == [
        "the block has no attn_norm.weight",
        "the block has no attn_output.weight",
        "",
        "there is no gate, so the activation stands between up and down",
    ]


@pytest.mark.parametrize(
    ("statistics", "block_format", "reason"),
    [
        ({}, Q4_0, "knows nothing of the inputs of blk.0.ffn_up.weight"),
        ({"blk.0.ffn_up.weight": InputStatistics(0, np.zeros(64, np.float32))}, Q4_0, "all zero"),
        ({"blk.0.ffn_up.weight": InputStatistics(9, np.ones(64, np.float32))}, F16, "none of the layers it feeds is quantized"),
    ],
)
def test_nothing_to_choose_by_says_so(
    threads: RowThreads, statistics: dict[str, InputStatistics], block_format: BlockFormat, reason: str
) -> None:
    tensors, _ = one_fold(64, *salient())
    changed, chosen = choose(tensors, statistics, threads, ffn_up=block_format)
    assert changed == {}
    assert reason in chosen[2].skipped


def test_dead_inputs_and_rows_of_zeros_do_not_spread(threads: RowThreads) -> None:
    weights, squares = salient()
    squares[1:9], weights[7], weights[:, 20] = 0, 0, 0
    tensors, statistics = one_fold(64, weights, squares, np.zeros(64, np.float32))
    changed, chosen = choose(tensors, statistics, threads)
    assert chosen[2].alpha > 0
    assert all(np.isfinite(tensor.dequantize()).all() for tensor in changed.values())


def test_folds_of_what_is_kept_are_not_made(threads: RowThreads) -> None:
    tensors, statistics = one_fold(64, *salient())
    formats = {"blk.0.ffn_up.weight": Q4_0}
    for kept, is_made in (((), True), (("blk.0.ffn_down.weight",), True), (("blk.0.ffn_up.weight",), False)):
        groups = [(("blk.0.ffn_up.weight",), statistics["blk.0.ffn_up.weight"])]
        folds = model_folds(tensors, 1, SIZES, kept)
        (scaling,) = scale_model(tensors, folds, groups, formats, Method(), threads)
        assert (scaling.alpha > 0) == is_made
        assert scaling.skipped == ("" if is_made else "blk.0.ffn_up.weight is kept as it is")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_weights_are_refused_by_name(threads: RowThreads, bad: float) -> None:
    weights, squares = salient()
    weights[0, 3] = bad
    with pytest.raises(InvalidRequestError, match=r"blk\.0\.ffn_up\.weight"):
        choose(*one_fold(64, weights, squares), threads)


def test_statistics_of_another_model_are_refused(threads: RowThreads) -> None:
    tensors, statistics = one_fold(64, *salient())
    wrong = {name: InputStatistics(5, np.ones(32, np.float32)) for name in statistics}
    with pytest.raises(InvalidRequestError, match="another model"):
        choose(tensors, wrong, threads)


@pytest.mark.parametrize(("name", "shape"), [("attn_norm", (65,)), ("attn_v", (48, 64)), ("ffn_up", (64, 64)), ("attn_output", (64, 96))])
def test_shapes_that_do_not_go_together_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "llama")) as file:
        full = f"blk.1.{name}.weight"
        tensors = {**file.tensors, full: replace(vector(full, np.ones(shape, np.float32)))}
        with pytest.raises(ModelFileError, match=r"blk\.1\."):
            folds_of(tensors, 1, head_sizes(file))


@pytest.mark.parametrize("sizes", [(3, 2, 16), (0, 1, 16), (2, 1, 0)])
def test_head_sizes_that_make_no_sense_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidRequestError, match="heads"):
        HeadSizes(*sizes)


@pytest.mark.parametrize("outer", [False, True])
def test_scaled_statistics_are_those_of_the_changed_model(tmp_path: Path, threads: RowThreads, outer: bool) -> None:
    with GGUFFile(write_tiny(tmp_path / "m.gguf", "phi3")) as file:
        statistics = collect(file, outer)
        changed, chosen = scale_channels(file.tensors, 0, head_sizes(file), statistics, linear_formats(file, Q4_0), Method(), threads)
        measured = collect(with_tensors(file, changed), outer)
    for scaling in chosen:
        name = scaling.fold.consumers[0]
        predicted = scaled_statistics(statistics[name], scaling)
        np.testing.assert_allclose(predicted.squares, measured[name].squares, rtol=1e-4)
        if outer:
            expected = measured[name].outer
            assert predicted.outer is not None
            assert expected is not None
            np.testing.assert_allclose(predicted.outer, expected, atol=1e-4 * float(predicted.squares.max()))
