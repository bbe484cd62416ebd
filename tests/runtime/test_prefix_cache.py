"""Beginnings that are kept: the longest is found, the oldest is forgotten, memory is bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.scripted import ScriptedBackend
from edgelm.errors import InvalidRequestError
from edgelm.runtime.prefix_cache import PrefixCache
from edgelm.runtime.prefix_store import StoreFolder


def array(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, np.int32)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend([0], n_vocab=100, kv_bytes_per_token=10)


def keep(cache: PrefixCache, backend: ScriptedBackend, sequence: int, tokens: Sequence[int]) -> None:
    backend.forward([Chunk(sequence, array(tokens), Outputs.NONE)])
    cache.keep(sequence, tokens)


def test_the_longest_beginning_is_found(backend: ScriptedBackend) -> None:
    cache = PrefixCache(backend, 1000)
    keep(cache, backend, 1, [1, 2, 3])
    keep(cache, backend, 2, [1, 2, 4, 5])
    assert cache.find(array([1, 2, 4, 9])) == (2, 3)
    assert cache.find(array([1, 2, 3, 4])) == (1, 3)
    assert cache.find(array([7])) == (None, 0)


def test_one_that_another_goes_on_from_is_not_kept_twice(backend: ScriptedBackend) -> None:
    cache = PrefixCache(backend, 1000)
    keep(cache, backend, 1, [1, 2, 3])
    keep(cache, backend, 2, [1, 2, 3, 4])
    assert (len(cache), cache.n_tokens) == (1, 4)
    assert backend.sequences == {2}


def test_what_was_of_no_use_for_longest_is_forgotten(backend: ScriptedBackend) -> None:
    cache = PrefixCache(backend, 60)  # six tokens
    keep(cache, backend, 1, [1, 1, 1])
    keep(cache, backend, 2, [2, 2, 2])
    cache.find(array([1, 1]))
    keep(cache, backend, 3, [3, 3, 3])
    assert backend.sequences == {1, 3}


def test_one_that_is_too_large_does_not_drive_the_others_out(backend: ScriptedBackend) -> None:
    cache = PrefixCache(backend, 60)
    keep(cache, backend, 1, [1, 1, 1])
    keep(cache, backend, 2, [2] * 7)
    assert backend.sequences == {1}
    assert cache.n_tokens == 3
    cache.clear()
    assert (len(cache), cache.n_tokens) == (0, 0)


def test_without_memory_nothing_is_kept(backend: ScriptedBackend) -> None:
    cache = PrefixCache(backend, 0)
    keep(cache, backend, 1, [1])
    assert not cache.is_used
    assert not backend.sequences


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    folder = StoreFolder(tmp_path, 1 << 20)
    yield folder
    folder.close()


LONG = [*range(70), 1]


def test_what_has_no_place_in_memory_is_read_from_disk(backend: ScriptedBackend, folder: StoreFolder) -> None:
    cache = PrefixCache(backend, 1000, folder.of("a model"))  # a hundred tokens
    keep(cache, backend, 1, LONG)
    keep(cache, backend, 2, [5] * 60)
    assert backend.sequences == {2}
    end = time.monotonic() + 10
    while cache.find(array(LONG))[1] < 70:
        assert time.monotonic() < end
        time.sleep(0.01)
    sequence, n = cache.find(array(LONG))
    assert n == len(LONG)
    assert sequence is not None
    assert backend.length(sequence) == n
    assert backend.sequences == {sequence}


def test_the_end_keeps_all_and_memory_that_is_short_nothing(backend: ScriptedBackend, folder: StoreFolder) -> None:
    cache = PrefixCache(backend, 2000, folder.of("a model"))
    keep(cache, backend, 1, [3] * 80)
    keep(cache, backend, 2, LONG)
    assert cache.free_oldest()
    cache.close()
    assert not backend.sequences
    later = PrefixCache(backend, 2000, folder.of("a model"))
    assert later.find(array([3] * 80)) == (None, 0)
    assert later.find(array(LONG))[1] == len(LONG)


def test_little_is_sooner_computed_than_read(backend: ScriptedBackend, folder: StoreFolder) -> None:
    folder.of("a model").write(array(LONG[:40]), backend.save(0))
    assert PrefixCache(backend, 1000, folder.of("a model")).find(array(LONG)) == (None, 0)


def test_what_the_backend_does_not_take_is_computed(backend: ScriptedBackend, folder: StoreFolder) -> None:
    folder.of("a model").write(array(LONG), [np.zeros(8, np.uint8)])
    assert PrefixCache(backend, 1000, folder.of("a model")).find(array(LONG)) == (None, 0)


def test_a_disk_needs_memory_and_a_backend_that_saves(backend: ScriptedBackend, folder: StoreFolder) -> None:
    with pytest.raises(InvalidRequestError, match="leave the disk cache out"):
        PrefixCache(backend, 0, folder.of("a model"))
    object.__setattr__(backend.info, "abilities", frozenset({"share", "truncate"}))
    with pytest.raises(InvalidRequestError, match="leave the disk cache out"):
        PrefixCache(backend, 1000, folder.of("a model"))
