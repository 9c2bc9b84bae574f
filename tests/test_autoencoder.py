"""Autoencoders: the squared error and nothing else, so a linear one is PCA, and drawing codes from a prior is not what they learnt."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import ppvae
from ppvae import laws
from ppvae.criticism.latents import examine
from ppvae.models import VAE, Autoencoder

IRIS = ppvae.load_data("iris")
DIGITS = ppvae.load_data("digits", rescale=True)
X = IRIS.numpy() - IRIS.numpy().mean(0)
AXES = np.linalg.svd(X, full_matrices=False)[2].T


def error(fit: ppvae.Fit, data: ppvae.Data) -> float:
    """Squared error of a row, summed over features, mean over rows."""
    return float(((fit.decode(fit.transform(data)) - data.numpy()) ** 2).sum(1).mean())


@pytest.mark.parametrize("n_latents", [1, 2])
def test_a_linear_one_finds_the_principal_subspace(n_latents):
    best = float(((X - X @ AXES[:, :n_latents] @ AXES[:, :n_latents].T) ** 2).sum(1).mean())
    fit = ppvae.fit(Autoencoder(n_latents, ()), IRIS, ppvae.SVI(steps=1500, learning_rate=0.03), dtype=torch.float64)
    assert best - 1e-12 < error(fit, IRIS) < best + 1e-4
    loadings = fit.theta.decoder[0].weight.detach().numpy()
    assert subspace_angles(loadings, AXES[:, :n_latents]).max() < 0.01
    assert error(ppvae.fit(Autoencoder(n_latents, ()), IRIS, ppvae.SVI(steps=1)), IRIS) > 1.5 * best


def test_the_score_is_the_squared_error_and_no_evidence():
    fit = ppvae.fit(Autoencoder(2, (8,)), IRIS, ppvae.SVI(steps=50), dtype=torch.float64)
    score = float(fit.elbo(IRIS).mean())
    assert score == pytest.approx(-0.5 * error(fit, IRIS) - 0.5 * 4 * np.log(2 * np.pi), rel=1e-9)
    assert "no evidence" in fit.log_likelihood(IRIS).how
    assert not fit.log_likelihood(IRIS).exact
    linear = ppvae.fit(Autoencoder(2, ()), IRIS, ppvae.SVI(steps=5), dtype=torch.float64)
    assert "no evidence" in linear.log_likelihood(IRIS).how  # quadratic in z, but no density either


def test_missing_entries_leave_the_error_out():
    data = IRIS.hiding(torch.rand(IRIS.x.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
    fit = ppvae.fit(Autoencoder(2, (8,)), data, ppvae.SVI(steps=5), dtype=torch.float64)
    seen = data.observed.numpy()
    squares = np.where(seen, fit.decode(fit.transform(data)) - data.numpy(), 0.0) ** 2
    expected = -0.5 * squares.sum(1) - 0.5 * seen.sum(1) * np.log(2 * np.pi)
    assert np.asarray(fit.elbo(data)) == pytest.approx(expected, rel=1e-9)


def test_laws_and_disk(tmp_path):
    verdicts = laws.check(Autoencoder(2, (8,)), IRIS.take(torch.arange(0, 150, 5)), only=[7, 8])
    assert verdicts.table.verdict.tolist() == ["holds"] * 2, verdicts.table.to_string()
    fit = ppvae.fit(Autoencoder(2, (8,)), IRIS, ppvae.SVI(steps=5))
    again = ppvae.load(fit.save(tmp_path / "fit"))
    assert np.array_equal(again.transform(IRIS), fit.transform(IRIS))


def test_one_reconstructs_and_the_other_generates():
    """Of the digits, the autoencoder's codes are better to reconstruct from, and nothing like what the prior draws; a VAE's are."""
    train, held = DIGITS.split(0.2)
    method = ppvae.SVI(steps=300, learning_rate=0.01)
    deterministic = examine(ppvae.fit(Autoencoder(8, (64,)), train, method), held)
    variational = examine(ppvae.fit(VAE(8, (64,)), train, method), held)
    assert deterministic.reconstruction < variational.reconstruction
    assert np.isinf(deterministic.rate)
    assert deterministic.gaussian_kl > 5
    assert variational.gaussian_kl < 1


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="at least 1"):
        Autoencoder(0)
    with pytest.raises(ValueError, match="2 dimensions, the latents given have 3"):
        ppvae.fit(Autoencoder(2, (4,)), IRIS, ppvae.SVI(steps=1)).decode(np.zeros((2, 3)))
