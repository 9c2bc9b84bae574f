"""EM: it ascends on any table, ends where it says, and says what went wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

import ppvae
from ppvae.gaussian import mixture_moments
from ppvae.models import GMM, PPCA, VAE, BayesianGMM, Gaussian

ASCENT = 1e-10  # relative: rounding of a sum over rows in float64, as in ppvae.inference.em
COVARIANCES = ("full", "tied", "diag", "spherical")


def table(seed: int, rows: int, features: int, missing: float) -> np.ndarray:
    """Random rows of random scales; where entries are missing, one row keeps a single entry and one keeps none."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, features)) * 10.0 ** random.integers(-3, 4, features) + 10.0 ** random.integers(-2, 3, features)
    if missing:
        gone = random.random((rows, features)) < missing
        gone[0], gone[1], gone[2:4] = True, True, False  # two whole rows: no column is empty or constant
        gone[0, random.integers(features)] = False
        x[gone] = np.nan
    return x


def assert_climbed(fit: ppvae.Fit) -> None:
    values = fit.history.log_likelihood.to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values) >= -ASCENT * (1 + np.abs(values[1:]))).all()
    assert all(np.isfinite(value).all() for value in fit.params.values())
    assert fit.converged or "max_steps" in fit.status or "floor" in fit.status or "without rows" in fit.status, fit.status


tables = st.builds(table, st.integers(0, 10_000), st.integers(6, 30), st.integers(2, 5), st.sampled_from([0.0, 0.2, 0.6]))


