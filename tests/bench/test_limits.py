import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from edgelm.backends.cpu.kernel_cache import host_target
from edgelm.bench.cpu_layout import allowed_cpus
from edgelm.bench.limit_kernels import available
from edgelm.bench.limits import array_bytes, measure_limits, merge_limits, rates_by_window
from edgelm.bench.record import Limits
from edgelm.errors import InvalidRequestError, MeasurementError


@pytest.fixture(scope="module")
def limits() -> Limits:
    return measure_limits(2)


def test_both_limits_are_found(limits: Limits) -> None:
    assert limits.n_threads == 2
    assert 0 < limits.median_bytes_per_s <= limits.bytes_per_s
    assert 0 < limits.median_macs_per_s <= limits.macs_per_s
    assert limits.instruction in {row.name for row in available(host_target())}


def test_it_tells_what_it_measures_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    lines: list[str] = []
    cpus, n_threads = allowed_cpus(), threading.active_count()
    one = measure_limits(1, lines.append, tmp_path)
    assert (allowed_cpus(), threading.active_count()) == (cpus, n_threads)
    assert "memory bandwidth" in lines[0]
    assert any(one.instruction in line for line in lines)
    assert one.cache_bytes is None  # there is no sysfs under this root


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the system sends no signal to a thread")
def test_ctrl_c_ends_it_at_once_and_harms_nothing() -> None:
    main = threading.main_thread().ident or 0
    ctrl_c = threading.Timer(0.4, lambda: signal.pthread_kill(main, signal.SIGINT))  # while memory is read
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        measure_limits(2)
    readers = [thread for thread in threading.enumerate() if thread.name.startswith("limits-")]
    for thread in readers:
        thread.join(1.0)
    assert not any(thread.is_alive() for thread in readers)


def test_no_threads_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="n_threads is 0"):
        measure_limits(0)


@pytest.mark.parametrize("cache", [None, 1 << 20, 32 << 20, 384 << 20])
@pytest.mark.parametrize("n_threads", [1, 3, 64])
def test_the_array_is_far_larger_than_the_caches(cache: int | None, n_threads: int) -> None:
    size = array_bytes(cache, 16 << 30, n_threads)
    assert size > 3.9 * (cache or 0)
    assert size > 200 << 20
    assert size % (512 * n_threads) == 0


def test_a_little_memory_gives_a_smaller_array() -> None:
    assert 2 * (32 << 20) <= array_bytes(32 << 20, 200 << 20, 2) <= 100 << 20


@pytest.mark.parametrize(("cache", "free"), [(384 << 20, 1 << 30), (None, 1 << 20), (32 << 20, 100 << 20)])
def test_too_little_memory_is_said(cache: int | None, free: int) -> None:
    with pytest.raises(MeasurementError, match="memory are free"):
        array_bytes(cache, free, 2)


def test_rates_add_up_over_the_threads() -> None:
    slow, fast = np.arange(0, 8.1, 0.5), np.arange(0, 8.1, 0.25)
    np.testing.assert_allclose(rates_by_window([slow, fast], 10.0), 20 + 40)


def test_only_the_time_in_which_all_worked_counts() -> None:
    """A thread that began late or ended early must not make the others look fast."""
    alone_at_first = np.concatenate([np.arange(0, 2, 0.1), np.arange(2, 10.1, 1.0)])  # ten times as fast as long as it was alone
    late = np.arange(2, 10.1, 1.0)
    np.testing.assert_allclose(rates_by_window([alone_at_first, late], 1.0), 2.0)


def test_threads_that_took_turns_give_no_figure() -> None:
    with pytest.raises(MeasurementError, match="at the same time"):
        rates_by_window([[0.0, 1.0], [1.5, 2.5]], 1.0)


def with_limits(n_threads: int, gigabytes: float, macs: float, instruction: str = "sdot") -> Limits:
    return Limits(n_threads, gigabytes * 1e9, gigabytes * 0.9e9, macs * 1e9, macs * 0.9e9, instruction)


def test_the_best_of_two_measurements_counts() -> None:
    before, after = with_limits(2, 20, 100, "smmla"), with_limits(2, 30, 90)
    [merged] = merge_limits([before, after])
    assert merged == with_limits(2, 30, 100, "smmla")


def test_more_threads_are_not_slower() -> None:
    merged = merge_limits([with_limits(4, 10, 300), with_limits(1, 19, 82), with_limits(2, 11, 151), with_limits(1, 17, 90)])
    assert [one.n_threads for one in merged] == [1, 2, 4]
    assert [one.bytes_per_s / 1e9 for one in merged] == [19, 19, 19]
    assert [one.macs_per_s / 1e9 for one in merged] == [90, 151, 300]
    assert all(one.median_bytes_per_s <= one.bytes_per_s for one in merged)


def test_nothing_merges_to_nothing() -> None:
    assert merge_limits([]) == ()
