"""A generation on the side of an event loop: computed in a thread of its own, consumed as an async iterator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from edgelm.runtime.results import Delta


async def stream_from_thread(deltas: Iterator[Delta], cancelled: Event) -> AsyncGenerator[Delta, None]:
    """The deltas, computed ahead in a worker thread.

    Cancelling the task or closing the generator sets `cancelled`, which stops the computation before its next token.
    An error in the computation is raised here.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Delta | None] = asyncio.Queue()

    def compute() -> None:
        try:
            for delta in deltas:
                loop.call_soon_threadsafe(queue.put_nowait, delta)
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    worker = ThreadPoolExecutor(1, "edgelm-generation")
    try:
        computation = worker.submit(compute)
        while (delta := await queue.get()) is not None:
            yield delta
        computation.result()
    finally:
        cancelled.set()
        worker.shutdown(wait=False)
