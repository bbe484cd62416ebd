"""Quantizing a model: from a name and some wishes to a GGUF file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import InvalidRequestError
from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS, batch_size, calibration_windows
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.new_file import check_new_file
from edgelm.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.goals import Goal
    from edgelm.quant.input_statistics import Calibration
    from edgelm.quant.matrix import Method
    from edgelm.quant.quantize import Quantizer, Say
    from edgelm.quant.tensor_formats import FormatRules
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
        method: "gptq" (the default with a calibration text, or with outer products), "search" (the default without) or "round".
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
    from edgelm.backends.config import read_config
    from edgelm.backends.cpu.topology import choose_threads
    from edgelm.backends.memory import available_memory
    from edgelm.backends.weights import read_tensors
    from edgelm.quant.fingerprint import make_fingerprint
    from edgelm.quant.gguf_metadata import gguf_metadata
    from edgelm.quant.goals import check_calibration, check_unchanged, set_goals
    from edgelm.quant.imatrix import read_imatrix
    from edgelm.quant.matrix import Method
    from edgelm.quant.open_model import open_model
    from edgelm.quant.quantize import Quantizer, write_quantized
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.work_folder import open_or_create

    _check_numbers(calibration_tokens=calibration_tokens, max_memory=max_memory, n_threads=n_threads)
    texts = {name: Path(text) for name, text in (("calibration", calibration), ("imatrix", imatrix)) if text is not None}
    rules = _rules(format, embedding_format, output_format, tensor_formats, any_method=method is not None or bool(texts))
    path, out = resolve_model(source), Path(target)
    if out.suffix.lower() != ".gguf":
        raise InvalidRequestError(f"{out} is to become a GGUF file; give it a name that ends in .gguf")
    check_new_file(out, (path, *texts.values()), overwrite)
    known: Calibration = read_imatrix(texts["imatrix"]) if "imatrix" in texts else {}
    how = Method(_method_name(method, texts, has_outer=any(each.outer is not None for each in known.values())))  # type: ignore[arg-type]
    threads = n_threads or choose_threads().n_threads
    file = open_model(path)
    try:
        # What would fail in the end fails now.
        read_tensors(file, read_config(file.metadata), with_layers=False)
        gguf_metadata(file.metadata)
        widened: Mapping[str, str] = getattr(file, "notes", {})
        goals = set_goals(file, rules, {}, allow_requantize, widened)
        check_unchanged(file, goals)
        notes = [*_stand_ins(goals), *_together((why, name) for name, why in widened.items() if goals[name].is_kept)]
        if "imatrix" in texts:
            notes += _together(("the importance matrix has nothing on it", name) for name in check_calibration(goals, known))
        windows = None
        if "calibration" in texts:
            windows = calibration_windows(file.metadata, texts["calibration"], calibration_tokens, notes)
        settings = {
            "formats": {name: goal.format.name for name, goal in goals.items()},
            "method": vars(how),
            "calibration_tokens": 0 if windows is None else calibration_tokens,
        }
        fingerprint = make_fingerprint(path, settings, texts)
        with RowThreads(threads) as row_threads, open_or_create(out, fingerprint, restart) as work:
            quantizer = Quantizer(file, goals, how, work, row_threads, say or _say_nothing, max_memory or available_memory())
            if windows is None:
                quantizer.one_by_one(known)
            else:
                _run_blocks(quantizer, windows, out.resolve().parent, known)
            quantizer.say("writing the file", 1, 1)
            write_quantized(out, file, goals, work, _facts(how if rules else None, windows, fingerprint["texts"]))
            tensors, finished = _reports(goals, work), work.finished
            notes += _together((str(each.facts["note"]), name) for name, each in finished.items() if "note" in each.facts)
            work.remove()
    finally:
        file.close()
    n_bits = sum(row.bits * math.prod(row.shape) for row in tensors)
    return QuantizeReport(
        target=out,
        n_bytes=out.stat().st_size,
        bits_per_weight=n_bits / sum(math.prod(row.shape) for row in tensors),
        tensors=tensors,
        method=how.name if rules else KEEP,
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

    model = BlockSteps(quantizer.file, windows.shape[1], quantizer.threads)
    with Scratch(folder) as scratch:
        quantizer.block_by_block(model, windows, batch_size(model.config, windows), scratch, known)


# -- wishes ------------------------------------------------------------------------------------------------------------------------------


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InvalidRequestError(f"{name} is {number}; give 1 or more")


def _rules(
    format: str, embedding_format: str | None, output_format: str | None, tensor_formats: Sequence[str], any_method: bool
) -> FormatRules | None:
    """None where every matrix is kept."""
    from edgelm.quant.tensor_formats import FormatRules, parse_format, parse_override

    if format.strip().lower() == KEEP:
        if embedding_format is not None or output_format is not None or tensor_formats or any_method:
            raise InvalidRequestError("--format keep changes no matrix; leave other formats, methods, texts and importance matrices away")
        return None
    return FormatRules(
        parse_format(format),
        embedding=None if embedding_format is None else parse_format(embedding_format),
        output=None if output_format is None else parse_format(output_format),
        overrides=tuple(parse_override(text) for text in tensor_formats),
    )


def _method_name(method: str | None, texts: Mapping[str, Path], has_outer: bool) -> str:
    if len(texts) > 1:
        raise InvalidRequestError("give a calibration text or an importance matrix, not both")
    if method == "round" and texts:
        raise InvalidRequestError(
            "the method round looks at no text; leave calibration and importance matrix away, or choose search or gptq"
        )
    if method == "gptq" and not texts:
        raise InvalidRequestError("the method gptq needs a calibration text (--calibration), or an importance matrix with outer products")
    if method == "gptq" and "imatrix" in texts and not has_outer:
        raise InvalidRequestError(
            f"{texts['imatrix']} has no outer products, which gptq needs; make it with `edgelm calibrate --outer`, or give --method search"
        )
    return method or ("gptq" if "calibration" in texts or has_outer else "search")


# -- report ------------------------------------------------------------------------------------------------------------------------------


def _stand_ins(goals: Mapping[str, Goal]) -> list[str]:
    return _together((goal.resolved.reason, name) for name, goal in goals.items() if goal.resolved.is_stand_in)


def _together(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason, however many tensors it is true of."""
    names: dict[str, list[str]] = {}
    for reason, name in notes:
        names.setdefault(reason, []).append(name)
    return [f"{some[0]}{f' and {len(some) - 1} more' if len(some) > 1 else ''}: {reason}" for reason, some in names.items()]


def _facts(method: Method | None, windows: NDArray[np.int32] | None, hashes: Mapping[str, str]) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "edgelm.quantize.version": __version__,
        "edgelm.quantize.method": KEEP if method is None else method.name,
    }
    if method is not None and method.name == "gptq":
        facts |= {"edgelm.quantize.sweeps": method.n_sweeps, "edgelm.quantize.damping": method.damping}
    if windows is not None:
        facts["edgelm.quantize.calibration.tokens"] = int(windows.size)
    return facts | {f"edgelm.quantize.{name}.sha256": sha256 for name, sha256 in hashes.items()}


def _reports(goals: Mapping[str, Goal], work: WorkFolder) -> tuple[TensorReport, ...]:
    from edgelm.quant.tensor_formats import bits_per_weight

    finished = work.finished
    return tuple(
        TensorReport(
            name,
            goal.shape,
            source=goal.source.name,
            format=goal.format.name,
            bits=bits_per_weight(goal.format),
            error=float(finished[name].facts["error"]) if goal.is_quantized else None,
            reason=goal.resolved.reason,
        )
        for name, goal in goals.items()
        if len(goal.shape) > 1
    )


def _peak_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
