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

    # The time left is by the average of the last half hour: a block of a large model alone takes minutes.
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), speed_estimate_period=1800) as progress:
        task = progress.add_task("reading", total=None)

        def say(what: str, n_done: int, n_all: int) -> None:
            progress.update(task, description=what, completed=n_done, total=n_all)

        yield say
