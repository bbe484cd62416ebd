"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgelm.bench.shapes import SHAPES, cached_shape
from edgelm.errors import InvalidRequestError, ModelFileError
from edgelm.runtime.catalogue import resolve_model
from edgelm.runtime.settings import read_settings

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Path of a GGUF file or of an exported folder, or a catalogue name.")]
MaybeModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="Path of a GGUF file or of an exported folder, or a catalogue name.", show_default=False)
]


def _in_a_folder(path: Path | None) -> Path | None:
    """The path of a file that is written at the end: what is wrong with it is told at the start."""
    try:
        is_wrong = path is not None and (path.is_dir() or not path.absolute().parent.is_dir())
    except OSError:  # a name that is too long
        is_wrong = True
    if is_wrong:
        raise typer.BadParameter(f"{path} cannot be written; give a file in a folder that exists")
    return path


Json = Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write the record to this file.", callback=_in_a_folder)]
Html = Annotated[Path | None, typer.Option("--html", metavar="OUT", help="Also write a page with plots.", callback=_in_a_folder)]
Precision = Annotated[
    Literal["int8", "f32"] | None, typer.Option(help="Precision of edgelm's activations.", show_default="the engine's choice")
]
Backend = Annotated[str, typer.Option(help="edgelm's engine.")]
Shape = Annotated[str, typer.Option(metavar="NAME", help=f"Instead of MODEL: random weights of a published shape ({', '.join(SHAPES)}).")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Number format of the shape's linear layers.")]
Meters = Annotated[
    list[str] | None,
    typer.Option("--meter", metavar="ADDRESS", help="A network meter, such as shelly://192.168.1.20; may come several times."),
]
EstimateTdp = Annotated[
    float | None, typer.Option("--estimate-tdp", metavar="W", help="Watts to note as an assumption; no comparison uses them.")
]
IdleSeconds = Annotated[
    float | None,
    typer.Option(min=0, help="Rest before and after, to measure idle watts.", show_default="10 with a meter, none without"),
]


def model_path(model: str, shape: str, format_name: str) -> Path:
    """The model's path, or that of the random-weight model of the shape, which is made once and kept.

    Raises:
        InvalidRequestError: neither was given, or both.
    """
    if bool(model) == bool(shape):
        raise InvalidRequestError("give either a MODEL or --shape NAME")
    if model:
        return resolve_model(model)
    return cached_shape(shape, format_name, read_settings().home / "shapes")


def gguf_file(model: str) -> Path:
    """The path of a GGUF file, for what reads nothing else."""
    path = resolve_model(model)
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder, but llama.cpp reads GGUF files only; give the path of one")
    return path


def numbers(text: str, option: str, least: int) -> tuple[int, ...]:
    """Whole numbers separated by commas, each once, in the order given."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InvalidRequestError(f"{option} is {text!r}; give whole numbers separated by commas, such as 1,2") from None
    if min(found) < least:
        raise InvalidRequestError(f"{option} is {text!r}; each number must be at least {least}")
    return found


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def fraction(text: str, option: str) -> float:
    """ "1%" or "0.01" as 0.01."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise InvalidRequestError(f"{option} is {text!r}; give a share between 0 and 1, such as 1%")
    return value


def read_text(path: Path) -> str:
    """A text file's content.

    Raises:
        InvalidRequestError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path} cannot be read as UTF-8 text ({error}); give another file") from error
