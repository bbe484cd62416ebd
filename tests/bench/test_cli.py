import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_models import write_tiny

from edgelm.bench.cli import main
from edgelm.bench.record_file import read_record


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `edgebench` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["edgebench", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


# Nobody's history is written to.
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "llama", format="Q4_0")


SMALL = ("--threads", "1", "--prompt", 8, "--generate", 4, "--repeat", 1, "--cold", 0, "--no-roofline")


def test_run_prints_tables_and_keeps_a_record(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, page = tmp_path / "record.json", tmp_path / "page.html"
    wanted = ("--peers", "llama.cpp", "--depth", "0,16", "--estimate-tdp", 15, "--json", record, "--html", page)
    assert run(monkeypatch, "run", model, *SMALL, *wanted) == 0
    shown = capsys.readouterr().out
    for text in ("decode 4", "prefill 8", "both 8+4", "llama.cpp", "power: not measured", "15"):
        assert text in shown
    written = read_record(record)
    assert (written.model.name, written.power.assumed_w) == ("tiny.gguf", 15)
    assert {(m.engine, m.depth) for m in written.measurements} == {(e, d) for e in ("cpu", "llama.cpp") for d in (0, 16)}
    assert "<svg" in page.read_text()
    assert run(monkeypatch, "history", "show", written.id[:6]) == 0
    assert "decode 4" in capsys.readouterr().out


def test_run_of_a_shape_makes_its_model_once(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--shape", "smollm2-135m", "--format", "q4_0", "--threads", 1, "--prompt", 0, "--generate", 2, "--repeat", 1)
    assert run(monkeypatch, "run", *wanted, "--cold", 0, "--no-roofline", "--no-history") == 0
    assert "random weights" in capsys.readouterr().out
    assert [file.suffix for file in (home / "shapes").iterdir()] == [".gguf"]
    assert not (home / "bench").exists()


def test_the_quality_gate_speaks_by_the_exit_code(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path(__file__).parents[1] / "data/evaluation.txt"
    wanted = ("--quality", text, "--tokens", 64, "--window", 32, "--no-history")
    assert run(monkeypatch, "run", model, *SMALL, *wanted, "--gate", "50%") == 0
    other = write_tiny(model.with_name("other.gguf"), "llama", format="Q4_0", seed=9)
    tight = (*SMALL, *wanted, "--gate", "0.001%", "--reference")
    # one of the two predicts the text worse than the other
    assert {run(monkeypatch, "run", one, *tight, its) for one, its in ((other, model), (model, other))} == {0, 3}
    assert "gate" in capsys.readouterr().out


def test_ctrl_c_keeps_a_marked_record(model: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-c", "from edgelm.bench.cli import main; main()", "run", str(model), "--json", str(record)]
    command += ["--threads", "1", "--prompt", "8", "--generate", "200", "--repeat", "10000", "--within", "0.0001%", "--cold", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any("worker" in " ".join(child.cmdline()) for child in psutil.Process(process.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(3)
        for pause in (0.03, 0.1, 0.3, 0):  # as the impatient press it
            process.send_signal(signal.SIGINT)
            time.sleep(pause)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    written = read_record(record)
    assert written.state == "interrupted"
    assert "interrupted" in out
    assert all(m.state in ("complete", "interrupted") for m in written.measurements)


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for wrong in (tmp_path / "no such folder" / "file", tmp_path, tmp_path / ("x" * 300)):
        assert run(monkeypatch, "run", model, *SMALL, option, wrong) == 2
        shown = capsys.readouterr()
        assert "cannot be written" in shown.err
        assert shown.out == ""
    assert [kept.name for kept in home.iterdir()] == ["kernels"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root can write: Linux's /proc")
def test_a_file_that_cannot_be_written_at_the_end_costs_nothing_else(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run", model, *SMALL, "--json", "/proc/record.json") == 1
    shown = capsys.readouterr()
    assert "decode 4" in shown.out
    assert shown.err.startswith("edgebench: ")
    assert "cannot be written" in shown.err
    assert (home / "bench" / "history.sqlite").exists()
    assert run(monkeypatch, "history") == 0
    assert "tiny.gguf" in capsys.readouterr().out


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
        (("run", "no-such-model"), "no-such-model"),
        (("run", "no/such/file.gguf"), "no/such/file.gguf"),
        (("run", __file__, "--threads", "one"), "--threads is 'one'"),
        (("run", __file__, "--threads", "0"), "--threads is '0'"),
        (("run", __file__, "--within", "110%"), "--within is '110%'"),
        (("run", __file__, "--peers", "turbo"), "turbo"),
        (("run", __file__, "--backend-option", "speed"), "NAME=VALUE"),
        (("run", __file__, "--meter", "toaster://kitchen"), "toaster"),
        (("run", __file__, "--estimate-tdp", "-3"), "-3"),
        (("run", __file__), "test_cli.py"),
        (("run",), "--shape"),
        (("run", __file__, "--shape", "llama-2-7b"), "--shape"),
        (("compare", "no-such-a.json", "no-such-b.json"), "no-such-a.json"),
        (("compare", __file__, __file__), "test_cli.py"),
        (("report", "no-such.json"), "no-such.json"),
        (("history", "show", "abcdef"), "abcdef"),
        (("plan", "--tokens-per-second", "45"), "--shape"),
        (("load", "http://127.0.0.1:9"), "127.0.0.1:9"),
        (("divergence", Path(__file__).parent, "--text", __file__), "is a folder"),
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


@pytest.mark.parametrize(
    "arguments", [("compare",), ("plan",), ("run", "--fast"), ("divergence", "m", "--text", "/no/such/text"), ("shape", "--fast")]
)
def test_wrong_usage_ends_with_2(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    assert run(monkeypatch, *arguments) == 2
