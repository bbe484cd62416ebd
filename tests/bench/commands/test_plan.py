import json
import re
from pathlib import Path

import pytest
import typer
from tiny_models import write_tiny
from typer.testing import CliRunner, Result

from edgelm.bench.commands.plan import plan
from edgelm.errors import InvalidRequestError

app = typer.Typer()
app.command()(plan)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def cells(shown: str, row: str) -> list[str]:
    """The cells of the first row of a table that begins with these words."""
    line = next(line for line in shown.splitlines() if line.startswith(f"│ {row}"))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    options = ("--tokens-per-second", 45, "--watts", 12, "--shape", "llama-2-7b", "--bandwidth", 102.4, "--json", out)
    result = run(*options)
    assert result.exit_code == 0, result.output
    assert cells(result.output, "bytes per token") == ["bytes per token", "3.82 GB", "3.75 GB"]
    assert cells(result.output, "memory bandwidth")[1] == "172 GB/s"
    assert cells(result.output, "energy per token at 12 W")[1] == "0.267 J"
    assert "Out of reach: at most 27.3 tokens/s" in result.output
    assert "is not here" in result.output
    written = json.loads(out.read_text())
    assert written["needs"]["whole_bytes_per_token"] == 3_824_001_024
    assert written["needs"]["joules_per_token"] == pytest.approx(12 / 45)
    assert written["device"] == {
        "bytes_per_s": 102.4e9,
        "macs_per_s": None,
        "source": "bandwidth as given",
        "cache_bytes": None,
        "memory_bytes": None,
    }
    assert [lever["name"] for lever in written["levers"]] == ["fewer bits", "speculation", "batching", "smaller model"]


def test_this_device_is_measured() -> None:
    result = run("--tokens-per-second", "0.01", "--shape", "smollm2-135m", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "Within reach" in result.output
    assert re.search(r"measured with 1 thread, ", result.output)
    assert "Energy: " in result.output
    assert "Levers" not in result.output
    assert "energy per token" not in result.output  # no watts were given


def test_a_model_file(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf", "gemma3", format="Q4_1")
    result = run("--tokens-per-second", 100, "--model", model, "--bandwidth", 0.000001, "--depth", 500)
    assert result.exit_code == 0, result.output
    assert "tiny.gguf" in result.output
    assert "context of 500 tokens" in result.output
    assert "No lever closes the gap alone" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --shape NAME or --model FILE"),
        (("--shape", "llama-2-7b", "--model", "x.gguf"), "either --shape NAME or --model FILE"),
        (("--shape", "llama-9"), "llama-2-7b"),
        (("--shape", "llama-2-7b", "--format", "q3"), "q3"),
        (("--shape", "llama-2-7b", "--bandwidth", "0"), "0 GB/s"),
        (("--shape", "llama-2-7b", "--watts", "0"), "0.0 W"),
    ],
)
def test_bad_wishes_are_refused(options: tuple[str, ...], message: str) -> None:
    result = run("--tokens-per-second", 45, *options)
    assert isinstance(result.exception, InvalidRequestError)
    assert message in str(result.exception)
