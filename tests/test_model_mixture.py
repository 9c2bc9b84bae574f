"""MixturePPCA and MixtureFA: the laws, the dense formula, and what they are with one component or one shape."""

import numpy as np
import pytest
import torch
from classic import LAWS, QUICK, observed_density, ragged
from scipy.special import logsumexp

import ppvae
from ppvae.models import GMM, PPCA, FactorAnalysis, MixtureFA, MixturePPCA

IRIS = ppvae.load_data("iris")
HOLES = ragged(IRIS.numpy(), 0.15)
HOLES[3:, -1] = IRIS.numpy()[3:, -1]
FAST = ppvae.EM(acceleration="anderson", tolerance=1e-12)


def dense(fit: ppvae.Fit, x: np.ndarray) -> np.ndarray:
    """(N,) log sum_k w_k N(x_o; m_k, W_k W_k^T + Psi_k)."""
    p = fit.params
    noise = np.broadcast_to(p["noise_variances"].reshape(len(p["weights"]), -1), p["means"].shape)
    parts = [
        np.log(w) + observed_density(x, m, load @ load.T + np.diag(psi))
        for w, m, load, psi in zip(p["weights"], p["means"], p["loadings"], noise, strict=True)
    ]
    return logsumexp(parts, 0)


@pytest.mark.parametrize(
    ("model", "x", "only"),
    [
        (MixturePPCA(2, 2), IRIS, LAWS),
        (MixturePPCA(2, 1), HOLES, QUICK),
        (MixturePPCA(2, 1, component="guided"), IRIS, QUICK),
        (MixtureFA(3, 1), IRIS, QUICK),
        (MixtureFA(3, 1, component="guided"), HOLES, [1, 2, 4, 5, 6, 8]),
    ],
    ids=lambda v: v.describe() if isinstance(v, ppvae.Model) else "",
)
def test_laws(model, x, only):
    verdicts = ppvae.laws.check(model, x, only=only)
    assert set(verdicts.table.verdict) == {"holds"}, verdicts.table.to_string()


@pytest.mark.parametrize("model", [MixturePPCA(3, 2), MixtureFA(3, 2)], ids=lambda m: m.name)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_log_likelihood_is_the_dense_formula(model, share):
    x = ragged(ppvae.load_data("wine").numpy()[:60, :6], share)
    fit = ppvae.fit(model, x, ppvae.EM(max_steps=15))
    found = fit.log_likelihood(x)
    assert np.asarray(found) == pytest.approx(dense(fit, x), rel=1e-8, abs=1e-8)
    assert found[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("mixture", "alone"), [(MixturePPCA(1, 2), PPCA(2)), (MixtureFA(1, 2), FactorAnalysis(2))], ids=["ppca", "fa"])
@pytest.mark.parametrize("x", [ppvae.load_data("wine").standardized(), ragged(ppvae.load_data("wine").standardized().numpy(), 0.1)[:, :-1]])
def test_one_component_is_the_model_itself(mixture, alone, x):
    one, it = ppvae.fit(mixture, x, FAST), ppvae.fit(alone, x, FAST)
    assert one.log_likelihood(x).sum() == pytest.approx(it.log_likelihood(x).sum(), abs=1e-5)
    assert one.n_parameters == it.n_parameters


def test_with_all_latents_but_one_it_is_nearly_the_full_mixture():
    """D - 1 latents and one noise variance lose nothing where the smallest eigenvalue stands alone: iris has 4 features."""
    full, local = ppvae.fit(GMM(2), IRIS, FAST), ppvae.fit(MixturePPCA(2, 3), IRIS, FAST)
    assert local.n_parameters == full.n_parameters
    assert local.log_likelihood(IRIS).sum() == pytest.approx(full.log_likelihood(IRIS).sum(), abs=1e-4)


def test_accelerated_em_ends_where_plain_em_does():
    model = MixtureFA(3, 1)
    plain = ppvae.fit(model, IRIS)
    assert plain.steps >= 300
    fast = ppvae.fit(model, IRIS, ppvae.EM(acceleration="anderson"))
    assert fast.steps <= plain.steps / 5
    assert fast.log_likelihood(IRIS).sum() == pytest.approx(plain.log_likelihood(IRIS).sum(), abs=1e-4)


def test_the_posterior_has_both_parts():
    fit = ppvae.fit(MixtureFA(3, 1), HOLES, ppvae.EM(max_steps=30))
    posterior = fit.posterior(HOLES)
    assert (posterior.component, posterior.latent) == ("component", "z")
    assert posterior.loc.shape == (150, 3, 1)
    assert posterior.scale_tril.shape == (150, 3, 1, 1)
    assert torch.allclose(posterior.log_weights[0].exp(), torch.tensor(fit.params["weights"]))  # nothing is known of row 0
    assert torch.allclose(posterior.mean[0], torch.zeros(1, dtype=torch.float64))
    assert fit.predict(HOLES).shape == (150,)
    assert fit.transform(HOLES).shape == (150, 1)
    draws = posterior.sample(4000)
    error = draws["z"].mean(0) - posterior.mean
    assert (error.abs() < 5 * (posterior.covariance.diagonal(dim1=-2, dim2=-1) / 4000).sqrt()).all()


def test_a_component_without_rows_keeps_its_place():
    far = {"means": np.vstack([IRIS.numpy().mean(0), np.full(4, 1e6)])}
    for model in (MixturePPCA(2, 1), MixtureFA(2, 1)):
        fit = ppvae.fit(model, IRIS, ppvae.EM(max_steps=5), init=far)
        assert fit.params["means"][1] == pytest.approx(np.full(4, 1e6))
        assert np.isfinite(fit.log_likelihood(IRIS)).all()


def test_a_component_on_identical_rows_stops_at_its_floor():
    x = np.vstack([np.random.default_rng(0).standard_normal((30, 3)), np.full((5, 3), 9.0)])
    for model in (MixturePPCA(2, 1), MixtureFA(2, 1)):
        fit = ppvae.fit(model, x, ppvae.EM(max_steps=50))
        assert "noise_variances[1" in fit.status
        assert "floor" in fit.status
        assert np.isfinite(fit.log_likelihood(x)).all()


def test_svi_on_the_same_story_comes_close():
    found = ppvae.compare(MixturePPCA(2, 1), IRIS, [ppvae.EM(), ppvae.SVI(steps=500)])
    assert found.table.gap_to_best.max() < 0.1
    assert (found.table.elbo <= found.table.log_likelihood + 1e-9).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        MixtureFA(0, 1)
    with pytest.raises(ValueError, match="unknown component"):
        MixturePPCA(2, 1, component="guessed")
    with pytest.raises(ValueError, match="choose fewer latents"):
        ppvae.fit(MixtureFA(2, 4), IRIS)
    with pytest.raises(ValueError, match="ask for fewer components"):
        ppvae.fit(MixturePPCA(200, 1), IRIS)
