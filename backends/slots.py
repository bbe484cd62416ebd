"""Which slot of an engine's KV cache holds which sequence, for engines whose caches have numbered places."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.errors import InvalidRequestError


@dataclass
class Slot:
    """A place in the cache.

    Attributes:
        index: counted from 0.
        length: tokens it holds.
    """

    index: int
    length: int = 0


class Slots:
    """Sequences by number, each in a slot; a new one gets the lowest that is free, so that those in use lie close together."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}

    def __len__(self) -> int:
        """Slots in use."""
        return len(self._slots)

    @property
    def n_spanned(self) -> int:
        """One more than the highest slot in use; 0 where there is none."""
        return max((slot.index + 1 for slot in self._slots.values()), default=0)

    def length(self, sequence: int) -> int:
        """Tokens in the sequence; 0 for one never seen."""
        slot = self._slots.get(sequence)
        return slot.length if slot else 0

    def find(self, sequence: int) -> Slot | None:
        """The sequence's slot, if it has one."""
        return self._slots.get(sequence)

    def claim(self, sequence: int) -> Slot:
        """The sequence's slot, a free one if it has none yet."""
        slot = self._slots.get(sequence)
        if slot is None:
            used = {other.index for other in self._slots.values()}
            slot = self._slots[sequence] = Slot(next(i for i in range(len(used) + 1) if i not in used))
        return slot

    def release(self, sequence: int) -> Slot | None:
        """Forget the sequence; the slot it had, if any."""
        return self._slots.pop(sequence, None)

    def clear(self) -> None:
        self._slots.clear()

    def check_share(self, source: int, target: int, n_tokens: int) -> None:
        """
        Raises:
            InvalidRequestError: the source is shorter, or the target is not empty.
        """
        if not 0 <= n_tokens <= self.length(source):
            raise InvalidRequestError(f"sequence {source} holds {self.length(source)} tokens; {n_tokens} of them cannot be shared")
        if target in self._slots:
            raise InvalidRequestError(f"sequence {target} is not empty; free it before sharing into it")

    def check_truncate(self, sequence: int, n_tokens: int) -> None:
        """
        Raises:
            InvalidRequestError: the sequence is shorter.
        """
        length = self.length(sequence)
        if not 0 <= n_tokens <= length:
            raise InvalidRequestError(f"sequence {sequence} holds {length} tokens and cannot be truncated to {n_tokens}")
