"""Starts and floors of mixtures: clusters as far apart as they like, beside wild rows and holes, in any units."""

import numpy as np
import pytest
import torch

import ppvae
from ppvae.models import GMM, BayesianGMM, MixtureFA, MixturePPCA
from ppvae.starts import kmeans_partition

MIXTURES = {
    "full": GMM(2),
    "tied": GMM(2, covariance="tied"),
    "diag": GMM(2, covariance="diag"),
    "spherical": GMM(2, covariance="spherical"),
    "ppca": MixturePPCA(2, 1),
    "fa": MixtureFA(2, 1),
}


def clusters(gap: float, sds: tuple[float, float] = (1.0, 1.0)) -> list[np.ndarray]:
    """60 and 40 rows, `gap` apart in each column, with one factor in common within each."""
    random = np.random.default_rng(1)
    sizes = (60, 40)
    parts = [random.normal(size=(n, 1)) * [1.0, 0.8, 0.9] + 0.7 * random.normal(size=(n, 3)) for n in sizes]
    return [parts[0] * sds[0], gap + parts[1] * sds[1]]


def best(kind: str, parts: list[np.ndarray]) -> float:
    """The highest log-likelihood per row of clusters that do not overlap: each has a share, and the normal that fits it best."""
    shares = [len(part) / sum(map(len, parts)) for part in parts]
    covariances = [np.cov(part.T, bias=True) for part in parts]
    if kind == "tied":
        covariances = [sum(share * c for share, c in zip(shares, covariances, strict=True))] * len(parts)
    total = 0.0
    for share, covariance in zip(shares, covariances, strict=True):
        own, values = np.diag(covariance), np.linalg.eigvalsh(covariance)
        logdet = {
            "full": np.log(values).sum(),
            "tied": np.log(values).sum(),
            "diag": np.log(own).sum(),
            "spherical": 3 * np.log(own.mean()),
            "ppca": np.log(values[-1]) + 2 * np.log(values[:-1].mean()),
            "fa": np.log(values).sum(),  # one factor says all of three columns
        }
        total += share * (np.log(share) - 0.5 * (3 * np.log(2 * np.pi) + logdet[kind] + 3))
    return total