@given(x=tables, accelerated=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_ppca_ascends_on_any_table(x, accelerated, seed):
    method = ppvae.EM(max_steps=60, acceleration="squarem" if accelerated else None)
    assert_climbed(ppvae.fit(PPCA(n_latents=x.shape[1] - 1), x, method, seed=seed))


@given(x=tables, covariance=st.sampled_from(COVARIANCES), components=st.integers(1, 4), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_mixture_ascends_on_any_table(x, covariance, components, seed):
    assert_climbed(ppvae.fit(GMM(components, covariance=covariance), x, ppvae.EM(max_steps=40), seed=seed))


@pytest.mark.parametrize(
    ("model", "name"),
    [(PPCA(2), "iris"), (PPCA(2), "airquality"), (GMM(2), "faithful"), (GMM(3, covariance="tied"), "faithful")],
    ids=["ppca-complete", "ppca-holes", "gmm-full", "gmm-tied"],
)
def test_acceleration_ends_where_plain_em_does(model, name):
    data = ppvae.load_data(name)
    plain, squarem, anderson = (ppvae.fit(model, data, ppvae.EM(tolerance=1e-11, acceleration=a)) for a in (None, "squarem", "anderson"))
    for fit in (squarem, anderson):
        assert_climbed(fit)
        assert fit.converged
        # A last step of 1e-11 that shrinks by at most 0.999 a step leaves 1e-8 nats per row to go.
        assert float(fit.log_likelihood(data).mean()) == pytest.approx(float(plain.log_likelihood(data).mean()), abs=1e-8)
        assert fit.steps <= plain.steps + 3  # a rejected extrapolation costs a step
    assert min(squarem.steps, anderson.steps) < plain.steps


@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
@pytest.mark.parametrize("max_steps", [1, 2, 5, 6, 7, 500])
def test_the_history_ends_at_the_parameters(acceleration, max_steps):
    """Where steps run out, after a rejected extrapolation too."""
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(GMM(2), data, ppvae.EM(max_steps=max_steps, acceleration=acceleration))
    assert (fit.history.log_likelihood.diff()[1:] >= -1e-12).all()  # rounding of values near 4
    assert fit.history.log_likelihood.iloc[-1] == pytest.approx(float(fit.log_likelihood(data).mean()), abs=1e-10)
    assert (fit.history.elbo == fit.history.log_likelihood).all()
    assert fit.steps == fit.history.step.iloc[-1] <= max_steps
    assert fit.history.step.iloc[0] == 0


@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
def test_what_met_the_tolerance_has_converged(acceleration):
    """Whatever max_steps was: as many as were needed, or one from the optimum; one fewer has not, and says what may come."""
    data, model = ppvae.load_data("faithful"), GMM(2)
    full = ppvae.fit(model, data, ppvae.EM(acceleration=acceleration))
    for fit in (
        ppvae.fit(model, data, ppvae.EM(max_steps=full.steps, acceleration=acceleration)),
        ppvae.fit(model, data, ppvae.EM(max_steps=1, acceleration=acceleration), init=full.params),
    ):
        assert fit.converged
        assert fit.status == "converged: the last step gained less than 1e-10 nats per row"
        assert fit.steps == fit.method.max_steps == fit.history.step.iloc[-1]
    short = ppvae.fit(model, data, ppvae.EM(max_steps=full.steps // 2, acceleration=acceleration))
    assert not short.converged
    assert short.status.startswith(f"stopped at max_steps={full.steps // 2} before the tolerance was met: raise max_steps")


@pytest.mark.parametrize("method", [ppvae.CAVI(), ppvae.DirectML()], ids=lambda method: method.name)
def test_other_climbs_stop_where_they_have_converged_too(method):
    data, bayes = ppvae.load_data("faithful"), method == ppvae.CAVI()
    model, limit = (BayesianGMM(2), "max_sweeps") if bayes else (GMM(2), "steps")
    full = ppvae.fit(model, data, method)
    assert full.converged
    again = ppvae.fit(model, data, replace(method, **{limit: full.steps}))
    assert (again.converged, again.status, again.steps) == (True, full.status, full.steps)
    assert not ppvae.fit(model, data, replace(method, **{limit: full.steps // 2})).converged


def test_monte_carlo_and_online_steps_that_have_converged_say_so():
    data, best = ppvae.load_data("faithful"), ppvae.fit(GMM(2), ppvae.load_data("faithful"))
    assert ppvae.fit(GMM(2), data, ppvae.OnlineEM(epochs=1, batch_size=272, forgetting=0), init=best.params).converged
    noisy = ppvae.fit(GMM(2), data, ppvae.MonteCarloEM(tolerance=0.05))
    assert noisy.converged
    assert ppvae.fit(GMM(2), data, ppvae.MonteCarloEM(tolerance=0.05, steps=noisy.steps)).status == noisy.status


@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
def test_float32_that_sees_no_more_gain_says_so(acceleration):
    data = ppvae.load_data("breast_cancer")
    fit = ppvae.fit(PPCA(2), data, ppvae.EM(acceleration=acceleration), dtype="float32")
    assert not fit.converged
    assert fit.status.startswith("stopped where float32 sees no more gain")
    assert ppvae.fit(PPCA(2), ppvae.load_data("iris"), ppvae.EM(tolerance=1e-4), dtype="float32").converged


def test_chunks_change_nothing(monkeypatch):
    data = ppvae.load_data("airquality")
    whole = ppvae.fit(PPCA(2), data, ppvae.EM(max_steps=20))
    monkeypatch.setattr(type(whole.exact), "chunk_rows", lambda exact, data: 7)
    assert len(list(data.chunks(whole.exact.chunk_rows(data)))) == 22
    parts = ppvae.fit(PPCA(2), data, ppvae.EM(max_steps=20))
    for name, value in whole.params.items():
        assert parts.params[name] == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_stopping_at_max_steps_says_so():
    fit = ppvae.fit(PPCA(2), ppvae.load_data("airquality"), ppvae.EM(max_steps=3))
    assert fit.steps == 3
    assert not fit.converged
    assert fit.status.startswith("stopped at max_steps=3 before the tolerance was met: raise max_steps")


def test_advice_names_what_the_model_has():
    """A column of one entry leaves a Gaussian, which has no latents, on its floor at the last of too few steps."""
    x = clusters(0.0)
    x[1:, 1] = np.nan
    fit = ppvae.fit(Gaussian(), x, ppvae.EM(max_steps=500, tolerance=0))
    assert fit.status.startswith("stopped at max_steps=500 before the tolerance was met; covariance stands on its floor")
    assert fit.status.endswith("try more rows or leaving such a feature out")
    assert ppvae.fit(PPCA(1), ppvae.load_data("iris"), ppvae.EM(max_steps=2, acceleration="anderson")).status.endswith("raise max_steps")


def clusters(*centres: float, rows: int = 15) -> np.ndarray:
    random = np.random.default_rng(3)
    return np.concatenate([centre + random.standard_normal((rows, 2)) for centre in centres])


@pytest.mark.parametrize("covariance", ["full", "diag", "spherical"])
@pytest.mark.parametrize("acceleration", [None, "squarem", "anderson"])
def test_a_component_on_two_identical_rows_stops_at_its_floor(covariance, acceleration):
    x = np.concatenate([clusters(0.0), [[50.0, 50.0], [50.0, 50.0]]])
    init = {"means": [[0.0, 0.0], [50.0, 50.0]]}
    fit = ppvae.fit(GMM(2, covariance=covariance), x, ppvae.EM(max_steps=500, acceleration=acceleration), init=init)
    assert_climbed(fit)
    assert not fit.converged
    assert "below which the likelihood may rise on: try more rows, another seed, fewer components or a covariance" in fit.status
    assert "raise max_steps" not in fit.status


def test_a_tied_covariance_of_rows_on_a_line_stops_at_its_floor():
    x = clusters(0.0, 9.0)
    x[:, 1] = 2 * x[:, 0]
    fit = ppvae.fit(GMM(2, covariance="tied"), x, ppvae.EM(max_steps=500))
    assert_climbed(fit)
    assert "covariances stands on its floor" in fit.status


def test_ppca_of_rows_on_a_line_stops_at_its_floor():
    x = np.outer(np.arange(20.0), [1.0, 2.0, 3.0])
    for method in (ppvae.ClosedForm(), ppvae.EM(max_steps=500)):
        fit = ppvae.fit(PPCA(1), x, method)
        assert "noise_variance stands on its floor" in fit.status
        assert not fit.converged


def test_a_component_without_rows_keeps_its_place():
    init = {"means": [[0.0, 0.0], [1e6, 1e6]]}
    for covariance in COVARIANCES:
        fit = ppvae.fit(GMM(2, covariance=covariance), clusters(0.0, 9.0), ppvae.EM(), init=init)
        assert_climbed(fit)
        assert fit.params["means"][1] == pytest.approx([1e6, 1e6])
        assert 0 < fit.params["weights"][1] < 1e-9
        assert "without rows" in fit.status


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_collapsing_start_stays_finite(covariance):
    x = clusters(0.0, 9.0)
    shape = {"full": np.eye(2) * np.ones((2, 1, 1)), "tied": np.eye(2), "diag": np.ones((2, 2)), "spherical": np.ones(2)}[covariance]
    init = {"means": np.stack([x[0], x.mean(0)]), "covariances": 1e-14 * shape}
    for method in (ppvae.EM(max_steps=300), ppvae.SVI(steps=20, compile=False)):
        fit = ppvae.fit(GMM(2, covariance=covariance), x, method, init=init)
        assert np.isfinite(np.asarray(fit.log_likelihood(x))).all()
        assert all(np.isfinite(value).all() for value in fit.params.values())


def test_an_m_step_that_goes_down_is_reported():
    broken = twins.m_step(GMM, lambda values: values | {"weights": values["weights"].flip(0)})
    for acceleration in (None, "squarem", "anderson"):
        fit = ppvae.fit(broken(2), ppvae.load_data("faithful"), ppvae.EM(acceleration=acceleration))
        assert not fit.converged
        assert fit.status.endswith("closed forms do not belong to its story (see ppvae.laws.check)")
        assert all(np.isfinite(value).all() for value in fit.params.values())


def test_in_float32_rounding_may_be_the_cause():
    broken = twins.m_step(GMM, lambda values: values | {"weights": values["weights"].flip(0)})
    fit = ppvae.fit(broken(2), ppvae.load_data("faithful"), ppvae.EM(), dtype="float32")
    assert fit.status.endswith(", or float32 is too coarse (use dtype='float64')")


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 2**15.5), ("float64", 2**30)])
def test_offsets_are_held_against_the_precision(dtype, limit):
    """16 / sqrt(eps) standard deviations. Just below it EM still arrives."""
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    x[random.random(x.shape) < 0.2] = np.nan
    x = (x - np.nanmean(x, 0)) / np.nanstd(x, 0)
    assert ppvae.fit(Gaussian(), x + 0.98 * limit, ppvae.EM(tolerance=1e-5), dtype=dtype).converged
    for call in (ppvae.fit, ppvae.compare):
        with pytest.raises(ValueError, match=f"x0 varies too little around its mean for {dtype}: .*subtract its mean"):
            call(Gaussian(), x + 1.02 * limit, ppvae.EM(), dtype=dtype)


def test_a_likelihood_that_is_not_a_number_is_reported():
    broken = twins.closed_form(PPCA, "statistics", lambda found, *_: found | {"log_likelihood": found["log_likelihood"] * torch.nan})
    fit = ppvae.fit(broken(2), ppvae.load_data("iris"), ppvae.EM())
    assert not fit.converged
    assert "went from -inf to nan" in fit.status
    assert all(np.isfinite(value).all() for value in fit.params.values())


def test_an_m_step_that_is_not_finite_is_refused():
    broken = twins.m_step(PPCA, lambda values: values | {"mean": values["mean"] * torch.nan})
    with pytest.raises(ValueError, match="parameter 'mean' must be finite"):
        ppvae.fit(broken(2), ppvae.load_data("iris"), ppvae.EM())


def test_settings_are_checked():
    with pytest.raises(ValueError, match="unknown acceleration 'squarm': did you mean 'squarem'"):
        ppvae.EM(acceleration="squarm")
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        ppvae.EM(max_steps=0)
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        ppvae.EM(tolerance=-1e-3)


def test_a_model_without_closed_forms_is_refused():
    with pytest.raises(ValueError, match="exact EM does not apply: use "):
        ppvae.fit(VAE(2, likelihood="gaussian"), ppvae.load_data("iris"), ppvae.EM())


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_float32_ends_where_float64_does(covariance):
    """Sums are kept in float64, so that a cluster's variance does not drown in its distance from the others."""
    random = np.random.default_rng(0)
    centres = 30 * random.standard_normal((4, 3))
    x = random.standard_normal((20_000, 3)) + centres[random.integers(4, size=20_000)]
    single, double = (ppvae.fit(GMM(4, covariance=covariance), x, ppvae.EM(max_steps=30), dtype=t) for t in (torch.float32, torch.float64))
    assert single.params["covariances"].dtype == np.float32
    # Rounding to 2^-24 of x - m for |x - m| < 100, squared, against variances near 1.
    np.testing.assert_allclose(single.params["covariances"], double.params["covariances"], atol=100**2 * 2**-24)


def test_means_too_far_apart_for_one_centre_go_row_by_row():
    """Two clusters 10^5 of their own widths apart: moments around one centre would leave 6 of 16 digits."""
    random = np.random.default_rng(0)
    x = random.standard_normal((600, 2)) + 1e5 * (np.arange(600) % 2)[:, None]
    data = ppvae.Data(x)
    parts = [x[k::2] for k in range(2)]
    means = torch.tensor(np.stack([part.mean(0) for part in parts]))
    found = mixture_moments(data.batch(), torch.zeros(2, dtype=torch.float64), means, torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    for scatter, part in zip(found["scatter"], parts, strict=True):
        np.testing.assert_allclose(scatter / 300, np.cov(part.T, bias=True), rtol=1e-9)
