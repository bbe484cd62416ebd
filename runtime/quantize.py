"""Quantizing a model: from a name and some wishes to a GGUF file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import InvalidRequestError
from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS, batch_size, calibration_windows
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.new_file import check_new_file
from edgelm.runtime.quantize_report import QuantizeReport, peak_bytes, tensor_reports, together
from edgelm.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgelm.quant.input_statistics import Calibration
    from edgelm.quant.matrix import Method
    from edgelm.quant.mixed_precision import Budget
    from edgelm.quant.quantize import Quantizer, Say
    from edgelm.quant.tensor_formats import FormatRules

DEFAULT_FORMAT = "q4_0"
KEEP = "keep"


def quantize(
    source: str | Path,
    target: str | Path,
    *,
    format: str | None = None,
    bits_per_weight: float | None = None,
    size: int | None = None,
    max_kl: float | None = None,
    plan: str | Path | None = None,
    method: str | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    imatrix: str | Path | None = None,
    scale_channels: bool | None = None,
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
        format: block format of the matrices ("q4_0", "q4_1", "iq4_nl", "q4_k", ...), or "keep" for the source's own; None for q4_0, or for
            a plan of mixed precision where one of the next four is given.
        bits_per_weight, size, max_kl: make a plan: of so many bits per weight on average, of a file of so many bytes, or of so much
            predicted KL divergence from the float model at the most. It needs a calibration text, and is written to TARGET.plan.json.
        plan: follow a plan of an earlier run.
        method: "gptq" (the default with a calibration text, or with outer products), "search" (the default without) or "round".
        calibration: a text file (UTF-8) of what the model will read and write.
        calibration_tokens: how many tokens of it are used, from all over the text.
        imatrix: importances instead of a text: a file of llama-imatrix or of `edgelm calibrate`.
        scale_channels: scale the channels between layers first, as AWQ does; None where the inputs are known.
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
    from edgelm.quant.goals import check_calibration, check_finite, set_goals
    from edgelm.quant.imatrix import read_imatrix
    from edgelm.quant.matrix import Method
    from edgelm.quant.open_model import open_model
    from edgelm.quant.plan_file import read_plan, write_plan
    from edgelm.quant.quantize import Quantizer, bytes_beside_matrices, write_quantized
    from edgelm.quant.row_threads import RowThreads
    from edgelm.quant.scaled_file import ScaledFile
    from edgelm.quant.work_folder import open_or_create
    from edgelm.runtime.channel_scaling import choose_scalings, scaled_columns
    from edgelm.runtime.plan_formats import Planner, choose_budget

    _check_numbers(calibration_tokens=calibration_tokens, max_memory=max_memory, n_threads=n_threads)
    texts = {name: Path(text) for name, text in (("calibration", calibration), ("imatrix", imatrix)) if text is not None}
    budget = choose_budget(bits_per_weight, size, max_kl)
    _check_plan(format, budget, plan, texts)
    rules = _rules(format or DEFAULT_FORMAT, embedding_format, output_format, tensor_formats, any_method=method is not None or bool(texts))
    path, out = resolve_model(source), Path(target)
    if out.suffix.lower() != ".gguf":
        raise InvalidRequestError(f"{out} is to become a GGUF file; give it a name that ends in .gguf")
    check_new_file(out, (path, *texts.values()), overwrite)
    known: Calibration = read_imatrix(texts["imatrix"]) if "imatrix" in texts else {}
    how = Method(_method_name(method, texts, has_outer=any(each.outer is not None for each in known.values())))  # type: ignore[arg-type]
    scales = _scales(scale_channels, how, texts)
    threads = n_threads or choose_threads().n_threads
    file = open_model(path)
    try:
        # What would fail in the end fails now.
        read_tensors(file, read_config(file.metadata), with_layers=False)
        gguf_metadata(file.metadata)
        widened: Mapping[str, str] = getattr(file, "notes", {})
        notes: list[str] = []
        windows = None
        if "calibration" in texts:
            windows = calibration_windows(file.metadata, texts["calibration"], calibration_tokens, notes)
        followed = None
        with RowThreads(threads) as row_threads:
            if plan is not None:
                followed = read_plan(Path(plan), {name: tensor.shape for name, tensor in file.tensors.items()})
            elif budget is not None and rules is not None and windows is not None:
                probe = make_fingerprint(path, {"tokens": int(windows.size)}, texts)
                planner = Planner(file, windows, _beside(out, "damages"), probe, row_threads, say or _say_nothing)
                kept = set_goals(file, None, {}, allow_requantize, widened)
                fixed = bytes_beside_matrices(file, kept, _facts(how, scales, windows, probe["texts"]))
                followed = planner.plan(budget, rules, fixed)
                write_plan(_beside(out, "plan"), followed)
        goals = set_goals(file, rules, followed.formats if followed else {}, allow_requantize, widened)
        reads_all_first = scales and windows is not None  # what is quantized is checked when its turn comes
        check_finite(file, (name for name, goal in goals.items() if reads_all_first or not goal.is_quantized))
        notes += together((goal.resolved.reason, name) for name, goal in goals.items() if goal.resolved.is_stand_in)
        notes += together((why, name) for name, why in widened.items() if goals[name].is_kept)
        if "imatrix" in texts:
            notes += together(("the importance matrix has nothing on it", name) for name in check_calibration(goals, known))
        settings = {
            "formats": {name: goal.format.name for name, goal in goals.items()},
            "method": vars(how),
            "calibration_tokens": 0 if windows is None else calibration_tokens,
            "scale_channels": scales,
        }
        fingerprint = make_fingerprint(path, settings, texts)
        facts = _facts(how if rules else None, scales, windows, fingerprint["texts"])
        with RowThreads(threads) as row_threads, open_or_create(out, fingerprint, restart) as work:
            tell, measured = say or _say_nothing, known if windows is None else windows
            scalings = choose_scalings(file, goals, how, measured, work, row_threads, tell) if scales else ()
            scaled, columns = ScaledFile(file, scalings), scaled_columns(scalings)
            quantizer = Quantizer(scaled, goals, how, work, row_threads, tell, max_memory or available_memory(), columns)
            if windows is None:
                quantizer.one_by_one(known)
            else:
                _run_blocks(quantizer, windows, out.resolve().parent, known)
            quantizer.say("writing the file", 1, 1)
            write_quantized(out, scaled, goals, work, facts)
            tensors, finished = tensor_reports(goals, work), work.finished
            notes += together((str(each.facts["note"]), name) for name, each in finished.items() if "note" in each.facts)
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
        scaled_channels=scales,
        n_tokens=0 if windows is None else int(windows.size),
        seconds=time.perf_counter() - started,
        peak_bytes=peak_bytes(),
        notes=tuple(notes),
        plan=followed,
    )


def _beside(target: Path, what: str) -> Path:
    """Where a plan, or the damages behind it, is kept."""
    return target.with_name(f"{target.name}.{what}.json")


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


def _check_plan(format: str | None, budget: Budget | None, plan: str | Path | None, texts: Mapping[str, Path]) -> None:
    if sum(wish is not None for wish in (format, budget, plan)) > 1:
        raise InvalidRequestError("give a format, a budget (bits per weight, size or greatest divergence) or a plan: one of them")
    if budget is not None and "calibration" not in texts:
        raise InvalidRequestError(f"a plan for {budget} needs a calibration text, on which damages are measured; give --calibration")


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


def _scales(wish: bool | None, method: Method, texts: Mapping[str, Path]) -> bool:
    """Whether channels are scaled."""
    can = bool(texts) and method.name != "round"
    if wish and not can:
        raise InvalidRequestError("channels are scaled by how large they are in use; give a calibration text or an importance matrix")
    return can if wish is None else wish


def _facts(
    method: Method | None, scales: bool, windows: NDArray[np.int32] | None, hashes: Mapping[str, str]
) -> dict[str, str | int | float]:
    facts: dict[str, str | int | float] = {
        "edgelm.quantize.version": __version__,
        "edgelm.quantize.method": KEEP if method is None else method.name,
    }
    if method is not None and method.name == "gptq":
        facts |= {"edgelm.quantize.sweeps": method.n_sweeps, "edgelm.quantize.damping": method.damping}
    if scales:
        facts["edgelm.quantize.scaled_channels"] = True
    if windows is not None:
        facts["edgelm.quantize.calibration.tokens"] = int(windows.size)
    return facts | {f"edgelm.quantize.{name}.sha256": sha256 for name, sha256 in hashes.items()}
