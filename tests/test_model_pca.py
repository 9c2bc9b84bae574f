"""PCA: Roweis' EM against the singular value decomposition."""

import numpy as np
import pytest
import torch
from classic import LAWS, QUICK, ragged
from scipy.linalg import subspace_angles

import ppvae
from ppvae.models import PCA, PPCA
from ppvae.models.pca import canonical

HOLES = ragged(ppvae.load_data("wine").standardized().numpy(), 0.1)


@pytest.mark.parametrize(
    ("x", "n_latents", "only"), [(ppvae.load_data("iris"), 2, LAWS), (HOLES[:, :-1], 1, QUICK)], ids=["complete", "holes"]
)
def test_laws(x, n_latents, only):
    verdicts = ppvae.laws.check(PCA(n_latents), x, only=only)
    assert set(verdicts.table.verdict) == {"holds"}, verdicts.table.to_string()


@pytest.mark.parametrize(
    "method", [ppvae.ClosedForm(), ppvae.EM(), ppvae.EM(acceleration="squarem"), ppvae.EM(acceleration="anderson")], ids=str
)
@pytest.mark.parametrize(("name", "n_latents"), [("iris", 1), ("iris", 2), ("wine", 3), ("digits", 10)])
def test_the_subspace_is_the_svds(name, n_latents, method):
    data = ppvae.load_data(name)
    x = data.numpy()
    _, values, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    fit = ppvae.fit(PCA(n_latents), data, method, seed=1)
    loadings = fit.params["loadings"]
    assert subspace_angles(loadings, vectors[:n_latents].T).max() < 1e-6
    gram = loadings.T @ loadings  # the variances along the components, less the constant noise
    assert np.diag(gram) == pytest.approx(values[:n_latents] ** 2 / len(x), rel=1e-4)
    assert gram == pytest.approx(np.diag(np.diag(gram)), abs=1e-6 * gram.max())
    assert (np.diff(np.diag(gram)) <= 0).all()
    assert (loadings[np.abs(loadings).argmax(0), range(n_latents)] > 0).all()


def test_codes_are_the_projections_at_variance_one():
    data = ppvae.load_data("iris")
    fit = ppvae.fit(PCA(2), data)
    codes, w = fit.transform(data), fit.params["loadings"]
    projected = np.linalg.lstsq(w, (data.numpy() - fit.params["mean"]).T, rcond=None)[0].T
    assert codes == pytest.approx(projected, abs=1e-5)
    assert codes.std(0) == pytest.approx([1, 1], abs=1e-5)


def test_it_is_the_limit_of_ppca():
    data = ppvae.load_data("iris")
    limit, model = ppvae.fit(PCA(2), data), ppvae.fit(PPCA(2), data)
    assert subspace_angles(limit.params["loadings"], model.params["loadings"]).max() < 1e-6
    left = data.numpy() - data.numpy().mean(0)
    left = left - left @ np.linalg.pinv(limit.params["loadings"]).T @ limit.params["loadings"].T
    away = (left**2).sum(1)  # squared distance from the subspace: what the score says once the constant noise is taken out
    scores, noise = np.asarray(limit.log_likelihood(data)), float(limit.params["noise_variance"])
    assert -2 * noise * (scores - scores.mean()) == pytest.approx(away - away.mean(), abs=1e-4)


def test_rows_in_a_subspace_are_found_whole_through_holes():
    random = np.random.default_rng(0)
    directions = random.standard_normal((2, 8))
    x = random.standard_normal((200, 2)) @ directions + random.standard_normal(8)
    holed = np.where(random.random(x.shape) < 0.3, np.nan, x)
    fit = ppvae.fit(PCA(2), holed, ppvae.EM(acceleration="anderson"))
    assert subspace_angles(fit.params["loadings"], directions.T).max() < 1e-6


def test_canonical_loadings_say_the_same():
    w = torch.randn(6, 3, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    assert torch.allclose(canonical(w), canonical(w @ rotation))
    assert torch.allclose(canonical(w) @ canonical(w).mT, w @ w.mT)


def test_the_noise_is_not_fitted():
    data = ppvae.load_data("iris")
    fits = [ppvae.fit(PCA(2), data, method) for method in (ppvae.ClosedForm(), ppvae.EM(max_steps=3))]
    assert fits[0].params["noise_variance"] == fits[1].params["noise_variance"] == pytest.approx(1e-8 * float(data.variance.mean()))
    assert fits[0].n_parameters == 4 * 2 + 4 - 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        PCA(0)
    with pytest.raises(ValueError, match="choose fewer latents"):
        ppvae.fit(PCA(4), ppvae.load_data("iris"))
    with pytest.raises(ValueError, match=r"use .*EM"):
        ppvae.fit(PCA(2), HOLES[:, :-1], ppvae.ClosedForm())
    with pytest.raises(ValueError, match=r"fits 3 entries of a column exactly.*x12.*use PPCA"):
        ppvae.fit(PCA(2), HOLES)
