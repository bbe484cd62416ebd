import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_folders import write_folder
from tiny_models import write_tiny

from edgelm.backends.registry import open_backend
from edgelm.bench import quality as quality_module
from edgelm.bench.quality import QualityTest, check_same_vocabulary, qualities, text_windows
from edgelm.bench.quality_gate import gate_verdict, is_undecided, perplexity_rise
from edgelm.bench.record import Quality
from edgelm.bench.runner import BackendRunner
from edgelm.errors import InvalidRequestError
from edgelm.quant.divergence import divergence
from edgelm.quant.open_model import open_model
from edgelm.runtime.export import export
from edgelm.runtime.tokenizer import Tokenizer

TEXT = "in the end the other hen and the rather thin hat began to sing, and then the rain came in again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", format="Q4_1", n_embd=128, n_ff=128)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def measure(
    model: Path,
    engines: Sequence[tuple[str, str | None]],
    text: Path,
    reference: Path | None = None,
    n_window: int = 12,
    n: int = 500,
    gate: float | None = None,
) -> tuple[Quality, ...]:
    return tuple(qualities([model], engines, QualityTest(text, reference, n, n_window, gate), 1, lambda _: None))


def logits(backend: str, path: Path, tokens: NDArray[np.int32], precision: str | None) -> NDArray[np.float32]:
    runner = BackendRunner(open_backend(backend, path, n_threads=1, n_ctx=64, precision=precision))
    try:
        return runner.logits(tokens)
    finally:
        runner.close()


def test_equal_engines_diverge_by_exactly_nothing(model: Path, text: Path) -> None:
    (found,) = measure(model, [("cpu", "f32")], text, gate=0.01)
    assert found.reference == "tiny.gguf (cpu, f32)"
    assert found.perplexity == found.reference_perplexity > 1
    assert (found.log_ratio, found.se_log_ratio, found.mean_kl, found.max_kl, found.top_agreement) == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert found.passed is True
    assert not is_undecided(found)


def test_figures_are_those_of_the_engines_own_logits(model: Path, text: Path) -> None:
    (found,) = measure(model, [("cpu", "int8")], text)
    tokenizer = Tokenizer.from_gguf(model)
    tokens = tokenizer.encode(TEXT)
    nll, judge_rows, other_rows = [], [], []
    for start in range(0, len(tokens), 12):
        window = np.array(tokens[start : start + 12], np.int32)
        if len(window) < 2:
            continue
        rows = logits("cpu", model, window, "int8")[:-1]
        log_p = rows.astype(np.float64) - np.log(np.exp(rows.astype(np.float64)).sum(axis=1, keepdims=True))
        nll += [-log_p[i, target] for i, target in enumerate(window[1:])]
        other_rows.append(rows)
        judge_rows.append(logits("cpu", model, window, "f32")[:-1])
    expected = divergence(np.concatenate(judge_rows), np.concatenate(other_rows))
    assert found.n_tokens == len(nll) == expected.n_tokens
    assert found.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-6)
    assert found.mean_kl == pytest.approx(expected.mean_kl, rel=1e-4)
    assert found.median_kl == pytest.approx(expected.median_kl, rel=1e-4)
    assert found.p99_kl == pytest.approx(expected.p99_kl, rel=1e-4)
    assert found.max_kl == pytest.approx(expected.max_kl, rel=1e-4)
    assert found.top_agreement == pytest.approx(expected.top_agreement)
    assert found.log_ratio == pytest.approx(math.log(found.perplexity / found.reference_perplexity))
    assert found.mean_kl > 0 < found.se_log_ratio


def test_engines_come_in_turn_and_say_who_they_are(model: Path, text: Path) -> None:
    lines: list[str] = []
    found = list(qualities([model], [("cpu", None), ("llamacpp", None)], QualityTest(text, None, 30, 12), 1, lines.append))
    assert [(each.engine, each.precision) for each in found] == [("cpu", "int8"), ("llamacpp", "int8")]
    assert {each.reference_perplexity for each in found} == {found[0].reference_perplexity}
    assert (found[0].text, found[0].text_sha256) == ("text.txt", hashlib.sha256(TEXT.encode()).hexdigest())
    assert (found[0].gate, found[0].passed) == (None, None)
    assert "quality of tiny.gguf with cpu int8 and 1 more: window 3 of 3" in lines
    assert found[1].mean_kl < 0.05


