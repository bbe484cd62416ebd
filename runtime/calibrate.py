"""Calibrating a model: from a text to a file of importances, which `quantize` and llama.cpp's llama-quantize take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS, batch_size, calibration_windows
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.new_file import check_new_file

if TYPE_CHECKING:
    from edgelm.quant.input_statistics import InputStatistics
    from edgelm.quant.quantize import Say
    from edgelm.quant.scratch import Scratch


@dataclass(frozen=True)
class CalibrateReport:
    """What a calibration wrote.

    Attributes:
        target: the file.
        n_weights: how many matrices it speaks of.
        n_tokens: of the text that were read.
        notes: what should be said aloud.
    """

    target: Path
    n_weights: int
    n_tokens: int
    notes: tuple[str, ...]


def calibrate(
    model: str | Path,
    target: str | Path,
    text: str | Path,
    *,
    n_tokens: int = CALIBRATION_TOKENS,
    outer: bool = False,
    n_threads: int | None = None,
    overwrite: bool = False,
    say: Say | None = None,
) -> CalibrateReport:
    """Run the float model over a text, and write llama.cpp's imatrix GGUF.

    Args:
        model: as of `quantize`.
        target: the new file; it appears when it is whole.
        text: a text file (UTF-8) of what the model will read and write.
        n_tokens: how many tokens of it are used, from all over the text.
        outer: keep the outer products of the inputs too, from which `quantize` can run GPTQ without the text. 4 n_in^2 bytes for every
            group of layers with the same input.
        n_threads: None for the physical cores.
        overwrite: replace a file that is there.
        say: told what is being done, and how many blocks of how many are done.

    Raises:
        InvalidRequestError: a text that is too short or not UTF-8, or a file that is not to be replaced.
        ModelFileError: the model is missing or damaged, or the target cannot be written.
        UnsupportedModelError: a sound model that edgelm does not run.
    """
    from edgelm.backends.block_steps import BlockSteps
    from edgelm.backends.cpu.topology import choose_threads
    from edgelm.quant.calibrate import calibrate as calibrate_model
    from edgelm.quant.imatrix import write_imatrix
    from edgelm.quant.open_model import open_model
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.scratch import Scratch

    path, out, source = resolve_model(model), Path(target), Path(text)
    check_new_file(out, (path, source), overwrite)
    notes: list[str] = []
    file = open_model(path)
    try:
        windows = calibration_windows(file.metadata, source, n_tokens, notes)
        found: dict[str, InputStatistics] = {}
        tell = say or (lambda *_: None)
        with RowThreads(n_threads or choose_threads().n_threads) as threads, Scratch(out.resolve().parent) as scratch:
            steps = BlockSteps(file, windows.shape[1], threads)
            n_batch = batch_size(steps.config, windows)
            for names, statistics in calibrate_model(steps, windows, n_batch, outer, threads, scratch, tell):
                kept = _put_aside(statistics, names, scratch)
                found.update((name, kept) for name in names if name in file.tensors)
            tell("writing the file", 1, 1)
            write_imatrix(out, found, source.name, windows.shape[1], outer)
    finally:
        file.close()
    return CalibrateReport(out, len(found), int(windows.size), tuple(notes))


def _put_aside(statistics: InputStatistics, key: object, scratch: Scratch) -> InputStatistics:
    """The same, with the outer products on the disk instead of in memory."""
    from edgelm.quant.input_statistics import InputStatistics

    if statistics.outer is None:
        return statistics
    scratch.put(key, statistics.outer)
    return InputStatistics(statistics.n_tokens, statistics.squares, scratch.mapped(key))
