"""`edgebench quantizers` on a tiny model, from the command to the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import write_tiny
from typer.testing import CliRunner

from edgelm.bench.cli import app
from edgelm.bench.quantizer_trial import TrialSettings, run_trial
from edgelm.errors import InvalidRequestError
from edgelm.quant.gguf_file import GGUFFile
from edgelm.runtime.calibration_text import EVERYDAY, NOVEL

NAMES = ("llama.cpp imatrix", "edgelm mixed", "edgelm round", "edgelm search", "edgelm search unscaled", "edgelm gptq")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The model, the text to calibrate on, and the one to predict."""
    folder = tmp_path_factory.mktemp("trial")
    model = write_tiny(folder / "tiny.gguf", "llama", format="F16", embedding_format="F16")
    calibration, text = folder / "calibration.txt", folder / "text.txt"
    calibration.write_text(NOVEL, encoding="utf-8")
    text.write_text(EVERYDAY, encoding="utf-8")
    return model, calibration, text


def test_files_of_equal_bytes_are_compared(paths: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, calibration, text = paths
    arguments = ["quantizers", model, tmp_path / "files", "--calibration", calibration, "--text", text, "--formats", "q4_0,q4_1"]
    arguments += ["--quantizers", ",".join(NAMES), "--calibration-tokens", 512, "--tokens", 512, "--window", 64, "--threads", 2]
    arguments += ["--json", tmp_path / "trial.json", "--plot", tmp_path / "kl.svg"]
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    rows = {(row["quantizer"], row["format"]): row for row in json.loads((tmp_path / "trial.json").read_text())}
    assert len(rows) == 2 * len(NAMES)
    for format in ("q4_0", "q4_1"):
        peer = rows["llama.cpp imatrix", format]
        assert peer["kl_ratio"] is None
        for name in NAMES[1:]:
            row = rows[name, format]
            assert row["kl_ratio"]["value"] == pytest.approx(row["figures"]["mean_kl"] / peer["figures"]["mean_kl"])
            assert abs(row["n_bytes"] - peer["n_bytes"]) < 2000 or name == "edgelm mixed"  # but for metadata
        assert rows["edgelm mixed", format]["n_bytes"] <= peer["n_bytes"]
        with GGUFFile(tmp_path / "files" / f"edgelm-search-unscaled.{format}.gguf") as file:
            assert "edgelm.quantize.scaled_channels" not in file.metadata
    assert "<svg" in (tmp_path / "kl.svg").read_text()


def test_files_that_are_there_are_not_made_again(paths: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, calibration, text = paths
    settings = TrialSettings(calibration, text, 512, 256, 64, ("q4_0",), ("edgelm round",))
    (first,) = run_trial(model, tmp_path, settings, 1, lambda _: None)
    (second,) = run_trial(model, tmp_path, settings, 1, lambda _: None)
    assert first.seconds is not None
    assert second.seconds is None
    assert first.figures == second.figures


def test_settings_that_make_no_sense(paths: tuple[Path, Path, Path]) -> None:
    _, calibration, text = paths
    with pytest.raises(InvalidRequestError, match="unknown quantizer magic"):
        TrialSettings(calibration, text, 512, 256, 64, ("q4_0",), ("magic",))
    with pytest.raises(InvalidRequestError, match="give two texts"):
        TrialSettings(calibration, calibration, 512, 256, 64, ("q4_0",))
    with pytest.raises(InvalidRequestError, match="name both"):
        TrialSettings(calibration, text, 512, 256, 64, ("q4_0",), ("edgelm mixed",))
