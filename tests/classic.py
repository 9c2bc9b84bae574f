"""What the tests of the classic models share: two small tables, holes in tables, and the dense formula for a normal's observed entries."""

import numpy as np
from scipy.stats import multivariate_normal

NAN = float("nan")
LAWS = range(1, 10)
QUICK = [law for law in LAWS if law != 7]  # one objective captures graphs, which takes seconds: once a model is enough

# Apples: hundreds on a tree, and the percentage with worms (Snedecor & Cochran 1967, as in the R package mvnmle).
APPLE = np.array([
    [8, 6, 11, 22, 14, 17, 18, 24, 19, 23, 26, 40, 4, 4, 5, 6, 8, 10],
    [59, 58, 56, 53, 50, 45, 43, 42, 39, 38, 30, 27, NAN, NAN, NAN, NAN, NAN, NAN],
]).T  # fmt: skip

# Six tests of ability, covariances over 112 people (Smith & Stanley 1983, as in R's ability.cov).
ABILITY = np.array([
    [24.641, 5.991, 33.52, 6.023, 20.755, 29.701],
    [5.991, 6.7, 18.137, 1.782, 4.936, 7.204],
    [33.52, 18.137, 149.831, 19.424, 31.43, 50.753],
    [6.023, 1.782, 19.424, 12.711, 4.757, 9.075],
    [20.755, 4.936, 31.43, 4.757, 52.604, 66.762],
    [29.701, 7.204, 50.753, 9.075, 66.762, 135.292],
])  # fmt: skip


def rows_with_moments(correlation: np.ndarray, n_rows: int) -> np.ndarray:
    """(n_rows, D): mean exactly 0 and covariance (divisor n) exactly `correlation`."""
    free = np.random.default_rng(0).standard_normal((n_rows, len(correlation)))
    orthonormal, _ = np.linalg.qr(free - free.mean(0))
    return np.sqrt(n_rows) * orthonormal @ np.linalg.cholesky(correlation).T


def ragged(x: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """x with a share of its entries missing at random, and the hard cases: a row with nothing, a row and a column with one entry."""
    x = np.where(np.random.default_rng(seed).random(x.shape) < share, NAN, x)
    x[0] = NAN
    x[1, 1:] = NAN
    x[3:, -1] = NAN
    return x


def observed_density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(N,) log N(x_o; m_o, C_oo), one row at a time."""
    seen = ~np.isnan(x)
    return np.array([
        multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(row[o]) if o.any() else 0.0 for row, o in zip(x, seen, strict=True)
    ])  # fmt: skip
