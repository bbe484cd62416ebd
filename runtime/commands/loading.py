"""From the MODEL argument to a loaded model, with progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import typer

from edgelm.runtime.catalogue import find_model, is_path, resolve_model
from edgelm.runtime.settings import read_settings

if TYPE_CHECKING:
    from edgelm.runtime.download import Progress
    from edgelm.runtime.llm import LLM


def load(
    model: str, backend: str | None, n_threads: int | None, n_ctx: int | None, precision: str | None, backend_options: Sequence[str]
) -> LLM:
    """Load a model, pulling it first if it is known by name and not here yet.

    Args:
        backend_options: "name=value" each.
    """
    named = [option.partition("=") for option in backend_options]
    for name, equals, _ in named:
        if not name or not equals:
            raise typer.BadParameter(f"--backend-option {name!r} has no value; write NAME=VALUE")
    path = locate(model)
    from edgelm.runtime.llm import LLM

    kind = cast(Literal["int8", "f32"] | None, precision)  # the registry refuses any other
    values = {name: value for name, _, value in named}
    return LLM(path, backend, n_threads=n_threads, n_ctx=n_ctx, precision=kind, backend_options=values, progress=_say)


def locate(model: str) -> Path:
    """The model's file or folder, pulled with a progress bar if need be."""
    return resolve_model(model) if is_path(model) else pull_visibly(model)


def pull_visibly(name: str) -> Path:
    """Pull a model with a progress bar on stderr; quiet when it is here already."""
    settings = read_settings()
    model = find_model(name)
    target = settings.models / model.file
    if target.is_file():
        return target
    from edgelm.runtime.download import pull

    print(f"{model.name}: {model.summary}. Licence: {model.licence}", file=sys.stderr)
    with _bar(name) as progress:
        return pull(model, progress, settings)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name, total=None)

        def show(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)

        yield show


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
