"""JSON objects in files: from ones that are not trusted, with values asked for by key and type, and to new ones."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from edgelm.errors import ModelFileError

MAX_BYTES = 256 << 20
_LARGEST = 1e38
T = TypeVar("T")


def write_json(path: Path, fields: Mapping[str, Any], what: str) -> None:
    """Write an object so that there is never half of it in the file.

    Args:
        what: "the plan", for messages.

    Raises:
        ModelFileError: it cannot be written there.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(fields, file, indent=1, allow_nan=False)
                os.fchmod(file.fileno(), 0o644)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ModelFileError(f"{path}: {what} cannot be written ({error.strerror or error}); choose another place") from error


class JsonObject:
    """A JSON object and where it came from.

    Args:
        values: the object.
        where: file, and key for a nested object; starts every message.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, path: Path) -> JsonObject:
        """Read a file that holds one object.

        Raises:
            ModelFileError: the file is missing, unreadable, too large, not JSON, or not an object.
        """
        try:
            status = path.stat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # a pipe would be waited for; a folder fails below
                raise ModelFileError(f"{path}: this is not a regular file; fetch the model again")
            if status.st_size > MAX_BYTES:
                raise ModelFileError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which is no sound file of this kind; fetch it again")
            values = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ModelFileError(f"{path}: no such file; the folder is incomplete, fetch the model again") from None
        except OSError as error:
            raise ModelFileError(f"{path}: the file cannot be read ({error.strerror}); check its mode and owner") from None
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{path}: not sound JSON ({error}); fetch it again") from None
        if not isinstance(values, dict):
            raise ModelFileError(f"{path}: not a JSON object; fetch it again")
        return cls(values, str(path))

    @classmethod
    def read_if_there(cls, path: Path) -> JsonObject:
        """As read; an empty object where there is no such file."""
        return cls.read(path) if path.exists() else cls({}, str(path))

    def fail(self, key: str, wanted: str) -> ModelFileError:
        text = repr(self.values.get(key))
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        return ModelFileError(f"{self.where}: the key {key!r} is {shown}, not {wanted}; fetch the file again")

    def has(self, key: str) -> bool:
        """Whether the key is there, and not null."""
        return self.values.get(key) is not None

    @overload
    def integer(self, key: str) -> int: ...
    @overload
    def integer(self, key: str, default: T) -> int | T: ...
    def integer(self, key: str, default: Any = ...) -> Any:
        """A whole number from 0 to 2^31 - 1."""
        value = self._value(key, default)
        if value is default:
            return value
        if type(value) is not int or not 0 <= value < 2**31:
            raise self.fail(key, "a whole number from 0 to 2147483647")
        return value

    @overload
    def real(self, key: str) -> float: ...
    @overload
    def real(self, key: str, default: T) -> float | T: ...
    def real(self, key: str, default: Any = ...) -> Any:
        """A finite number."""
        value = self._value(key, default)
        if value is default:
            return value
        # NaN compares as false.
        if type(value) not in (int, float) or not abs(value) <= _LARGEST:
            raise self.fail(key, "a finite number")
        return float(value)

    def reals(self, key: str) -> list[float]:
        """A list of finite numbers."""
        value = self._value(key, ...)
        if not isinstance(value, list) or not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in value):
            raise self.fail(key, "a list of numbers")
        return [float(v) for v in value]

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: T) -> str | T: ...
    def text(self, key: str, default: Any = ...) -> Any:
        value = self._value(key, default)
        if value is not default and not isinstance(value, str):
            raise self.fail(key, "a text")
        return value

    @overload
    def truth(self, key: str) -> bool: ...
    @overload
    def truth(self, key: str, default: T) -> bool | T: ...
    def truth(self, key: str, default: Any = ...) -> Any:
        value = self._value(key, default)
        if value is not default and not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def object(self, key: str) -> JsonObject:
        """A nested object; empty where the key is missing or null."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return JsonObject(value, f"{self.where} ({key})")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is ...:
            raise ModelFileError(f"{self.where}: the key {key!r} is missing; the file is incomplete, fetch it again")
        return default
