"""`edgebench quality`: what a person sees, the record, and the exit code."""

from pathlib import Path

import pytest
import typer
from click.testing import Result
from tiny_models import write_tiny
from typer.testing import CliRunner

from edgelm.bench.commands.quality import quality
from edgelm.bench.record_file import read_record
from edgelm.errors import InvalidRequestError

TEXT = "in the end the other hen and the rather thin hat began to sing, and then the rain came in again"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", format="Q4_0")


def run(tmp_path: Path, *arguments: object) -> Result:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    app = typer.Typer()
    app.command()(quality)
    given = ["--window", "10", *map(str, arguments), "--text", str(text), "--threads", "1"]
    return CliRunner().invoke(app, given, env={"COLUMNS": "100", "TERM": "dumb"})


def test_a_table_and_a_record(model: Path, tmp_path: Path) -> None:
    result = run(tmp_path, model, "--backends", "cpu:f32,cpu", "--gate", "50%", "--json", tmp_path / "record.json")
    assert result.exit_code == 0, result.output
    assert "Beside tiny.gguf (cpu, f32)" in result.output
    assert "+0.00% ± 0.00%" in result.output
    assert "cpu f32 keeps the gate of +50.00%" in result.output
    record = read_record(tmp_path / "record.json")
    assert [(each.engine, each.precision) for each in record.quality] == [("cpu", "f32"), ("cpu", "int8")]
    assert record.quality[0].mean_kl == 0 < record.quality[1].mean_kl
    assert record.model is not None
    assert (record.kind, record.state, record.model.name) == ("run", "complete", "tiny.gguf")
    assert record.settings["gate"] == "50%"


def test_a_gate_that_is_not_kept_ends_with_3(model: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", "llama", tied=False, seed=3)  # one of the two predicts the text better than the other
    results = [run(tmp_path, a, "--reference", b, "--gate", "0.1%") for a, b in ((model, other), (other, model))]
    assert sorted(result.exit_code for result in results) == [0, 3]
    assert sum("DOES NOT KEEP the gate" in result.output for result in results) == 1


def test_models_and_windows_beside_one_reference(model: Path, tmp_path: Path) -> None:
    reference = write_tiny(tmp_path / "float.gguf", "llama")
    other = write_tiny(tmp_path / "other.gguf", "llama", format="Q8_0")
    arguments = (model, other, "--reference", reference, "--window", "10,20", "--gate", "50%", "--json", tmp_path / "record.json")
    result = run(tmp_path, *arguments)
    assert result.exit_code in (0, 3), result.output
    for n_window in (10, 20):
        assert f"in windows of {n_window}; KL in nats" in result.output
    assert "ratios are of pairs, to tiny.gguf with cpu int8" in result.output.replace("\n", " ")
    assert "other.gguf with cpu int8 keeps the gate" in result.output
    record = read_record(tmp_path / "record.json")
    assert [(each.n_window, each.model and each.model.name) for each in record.quality] == [
        (10, "tiny.gguf"),
        (10, "other.gguf"),
        (20, "tiny.gguf"),
        (20, "other.gguf"),
    ]
    pairs = [each.beside_first for each in record.quality]
    assert [pair is None for pair in pairs] == [True, False, True, False]
    assert all(pair is None or (pair.kl_ratio and f"{pair.kl_ratio:.3f} ± {pair.se_kl_ratio:.3f}" in result.output) for pair in pairs)
    assert record.settings["window"] == "10,20"


@pytest.mark.parametrize("window", ["1", "x", ""])
def test_windows_that_are_no_numbers_are_refused(model: Path, tmp_path: Path, window: str) -> None:
    result = run(tmp_path, model, "--window", window)
    assert isinstance(result.exception, InvalidRequestError)
    assert "--window" in str(result.exception)


def test_an_unknown_precision_is_refused(model: Path, tmp_path: Path) -> None:
    result = run(tmp_path, model, "--backends", "cpu:int3")
    assert isinstance(result.exception, InvalidRequestError)
    assert "'cpu:int3'" in str(result.exception)


def test_a_text_that_is_missing_is_wrong_usage(model: Path) -> None:
    app = typer.Typer()
    app.command()(quality)
    assert CliRunner().invoke(app, [str(model), "--text", "/no/such/text"]).exit_code == 2


def test_after_ctrl_c_the_engines_measured_are_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgelm.bench.commands import quality as module

    whole = module.qualities

    def stopped(*arguments: object) -> object:
        yield next(whole(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "qualities", stopped)
    result = run(tmp_path, model, "--backends", "cpu,llamacpp", "--json", tmp_path / "record.json")
    assert result.exit_code == 130
    assert "ended by Ctrl-C" in result.output
    record = read_record(tmp_path / "record.json")
    assert (record.state, [each.engine for each in record.quality]) == ("interrupted", ["cpu"])
