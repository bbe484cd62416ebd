"""Exporting a model to a folder of ONNX graphs, with the files by which other programs know its tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.backends.base import Progress
from edgelm.errors import InvalidRequestError, TemplateError, UnsupportedModelError
from edgelm.runtime.catalogue import resolve_model

if TYPE_CHECKING:
    from edgelm.backends.onnx.export import ExportReport
    from edgelm.runtime.tokenizer import Tokenizer


MAX_CALIBRATION_TOKENS = 4096
_TARGETS_OF: Mapping[str, tuple[str, ...]] = {
    "precision": ("cpu",),
    "kv_type": ("cpu",),
    "requantize": ("cpu",),
    "chunk": ("qnn", "nnapi"),
    "soc": ("qnn",),
    "weight_bits": ("qnn",),
    "calibration": ("qnn",),
}
"""The targets to which each option belongs."""


def export(
    model: str | Path,
    folder: str | Path,
    *,
    target: str = "cpu",
    n_ctx: int | None = None,
    precision: str | None = None,
    kv_type: str | None = None,
    requantize: str | None = None,
    chunk: int | None = None,
    soc: str | None = None,
    weight_bits: int | None = None,
    calibration: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a model to ONNX. `LLM(folder)` runs the result, on the device it was made for; where it was made, target "cpu" runs.

    Args:
        model: path of a model file or Hugging Face folder, a catalogue name, or "hf:owner/repo/file"; named models must have been pulled.
        folder: the new folder; it appears when it is whole.
        target: "cpu" (ONNX Runtime anywhere, and onnxruntime-genai), "qnn" (Qualcomm's NPUs) or "nnapi" (Android).
        n_ctx: tokens that one sequence may hold; None for what the model was trained for, at most 4096.
        precision: cpu only: of the activations in products with quantized weights, "int8" (the default) or "f32".
        kv_type: cpu only: number type of the KV cache, "f32" (the default) or "f16".
        requantize: cpu only: "q4_0" or "q8_0", what matrices become whose format ONNX Runtime cannot hold exactly in as few bits;
            None keeps every weight's value.
        chunk: qnn and nnapi only: tokens of the graph that reads prompts (32).
        soc: qnn only: name of the chip to compile for; None leaves that to the device.
        weight_bits: qnn only: 8 (the default) or 4, bits of a weight.
        calibration: qnn only: a text file (UTF-8) from which the ranges of activations are taken; None for a text of edgelm's own.
        overwrite: replace an exported folder that is there.
        progress: called with a line before anything that takes long.

    Raises:
        InvalidRequestError: a value that makes no sense, an option of another target, or something that is not to be overwritten.
        ModelFileError: the model is missing or damaged, or the folder cannot be written.
        UnsupportedModelError: a sound model that the target cannot hold.
        BackendUnavailableError: a package that the export needs is not installed.
    """
    given = {"precision": precision, "kv_type": kv_type, "requantize": requantize, "chunk": chunk, "soc": soc, "weight_bits": weight_bits}
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    _check_target(target, values if calibration is None else {**values, "calibration": calibration})
    from edgelm.quant.exported_folder import is_exported_folder
    from edgelm.quant.open_model import open_model
    from edgelm.runtime.llm import check_n_ctx

    path = resolve_model(model)
    if is_exported_folder(path):
        raise InvalidRequestError(f"{path} is an exported model already; export the file or folder that it was made from")
    text = _read_text(Path(calibration)) if calibration is not None else None
    from edgelm.backends.onnx.export import ExportOptions, export_model

    ExportOptions(target=target, n_ctx=n_ctx, **values)  # refuses wrong values before the model is read
    notes: list[str] = []
    file = open_model(path)
    try:
        check_n_ctx(n_ctx, file.metadata)
        if target == "qnn":
            values["calibration"] = calibration_tokens(file.metadata, text, notes)
        report = export_model(
            file,
            Path(folder),
            ExportOptions(target=target, n_ctx=n_ctx, **values),
            progress,
            overwrite=overwrite,
            add_files=(lambda unfinished: _add_tokenizer(unfinished, file.metadata, notes)) if target == "cpu" else None,
        )
    finally:
        file.close()
    return replace(report, notes=(*report.notes, *notes))


def _check_target(target: str, given: Mapping[str, object]) -> None:
    for name in given:
        targets = _TARGETS_OF[name]
        if target not in targets:
            raise InvalidRequestError(
                f"the option {name} belongs to the target {' or '.join(targets)}, not to {target!r}; leave it out, or choose another target"
            )


# -- tokenizer -------------------------------------------------------------------------------------------------------------------------


def _add_tokenizer(folder: Path, metadata: Mapping[str, Any], notes: list[str]) -> None:
    """Write tokenizer.json and tokenizer_config.json, or note why there are none; edgelm itself does not need them."""
    from edgelm.runtime.tokenizer.tokenizer_json import tokenizer_files

    try:
        files = tokenizer_files(metadata)
    except UnsupportedModelError as error:
        notes.append(f"without a tokenizer.json, onnxruntime-genai cannot run this folder: {error}")
        return
    for name, data in files.items():
        (folder / name).write_bytes(data)
    _name_ends(folder / "genai_config.json", metadata)


def _name_ends(genai_config: Path, metadata: Mapping[str, Any]) -> None:
    """Let onnxruntime-genai end an answer where edgelm does: at tokens known by their texts, too, which the graph's writer cannot know."""
    from edgelm.runtime.tokenizer import Tokenizer

    ends = sorted(Tokenizer.from_metadata(metadata).eog_ids)
    if ends:
        config = json.loads(genai_config.read_text(encoding="utf-8"))
        config["model"]["eos_token_id"] = [int(token) for token in ends]
        genai_config.write_text(json.dumps(config, indent=2), encoding="utf-8")


# -- calibration -----------------------------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: the calibration text cannot be read ({error}); give a text file in UTF-8") from None
    if not text.strip():
        raise InvalidRequestError(f"{path}: the calibration text is empty; give some pages of what the model will read and write")
    return text


def calibration_tokens(metadata: Mapping[str, Any], text: str | None, notes: list[str]) -> tuple[int, ...]:
    """Tokens of a conversation, where the model has a chat template, and of a text, or of edgelm's own where there is none.

    Args:
        notes: gets a line where not all of it is used.
    """
    from edgelm.runtime.calibration_text import EVERYDAY, NOVEL
    from edgelm.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_metadata(metadata)
    tokens = [*_conversation(metadata, tokenizer, notes), *tokenizer.encode(NOVEL + EVERYDAY if text is None else text, add_special=True)]
    if len(tokens) > MAX_CALIBRATION_TOKENS:
        notes.append(f"calibrated on the first {MAX_CALIBRATION_TOKENS} of the text's {len(tokens)} tokens")
    return tuple(tokens[:MAX_CALIBRATION_TOKENS])


def _conversation(metadata: Mapping[str, Any], tokenizer: Tokenizer, notes: list[str]) -> list[int]:
    from edgelm.runtime.calibration_text import CONVERSATION
    from edgelm.runtime.chat_template import ChatTemplate

    if not metadata.get("tokenizer.chat_template"):
        return []
    try:
        return tokenizer.encode(ChatTemplate.from_metadata(metadata, tokenizer).render(CONVERSATION))
    except TemplateError as error:
        notes.append(f"calibrated without a conversation, as the chat template refuses edgelm's: {error}")
        return []
