"""Pages of the KV cache: owned, shared, copied before they differ."""

from __future__ import annotations

import pytest

from edgelm.backends.cpu.kv_cache import KVCache, Sequence
from edgelm.backends.cpu.records import PAGE
from edgelm.errors import ContextOverflowError, InsufficientMemoryError, InvalidRequestError

N_CTX = 4 * PAGE


def append(cache: KVCache, number: int, n_tokens: int) -> Sequence:
    sequence = cache.reserve(number, n_tokens)
    sequence.length += n_tokens
    return sequence


def test_pages_come_as_positions_are_reserved() -> None:
    cache = KVCache(1000, N_CTX)
    sequence = append(cache, 7, PAGE)
    assert len(sequence.pages) == 1
    append(cache, 7, 1)
    assert len(sequence.pages) == 2
    assert [int(address) for address in sequence.table[:3]] == [*(page.address for page in sequence.pages), 0]
    assert all(page.address % 64 == 0 and not page.bytes().any() for page in sequence.pages)


def test_whole_pages_are_shared_and_the_rest_is_copied() -> None:
    cache = KVCache(1000, N_CTX)
    source = append(cache, 0, 3 * PAGE)
    source.pages[1].bytes()[:] = 5
    cache.share(0, 1, PAGE + 3)
    target = cache.reserve(1, 1)
    assert target.pages[0] is source.pages[0]
    assert target.pages[1] is not source.pages[1]
    assert (target.pages[1].bytes() == 5).all()
    assert cache.length(1) == PAGE + 3


def test_a_shared_page_is_copied_before_it_is_written() -> None:
    cache = KVCache(1000, N_CTX)
    source = append(cache, 0, PAGE)
    shared = source.pages[0]
    cache.share(0, 1, PAGE)
    cache.truncate(1, 5)
    target = cache.reserve(1, 1)
    assert target.pages[0] is not shared
    assert source.pages[0] is shared
    assert shared.owners == 1
    cache.free(0)
    assert shared.owners == 0


def test_overflow_leaves_the_sequence_as_it_was() -> None:
    cache = KVCache(1000, N_CTX)
    append(cache, 0, N_CTX - 1)
    with pytest.raises(ContextOverflowError, match=f"{N_CTX + 1} tokens"):
        cache.reserve(0, 2)
    assert cache.length(0) == N_CTX - 1
    append(cache, 0, 1)


def test_memory_that_will_not_suffice_is_an_error() -> None:
    cache = KVCache(1 << 50, N_CTX)
    with pytest.raises(InsufficientMemoryError, match="KV cache"):
        cache.reserve(0, 1)
    assert cache.length(0) == 0


def test_senseless_sharing_and_truncating_are_refused() -> None:
    cache = KVCache(1000, N_CTX)
    append(cache, 0, 10)
    for call in (lambda: cache.share(0, 1, 11), lambda: cache.share(0, 1, -1), lambda: cache.share(0, 0, 3), lambda: cache.truncate(0, 11)):
        with pytest.raises(InvalidRequestError):
            call()
    cache.free(3)
    cache.truncate(3, 0)


def test_memory_for_one_page_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 2500

    def require(needed: int, what: str) -> None:
        if needed > free:
            raise InsufficientMemoryError(what)

    monkeypatch.setattr("edgelm.backends.cpu.kv_cache.require_memory", require)
    cache = KVCache(1000, N_CTX)
    append(cache, 0, 2 * PAGE)
    free = 900
    with pytest.raises(InsufficientMemoryError):
        cache.reserve(0, 1)
