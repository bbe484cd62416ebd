"""A bar on stderr for work that takes minutes, with the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgelm.quant.quantize import Say


@contextmanager
def work_bar() -> Iterator[Say]:
    """Gives a function that takes what is being done, and how much of how much is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=False), console=Console(stderr=True)) as progress:
        task = progress.add_task("reading", total=None)

        def say(what: str, n_done: int, n_all: int) -> None:
            progress.update(task, description=what, completed=n_done, total=n_all)

        yield say