def test_a_reference_is_another_file_of_the_same_vocabulary(model: Path, text: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", "llama", seed=1)
    (found,) = measure(model, [("cpu", "f32")], text, other)
    assert found.reference == "other.gguf (cpu, f32)"
    assert found.mean_kl > 0.05


def test_an_exported_folder_beside_its_model(model: Path, text: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "folder", target="cpu", n_ctx=64, precision="f32")
    (found,) = measure(tmp_path / "folder", [("onnx", None)], text, model)
    assert (found.engine, found.precision) == ("onnx", "f32")
    assert found.mean_kl < 1e-6
    (turned,) = measure(model, [("cpu", "f32")], text, tmp_path / "folder")
    assert turned.reference == "folder (onnx, f32)"
    assert turned.perplexity == found.reference_perplexity
    with pytest.raises(InvalidRequestError, match="cannot be its own reference"):
        measure(tmp_path / "folder", [("onnx", None)], text)
    with pytest.raises(InvalidRequestError, match="holds 64 tokens"):
        measure(tmp_path / "folder", [("onnx", None)], text, model, n_window=100)


def test_models_beside_one_reference_are_as_alone_and_paired(model: Path, text: Path, tmp_path: Path) -> None:
    reference = write_tiny(tmp_path / "float.gguf", "llama", n_embd=128, n_ff=128)
    coarse = write_tiny(tmp_path / "coarse.gguf", "llama", format="Q4_1", n_embd=128, n_ff=128, seed=2)
    test = QualityTest(text, reference, 500, 12)
    first, second = qualities([model, coarse], [("cpu", "f32")], test, 1, lambda _: None)
    (alone,) = measure(coarse, [("cpu", "f32")], text, reference)
    assert (first.model and first.model.name, second.model and second.model.name) == ("tiny.gguf", "coarse.gguf")
    assert second.model
    assert second.model.n_bytes == coarse.stat().st_size
    assert dataclasses.replace(second, model=None, beside_first=None) == alone
    assert first.beside_first is None
    pair = second.beside_first
    assert pair
    assert pair.log_ratio == pytest.approx(second.log_ratio - first.log_ratio)
    assert pair.kl_ratio == pytest.approx(second.mean_kl / first.mean_kl)
    assert pair.se_kl_ratio


def test_what_memory_does_not_hold_together_comes_in_turn(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [("cpu", "int8"), ("cpu", "f32"), ("llamacpp", None)]
    together = measure(model, engines, text)
    monkeypatch.setattr(quality_module, "available_memory", lambda: 0)
    lines: list[str] = []
    in_turn = tuple(qualities([model], engines, QualityTest(text, None, 500, 12), 1, lines.append))
    assert in_turn == together
    assert [sum(line.startswith(f"quality of tiny.gguf with {name}: window 1 ") for line in lines) for name in ("cpu int8", "cpu f32")] == [
        1,
        1,
    ]


def test_models_that_cannot_be_told_apart_or_have_no_reference_are_refused(model: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny.gguf"
    other.write_bytes(model.read_bytes())
    for models, message in (([], "no model"), ([model, other], "2 of the models are called tiny.gguf")):
        with pytest.raises(InvalidRequestError, match=message):
            QualityTest(text, model).windows(models)
    with pytest.raises(InvalidRequestError, match="2 models have no common reference"):
        QualityTest(text).windows([model, other.rename(tmp_path / "other.gguf")])


@pytest.mark.parametrize(("n_vocab", "message"), [(291, "288 tokens and the reference other.gguf 291")])
def test_another_number_of_tokens_is_refused(model: Path, text: Path, tmp_path: Path, n_vocab: int, message: str) -> None:
    other = write_tiny(tmp_path / "other.gguf", "llama", n_vocab=n_vocab)
    with pytest.raises(InvalidRequestError, match=message):
        measure(model, [("cpu", None)], text, other)


def test_a_token_that_means_something_else_is_named(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    data = model.read_bytes()
    length = (1).to_bytes(8, "little")
    spelled, swapped = (b"".join(length + letter for letter in letters) for letters in ((b"a", b"b"), (b"b", b"a")))
    assert data.count(spelled) == 1
    other.write_bytes(data.replace(spelled, swapped))
    with pytest.raises(InvalidRequestError, match=r"token \d+ is b'a' in tiny.gguf, but b'b' in the reference other.gguf"):
        check_same_vocabulary([model], other)
    check_same_vocabulary([model], model)


def test_windows_cut_the_text(model: Path) -> None:
    tokenizer = Tokenizer.from_gguf(model)
    tokens = tokenizer.encode(TEXT)
    windows = text_windows(tokenizer, TEXT, 25, 10)
    assert [len(window) for window in windows] == [10, 10, 5]
    assert np.concatenate(windows).tolist() == tokens[:25]
    assert [len(window) for window in text_windows(tokenizer, TEXT, 21, 10)] == [10, 10]  # one token alone predicts none


def test_every_window_begins_with_the_beginning_token_if_the_tokenizer_adds_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "LlamaForCausalLM")
    file = open_model(tmp_path / "folder")
    windows = text_windows(Tokenizer.from_metadata(file.metadata), "aaaaaaa", 7, 4)
    file.close()
    assert [window.tolist() for window in windows] == [[1, 3, 3, 3], [1, 3, 3, 3], [1, 3]]


def test_control_tokens_in_the_text_are_text(model: Path) -> None:
    tokenizer = Tokenizer.from_gguf(model)
    (window,) = text_windows(tokenizer, "<|im_end|>", 100, 100)
    assert not any(tokenizer.is_special(token) for token in window.tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "at least 1 token"),
        ({"n_window": 1}, "at least 2"),
        ({"engines": ()}, "no engine"),
        ({"gate": 0.0}, "gate above 0"),
        ({"gate": math.nan}, "gate above 0"),
        ({"n": 2}, "too few"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(model: Path, text: Path, changes: dict[str, object], message: str) -> None:
    wishes = {"engines": [("cpu", None)], "n": 50, "n_window": 10, "gate": None}
    with pytest.raises(InvalidRequestError, match=message):
        measure(model, text=text, **{**wishes, **changes})


def test_a_text_that_is_no_utf_8_is_refused(model: Path, text: Path) -> None:
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequestError, match=r"text\.txt cannot be read as UTF-8"):
        measure(model, [("cpu", None)], text)


def rising(rise: float, error: float, gate: float | None = 0.01, n_tokens: int = 20440) -> Quality:
    """A quality whose perplexity rises by so much, with an error of its logarithm over 40 windows."""
    ratio = math.log1p(rise)
    passed = None if gate is None else rise <= gate
    numbers = dict.fromkeys([field.name for field in dataclasses.fields(Quality)][7:19], 1.0)
    return Quality(
        **{**numbers, "log_ratio": ratio, "se_log_ratio": error, "n_tokens": n_tokens, "n_window": 512},
        engine="cpu",
        precision="int8",
        reference="r",
        text="t",
        text_sha256="0",
        gate=gate,
        passed=passed,
    )


def test_the_rise_has_an_interval() -> None:
    rise = perplexity_rise(rising(0.005, 0.001))
    assert rise.value == pytest.approx(0.005)
    assert rise.low == pytest.approx(0.005 - 2.02 * 0.001, abs=2e-5)
    assert rise.high == pytest.approx(0.005 + 2.02 * 0.001, abs=2e-5)


@pytest.mark.parametrize(
    ("rise", "error", "verdict", "undecided"),
    [
        (0.005, 0.001, "keeps the gate", False),
        (0.02, 0.001, "DOES NOT KEEP the gate", False),
        (0.009, 0.001, "keeps the gate", True),
        (0.011, 0.001, "DOES NOT KEEP the gate", True),
        (-0.02, 0.001, "keeps the gate", False),
    ],
)
def test_verdicts_say_when_more_text_is_needed(rise: float, error: float, verdict: str, undecided: bool) -> None:
    found = rising(rise, error)
    assert is_undecided(found) is undecided
    assert f"cpu int8 {verdict} of +1.00%: perplexity {rise:+.2%} (95% interval " in gate_verdict(found)
    assert ("more text" in gate_verdict(found)) is undecided


def test_without_a_gate_there_is_no_verdict() -> None:
    assert gate_verdict(rising(0.5, 0.001, gate=None)) == ""
    assert not is_undecided(rising(0.5, 0.001, gate=None))


def test_a_gate_is_kept_up_to_its_own_value(model: Path, text: Path) -> None:
    (loose,) = measure(model, [("cpu", "int8")], text, gate=0.9)
    assert loose.passed is True
    other_way = abs(math.expm1(loose.log_ratio)) / 2
    (tight,) = measure(model, [("cpu", "int8")], text, gate=other_way)
    assert tight.passed is (loose.log_ratio < 0)


def test_llamacpp_and_cpu_agree_on_a_real_model(smollm2_path: Path) -> None:
    text = Path(__file__).parents[1] / "data" / "evaluation.txt"
    cpu, llamacpp = measure(smollm2_path, [("cpu", None), ("llamacpp", None)], text, n_window=32, n=96, gate=0.2)
    assert cpu.n_tokens == llamacpp.n_tokens == 3 * 31
    for found in (cpu, llamacpp):
        rise = perplexity_rise(found)
        assert rise.low is not None
        assert rise.high is not None
        assert rise.low < 0.02
        assert rise.high > -0.02
        assert 0 < found.median_kl < found.mean_kl < 0.01
        assert found.top_agreement > 0.9
        assert found.passed is True
