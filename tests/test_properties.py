"""What must not matter does not: units, order of rows and columns, labels of nothing, and rows that say nothing.

EM is deterministic given its start, and starts are given here (k-means may break a tie either way), so two runs on a table and on its image
take the same steps; they are compared after a few, to rounding that EM may magnify: 1e-6.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ppvae
from ppvae.models import GMM, PPCA

QUICK = settings(max_examples=12, deadline=None, derandomize=True)
STEPS = ppvae.EM(max_steps=8, tolerance=0.0)
CLOSE = {"rel": 1e-6, "abs": 1e-6}


def clusters(seed: int, rows: int, features: int, missing: float) -> np.ndarray:
    """Two clusters of rows, the second shifted; the first four rows whole."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, features)) @ random.standard_normal((features, features))
    x[rows // 2 :] += 8.0
    gone = random.random((rows, features)) < missing
    gone[:4] = False
    x[gone] = np.nan
    return x


tables = st.builds(clusters, st.integers(0, 10_000), st.integers(16, 40), st.integers(2, 4), st.sampled_from([0.0, 0.3]))
covariances = st.sampled_from(["full", "tied", "diag", "spherical"])


def mixture(x: np.ndarray, covariance: str, init=None) -> ppvae.Fit:
    return ppvae.fit(GMM(2, covariance=covariance), x, STEPS, init=init)


def a_start(features: int, covariance: str) -> dict[str, object]:
    """The two clusters, and unit covariances."""
    ones = {
        "full": np.eye(features) * np.ones((2, 1, 1)),
        "tied": np.eye(features),
        "diag": np.ones((2, features)),
        "spherical": np.ones(2),
    }
    means = np.stack([np.zeros(features), np.full(features, 8.0)])
    return {"weights": [0.5, 0.5], "means": means, "covariances": ones[covariance]}


def ppca(x: np.ndarray, scale: float = 1.0, order=None) -> ppvae.Fit:
    """From a given start, carried to units `scale` times as large and to columns in another order."""
    features = x.shape[1]
    order = np.arange(features) if order is None else order
    loadings = np.linspace(1.0, 2.0, features)[order, None]
    return ppvae.fit(PPCA(1), x, STEPS, init={"loadings": scale * loadings, "mean": np.nanmean(x, 0), "noise_variance": scale**2})


@QUICK
@given(x=tables, seed=st.integers(0, 100), covariance=st.sampled_from(["full", "tied", "diag"]))
def test_units_of_the_columns_move_a_mixture_by_their_jacobian(x, seed, covariance):
    random = np.random.default_rng(seed)
    scale, shift = 10.0 ** random.integers(-3, 4, x.shape[1]), random.standard_normal(x.shape[1])
    start = a_start(x.shape[1], covariance)
    units = scale**2 if covariance == "diag" else np.outer(scale, scale)
    moved = start | {"means": start["means"] * scale + shift, "covariances": start["covariances"] * units}
    one, other = mixture(x, covariance, start), mixture(x * scale + shift, covariance, moved)
    jacobian = (~np.isnan(x)) @ np.log(scale)
    assert np.asarray(other.log_likelihood(x * scale + shift)) + jacobian == pytest.approx(np.asarray(one.log_likelihood(x)), **CLOSE)
    assert (other.params["means"] - shift) / scale == pytest.approx(one.params["means"], **CLOSE)
    assert other.params["weights"] == pytest.approx(one.params["weights"], **CLOSE)


@QUICK
@given(x=tables, power=st.integers(-3, 3))
def test_a_common_unit_moves_ppca_by_its_jacobian(x, power):
    scale = 10.0**power
    one, other = ppca(x), ppca(scale * x, scale)
    jacobian = (~np.isnan(x)).sum(1) * np.log(scale)
    assert np.asarray(other.log_likelihood(scale * x)) + jacobian == pytest.approx(np.asarray(one.log_likelihood(x)), **CLOSE)
    assert other.params["loadings"] / scale == pytest.approx(one.params["loadings"], **CLOSE)


@QUICK
@given(x=tables, seed=st.integers(0, 100), covariance=covariances)
def test_the_order_of_rows_and_columns_does_not_matter(x, seed, covariance):
    random = np.random.default_rng(seed)
    rows, columns = random.permutation(len(x)), random.permutation(x.shape[1])
    mixed = x[rows][:, columns]
    one, other = ppca(x), ppca(mixed, order=columns)
    assert np.asarray(other.log_likelihood(mixed)) == pytest.approx(np.asarray(one.log_likelihood(x))[rows], **CLOSE)
    start = a_start(x.shape[1], covariance)
    one, other = mixture(x, covariance, start), mixture(mixed, covariance, start)
    assert np.asarray(other.log_likelihood(mixed)) == pytest.approx(np.asarray(one.log_likelihood(x))[rows], **CLOSE)


@QUICK
@given(x=tables)
def test_rows_that_say_nothing_change_nothing(x):
    padded = np.concatenate([x, np.full((5, x.shape[1]), np.nan)])
    one, other = ppca(x), ppca(padded)
    for name, value in one.params.items():
        assert other.params[name] == pytest.approx(value, **CLOSE)
    assert (np.asarray(other.log_likelihood(padded))[-5:] == 0).all()


@QUICK
@given(x=tables, copies=st.integers(2, 3))
def test_every_row_twice_is_the_same_fit(x, copies):
    one, other = ppca(x), ppca(np.tile(x, (copies, 1)))
    for name, value in one.params.items():
        assert other.params[name] == pytest.approx(value, **CLOSE)
    assert float(other.log_likelihood(x).mean()) == pytest.approx(float(one.log_likelihood(x).mean()), **CLOSE)


@QUICK
@given(x=tables, covariance=covariances)
def test_a_mixture_of_one_is_a_gaussian(x, covariance):
    fit = ppvae.fit(GMM(1, covariance=covariance), x, STEPS)
    assert fit.params["weights"] == pytest.approx(1.0)
    complete = x[~np.isnan(x).any(1)]
    if len(complete) == len(x):
        assert fit.params["means"][0] == pytest.approx(x.mean(0), **CLOSE)
        if covariance in ("full", "tied"):
            found = fit.params["covariances"].reshape(x.shape[1], -1)
            assert found == pytest.approx(np.cov(x.T, bias=True), **CLOSE)


@QUICK
@given(x=tables, covariance=covariances)
def test_responsibilities_are_probabilities(x, covariance):
    fit = mixture(x, covariance)
    weights = fit.posterior(x).log_weights.exp().numpy()
    assert weights.sum(1) == pytest.approx(1.0)
    assert weights.mean(0) == pytest.approx(fit.params["weights"], abs=0.2)


@QUICK
@given(x=tables)
def test_the_closed_form_is_not_beaten(x):
    """On complete tables the closed form is the maximum, whatever EM does from wherever."""
    x = x[~np.isnan(x).any(1)]
    best = float(ppvae.fit(PPCA(1), x).log_likelihood(x).mean())
    assert float(ppca(x).log_likelihood(x).mean()) <= best + 1e-9 * (1 + abs(best))


@QUICK
@given(x=tables)
def test_removing_an_entry_scores_the_row_as_its_marginal(x):
    """Against the dense marginal of the observed entries, for any pattern."""
    from scipy.stats import multivariate_normal

    fit = ppca(x)
    p = fit.params
    marginal = p["loadings"] @ p["loadings"].T + p["noise_variance"] * np.eye(x.shape[1])
    for row, score in zip(x, np.asarray(fit.log_likelihood(x)), strict=True):
        seen = ~np.isnan(row)
        expected = multivariate_normal(p["mean"][seen], marginal[np.ix_(seen, seen)]).logpdf(row[seen]) if seen.any() else 0.0
        assert score == pytest.approx(expected, rel=1e-8, abs=1e-8)
