"""Records as JSON files: written atomically, read as untrusted input."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.bench.record import VERSION, Record
from edgelm.bench.record_checks import impossibilities
from edgelm.errors import MissingPackageError, RecordError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_MAX_BYTES = 1 << 30


def write_record(path: Path, record: Record) -> None:
    """Write the record as JSON; an older file of that name stays whole until the new one is.

    Raises:
        RecordError: it cannot be written there.
        MissingPackageError: pydantic is not installed.
    """
    write_text(path, encode_record(record) + "\n")


def read_record(path: Path) -> Record:
    """Read what write_record wrote.

    Raises:
        RecordError: the file is missing, too large, malformed, or of another version.
        MissingPackageError: pydantic is not installed.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise RecordError(f"{path} has {size / 1e9:.1f} GB, which no record of edgebench has; give another file")
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror or error}); give a record of edgebench run --json") from error
    return decode_record(data, str(path))


def encode_record(record: Record) -> str:
    """The record as JSON text.

    Raises:
        RecordError: a number is not finite, which no figure of a record may be.
    """
    try:
        return json.dumps(_adapter().dump_python(record, mode="json"), allow_nan=False, indent=1)
    except ValueError as error:
        raise RecordError(f"the record of {record.started} holds a number that is not finite ({error}); it was not written") from error


def decode_record(data: bytes | str, where: str) -> Record:
    """A record from JSON text; `where` names it in errors.

    Raises:
        RecordError: it is malformed, says what cannot be, or is of another version.
        MissingPackageError: pydantic is not installed.
    """
    adapter = _adapter()
    from pydantic import ValidationError

    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is no JSON ({error}); give a record of edgebench run --json") from error
    _check_version(fields, where)
    try:
        record = adapter.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{where} is no sound record: {place}: {first['msg']}; measure again with edgebench run --json") from error
    problem = next(impossibilities(record), None)
    if problem is not None:
        raise RecordError(f"{where} is no sound record: {problem}; measure again with edgebench run --json")
    return record


def require_records() -> None:
    """Make sure that records can be written here.

    Raises:
        MissingPackageError: pydantic is not installed.
    """
    _adapter()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that there is never half of it.

    Raises:
        RecordError: it cannot be written there.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error


def _check_version(fields: Any, where: str) -> None:
    version = fields.get("version") if isinstance(fields, dict) else None
    if version == VERSION:
        return
    if isinstance(version, int) and version > VERSION:
        raise RecordError(f"{where} is of version {version}, but this edgebench reads version {VERSION}; update edgelm")
    if version is None:
        raise RecordError(f"{where} has no version that edgebench knows; give a record of edgebench run --json, or measure again")
    raise RecordError(f"{where} is of version {version}, whose figures this edgebench (version {VERSION}) cannot vouch for; measure again")


def _adapter() -> TypeAdapter[Record]:
    try:
        from pydantic import ConfigDict, TypeAdapter, with_config
    except ImportError as error:
        raise MissingPackageError(f"records need pydantic, which is not installed ({error}); pip install 'edgelm[bench]'") from error
    return TypeAdapter(with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(Record))
