"""The KV cache: pages of PAGE positions that sequences own, share while they are equal, and copy before they differ."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm.backends.cpu.records import PAGE
from edgelm.backends.memory import require_memory
from edgelm.errors import ContextOverflowError, InsufficientMemoryError, InvalidRequestError

_ALIGNMENT = 64
_CHECKED_BYTES = 32 << 20


class Page:
    """Keys and values of PAGE positions in all layers: zeroed bytes at an aligned address.

    Zeroed, because values of positions not yet written are multiplied by a weight of zero and must be finite.
    """

    __slots__ = ("_memory", "address", "n_bytes", "owners")

    def __init__(self, n_bytes: int) -> None:
        self._memory = np.zeros(n_bytes + _ALIGNMENT, np.uint8)
        self.address = -(-self._memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self.n_bytes = n_bytes
        self.owners = 1

    def bytes(self) -> NDArray[np.uint8]:
        """uint8 [n_bytes], as a view."""
        start = self.address - self._memory.ctypes.data
        return self._memory[start : start + self.n_bytes]


@dataclass
class Sequence:
    """Tokens that were appended to one sequence, and where their keys and values are.

    Attributes:
        length: tokens held.
        pages: of positions 0 .. length, PAGE each.
        table: int64 [n_ctx / PAGE], addresses of the pages, for the kernels.
    """

    length: int
    table: NDArray[np.int64]
    pages: list[Page] = field(default_factory=list)


class KVCache:
    """Sequences by number."""

    def __init__(self, page_bytes: int, n_ctx: int) -> None:
        self.page_bytes = page_bytes
        self.n_ctx = n_ctx
        self._sequences: dict[int, Sequence] = {}
        self._n_checked = 0  # pages that there was memory for when it was last looked at

    def length(self, number: int) -> int:
        """Tokens in the sequence; 0 for one never seen."""
        sequence = self._sequences.get(number)
        return sequence.length if sequence else 0

    def check_room(self, number: int, n_tokens: int) -> None:
        """Raises ContextOverflowError if n_tokens more do not fit."""
        total = self.length(number) + n_tokens
        if total > self.n_ctx:
            raise ContextOverflowError(total, self.n_ctx)

    def reserve(self, number: int, n_tokens: int) -> Sequence:
        """Make positions length .. length + n_tokens writable; the length is the caller's to advance.

        Raises:
            ContextOverflowError: they exceed n_ctx.
            InsufficientMemoryError: there is no memory for the pages.
        """
        self.check_room(number, n_tokens)
        sequence = self._sequences.get(number)
        if sequence is None:
            sequence = self._sequences[number] = self._new_sequence()
        first, last = sequence.length // PAGE, -(-(sequence.length + n_tokens) // PAGE)
        for index in range(first, last):
            if index == len(sequence.pages):
                self._set_page(sequence, index, self._new_page())
            elif sequence.pages[index].owners > 1:
                self._set_page(sequence, index, self._copy(sequence.pages[index]))
        return sequence

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Begin sequence `target` with the first n_tokens of `source`. Whole pages are shared, the rest of one page is copied.

        Raises:
            InvalidRequestError: the source is shorter, or the target is not empty.
        """
        if not 0 <= n_tokens <= self.length(source):
            raise InvalidRequestError(f"sequence {source} holds {self.length(source)} tokens; {n_tokens} of them cannot be shared")
        if target in self._sequences:
            raise InvalidRequestError(f"sequence {target} is not empty; free it before sharing into it")
        origin = self._sequences.get(source) or self._new_sequence()
        sequence = self._new_sequence()
        for index in range(-(-n_tokens // PAGE)):
            page = origin.pages[index]
            if (index + 1) * PAGE <= n_tokens:
                page.owners += 1
            else:
                page = self._copy(page, release=False)
            self._set_page(sequence, index, page)
        sequence.length = n_tokens
        self._sequences[target] = sequence

    def truncate(self, number: int, n_tokens: int) -> None:
        """Keep the first n_tokens.

        Raises:
            InvalidRequestError: the sequence is shorter.
        """
        length = self.length(number)
        if not 0 <= n_tokens <= length:
            raise InvalidRequestError(f"sequence {number} holds {length} tokens and cannot be truncated to {n_tokens}")
        if n_tokens == length:
            return
        sequence = self._sequences[number]
        kept = -(-n_tokens // PAGE)
        for page in sequence.pages[kept:]:
            page.owners -= 1
        del sequence.pages[kept:]
        sequence.length = n_tokens

    def save(self, number: int) -> list[NDArray[np.uint8]]:
        """The bytes of its pages, as views, which nobody writes to while the sequence is not continued."""
        sequence = self._sequences.get(number)
        return [page.bytes() for page in sequence.pages] if sequence else []

    def restore(self, number: int, n_tokens: int, state: NDArray[np.uint8]) -> None:
        """Begin a sequence with the pages that `save` gave, one after the other.

        Raises:
            InvalidRequestError: the sequence is not empty, or so many bytes are not the pages of so many tokens.
            InsufficientMemoryError: there is no memory for the pages.
        """
        pages = state.reshape(-1, self.page_bytes) if state.size % self.page_bytes == 0 else state[:0, None]
        if self.length(number) or not 0 <= n_tokens <= self.n_ctx or len(pages) != -(-n_tokens // PAGE):
            raise InvalidRequestError(f"{state.size} bytes are not {n_tokens} tokens of an empty sequence of this model; compute them anew")
        sequence = self._new_sequence()
        for index, saved in enumerate(pages):
            page = self._new_page()
            page.bytes()[:] = saved
            self._set_page(sequence, index, page)
        sequence.length = n_tokens
        self._sequences[number] = sequence

    def free(self, number: int) -> None:
        """Forget the sequence."""
        sequence = self._sequences.pop(number, None)
        for page in sequence.pages if sequence else ():
            page.owners -= 1

    def clear(self) -> None:
        self._sequences.clear()

    def _new_sequence(self) -> Sequence:
        return Sequence(0, np.zeros(-(-self.n_ctx // PAGE) + 1, np.int64))

    def _new_page(self) -> Page:
        if not self._n_checked:
            self._n_checked = self._check_memory()
        self._n_checked -= 1
        return Page(self.page_bytes)

    def _check_memory(self) -> int:
        """How many pages there is memory for: some together, as asking the system takes as long as making a page."""
        several = max(_CHECKED_BYTES // self.page_bytes, 1)
        with suppress(InsufficientMemoryError):
            require_memory(several * self.page_bytes, "the KV cache")
            return several
        require_memory(self.page_bytes, "the KV cache")
        return 1

    def _copy(self, page: Page, release: bool = True) -> Page:
        copy = self._new_page()
        copy.bytes()[:] = page.bytes()
        page.owners -= release
        return copy

    def _set_page(self, sequence: Sequence, index: int, page: Page) -> None:
        sequence.pages[index : index + 1] = [page]
        sequence.table[index] = page.address
