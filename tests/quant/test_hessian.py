"""The factor of a Hessian's inverse, held against float64."""

from __future__ import annotations

import numpy as np
import pytest
from quantizer_cases import mean_product, some_inputs

from edgelm.errors import InvalidRequestError
from edgelm.quant.hessian import factorize
from edgelm.quant.row_threads import RowThreads


@pytest.mark.parametrize("n", [1, 2, 32, 96, 128, 129, 160, 300, 517])
def test_the_factor_gives_the_inverse(n: int) -> None:
    b = some_inputs(4 * n + 8, max(n, 2))[:, :n]
    hessian, given = (mean_product(b, b) for _ in range(2))
    with RowThreads(2) as threads:
        factor = factorize(hessian, 0.01, threads)
    wide = given.astype(np.float64) + 0.01 * given.diagonal().mean(dtype=np.float64) * np.eye(n)
    np.testing.assert_allclose(hessian, wide, rtol=1e-6)  # damped in place
    assert factor.damping == 0.01
    assert (np.diff(given.diagonal()[factor.order]) <= 0).all()
    assert (np.tril(factor.upper, -1) == 0).all()
    inverse = np.linalg.inv(wide[np.ix_(factor.order, factor.order)])
    upper = factor.upper.astype(np.float64)
    np.testing.assert_allclose(upper.T @ upper, inverse, atol=3e-4 * np.abs(inverse).max())
    exact = np.linalg.cholesky(inverse).T
    np.testing.assert_allclose(upper, exact, atol=3e-4 * np.abs(exact).max())


@pytest.mark.parametrize(("n_rows", "n"), [(1, 160), (200, 160), (7, 1100)])
def test_division_by_the_hessian(n_rows: int, n: int) -> None:
    b = some_inputs(3 * n, n)
    hessian = mean_product(b, b)
    products = np.random.default_rng(0).standard_normal((n_rows, n)).astype(np.float32)
    with RowThreads(2) as threads:
        quotients = factorize(hessian, 0.05, threads).divide(products)
    np.testing.assert_allclose(quotients.astype(np.float64) @ hessian, products, atol=3e-4 * np.abs(products).max())


def test_the_same_whatever_the_threads() -> None:
    b = some_inputs(900, 400)
    factors = []
    for n_threads in (1, 2, 3):
        with RowThreads(n_threads) as threads:
            factors.append(factorize(mean_product(b, b), 0.01, threads).upper)
    assert all(np.array_equal(factors[0], each) for each in factors)


def test_fewer_tokens_than_channels_are_enough_with_damping() -> None:
    b = some_inputs(20, 300)
    with RowThreads(1) as threads:
        factor = factorize(mean_product(b, b), 0.01, threads)
    assert factor.damping == 0.01
    assert np.isfinite(factor.upper).all()


def test_what_is_not_positive_is_damped_more_and_says_so() -> None:
    hessian = np.eye(200, dtype=np.float32)
    hessian[3, 4] = hessian[4, 3] = 1.05  # eigenvalue -0.05
    given = hessian.copy()
    with RowThreads(1) as threads:
        factor = factorize(hessian, 0.01, threads)
    assert factor.damping == pytest.approx(0.1)
    np.testing.assert_allclose(hessian, given + np.float32(0.1) * np.eye(200), rtol=1e-6)
    upper = factor.upper.astype(np.float64)
    np.testing.assert_allclose(
        upper.T @ upper, np.linalg.inv(hessian[np.ix_(factor.order, factor.order)].astype(np.float64)), rtol=1e-3, atol=1e-4
    )


def test_what_stays_singular_is_refused() -> None:
    hessian = np.eye(50, dtype=np.float32)
    hessian[3, 4] = hessian[4, 3] = 1e4
    with RowThreads(1) as threads, pytest.raises(InvalidRequestError, match="singular even with much damping; give a longer"):
        factorize(hessian, 0.01, threads)


def test_inputs_of_zeros_are_refused() -> None:
    with RowThreads(1) as threads, pytest.raises(InvalidRequestError, match="are zero on the whole calibration text"):
        factorize(np.zeros((40, 40), np.float32), 0.01, threads)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e12])
def test_the_size_of_the_inputs_does_not_matter(size: float) -> None:
    b = some_inputs(500, 96)
    with RowThreads(1) as threads:
        factor = factorize(mean_product(b, b), 0.01, threads)
        other = factorize(mean_product(b, b) * np.float32(size), 0.01, threads)
    assert other.damping == 0.01
    np.testing.assert_allclose(other.upper * np.sqrt(size), factor.upper, atol=1e-4 * np.abs(factor.upper).max())
