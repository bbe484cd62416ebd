"""Beginnings that are kept: the longest is found, the oldest is forgotten, memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgelm.backends.base import Chunk, Outputs
from edgelm.backends.scripted import ScriptedBackend
from edgelm.runtime.prefix_cache import PrefixCache, common_prefix


def array(tokens: Sequence[int]) -> np.ndarray:
    return np.asarray(tokens, np.int32)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend([0], n_vocab=100, kv_bytes_per_token=10)


def keep(cache: PrefixCache, backend: ScriptedBackend, sequence: int, tokens: Sequence[int]) -> None:
    backend.forward([Chunk(sequence, array(tokens), Outputs.NONE)])
    cache.keep(sequence, tokens)


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1), ([4], [5], 0)]
)
def test_what_both_begin_with(a: list[int], b: list[int], n: int) -> None:
    assert common_prefix(array(a), array(b)) == n


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
