"""Models by name: loaded once for all who ask, never taken from those who use them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from edgelm.errors import BusyError, ClosedError, InsufficientMemoryError, ModelFileError, UnknownModelError
from edgelm.runtime.local_model import LocalModel
from edgelm.runtime.model_pool import ModelPool, ModelSource


class Model:
    """Stands for a loaded model."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.name = name
        self._closed = closed

    def close(self, grace_s: float) -> None:
        assert grace_s == 7
        self._closed.append(self.name)


class Shelf:
    """Models that can be loaded.

    Attributes:
        loaded, closed: names, in order.
        may_load: loading waits for it.
    """

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.fails: set[str] = set()

    def source(self, name: str, n_bytes: int) -> ModelSource:
        def load() -> LocalModel:
            self.may_load.wait(10)
            if name in self.fails:
                raise ModelFileError(f"{name} is damaged")
            self.loaded.append(name)
            return cast(LocalModel, Model(name, self.closed))

        return ModelSource(load, n_bytes)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def run(shelf: Shelf, scene: Callable[[ModelPool], Coroutine[Any, Any, None]], **bounds: Any) -> None:
    async def play() -> None:
        pool = ModelPool({name: shelf.source(name, 100) for name in "abc"}, grace_s=7, **bounds)
        await scene(pool)
        await pool.close()

    asyncio.run(play())
    assert sorted(shelf.loaded) == sorted(shelf.closed)


def test_a_model_is_loaded_once_for_all_who_wait(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        shelf.may_load.clear()
        waiting = [asyncio.create_task(pool.use("b")) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert pool.state("b") == "loading"
        shelf.may_load.set()
        uses = await asyncio.gather(*waiting)
        assert len({id(use.model) for use in uses}) == 1
        assert pool.state("b") == "loaded"
        assert list(pool.loaded()) == ["b"]

    run(shelf, scene)
    assert shelf.loaded == ["b"]


def test_without_a_name_it_is_the_first(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        assert (await pool.use()).name == "a"
        with pytest.raises(UnknownModelError, match="this server has a, b, c"):
            await pool.use("d")

    run(shelf, scene)


def test_one_who_goes_does_not_stop_the_loading_for_others(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        shelf.may_load.clear()
        first, second = asyncio.create_task(pool.use("a")), asyncio.create_task(pool.use("a"))
        await asyncio.sleep(0.01)
        first.cancel()
        shelf.may_load.set()
        (await second).release()
        await pool.unload("a")  # which nobody uses now

    run(shelf, scene)


def test_what_cannot_be_loaded_is_tried_again(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        shelf.fails.add("a")
        with pytest.raises(ModelFileError, match="damaged"):
            await pool.use("a")
        assert pool.state("a") == "unloaded"
        shelf.fails.clear()
        assert (await pool.use("a")).name == "a"

    run(shelf, scene)


def test_the_one_used_longest_ago_makes_room(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        (await pool.use("a")).release()
        (await pool.use("b")).release()
        (await pool.use("a")).release()
        await pool.use("c")
        assert shelf.closed == ["b"]

    run(shelf, scene, most_bytes=250)


def test_one_in_use_does_not(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        in_use, _ = await pool.use("a"), await pool.use("b")
        with pytest.raises(InsufficientMemoryError, match="beside those in use"):
            await pool.use("c")
        with pytest.raises(BusyError, match="a is answering 1 requests"):
            await pool.unload("a")
        in_use.release()
        in_use.release()
        assert (await pool.use("c")).name == "c"
        assert shelf.closed == ["a"]

    run(shelf, scene, most_bytes=250)


def test_once_closed_nothing_is_loaded(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        await pool.use("a")
        await pool.close()
        with pytest.raises(ClosedError, match="is ending"):
            await pool.use("a")

    run(shelf, scene)


def test_what_nobody_uses_is_unloaded_after_a_while(shelf: Shelf) -> None:
    async def scene(pool: ModelPool) -> None:
        (await pool.use("a")).release()
        await pool.use("b")
        await pool.sweep()
        assert shelf.closed == []
        await asyncio.sleep(0.06)
        await pool.sweep()
        assert shelf.closed == ["a"]

    run(shelf, scene, keep_alive_s=0.05)
