"""FactorAnalysis: R's fit of the ability tests, any pattern of missing entries, and Heywood cases."""

import numpy as np
import pytest
from classic import ABILITY, LAWS, QUICK, observed_density, ragged, rows_with_moments

import ppvae
from ppvae.models import FactorAnalysis

# R's factanal on the correlations of ability.cov, n = 112, 2 factors; Venables & Ripley print a chi-squared of 6.11.
TOTAL, CHI2 = -817.7957, 6.1066
VARIMAX = np.array([
    [0.4994378, 0.5434490],
    [0.1560701, 0.6215380],
    [0.2057870, 0.8599259],
    [0.1085308, 0.4677610],
    [0.9562425, 0.1820963],
    [0.7847682, 0.2248221],
])  # fmt: skip
CORRELATION = ABILITY / np.sqrt(np.outer(np.diag(ABILITY), np.diag(ABILITY)))
PEOPLE = rows_with_moments(CORRELATION, 112)
FAST = ppvae.EM(acceleration="anderson", tolerance=1e-12)


def covariance(fit: ppvae.Fit) -> np.ndarray:
    w = fit.params["loadings"]
    return w @ w.T + np.diag(fit.params["noise_variance"])


@pytest.mark.parametrize(
    ("x", "n_latents", "only"),
    [(ppvae.load_data("wine"), 2, LAWS), (ppvae.load_data("airquality"), 1, QUICK)],
    ids=["complete", "holes"],
)
def test_laws(x, n_latents, only):
    verdicts = ppvae.laws.check(FactorAnalysis(n_latents), x, only=only)
    assert set(verdicts.table.verdict) == {"holds"}, verdicts.table.to_string()


@pytest.mark.parametrize(
    ("method", "seed"),
    [(ppvae.EM(tolerance=1e-12), 0), (ppvae.EM(acceleration="squarem", tolerance=1e-12), 1), *((FAST, seed) for seed in range(5))],
    ids=str,
)
def test_gold(method, seed):
    fit = ppvae.fit(FactorAnalysis(2), PEOPLE, method, seed=seed)
    assert fit.log_likelihood(PEOPLE).sum() == pytest.approx(TOTAL, abs=0.01)
    model = covariance(fit)
    n, p, q = 112, 6, 2
    ratio = CORRELATION @ np.linalg.inv(model)
    distance = np.trace(ratio) - np.linalg.slogdet(ratio)[1] - p
    assert (n - 1 - (2 * p + 5) / 6 - 2 * q / 3) * distance == pytest.approx(CHI2, abs=0.005)
    assert fit.params["loadings"] @ fit.params["loadings"].T == pytest.approx(VARIMAX @ VARIMAX.T, abs=1e-4)
    assert fit.n_parameters == 6 * 2 - 1 + 6 + 6


def test_the_start_itself_misses_gold():
    start = ppvae.fit(FactorAnalysis(2), PEOPLE, ppvae.EM(max_steps=1))
    assert start.log_likelihood(PEOPLE).sum() < TOTAL - 1


def test_acceleration_takes_at_most_a_fifth_of_the_steps():
    plain = ppvae.fit(FactorAnalysis(2), PEOPLE, ppvae.EM())
    assert plain.steps >= 300
    for acceleration in ("squarem", "anderson"):
        fast = ppvae.fit(FactorAnalysis(2), PEOPLE, ppvae.EM(acceleration=acceleration))
        assert fast.steps <= plain.steps / 5
        assert fast.log_likelihood(PEOPLE).sum() >= plain.log_likelihood(PEOPLE).sum() - 1e-6


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_log_likelihood_is_the_dense_formula(share):
    x = ragged(ppvae.load_data("wine").numpy()[:40, :6], share)
    fit = ppvae.fit(FactorAnalysis(2), x, ppvae.EM(max_steps=20))
    found = fit.log_likelihood(x)
    assert np.asarray(found) == pytest.approx(observed_density(x, fit.params["mean"], covariance(fit)), rel=1e-8, abs=1e-8)
    assert found[0] == 0


def test_units_do_not_matter():
    data = ppvae.load_data("wine")
    units = 10.0 ** np.arange(-6, 7)
    a, b = (ppvae.fit(FactorAnalysis(2), x, FAST) for x in (data, data.numpy() * units))
    assert b.params["noise_variance"] / units**2 == pytest.approx(a.params["noise_variance"], rel=1e-3)
    assert b.log_likelihood(data.numpy() * units).sum() + 178 * np.log(units).sum() == pytest.approx(a.log_likelihood(data).sum(), abs=1e-4)


@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
def test_a_heywood_case_is_reported(acceleration):
    data = ppvae.load_data("iris")  # one factor explains petal length better than anything but itself
    fit = ppvae.fit(FactorAnalysis(1), data, ppvae.EM(acceleration=acceleration))
    assert fit.theta.at_floor() == ["noise_variance[2]"]
    assert "noise_variance[2]" in fit.status
    assert "floor" in fit.status
    assert not fit.converged
    assert np.isfinite(fit.log_likelihood(data)).all()
    assert fit.params["noise_variance"][2] == pytest.approx(0.005 * float(data.variance[2]), rel=1e-4)


def test_a_column_with_one_entry_is_reported_too():
    x = ragged(ppvae.load_data("wine").numpy()[:, :6], 0.1)
    x[:, -1] = np.nan
    x[7, -1] = 100.0
    fit = ppvae.fit(FactorAnalysis(1), x, FAST)
    assert "noise_variance[5]" in fit.theta.at_floor()
    assert "floor" in fit.status
    assert np.isfinite(fit.log_likelihood(x)).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        FactorAnalysis(0)
    with pytest.raises(ValueError, match="choose fewer latents"):
        ppvae.fit(FactorAnalysis(4), ppvae.load_data("iris"))
