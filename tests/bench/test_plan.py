from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.bench.plan import Device, Target, file_model, make_plan, shape_model
from edgelm.bench.shapes import SHAPES, write_shape
from edgelm.errors import InvalidRequestError, UnsupportedModelError
from edgelm.quant.gguf_file import GGUFFile

DEVICE = Device(27e9, 270e9, "made up")


def test_llama_2_7b_at_45_tokens_and_12_watts() -> None:
    """Llama-2-7B in Q4_0 has 6,607,077,376 weights of 4.5 bits, of which the 131,072,000 of the output layer have 6.5625."""
    plan = make_plan(shape_model("llama-2-7b", "q4_0"), Target(45, watts=12), DEVICE)
    assert f"{plan.need.whole_bytes_per_token / 1e9:.2f}" == "3.82"
    assert f"{plan.need.whole_bytes_per_s / 1e9:.0f}" == "172"
    assert f"{plan.need.joules_per_token:.3f}" == "0.267"
    embedding = 32000 * 4096
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    by_hand = (layers + embedding) * 18 // 32 + embedding * 210 // 256
    assert plan.need.whole_bytes_per_token == by_hand
    norms = 65 * 4096 * 4
    assert plan.need.weight_bytes_per_token == by_hand - embedding * 18 // 32 + 4096 * 18 // 32 + norms
    assert plan.need.macs_per_token == layers + embedding + 2 * 32 * 4096  # attention to the token itself


@pytest.mark.parametrize(
    ("name", "format_name", "n_linear", "n_output", "output_bits", "kv"),
    [
        # layers x (q + k + v + o + gate, up and down), output layer, its bits, KV bytes of a token: from the models' published config.json
        ("llama-3.2-1b", "Q4_0", 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192), 128256 * 2048, 6.5625, 2 * 16 * 512 * 2),
        ("qwen2.5-0.5b", "q4_1", 24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864), 151936 * 896, 8.5, 2 * 24 * 128 * 2),
        ("qwen3-8b", "Q8_0", 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288), 151936 * 4096, 6.5625, 2 * 36 * 1024 * 2),
        ("phi-3-mini", "Q4_K", 32 * (4 * 3072 * 3072 + 3 * 3072 * 8192), 32064 * 3072, 6.5625, 2 * 32 * 3072 * 2),
    ],
)
def test_other_shapes_by_hand(name: str, format_name: str, n_linear: int, n_output: int, output_bits: float, kv: int) -> None:
    model = shape_model(name, format_name)
    bits = {"Q4_0": 4.5, "Q4_1": 5.0, "Q8_0": 8.5, "Q4_K": 4.5}[format_name.upper()]
    assert model.cost.n_weights == n_linear + n_output
    embedding = 0 if SHAPES[name].tied else n_output * bits / 8
    assert model.matrix_bytes == (n_linear * bits + n_output * output_bits) / 8 + embedding
    assert model.kv_bytes == kv
    plan = make_plan(model, Target(10, depth=999), DEVICE)
    assert plan.need.kv_bytes_per_token == 1000 * kv
    assert plan.need.bytes_per_s == 10 * (model.weight_bytes + 1000 * kv)


def test_a_device_reaches_the_lower_of_its_limits() -> None:
    model, target = shape_model("llama-2-7b", "Q4_0"), Target(45)
    by_memory = make_plan(model, target, DEVICE)
    assert by_memory.reach.tokens_per_s == by_memory.reach.memory_tokens_per_s == 27e9 / by_memory.need.bytes_per_token
    assert by_memory.reach.gap == pytest.approx(45 / by_memory.reach.tokens_per_s)
    slow = make_plan(model, target, Device(27e9, 6.6e9, "made up"))
    assert slow.reach.tokens_per_s == slow.reach.arithmetic_tokens_per_s == 6.6e9 / slow.need.macs_per_token
    unknown = make_plan(model, target, Device(27e9, None, "made up"))
    assert unknown.reach.arithmetic_tokens_per_s is None
    assert unknown.reach.tokens_per_s == by_memory.reach.tokens_per_s


def test_without_watts_there_are_no_joules() -> None:
    assert make_plan(shape_model("llama-2-7b", "Q4_0"), Target(45), DEVICE).need.joules_per_token is None


def test_weights_that_fit_the_cache_are_told() -> None:
    model = shape_model("smollm2-135m", "Q4_0")
    plans = [make_plan(model, Target(45), Device(27e9, None, "", cache_bytes=cache)) for cache in (None, 32 << 20, 384 << 20)]
    assert [plan.fits_cache for plan in plans] == [False, False, True]


def test_a_written_shape_and_its_arithmetic_agree(tmp_path: Path) -> None:
    write_shape(tmp_path / "m.gguf", "smollm2-135m", "Q4_0")
    with GGUFFile(tmp_path / "m.gguf") as file:
        from_file = file_model(file)
    from_shape = shape_model("smollm2-135m", "Q4_0")
    assert from_file.cost == from_shape.cost
    assert (from_file.format, from_file.matrix_bytes, from_file.row_lengths) == ("Q4_0", from_shape.matrix_bytes, from_shape.row_lengths)


def test_a_file_that_tells_too_little_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"llamb"))
    with GGUFFile(path) as file, pytest.raises(UnsupportedModelError, match=r"m\.gguf"):
        file_model(file)


@pytest.mark.parametrize("changes", [{"tokens_per_s": 0}, {"tokens_per_s": float("nan")}, {"watts": -1.0}, {"watts": 0.0}, {"depth": -1}])
def test_targets_without_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError):
        Target(**{"tokens_per_s": 45.0, **changes})  # type: ignore[arg-type]


def test_a_device_without_bandwidth_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="GB/s"):
        Device(0.0, None, "as given")
