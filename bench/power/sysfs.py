"""Reading the small files in which the kernel shows what it knows."""

from __future__ import annotations

from pathlib import Path

from edgelm.errors import MeterError


class UnreadableError(MeterError):
    """The file is there, but this user may not read it."""


def read_word(path: Path) -> str:
    """The file's text without blanks and the zero byte that a device tree ends it with.

    Raises:
        UnreadableError: this user may not read it.
        MeterError: it is missing, or the driver gives an error.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n")
    except PermissionError:
        raise UnreadableError(f"{path} may not be read by this user") from None
    except OSError as error:
        raise MeterError(f"{path} cannot be read ({error.strerror or error})") from error


def read_number(path: Path) -> float:
    """The number that the file holds.

    Raises:
        UnreadableError: this user may not read it.
        MeterError: it is missing, the driver gives an error, or it holds no number.
    """
    text = read_word(path)
    try:
        return float(text)
    except ValueError:
        raise MeterError(f"{path} holds {text[:40]!r}, which is no number") from None


def read_optional(path: Path) -> str | None:
    """The file's text, None where it cannot be read."""
    try:
        return read_word(path)
    except MeterError:
        return None
