"""Several models by name: loaded when they are asked for, unloaded when nobody has asked for a while or others need the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from edgelm.errors import BusyError, ClosedError, InsufficientMemoryError, UnknownModelError
from edgelm.runtime.chat_model import ChatModel
from edgelm.runtime.local_model import LocalModel

State = Literal["unloaded", "loading", "loaded"]


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        load: gives it, ready; takes seconds, and is called in a thread.
        n_bytes: of its file, which is about what it takes in memory.
        front: gives what answers conversations by it, such as a router; is called in the same thread. None where it answers itself.
    """

    load: Callable[[], LocalModel]
    n_bytes: int
    front: Callable[[LocalModel], ChatModel] | None = None


@dataclass(eq=False)
class _Entry:
    """
    Attributes:
        n_users: requests that use it, or wait for it: none of them may lose it.
        idle_since: `time.monotonic` when the last of them left.
    """

    source: ModelSource
    model: LocalModel | None = None
    front: ChatModel | None = None
    loading: asyncio.Task[LocalModel] | None = None
    n_users: int = 0
    idle_since: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.model is not None and not self.n_users


class Use:
    """A model that is in use, and is not unloaded until it is released.

    Attributes:
        model: on this device.
        front: what answers conversations: the model itself, or a router before it.
    """

    def __init__(self, name: str, model: LocalModel, entry: _Entry) -> None:
        self.name = name
        self.model = model
        self.front: ChatModel = entry.front or model
        self._entry: _Entry | None = entry

    def release(self) -> None:
        """It is not needed any more. Releasing twice is allowed."""
        if self._entry is not None:
            self._entry.n_users -= 1
            self._entry.idle_since = monotonic()
            self._entry = None


class ModelPool:
    """For one event loop.

    Args:
        sources: what can be loaded, by name; the first is taken where no name is given.
        most_bytes: of the models that are loaded at once; None for no bound.
        keep_alive_s: seconds after which a model that nobody uses is unloaded; None for never.
        grace_s: seconds that answers under way may take when a model is closed.
    """

    def __init__(
        self, sources: Mapping[str, ModelSource], most_bytes: int | None = None, keep_alive_s: float | None = None, grace_s: float = 0.0
    ) -> None:
        self._entries = {name: _Entry(source) for name, source in sources.items()}
        self._most_bytes = most_bytes
        self._keep_alive_s = keep_alive_s
        self._grace_s = grace_s
        self._is_closed = False
        self._changing = asyncio.Lock()  # one model is loaded or unloaded at a time, so that memory is counted once

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def state(self, name: str) -> State:
        """
        Raises:
            UnknownModelError: there is none of this name.
        """
        entry = self._find(name)[1]
        return "loaded" if entry.model else "loading" if entry.loading else "unloaded"

    def is_routed(self, name: str) -> bool:
        """Whether something stands before the model that may ask others.

        Raises:
            UnknownModelError: there is none of this name.
        """
        return self._find(name)[1].source.front is not None

    def loaded(self) -> dict[str, LocalModel]:
        """Those that are loaded."""
        return {name: entry.model for name, entry in self._entries.items() if entry.model}

    async def use(self, name: str = "") -> Use:
        """The model, loaded if it is not yet; all who ask for one that is being loaded wait.

        Raises:
            UnknownModelError: there is none of this name.
            InsufficientMemoryError: it does not fit beside the models that are in use.
            ClosedError: the pool was closed.
            EdgeLMError: it cannot be loaded.
        """
        if self._is_closed:
            raise ClosedError("the server is ending; ask again when it has been started anew")
        name, entry = self._find(name)
        entry.n_users += 1
        try:
            if entry.model is not None:
                return Use(name, entry.model, entry)
            entry.loading = entry.loading or asyncio.create_task(self._load(entry))
            return Use(name, await asyncio.shield(entry.loading), entry)  # others may wait for it, too
        except BaseException:
            entry.n_users -= 1
            raise

    async def unload(self, name: str) -> None:
        """Free its memory, if it is loaded.

        Raises:
            UnknownModelError: there is none of this name.
            BusyError: it is in use.
        """
        name, entry = self._find(name)
        if entry.n_users:
            raise BusyError(f"{name} is answering {entry.n_users} requests; ask again when they have ended")
        async with self._changing:
            await self._close(entry)

    async def sweep(self) -> None:
        """Unload what nobody has used for keep_alive_s."""
        if self._keep_alive_s is not None:
            async with self._changing:
                for entry in self._entries.values():
                    if entry.is_idle and monotonic() - entry.idle_since > self._keep_alive_s:
                        await self._close(entry)

    async def close(self) -> None:
        """Unload all, after the time of grace for answers under way; what is being loaded is waited for. Closing twice is allowed."""
        self._is_closed = True
        async with self._changing:
            await asyncio.gather(*(self._close(entry) for entry in self._entries.values()))

    def _find(self, name: str) -> tuple[str, _Entry]:
        name = name or next(iter(self._entries))
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownModelError(f"there is no model {name!r:.80}; this server has {', '.join(self._entries)}")
        return name, entry

    async def _load(self, entry: _Entry) -> LocalModel:
        try:
            async with self._changing:
                await self._make_room(entry.source.n_bytes)
                model, entry.front = await asyncio.to_thread(_load, entry.source)
                entry.model = model
                entry.idle_since = monotonic()
                return model
        finally:
            entry.loading = None  # after an error, the next one who asks tries again

    async def _make_room(self, n_bytes: int) -> None:
        """Unload the models that were used longest ago until so many bytes fit."""
        while self._most_bytes is not None and self._held_bytes() + n_bytes > self._most_bytes:
            idle = [entry for entry in self._entries.values() if entry.is_idle]
            if not idle:
                raise InsufficientMemoryError(
                    f"a model of {n_bytes / 1e6:,.0f} MB does not fit beside those in use ({self._held_bytes() / 1e6:,.0f} MB of "
                    f"{self._most_bytes / 1e6:,.0f} MB); ask again when they are idle, or give the server more memory"
                )
            await self._close(min(idle, key=lambda entry: entry.idle_since))

    def _held_bytes(self) -> int:
        return sum(entry.source.n_bytes for entry in self._entries.values() if entry.model)

    async def _close(self, entry: _Entry) -> None:
        model, entry.model, entry.front = entry.model, None, None
        if model is not None:
            await asyncio.to_thread(model.close, self._grace_s)


def _load(source: ModelSource) -> tuple[LocalModel, ChatModel | None]:
    model = source.load()
    try:
        return model, None if source.front is None else source.front(model)
    except BaseException:
        model.close()
        raise
