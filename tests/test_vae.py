"""VAEs: every likelihood and network obeys the laws and comes back from disk, and a linear one finds what is known in closed form."""

import numpy as np
import pytest
import torch
from scipy import special, stats

import ppvae
from ppvae import laws
from ppvae.criticism.latents import examine
from ppvae.criticism.predictive import prior_predictive
from ppvae.inference.fit import best_method, start
from ppvae.models import PPCA, VAE, LinearVAE
from ppvae.networks import ImageEncoder, image_decoder

IRIS = ppvae.load_data("iris")
DIGITS = ppvae.load_data("digits", rescale=True).take(torch.arange(200))
NOISES = ("shared", "unit", "feature", "decoded")


def holes(data: ppvae.Data, share: float = 0.2) -> ppvae.Data:
    return data.hiding(torch.rand(data.x.shape, generator=torch.Generator().manual_seed(1)) < share)


MODELS = [(VAE(2, (8,), "gaussian", noise=noise), IRIS) for noise in NOISES]
MODELS += [(VAE(2, (4, 3), kind, network="convolutional"), DIGITS) for kind in ("bernoulli", "gaussian")]


@pytest.mark.parametrize(("model", "data"), MODELS, ids=lambda v: v.describe() if isinstance(v, VAE) else "")
def test_laws_hold_with_holes(model, data):
    verdicts = laws.check(model, holes(data.take(torch.arange(30))), only=[2, 5, 8])
    assert verdicts.table.verdict.tolist() == ["holds"] * 3, verdicts.table.to_string()


@pytest.mark.parametrize(("model", "data"), [MODELS[3], MODELS[5]], ids=["decoded noise", "convolutional"])
def test_fit_with_a_full_covariance_comes_back_from_disk(model, data, tmp_path):
    fit = ppvae.fit(model, holes(data), ppvae.SVI(steps=10), guide="full")
    assert fit.engine.startswith("captured")
    assert (fit.guide.family.name, fit.guide.family.hidden) == ("full", model.hidden)
    tril = fit.posterior(data).scale_tril[:, 0]
    assert (tril[:, 1, 0] != 0).any()
    again = ppvae.load(fit.save(tmp_path / "fit"))
    assert np.array_equal(again.transform(data), fit.transform(data))
    assert np.array_equal(again.sample(3), fit.sample(3))


# The noise


def test_noise_has_the_shape_it_says():
    theta = {noise: start(VAE(2, (8,), "gaussian", noise=noise), IRIS, 0) for noise in NOISES}
    assert theta["shared"].noise_variance.shape == ()
    assert theta["feature"].noise_variance.shape == (4,)
    assert "noise_variance" not in theta["decoded"].names
    fit = ppvae.fit(VAE(2, (8,), "gaussian", noise="unit"), IRIS, ppvae.SVI(steps=20))
    assert fit.params["noise_variance"] == pytest.approx(1.0, abs=1e-6)


def test_decoded_noise_finds_a_spread_that_changes():
    """x lies on a line, its noise ten times as wide at one end as at the other: one noise for all must be worse."""
    random = np.random.default_rng(0)
    t = random.normal(size=(400, 1))
    x = t * np.array([3.0, -2.0, 1.0]) + np.exp(1.2 * t) * 0.2 * random.normal(size=(400, 3))
    found = {}
    for noise in ("shared", "decoded"):
        fit = ppvae.fit(VAE(1, (16,), "gaussian", noise=noise), x, ppvae.SVI(steps=250, batch_size=200, learning_rate=0.01))
        found[noise] = float(fit.log_likelihood(x, draws=200).mean())
    assert found["decoded"] > found["shared"] + 0.2


def test_fractions_are_scored_by_their_expected_log_probability():
    model, theta = VAE(2, (8,)), start(VAE(2, (8,)), DIGITS, 0)
    z = torch.randn(DIGITS.n_rows, 2, dtype=torch.float64)
    p = model.entries(theta, theta.decoder(z)).mean
    expected = DIGITS.x * p.log() + (1 - DIGITS.x) * (1 - p).log()
    scored = model.entries(theta, theta.decoder(z)).log_prob(DIGITS.x)
    assert torch.allclose(scored, expected, rtol=1e-9, atol=1e-12)


# Networks


def test_image_networks_take_any_leading_dims():
    decoder, encoder = image_decoder(3, (5, 4), (8, 12), 2), ImageEncoder((8, 12), (4, 5), 1, n_others=2)
    z, x = torch.randn(6, 7, 3), torch.randn(6, 7, 8 * 12 + 2)
    assert decoder(z).shape == (6, 7, 2 * 8 * 12)
    assert encoder(x).shape == (6, 7, encoder.n_outputs)
    assert torch.allclose(decoder(z)[2], decoder(z[2]), atol=1e-6)
    assert torch.allclose(encoder(x)[:, 3], encoder(x[:, 3]), atol=1e-6)


