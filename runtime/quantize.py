"""Quantizing a model: from a name and some wishes to a GGUF file."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import InvalidRequestError
from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS, batch_size, calibration_windows
from edgelm.runtime.catalogue import resolve_model
from edgelm.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.input_statistics import Calibration
    from edgelm.quant.matrix import Method
    from edgelm.quant.model_file import ModelFile
    from edgelm.quant.quantize import Goal, Quantizer, Say
    from edgelm.quant.work_folder import WorkFolder

DEFAULT_FORMAT = "q4_0"
KEEP = "keep"


@dataclass(frozen=True)
class TensorReport:
    """What became of one matrix.

    Attributes:
        source, format: block formats before and after.
        bits: per weight, after.
        error: of the layer's outputs on the calibration text, mean |(W - Q) x|^2 / mean |W x|^2; without a text |W - Q|^2 / |W|^2;
            None where it was kept.
        reason: why it has this format.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    format: str
    bits: float
    error: float | None
    reason: str


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization did.

    Attributes:
        target: the file.
        n_bytes: of the file.
        bits_per_weight: of its matrices, on average.
        tensors: its matrices.
        method: how they were quantized.
        n_tokens: of the calibration text that were used.
        seconds: that this run took; less than the work, where it went on from an interruption.
        peak_bytes: greatest resident memory of the process so far.
        notes: what should be said aloud.
    """

    target: Path
    n_bytes: int
    bits_per_weight: float
    tensors: tuple[TensorReport, ...]
    method: str
    n_tokens: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...]


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    format: str = DEFAULT_FORMAT,
    method: str | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    imatrix: str | Path | None = None,
    embedding_format: str | None = None,
    output_format: str | None = None,
    tensor_formats: Sequence[str] = (),
    allow_requantize: bool = False,
    max_memory: int | None = None,
    n_threads: int | None = None,
    restart: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
) -> QuantizeReport:
    """Quantize a model to a GGUF file that edgelm, llama.cpp and programs built on it run.

    Args:
        source: path of a model file or Hugging Face folder, a catalogue name, or "hf:owner/repo/file"; named models must have been pulled.
        target: the new file; it appears when it is whole.
        format: block format of the matrices ("q4_0", "q4_1", "iq4_nl", "q4_k", ...), or "keep" for the source's own.
        method: "gptq" (the default with a calibration text), "search" (the default without) or "round".
        calibration: a text file (UTF-8) of what the model will read and write.
        calibration_tokens: how many tokens of it are used, from all over the text.
        imatrix: importances instead of a text: a file of llama-imatrix or of `edgelm calibrate`.
        embedding_format, output_format: of token_embd.weight and output.weight; None for Q8_0.
        tensor_formats: exceptions, "PATTERN=FORMAT" each, as "blk.*.ffn_down.weight=q5_0".
        allow_requantize: quantize again what the source has in few bits already.
        max_memory: bytes of resident memory; None for what is free.
        n_threads: None for the physical cores.
        restart: discard what an interrupted run has left, instead of going on from there.
        overwrite: replace a file that is there.
        say: told what is being done, and how many weights of how many are done.

    Raises:
        InvalidRequestError: a value that makes no sense, a source that may not be quantized again, or weights that are not finite.
        ModelFileError: the source is missing or damaged, or the target cannot be written.
        UnsupportedModelError: a sound model that edgelm does not run, or whose tokenizer GGUF does not hold.
        InsufficientMemoryError: more memory is needed than is allowed; the work done so far is kept.
    """
    started = time.perf_counter()
    from edgelm.backends.cpu.topology import choose_threads
    from edgelm.backends.memory import available_memory
    from edgelm.quant.fingerprint import make_fingerprint
    from edgelm.quant.imatrix import read_imatrix
    from edgelm.quant.matrix import Method
    from edgelm.quant.open_model import open_model
    from edgelm.quant.quantize import Quantizer, set_goals, write_quantized
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.tensor_formats import FormatRules, parse_format, parse_override
    from edgelm.quant.work_folder import open_or_create

    path, out = resolve_model(source), Path(target)
    _check_target(path, out, overwrite)
    how = Method(_method_name(method, calibration, imatrix))  # type: ignore[arg-type]
    rules = None
    if format.lower() != KEEP:
        named = {"embedding": embedding_format, "output": output_format}
        rules = FormatRules(
            parse_format(format),
            **{name: parse_format(text) for name, text in named.items() if text is not None},
            overrides=tuple(parse_override(text) for text in tensor_formats),
        )
    threads = n_threads or choose_threads().n_threads
    file = open_model(path)
    try:
        goals = set_goals(file, rules, {}, allow_requantize)
        notes = [*_stand_ins(goals), *(f"{name}: {note}" for name, note in getattr(file, "notes", {}).items())]
        texts = {name: Path(text) for name, text in (("calibration", calibration), ("imatrix", imatrix)) if text is not None}
        settings = {
            "formats": {name: goal.format.name for name, goal in goals.items()},
            "method": vars(how),
            "calibration_tokens": calibration_tokens if calibration is not None else 0,
        }
        windows = calibration_windows(file.metadata, Path(calibration), calibration_tokens, notes) if calibration is not None else None
        known: Calibration = read_imatrix(Path(imatrix)) if imatrix is not None else {}
        if how.name == "gptq" and windows is None and all(statistics.outer is None for statistics in known.values()):
            raise InvalidRequestError(
                f"{imatrix} has no outer products, which gptq needs; make it with `edgelm calibrate --outer`, or choose --method search"
            )
        with RowThreads(threads) as row_threads, open_or_create(out, make_fingerprint(path, settings, texts), restart) as work:
            limit = max_memory or available_memory()
            quantizer = Quantizer(file, goals, how, work, row_threads, say or _say_nothing, limit)
            if windows is not None and how.name != "round":
                _run_blocks(quantizer, windows, out.resolve().parent, known)
            else:
                quantizer.one_by_one(known)
            quantizer.say("writing the file", 1, 1)
            write_quantized(out, file, goals, work, _facts(how, windows, texts))
            tensors = _reports(file, goals, work)
            work.remove()
    finally:
        file.close()
    n_bits = sum(row.bits * math.prod(row.shape) for row in tensors)
    return QuantizeReport(
        target=out,
        n_bytes=out.stat().st_size,
        bits_per_weight=n_bits / sum(math.prod(row.shape) for row in tensors),
        tensors=tensors,
        method=how.name,
        n_tokens=0 if windows is None else int(windows.size),
        seconds=time.perf_counter() - started,
        peak_bytes=_peak_bytes(),
        notes=tuple(notes),
    )


def _say_nothing(what: str, n_done: int, n_all: int) -> None:
    """For callers who want no progress."""


def _run_blocks(quantizer: Quantizer, windows: NDArray[np.int32], folder: Path, known: Calibration) -> None:
    from edgelm.backends.block_steps import BlockSteps
    from edgelm.quant.scratch import Scratch

    model = BlockSteps(quantizer.file, windows.shape[1])
    with Scratch(folder) as scratch:
        quantizer.block_by_block(model, windows, batch_size(model.config, windows), scratch, known)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.suffix.lower() != ".gguf":
        raise InvalidRequestError(f"{target} is to become a GGUF file; give it a name that ends in .gguf")
    if not target.resolve().parent.is_dir():
        raise InvalidRequestError(f"{target.parent} is no folder; make it, or give another place")
    if target.exists() and target.samefile(source):
        raise InvalidRequestError(f"{target} is the source itself; give another name")
    if target.exists() and not overwrite:
        raise InvalidRequestError(f"{target} is there already; give another name, or --overwrite")


def _method_name(method: str | None, calibration: object, imatrix: object) -> str:
    if calibration is not None and imatrix is not None:
        raise InvalidRequestError("give a calibration text or an importance matrix, not both")
    if method == "gptq" and calibration is None and imatrix is None:
        raise InvalidRequestError("the method gptq needs a calibration text (--calibration), or an importance matrix with outer products")
    return method or ("gptq" if calibration is not None else "search")


# -- report ------------------------------------------------------------------------------------------------------------------------------


def _stand_ins(goals: Mapping[str, Goal]) -> list[str]:
    """One line for each reason, however many tensors it is true of."""
    names: dict[str, list[str]] = {}
    for name, goal in goals.items():
        if goal.resolved.is_stand_in:
            names.setdefault(goal.resolved.reason, []).append(name)
    return [f"{len(some)} tensors, {some[0]} the first: {reason}" for reason, some in names.items()]


def _facts(method: Method, windows: NDArray[np.int32] | None, texts: Mapping[str, Path]) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {"edgelm.quantize.version": __version__, "edgelm.quantize.method": method.name}
    if method.name == "gptq":
        facts |= {"edgelm.quantize.sweeps": method.n_sweeps, "edgelm.quantize.damping": method.damping}
    if windows is not None:
        facts["edgelm.quantize.calibration.tokens"] = int(windows.size)
    for name, path in texts.items():
        facts[f"edgelm.quantize.{name}.sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def _reports(file: ModelFile, goals: Mapping[str, Goal], work: WorkFolder) -> tuple[TensorReport, ...]:
    from edgelm.quant.tensor_formats import bits_per_weight

    rows = []
    for name, goal in goals.items():
        tensor = file.tensors[name]
        if len(tensor.shape) < 2:
            continue
        error = None if goal.is_kept else float(work.finished[name].facts["error"])
        rows.append(
            TensorReport(
                name, tensor.shape, tensor.format.name, goal.format.name, bits_per_weight(goal.format), error, goal.resolved.reason
            )
        )
    return tuple(rows)


def _peak_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
