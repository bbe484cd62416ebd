"""What a record says of the model: its digest, its sizes, its weights."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgelm.bench.page_cache import files_of
from edgelm.bench.record import Model
from edgelm.bench.token_cost import read_token_cost
from edgelm.errors import ModelFileError
from edgelm.quant.model_file import ModelFile
from edgelm.quant.open_model import open_model

# Tables of which a token reads one row, and multiplies none.
_LOOKED_UP = frozenset({"token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"})


def describe_model(path: Path) -> Model:
    """A GGUF file, a folder as the Hugging Face hub has it, or an exported folder.

    An exported folder's weights are in graphs. What a token multiplies follows from the model's sizes; all weights and their format do not.

    Raises:
        ModelFileError, UnsupportedModelError: as the file is found.
    """
    model = open_model(path)
    try:
        weights = _count(model)
        cost = read_token_cost(model)
        is_random = str(model.metadata.get("general.name", "")).endswith("random weights")
    finally:
        model.close()
    files = files_of([path])
    return Model(
        name=path.absolute().name,
        n_bytes=sum(file.stat().st_size for file in files),
        sha256=sha256_of(files),
        is_random=is_random,
        format=weights.format,
        n_weights=weights.n or None,
        n_weights_per_token=weights.n_per_token or (cost.n_weights if cost else None),
        token_cost=cost,
    )


def sha256_of(files: list[Path]) -> str:
    """Of the files' bytes, one file after the other; 64 hexadecimal digits.

    Raises:
        ModelFileError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class _Weights:
    n: int
    n_per_token: int
    format: str


def _count(model: ModelFile) -> _Weights:
    """Matrices only; experts that a token is not sent to are not counted for it."""
    shapes = {name: (tensor.shape, tensor.format.name) for name, tensor in model.tensors.items() if len(tensor.shape) > 1}
    architecture = model.metadata.get("general.architecture", "")
    n_experts = int(model.metadata.get(f"{architecture}.expert_count", 0)) or 1
    n_used = int(model.metadata.get(f"{architecture}.expert_used_count", n_experts))
    is_tied = "output.weight" not in shapes
    formats: Counter[str] = Counter()
    total = per_token = 0
    for name, (shape, format_name) in shapes.items():
        n = prod(shape)
        formats[format_name] += n
        total += n
        if "_exps." in name:
            per_token += n * n_used // n_experts
        elif name not in _LOOKED_UP or (is_tied and name == "token_embd.weight"):
            per_token += n
    return _Weights(total, per_token, formats.most_common(1)[0][0] if formats else "")
