"""Measured damages as JSON files, so that a second budget for the same model costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.quant.blocks import FORMATS
from edgelm.quant.fingerprint import Fingerprint, as_json, differences
from edgelm.quant.json_file import JsonObject, write_json
from edgelm.quant.mixed_precision import Choice, TensorOptions, check_options

VERSION = 1


def write_options(path: Path, options: Sequence[TensorOptions], fingerprint: Fingerprint) -> None:
    """Write the options so that there is never half of them.

    Args:
        fingerprint: of all that determines them: the model, the text, the candidates (fingerprint.make_fingerprint).

    Raises:
        ModelFileError: they cannot be written there.
    """
    tensors = {o.name: {"shape": o.shape, "damages": {choice.format: choice.error for choice in o.choices}} for o in options}
    write_json(path, {"version": VERSION, "fingerprint": as_json(fingerprint), "tensors": tensors}, "the measured damages")


def read_options(path: Path, fingerprint: Fingerprint) -> tuple[TensorOptions, ...]:
    """The options that were written with this fingerprint.

    Raises:
        ModelFileError: the file is missing, or holds no sound options.
        InvalidRequestError: they were measured on another model, or with other settings; the text says which.
    """
    fields = JsonObject.read(path)
    version = fields.integer("version")
    if version != VERSION:
        raise ModelFileError(f"{path}: damages of version {version}, but this edgelm reads version {VERSION}; measure again")
    changed = differences(fields.object("fingerprint").values, as_json(fingerprint))
    if changed:
        raise InvalidRequestError(f"{path}: these damages were measured differently ({'; '.join(changed)}); measure again, to another file")
    tensors = fields.object("tensors")
    options = tuple(_options(tensors.object(name), name) for name in tensors.values)
    try:
        check_options(options)
    except InvalidRequestError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return options


def _options(fields: JsonObject, name: str) -> TensorOptions:
    sizes = fields.reals("shape")
    if len(sizes) != 2 or not all(size > 0 and size.is_integer() for size in sizes):
        raise fields.fail("shape", "two whole numbers above zero")
    shape = tuple(int(size) for size in sizes)
    damages = fields.object("damages")
    choices = []
    for format_name in damages.values:
        if format_name not in FORMATS:
            raise ModelFileError(f"{damages.where}: {format_name!r} is no format; choose one of {', '.join(FORMATS)}")
        try:
            n_bytes = FORMATS[format_name].nbytes(shape)
        except ModelFileError as error:
            raise ModelFileError(f"{damages.where}: {error}") from None
        choices.append(Choice(format_name, n_bytes, damages.real(format_name)))
    return TensorOptions(name, shape, tuple(choices))
