import psutil
import pytest

from edgelm.bench.busy import busy_neighbour


def test_one_process_lives_as_long_as_the_block() -> None:
    before = set(psutil.Process().children())
    with busy_neighbour():
        (child,) = set(psutil.Process().children()) - before
        assert child.is_running()
    assert set(psutil.Process().children()) == before


def test_it_ends_when_the_block_fails() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(RuntimeError), busy_neighbour():
        raise RuntimeError
    assert set(psutil.Process().children()) == before


def test_it_is_not_started_when_not_wanted() -> None:
    before = set(psutil.Process().children())
    with busy_neighbour(wanted=False):
        assert set(psutil.Process().children()) == before
