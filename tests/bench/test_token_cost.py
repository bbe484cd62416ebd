from pathlib import Path

import pytest
from tiny_models import VARIANTS, write_tiny, write_variant

from edgelm.backends.onnx.export import ExportOptions, export_model
from edgelm.bench.record import TokenCost
from edgelm.bench.token_cost import attention_macs, mean_context, read_token_cost
from edgelm.quant.gguf_file import GGUFFile
from edgelm.quant.open_model import open_model


def cost_of(path: Path) -> TokenCost:
    with GGUFFile(path) as file:
        cost = read_token_cost(file)
    assert cost is not None
    return cost


def test_tiny_model_by_hand(tmp_path: Path) -> None:
    cost = cost_of(write_tiny(tmp_path / "m.gguf", "llama", format="Q4_0", embedding_format="Q8_0", tied=False))
    # 3 layers of n_embd 64, n_ff 96, 4 heads and 2 KV heads of 16; 288 tokens
    linear = 3 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    assert cost.n_weights == linear + 288 * 64
    assert cost.n_output_weights == 288 * 64
    norms = (1 + 3 * 2) * 64 * 4
    assert cost.weight_bytes == linear * 18 // 32 + (288 + 1) * 64 * 34 // 32 + norms  # one row of the embedding is looked up
    assert (cost.n_layers, cost.n_heads, cost.n_kv_heads, cost.head_dim, cost.n_window_layers) == (3, 4, 2, 16, 0)


def test_a_tied_embedding_is_the_output_layer(tmp_path: Path) -> None:
    untied, tied = (cost_of(write_tiny(tmp_path / f"{t}.gguf", "llama", tied=t)) for t in (False, True))
    assert tied.n_weights == untied.n_weights
    assert tied.weight_bytes is not None
    assert untied.weight_bytes == tied.weight_bytes + 64 * 4


def test_windows_are_told_apart(tmp_path: Path) -> None:
    cost = cost_of(write_tiny(tmp_path / "m.gguf", "gemma3"))
    assert (cost.n_layers, cost.n_window_layers, cost.window) == (1, 7, 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_is_understood(tmp_path: Path, variant: str) -> None:
    path = write_variant(tmp_path / "m.gguf", variant)
    with GGUFFile(path) as file:
        cost = read_token_cost(file)
        n_matrices = sum(t.shape[0] * t.shape[1] for t in file.tensors.values() if len(t.shape) == 2)
        n_embedding = file.tensors["token_embd.weight"].data.nbytes // 4 if "output.weight" in file.tensors else 0
    assert cost is not None
    assert cost.n_weights == n_matrices - n_embedding


def test_an_unknown_architecture_has_no_cost(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    data = path.read_bytes().replace(b"llama", b"llamb")
    path.write_bytes(data)
    with GGUFFile(path) as file:
        assert read_token_cost(file) is None


@pytest.mark.parametrize("name", ["smollm2_path", "gemma3_path"])
def test_real_files(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    cost = cost_of(path)
    assert cost.weight_bytes is not None
    assert 0.8 < cost.weight_bytes / path.stat().st_size < 1  # the rest is the tokenizer


def test_an_exported_folder_has_its_weights_from_its_sizes(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "m.gguf", "llama", format="Q8_0")
    with GGUFFile(source) as file:
        export_model(file, tmp_path / "out", ExportOptions(n_ctx=32))
    model = open_model(tmp_path / "out")
    try:
        cost = read_token_cost(model)
    finally:
        model.close()
    assert cost is not None
    assert cost.weight_bytes is None
    assert cost.n_weights == cost_of(source).n_weights


SEEING_ALL = TokenCost(n_weights=1, n_output_weights=1, weight_bytes=1, n_layers=2, n_heads=4, n_kv_heads=1, head_dim=8)
WINDOWED = TokenCost(1, 1, 1, n_layers=1, n_heads=4, n_kv_heads=1, head_dim=8, n_window_layers=3, window=10)


@pytest.mark.parametrize(("depth", "n_tokens"), [(0, 1), (0, 7), (5, 1), (5, 20), (9, 1), (10, 1), (100, 3)])
def test_mean_context_is_the_mean(depth: int, n_tokens: int) -> None:
    seen = [depth + i + 1 for i in range(n_tokens)]
    assert mean_context(SEEING_ALL, depth, n_tokens) == pytest.approx(sum(seen) / n_tokens)
    below = [min(n, 10) for n in seen]
    assert mean_context(WINDOWED, depth, n_tokens) == pytest.approx((sum(seen) + 3 * sum(below)) / 4 / n_tokens)


def test_attention_multiplies_keys_and_values() -> None:
    assert attention_macs(SEEING_ALL, 100) == 2 * 2 * 4 * 8 * 100  # layers, q k and p v, heads, channels, tokens
