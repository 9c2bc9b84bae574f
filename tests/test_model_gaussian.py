"""Gaussian: published fits with and without missing entries, from any start."""

import numpy as np
import pytest
from classic import APPLE, LAWS, QUICK, observed_density, ragged

import ppvae
from ppvae.models import Gaussian

# mclust XXX,1 on faithful; mvnmle on the apples (its constant put back); converged EM on airquality. See gold.json for the conventions.
FAITHFUL_BIC = 2607.623
APPLE_FIT = {"mean": [14.722222, 49.333333], "covariance": [[89.533951, -90.696729], [-90.696729, 114.694955]]}
APPLE_TOTAL = -101.785632
AIR_MEAN = [41.871173, 184.846806, 9.957516, 77.882353]
AIR_TOTAL = -2326.697383


def random_start(x: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """A mean within two sd of the data's and a random covariance of their size."""
    random, scale = np.random.default_rng(seed), np.nanstd(x, 0)
    root = random.standard_normal((len(scale), len(scale) + 2)) * scale[:, None]
    return {"mean": np.nanmean(x, 0) + 2 * scale * random.uniform(-1, 1, len(scale)), "covariance": root @ root.T / len(scale)}


@pytest.mark.parametrize("name", ["faithful", "airquality"])
def test_laws(name):
    verdicts = ppvae.laws.check(Gaussian(), ppvae.load_data(name), only=LAWS if name == "faithful" else QUICK)
    assert set(verdicts.table.verdict) == {"holds"}, verdicts.table.to_string()


def test_complete_data_are_solved_in_one_step():
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(Gaussian(), data)
    assert fit.method == ppvae.ClosedForm()
    assert fit.bic(data) == pytest.approx(FAITHFUL_BIC, abs=0.01)
    assert fit.params["covariance"] == pytest.approx(np.cov(data.numpy().T, bias=True), rel=1e-12)
    by_em = ppvae.fit(Gaussian(), data, ppvae.EM())
    assert by_em.log_likelihood(data).sum() == pytest.approx(fit.log_likelihood(data).sum(), abs=1e-8)


@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
@pytest.mark.parametrize("seed", range(20))
def test_gold_from_any_start(seed, acceleration):
    method = ppvae.EM(acceleration=acceleration, tolerance=1e-12)
    apples = ppvae.fit(Gaussian(), APPLE, method, init=random_start(APPLE, seed))
    assert apples.converged
    assert apples.log_likelihood(APPLE).sum() == pytest.approx(APPLE_TOTAL, abs=1e-4)
    for name, value in APPLE_FIT.items():
        assert apples.params[name] == pytest.approx(np.array(value), abs=1e-3)
    data = ppvae.load_data("airquality")
    air = ppvae.fit(Gaussian(), data, method, init=random_start(data.numpy(), seed))
    assert air.log_likelihood(data).sum() == pytest.approx(AIR_TOTAL, abs=1e-3)
    assert air.params["mean"] == pytest.approx(np.array(AIR_MEAN), abs=1e-3)


def test_the_start_itself_misses_gold():
    start = ppvae.fit(Gaussian(), APPLE, ppvae.EM(max_steps=1))
    assert abs(start.log_likelihood(APPLE).sum() - APPLE_TOTAL) > 0.01


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_log_likelihood_is_the_dense_formula(share):
    x = ragged(ppvae.load_data("wine").numpy()[:40, :6], share)
    fit = ppvae.fit(Gaussian(), x, ppvae.EM(max_steps=20))
    found, p = fit.log_likelihood(x), fit.params
    assert np.asarray(found) == pytest.approx(observed_density(x, p["mean"], p["covariance"]), rel=1e-8, abs=1e-8)
    assert found[0] == 0


def test_a_column_with_one_entry_ends_on_the_floor_and_says_so():
    x = ragged(ppvae.load_data("iris").numpy(), 0.2)
    x[:, -1] = np.nan
    x[7, -1] = 0.2
    fit = ppvae.fit(Gaussian(), x, ppvae.EM(acceleration="squarem"))
    assert np.isfinite(fit.log_likelihood(x)).all()
    assert "floor" in fit.status


def test_acceleration_takes_at_most_a_fifth_of_the_steps():
    x = ppvae.load_data("wine").numpy()[:, :4].copy()
    x.flat[np.random.default_rng(1).choice(x.size, int(0.7 * x.size), replace=False)] = np.nan
    plain = ppvae.fit(Gaussian(), x, ppvae.EM())
    assert plain.steps >= 300
    for acceleration in ("squarem", "anderson"):
        fast = ppvae.fit(Gaussian(), x, ppvae.EM(acceleration=acceleration))
        assert fast.steps <= plain.steps / 5
        assert fast.log_likelihood(x).sum() >= plain.log_likelihood(x).sum() - 1e-6


def test_it_has_no_latents_and_says_so():
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(Gaussian(), data)
    assert fit.posterior(data).sample(3) == {}
    with pytest.raises(ValueError, match="no continuous latents"):
        fit.transform(data)
    with pytest.raises(ValueError, match="no components"):
        fit.predict(data)


def test_svi_on_the_same_story_finds_the_same_fit():
    data = ppvae.load_data("airquality")
    by_em, by_svi = ppvae.fit(Gaussian(), data, ppvae.EM()), ppvae.fit(Gaussian(), data, ppvae.SVI(steps=400))
    assert by_svi.log_likelihood(data).mean() == pytest.approx(by_em.log_likelihood(data).mean(), abs=1e-4)
    assert np.asarray(by_svi.elbo(data)) == pytest.approx(np.asarray(by_svi.log_likelihood(data)), abs=1e-10)