def test_a_convolution_sees_neighbours():
    """Moving a pixel of the input changes features near it alone; a dense layer would change all."""
    encoder = ImageEncoder((16, 16), (2,), 1, 0)
    x = torch.zeros(2, 256)
    x[1, 0] = 1.0
    a, b = encoder(x)
    assert 0 < int((a != b).sum()) <= 2


# What is known: the linear VAE


def test_linear_vae_reaches_ppca_and_never_passes_it():
    best = float(ppvae.fit(PPCA(2), IRIS).log_likelihood(IRIS).mean())
    fit = ppvae.fit(LinearVAE(2), IRIS, ppvae.SVI(steps=1000))
    elbo, evidence = fit.elbo(IRIS), fit.log_likelihood(IRIS)
    assert elbo.exact
    assert evidence.exact
    assert best - 0.005 < float(elbo.mean()) < float(evidence.mean()) < best + 1e-9
    assert float(ppvae.fit(LinearVAE(2), IRIS, ppvae.SVI(steps=5)).elbo(IRIS).mean()) < best - 0.5
    gram = fit.params["loadings"].T @ fit.params["loadings"]  # an independent q turns W until its columns are orthogonal
    assert abs(gram[0, 1]) < 0.05 * np.sqrt(gram[0, 0] * gram[1, 1])


def test_linear_vae_is_fitted_by_steps_alone():
    with pytest.raises(ValueError, match="linear_vae gives no closed-form"):
        ppvae.fit(LinearVAE(2), IRIS, ppvae.EM())
    assert best_method(LinearVAE(2), IRIS).name == "svi"


def test_laws_of_the_linear_vae():
    verdicts = laws.check(LinearVAE(2), holes(IRIS.take(torch.arange(30))), only=[1, 2, 5, 8, 9])
    assert verdicts.table.verdict.tolist() == ["holds"] * 5, verdicts.table.to_string()


# Holes: MIWAE


