import json
import sys
from pathlib import Path

import pytest
from tiny_models import write_tiny

from edgelm.bench.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `edgebench` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["edgebench", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_compare_prints_a_table_and_writes_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, record = write_tiny(tmp_path / "tiny.gguf", "llama"), tmp_path / "record.json"
    options = ("--threads", "1", "--prompt", 8, "--generate", 4, "--repeat", 1, "--json", record)
    assert run(monkeypatch, "compare", model, *options) == 0
    shown = capsys.readouterr().out
    assert "decode 4" in shown
    assert "prefill 8" in shown
    written = json.loads(record.read_text())
    assert written["model"] == "tiny.gguf"
    assert [measured["phase"] for measured in written["measurements"]] == ["decode", "prefill"]


def test_divergence_prints_both_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = write_tiny(tmp_path / "tiny.gguf", "llama", format="Q4_1"), tmp_path / "text.txt"
    text.write_text("in the end the other and the rather thin hen")
    kept, record = tmp_path / "judge.gguf", tmp_path / "record.json"
    options = ["--text", text, "--tokens", 20, "--precision", "f32,int8", "--threads", 1]
    options += ["--judge", kept, "--json", record]
    assert run(monkeypatch, "divergence", model, *options) == 0
    shown = capsys.readouterr().out
    assert "edgelm cpu f32" in shown
    assert "edgelm cpu int8" in shown
    written = json.loads(record.read_text())
    assert written["edgelm"]["f32"]["mean_kl"] < 1e-6 < written["llamacpp"]["mean_kl"]
    assert kept.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "no-such-model"), "no-such-model"),
        (("compare", "no/such/file.gguf"), "no/such/file.gguf"),
        (("compare", __file__, "--threads", "one"), "--threads is 'one'"),
        (("compare", __file__), "test_cli.py"),
        (("compare", Path(__file__).parent), "is a folder"),
        (("shape", "gpt-5", "out.gguf"), "llama-2-7b"),
        (("divergence", "no-such-model", "--text", __file__), "no-such-model"),
        (("divergence", __file__, "--text", __file__, "--precision", "int4"), "--precision is 'int4'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("edgebench: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("compare",), ("divergence", "m", "--text", "/no/such/text"), ("shape", "--fast")])
def test_wrong_usage_ends_with_2(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert run(monkeypatch, *arguments) == 2
