"""What activations in int8 cost, on the real models: the engine against llama.cpp on the same weights in float32."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.bench.judge import judge
from edgelm.errors import InvalidRequestError
from edgelm.runtime.export import export

TEXT = (Path(__file__).parents[1] / "data" / "evaluation.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_real_models_against_the_judge(request: pytest.FixtureRequest, float_file: Callable[[Path], Path], model: str) -> None:
    path: Path = request.getfixturevalue(model)
    result = judge(path, TEXT, 128, ("f32", "int8"), 2, lambda _: None, float_file(path))
    assert result.edgelm["f32"].n_tokens == 128
    assert result.edgelm["f32"].mean_kl < 5e-5
    # int8 loses no more than llama.cpp itself; on another CPU either may round in another order, so a tenth is noise.
    assert result.edgelm["int8"].mean_kl < 1.1 * result.llamacpp.mean_kl


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama")
    with pytest.raises(InvalidRequestError, match="2 tokens, but 10"):
        judge(path, "ok", 10, ["int8"], 1, lambda _: None)


def test_an_exported_folder_is_judged_in_its_own_precision(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", "llama", format="Q4_1")
    export(path, tmp_path / "folder", n_ctx=64, precision="f32")
    result = judge(path, TEXT[:100], 20, ["int8"], 1, lambda _: None, backend="onnx", exported=tmp_path / "folder")
    assert list(result.edgelm) == ["f32"]
    assert result.edgelm["f32"].mean_kl < 1e-6