def test_miwae_fills_in_better_than_the_mean():
    """Iris standardised, half of its entries taken out (gold case D10, where the mean leaves an error of 0.9777)."""
    x = IRIS.standardized().numpy()
    np.random.seed(1234)  # noqa: NPY002 - the mask is the published one
    gone = np.zeros(x.size, dtype=bool)
    gone[np.random.choice(x.size, x.size // 2, replace=False)] = True  # noqa: NPY002
    gone = gone.reshape(x.shape)
    data = ppvae.Data(np.where(gone, np.nan, x))
    fit = ppvae.fit(VAE(2, (32,), "gaussian"), data, ppvae.SVI(steps=500, objective="iwae", particles=10, learning_rate=0.01))
    error = float(((fit.impute(data) - x)[gone] ** 2).mean())
    assert error < 0.53  # the published runs lie between 0.444 and 0.523


# Collapse


def test_a_collapse_is_seen():
    fit = ppvae.fit(VAE(2, (8,), "gaussian"), IRIS, ppvae.SVI(steps=200, beta=200.0))
    found = examine(fit, IRIS)
    assert found.active == 0
    assert "collapsed" in found.summary
    assert found.rate < 0.01


def codes_of(fit: ppvae.Fit, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes of PPCA by dense algebra, each row from its observed entries: means (N, L), covariances (N, L, L)."""
    w, m, v = (fit.params[name] for name in ("loadings", "mean", "noise_variance"))
    seen = ~np.isnan(x)
    covariances = np.stack([np.linalg.inv(np.eye(w.shape[1]) + w[o].T @ w[o] / v) for o in seen])
    means = np.stack([c @ w[o].T @ (row[o] - m[o]) / v for row, o, c in zip(x, seen, covariances, strict=True)])
    return means, covariances


@pytest.fixture(scope="module", params=["iris", "airquality"])
def examined(request):
    """A fit with codes that differ from the prior, on a complete table and on one with holes, and what was found of them."""
    data = ppvae.load_data(request.param)
    fit = ppvae.fit(PPCA(2), data, ppvae.EM(max_steps=3))
    return fit, data, examine(fit, data)


def test_what_codes_say_of_rows_is_what_quadrature_gives(examined):
    """The densities of codes, row by row and all together, on a grid finer than any of them."""
    fit, data, found = examined
    means, covariances = codes_of(fit, data.numpy())
    axis = np.arange(-7, 7, 0.07)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    each = np.stack([stats.multivariate_normal(m, c).pdf(grid) for m, c in zip(means, covariances, strict=True)])
    cell, together, prior = 0.07**2, each.mean(0), stats.multivariate_normal(np.zeros(2)).pdf(grid)
    assert each.sum((1, 2)) * cell == pytest.approx(1, abs=1e-6)
    said = np.log(np.maximum(each, 1e-300)) - np.log(np.maximum(together, 1e-300))
    information = float((each * said).sum() * cell / len(each))
    error = np.sqrt(((each * said**2).sum() * cell / len(each) - information**2) / len(each))
    assert found.mutual_information_se == pytest.approx(error, rel=0.4)  # 4 standard errors of an sd of 150 draws, their tails allowed for
    assert abs(found.mutual_information - information) < 4 * error
    assert abs(found.marginal_kl - special.kl_div(together, prior).sum() * cell) < 4 * error
    rate = [(np.trace(c) + m @ m - 2 - np.linalg.slogdet(c)[1]) / 2 for m, c in zip(means, covariances, strict=True)]
    assert found.rate == pytest.approx(np.mean(rate), rel=1e-9)


def test_the_table_of_codes(examined):
    fit, data, found = examined
    means, covariances = codes_of(fit, data.numpy())
    own = np.diagonal(covariances, axis1=1, axis2=2)
    assert found.table.kl.to_numpy() == pytest.approx(((own + means**2 - 1 - np.log(own)) / 2).mean(0))
    assert found.table.activity.to_numpy() == pytest.approx(means.var(0))
    assert found.table["mean"].to_numpy() == pytest.approx(means.mean(0), abs=1e-9)
    together = np.cov(means.T, ddof=0) + covariances.mean(0)
    assert found.table.sd.to_numpy() == pytest.approx(np.sqrt(np.diag(together)))
    at = means.mean(0)
    assert found.gaussian_kl == pytest.approx((np.trace(together) + at @ at - 2 - np.linalg.slogdet(together)[1]) / 2)


def test_how_far_decoded_rows_lie(examined):
    """Root mean square differences over the entries that both rows have, pair by pair."""
    fit, data, found = examined
    x, (w, m) = data.numpy(), (fit.params[name] for name in ("loadings", "mean"))
    assert found.reconstruction == pytest.approx(np.sqrt(np.nanmean((codes_of(fit, x)[0] @ w.T + m - x) ** 2)))
    made = prior_predictive(fit.model, fit.theta, data.batch())["z"][0].numpy() @ w.T + m

    def apart(one, other):
        squares = (one[:, None] - other) ** 2
        return np.sqrt(np.nansum(squares, -1) / (~np.isnan(squares)).sum(-1))

    def middle(distances):
        return np.quantile(distances, 0.5, method="lower")  # torch's median

    unit, far = middle(np.where(np.eye(len(x), dtype=bool), np.inf, apart(x, x)).min(1)), apart(made, x)
    assert found.generation == pytest.approx(middle(far.min(1)) / unit)
    assert found.coverage == pytest.approx(middle(far.min(0)) / unit)


def test_codes_of_an_exact_fit_are_the_priors():
    """For PPCA at its maximum all codes together have the prior's moments."""
    found = examine(ppvae.fit(PPCA(2), IRIS), IRIS)
    assert found.gaussian_kl == pytest.approx(0, abs=1e-9)
    assert found.table.sd.to_numpy() == pytest.approx(1, abs=1e-9)
    assert found.mutual_information == pytest.approx(2.32, abs=4 * found.mutual_information_se)


def test_latents_that_cannot_be_examined():
    with pytest.raises(ValueError, match="one site"):
        examine(ppvae.fit(ppvae.models.GMM(2), IRIS), IRIS)


# Bad input


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"likelihood": "gausian"}, "did you mean 'gaussian'"),
        ({"noise": "feature"}, "use likelihood='gaussian'"),
        ({"likelihood": "gaussian", "noise": "full"}, "unknown noise"),
        ({"network": "transformer"}, "unknown network"),
        ({"n_latents": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_be(config, said):
    with pytest.raises(ValueError, match=said):
        VAE(**config)


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"images of 8 and 8 pixels cannot be halved 4 times"):
        ppvae.fit(VAE(hidden=(4, 4, 4, 4), network="convolutional"), DIGITS)
    with pytest.raises(ValueError, match="needs images"):
        ppvae.fit(VAE(likelihood="gaussian", network="convolutional"), IRIS)
    with pytest.raises(ValueError, match="at least one layer"):
        ppvae.fit(VAE(hidden=(), network="convolutional"), DIGITS)