@pytest.mark.parametrize("gap", [1e3, 1e4, 1e6])
@pytest.mark.parametrize("kind", MIXTURES)
def test_clusters_far_apart_are_found_as_if_alone(kind, gap):
    """Rounding of entries of size 10^6 is 10^-10 of a spread of 1; a floor at 10^-6 of the whole variance would be 10^5 times that."""
    parts = clusters(gap)
    x = np.concatenate(parts)
    fit = ppvae.fit(MIXTURES[kind], x, ppvae.EM(acceleration="anderson"))
    assert float(fit.log_likelihood(x).mean()) == pytest.approx(best(kind, parts), abs=1e-5)
    assert not fit.theta.at_floor()


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if kind != "tied"])
def test_clusters_of_other_spreads_far_apart(kind):
    """The floor is a share of the least spread, not of their mean."""
    parts = clusters(1e4, (1.0, 1e-2))
    x = np.concatenate(parts)
    fit = ppvae.fit(MIXTURES[kind], x, ppvae.EM(acceleration="anderson"))
    assert float(fit.log_likelihood(x).mean()) == pytest.approx(best(kind, parts), abs=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_clusters_far_apart_in_float32(kind):
    """An entry of 10^3 is known to 6e-5 there: the likelihood to about that, relative to a variance of 1."""
    parts = clusters(1e3)
    x = np.concatenate(parts)
    fit = ppvae.fit(MIXTURES[kind], x, ppvae.EM(acceleration="anderson"), dtype="float32")
    assert float(np.asarray(fit.log_likelihood(x), float).mean()) == pytest.approx(best(kind, parts), abs=1e-3)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("wild", [[1e5, 1e5, 1e5], [-1e7, 0.3, 1.0]], ids=["everywhere", "in-one-column"])
def test_one_wild_row_leaves_the_others_apart(kind, wild):
    """Clusters at 0 and 8, which hardly overlap: their means are those of their rows."""
    parts = clusters(8.0)
    x = np.concatenate([*parts, [wild]])
    fit = ppvae.fit(type(MIXTURES[kind])(**{**MIXTURES[kind].config(), "n_components": 3}), x, ppvae.EM(max_steps=300))
    means = fit.params["means"]
    for part in parts:
        assert np.abs(means - part.mean(0)).max(1).min() < 0.05
    assert np.abs(means - wild).max(1).min() < 1e-6 * abs(wild[0])


@pytest.mark.parametrize("gap", [1e3, 1e6])
@pytest.mark.parametrize("kind", ["full", "diag", "ppca", "fa"])
def test_rows_with_holes_belong_to_the_cluster_of_what_they_hold(kind, gap):
    """In the middle of a column, where a mean would put a hole, there is nothing; the single models say what is best."""
    parts, random = clusters(gap), np.random.default_rng(2)
    for part in parts:
        part[random.random(part.shape) < 0.2] = np.nan
        part[:, 0] = np.where(np.isnan(part).all(1), part[0, 0] if np.isfinite(part[0, 0]) else gap, part[:, 0])
    x, model = np.concatenate(parts), MIXTURES[kind]
    single = type(model)(**{**model.config(), "n_components": 1})
    alone = [float(ppvae.fit(single, part, ppvae.EM(acceleration="anderson")).log_likelihood(part).sum()) for part in parts]
    right = sum(score + len(part) * np.log(len(part) / len(x)) for score, part in zip(alone, parts, strict=True)) / len(x)
    fit = ppvae.fit(model, x, ppvae.EM(acceleration="anderson"))
    assert float(fit.log_likelihood(x).mean()) == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_posterior_of_clusters_far_apart(covariance):
    """The prior of a covariance is that within the clusters, worth a few rows, so the posterior of the means stays at the clusters'."""
    parts = clusters(1e5)
    fit = ppvae.fit(BayesianGMM(2, covariance), np.concatenate(parts))
    means = fit.params["means"][fit.params["means"][:, 0].argsort()]
    assert np.abs(means - [part.mean(0) for part in parts]).max() < 0.03  # of 1000 draws, each 1 / sqrt(40) wide
    spreads = fit.theta.precision_scale.diagonal() if covariance == "full" else 1 / fit.theta.precision_rate
    within = sum(part.var(0) * len(part) for part in parts) / 100
    ratio = spreads.numpy() * within * (4 if covariance == "full" else 1)
    assert ratio == pytest.approx(1.0, abs=0.2)  # shrunk a little


def test_the_partition_in_other_units_is_the_same():
    parts = clusters(50.0)
    x, units = np.concatenate(parts), np.array([1e-9, 1.0, 1e9])
    x[0, 0] = x[70, 1] = np.nan
    one, other = (kmeans_partition(ppvae.Data(table), 2, torch.Generator().manual_seed(0)) for table in (x, x * units))
    squares = torch.as_tensor(np.outer(units, units))
    for mine, theirs, unit in (
        (one.weights, other.weights, 1.0),
        (one.means, other.means, torch.as_tensor(units)),
        (one.covariances, other.covariances, squares),
        (one.own, other.own, squares),
        (one.within, other.within, squares.diagonal()),
    ):
        torch.testing.assert_close(theirs / unit, mine, rtol=1e-9, atol=1e-12)
    assert sorted(one.weights.tolist()) == [0.4, 0.6]
    least = one.least(one.own.diagonal(dim1=1, dim2=2), one.within)
    expected = np.minimum(*(np.nanvar(part, 0) for part in (x[:60], x[60:])))
    np.testing.assert_allclose(least.numpy(), expected, rtol=1e-9)


def test_a_column_that_the_clusters_explain_has_a_start_of_its_own():
    """A thousandth of its variance within clusters, where rounding alone would be left."""
    x = np.concatenate(clusters(50.0))
    x[:, 0] = np.repeat([0.1, 0.7], [60, 40])
    found = kmeans_partition(ppvae.Data(x), 2, torch.Generator().manual_seed(0))
    assert float(found.within[0]) == pytest.approx(1e-3 * x[:, 0].var(), rel=1e-9)
    assert found.own[:, 0].abs().max() == 0
    assert torch.linalg.eigvalsh(found.covariances).min() > 0
