import numpy as np
import pytest

from edgelm.quant.clustered import clustered_mean, clustered_ratio, clusters, clusters_of, student_t


def test_of_clusters_of_one_size_it_is_the_error_of_their_means() -> None:
    values = np.random.default_rng(0).standard_normal((12, 7))
    mean = clustered_mean(values.ravel(), [7] * 12)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.mean(axis=1).std(ddof=1) / np.sqrt(12))


def test_of_clusters_of_one_value_it_is_the_common_error() -> None:
    values = np.random.default_rng(1).standard_normal(50)
    assert clustered_mean(values, [1] * 50).error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_dependence_within_clusters_is_allowed_for() -> None:
    """Of many simulated texts the means spread as each text's error says, though it is several times what independence would give."""
    rng = np.random.default_rng(2)
    sizes = [10, 30, 20, 40] * 10
    found = []
    for _ in range(400):
        shared = np.repeat(rng.standard_normal(len(sizes)), sizes)
        found.append(clustered_mean(shared + 0.5 * rng.standard_normal(len(shared)), sizes))
    spread = np.std([mean.value for mean in found])
    assert np.mean([mean.error for mean in found]) == pytest.approx(spread, rel=0.1)
    assert spread > 3 * np.sqrt(1.25 / sum(sizes))


def test_one_cluster_tells_no_error() -> None:
    assert np.isnan(clustered_mean(np.ones(5), [5]).error)


@pytest.mark.parametrize(
    ("n_tokens", "n_window", "expected"),
    [
        (90, 10, [9] * 10),
        (86, 10, [9] * 9 + [5]),
        (40, 11, [5, 5] * 4 + []),
        (20, 512, [3, 3, 3, 3, 2, 2, 2, 2]),
        (3, 512, [1, 1, 1]),
    ],
)
def test_windows_are_the_clusters_and_few_ones_are_cut(n_tokens: int, n_window: int, expected: list[int]) -> None:
    assert clusters(n_tokens, n_window) == expected
    assert sum(expected) == n_tokens


def test_windows_of_any_lengths_are_clusters() -> None:
    assert clusters_of([9, 3] * 4) == [9, 3] * 4
    assert clusters_of([9, 3]) == [3, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (8, 2.365), (31, 2.042), (1001, 1.962)])
def test_student_t(n: int, quantile: float) -> None:
    assert student_t(n) == pytest.approx(quantile, rel=0.01)


def test_a_ratio_spreads_as_its_error_says() -> None:
    """Pairs whose clusters are hard or easy for both: the ratio is far better known than either mean."""
    rng = np.random.default_rng(3)
    sizes = [10, 30, 20, 40] * 5
    found, relative = [], []
    for _ in range(400):
        hard = np.repeat(rng.lognormal(0.0, 0.5, len(sizes)), sizes)
        x, y = (level * hard * np.repeat(rng.lognormal(0.0, 0.1, len(sizes)), sizes) for level in (1.0, 2.0))
        found.append(clustered_ratio(x, y, sizes))
        relative.append(clustered_mean(x, sizes).error / x.mean())
    spread = np.std([ratio.value for ratio in found])
    assert np.mean([ratio.value for ratio in found]) == pytest.approx(0.5, rel=0.01)
    assert np.mean([ratio.error for ratio in found]) == pytest.approx(spread, rel=0.1)
    assert spread / 0.5 < 0.5 * np.mean(relative)


def test_of_independent_pairs_it_is_the_common_ratio_estimator() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.uniform(1, 2, (2, 60))
    ratio = clustered_ratio(x, y, [1] * 60)
    assert ratio.value == pytest.approx(x.sum() / y.sum())
    assert ratio.error == pytest.approx((x - ratio.value * y).std(ddof=1) / np.sqrt(60) / y.mean())
