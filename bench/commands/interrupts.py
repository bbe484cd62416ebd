"""Ctrl-C, pressed twice by the impatient: the first ends a measurement, and no other may cost what was measured until then."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Inside, the first Ctrl-C raises KeyboardInterrupt; further ones do nothing until the process ends, and do not alter its exit code.

    Of the main thread only.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


@contextmanager
def no_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C does nothing. Of the main thread only."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
