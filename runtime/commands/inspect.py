"""`edgelm inspect`: what is in a model file, and what it will need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelm.errors import EdgeLMError, UnsupportedModelError
from edgelm.runtime.commands import options

if TYPE_CHECKING:
    from edgelm.backends.config import ModelConfig
    from edgelm.quant.exported_folder import ExportedFolder
    from edgelm.quant.model_file import ModelFile

_KV_BYTES = 2
"""Bytes of one value in the KV cache (float16)."""


def inspect(
    file: Annotated[str, typer.Argument(help="A model file or folder, or the name of a model that was pulled.")],
    ctx: options.Ctx = None,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template itself, and nothing else.")] = False,
) -> None:
    """Show a model's architecture, formats, size, memory need, tokenizer and chat template."""
    from edgelm.quant.open_model import open_model
    from edgelm.runtime.catalogue import resolve_model

    model = open_model(resolve_model(file))
    try:
        if template:
            print(_template(model.metadata) or "")
        else:
            _print_report(model, ctx)
    finally:
        model.close()


def _print_report(model: ModelFile, ctx: int | None) -> None:
    from edgelm.quant.exported_folder import ExportedFolder
    from edgelm.runtime.commands.tables import print_facts, print_table

    if isinstance(model, ExportedFolder):
        print_facts([*_export_facts(model), *_tokenizer_facts(model.metadata)])
        return
    print_facts([*_facts(model), *_forward_facts(model, ctx), *_tokenizer_facts(model.metadata)])
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in model.tensors.values():
        row = counts[tensor.format.name]
        row[0] += 1
        row[1] += _elements(tensor.shape)
        row[2] += tensor.data.nbytes
    print()
    rows = sorted(counts.items(), key=lambda item: -item[1][2])
    print_table(
        ("FORMAT", "TENSORS", "PARAMETERS", "BYTES", "BITS PER WEIGHT"),
        [(name, str(n), f"{elements:,}", f"{n_bytes:,}", f"{8 * n_bytes / max(elements, 1):.2f}") for name, (n, elements, n_bytes) in rows],
    )


def _export_facts(folder: ExportedFolder) -> list[tuple[str, str]]:
    manifest = folder.manifest
    graphs = ", ".join(graph.file if graph.n_tokens is None else f"{graph.file} ({graph.n_tokens} tokens)" for graph in manifest.graphs)
    return [
        ("folder", str(folder.path)),
        ("name", str(folder.metadata.get("general.name", "not said"))),
        ("licence", str(folder.metadata.get("general.license", "not said"))),
        ("size", _megabytes(sum(manifest.files.values()))),
        ("architecture", str(folder.metadata.get("general.architecture", "not said"))),
        ("exported", f"to ONNX for {manifest.target} by edgelm {manifest.edgelm}; `edgelm doctor FOLDER` says what computes it here"),
        ("graphs", graphs),
        ("context", f"{manifest.n_ctx} tokens"),
        ("precision", f"{manifest.precision} activations, {manifest.kv_type} KV cache"),
        *([("chip", str(manifest.details["soc"]))] if manifest.details.get("soc") else []),
    ]


def _facts(model: ModelFile) -> list[tuple[str, str]]:
    parameters = sum(_elements(tensor.shape) for tensor in model.tensors.values())
    return [
        ("file", str(model.path)),
        ("name", str(model.metadata.get("general.name", "not said"))),
        ("licence", str(model.metadata.get("general.license", "not said"))),
        ("size", _megabytes(_size(model.path))),
        ("architecture", str(model.metadata.get("general.architecture", "not said"))),
        ("parameters", f"{parameters:,} ({parameters / 1e6:,.1f}M) in {len(model.tensors)} tensors"),
    ]


def _forward_facts(model: ModelFile, ctx: int | None) -> list[tuple[str, str]]:
    from edgelm.backends.base import DEFAULT_N_CTX
    from edgelm.backends.config import read_config

    try:
        config = read_config(model.metadata)
    except UnsupportedModelError as error:
        return [("runs here", f"no: {error}")]
    n_ctx = ctx or min(config.n_ctx_train, DEFAULT_N_CTX)
    weights = sum(tensor.data.nbytes for tensor in model.tensors.values())
    cache = n_ctx * kv_bytes_per_token(config)
    return [
        ("layers", f"{config.n_layers}, width {config.n_embd}, feed-forward {config.n_ff}"),
        ("attention", f"{config.n_heads} heads and {config.n_kv_heads} KV heads of {config.head_dim}" + _window(config)),
        ("context", f"{config.n_ctx_train} tokens in training"),
        ("memory", f"{_megabytes(weights)} weights + {_megabytes(cache)} KV cache for {n_ctx} tokens = {_megabytes(weights + cache)}"),
    ]


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Bytes of KV cache that one token takes: a key and a value per layer and KV head."""
    return config.n_layers * config.n_kv_heads * config.head_dim * 2 * _KV_BYTES


def _window(config: ModelConfig) -> str:
    n_local = sum(config.is_local(layer) for layer in range(config.n_layers))
    return f", {n_local} layers see {config.sliding_window} tokens back" if n_local else ""


def _tokenizer_facts(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    from edgelm.quant.huggingface_tokenizer import TOKENIZER_JSON
    from edgelm.runtime.tokenizer import Tokenizer

    kind = f"{metadata.get('tokenizer.ggml.model', 'not said')}, pre-tokenizer {metadata.get('tokenizer.ggml.pre', 'not said')}"
    if TOKENIZER_JSON in metadata:
        kind = "tokenizer.json of the folder"
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
    except EdgeLMError as error:
        return [("tokenizer", f"{kind}: {error}"), ("chat template", _template_fact(metadata))]
    ends = ", ".join(f"{token} {tokenizer.token_bytes(token).decode(errors='replace')!r}" for token in sorted(tokenizer.eog_ids))
    begin = f"{tokenizer.bos_id}" + (", added before every text" if tokenizer.add_bos else "")
    return [
        ("tokenizer", f"{kind}, {tokenizer.n_vocab:,} tokens"),
        ("begins with", begin if tokenizer.bos_id is not None else "no token"),
        ("ends with", ends or "no token"),
        ("chat template", _template_fact(metadata)),
    ]


def _template(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _template_fact(metadata: Mapping[str, Any]) -> str:
    template = _template(metadata)
    return f"{len(template):,} characters (--template prints it)" if template else "none: `edgelm run` continues text instead of answering"


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else path.stat().st_size


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
