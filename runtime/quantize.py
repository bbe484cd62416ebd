"""Quantizing a model: wishes are checked and become a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm.errors import InvalidRequestError
from edgelm.runtime.calibration_windows import CALIBRATION_TOKENS
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.new_file import check_new_file
from edgelm.runtime.quantize_job import KEEP, QuantizeJob
from edgelm.runtime.quantize_report import QuantizeReport

if TYPE_CHECKING:
    from edgelm.quant.input_statistics import Calibration
    from edgelm.quant.matrix import Method
    from edgelm.quant.mixed_precision import Budget
    from edgelm.quant.quantize import Say
    from edgelm.quant.tensor_formats import FormatRules

DEFAULT_FORMAT = "q4_0"


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
    from edgelm.backends.cpu.topology import choose_threads
    from edgelm.backends.memory import available_memory
    from edgelm.quant.imatrix import read_imatrix
    from edgelm.quant.matrix import Method
    from edgelm.runtime.plan_formats import choose_budget

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
    return QuantizeJob(
        source=path,
        target=out,
        rules=rules,
        budget=budget,
        plan=None if plan is None else Path(plan),
        method=how,
        scales_channels=_scales(scale_channels, how, texts),
        texts=texts,
        calibration_tokens=calibration_tokens,
        known=known,
        allow_requantize=allow_requantize,
        max_memory=max_memory or available_memory(),
        n_threads=n_threads or choose_threads().n_threads,
        restart=restart,
        say=say or (lambda *_: None),
    ).run()


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
