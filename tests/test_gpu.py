"""On a GPU: the same fits as on the CPU, and a step that is one CUDA graph. Skipped, and said so, where there is none."""

import numpy as np
import pytest
import torch

import ppvae
from ppvae.models import GMM, PPCA, VAE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")


@pytest.mark.parametrize(("model", "name"), [(PPCA(2), "iris"), (GMM(2), "faithful")], ids=["ppca", "gmm"])
def test_exact_fits_are_the_same(model, name):
    data = ppvae.load_data(name)
    here, there = (ppvae.fit(model, data, device=device).log_likelihood(data) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, rtol=1e-8)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_compiled_step_is_the_same_run_as_a_captured_one(batch_size):
    """Replayed, with other rows and fresh draws at each step; the same seed makes the same run."""
    data = ppvae.load_data("iris")
    fits = [
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=100, batch_size=batch_size, compile=c), seed=3, device="cuda")
        for c in ("auto", True, True)
    ]
    assert [fit.engine for fit in fits[1:]] == ["captured and compiled"] * 2
    losses = [fit.history.elbo.iloc[1:].to_numpy() for fit in fits]
    assert len(set(losses[1])) == len(losses[1])
    np.testing.assert_array_equal(losses[1], losses[2])
    np.testing.assert_allclose(losses[1][:5], losses[0][:5], rtol=1e-6)


def test_a_network_learns_there():
    fit = ppvae.fit(VAE(2, hidden=(16,)), ppvae.load_data("iris").rescaled(), ppvae.SVI(steps=300, compile=True), device="cuda")
    assert fit.history.elbo.iloc[-1] > fit.history.elbo.iloc[1]
