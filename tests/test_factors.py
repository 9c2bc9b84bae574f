"""Factors of a mean-field posterior: textbook conjugate updates, and moments, modes and divergences against SciPy."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, stats

from ppvae.distributions import Wishart
from ppvae.factors import factor

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((7, 2)) @ [[1.0, 0.4], [0.0, 0.7]] + [2.0, -1.0]


def tensor(value) -> torch.Tensor:
    return torch.as_tensor(np.array(value, dtype=float))


def made(prior, point=False):
    return factor("site", {"fn": prior}, point)


class TestUpdates:
    """The gradients of a log-likelihood in a factor's moments, written out, give the posterior of the textbook (Bishop 2006, chapter 2)."""

    def test_dirichlet_counts(self):
        found = made(dist.Dirichlet(tensor([0.5, 2.0, 1.0])))
        found.update({"log": tensor([3.0, 0.0, 4.0])}, found.moments())
        assert found.concentration.tolist() == [3.5, 2.0, 5.0]

    def test_normal_of_known_precision(self):
        precision, loc, scale = np.array([[2.0, 0.3], [0.3, 1.0]]), np.array([0.5, -0.5]), np.array([1.0, 3.0])
        found = made(dist.Normal(tensor(loc), tensor(scale)).expand([1, 2]).to_event(2))
        at = {"mean": tensor([[0.1, 0.2]])}
        pull = precision @ (ROWS - at["mean"].numpy()).sum(0)
        found.update({"mean": tensor([pull]), "covariance": tensor([-0.5 * len(ROWS) * precision])}, at)
        covariance = np.linalg.inv(np.diag(scale**-2.0) + len(ROWS) * precision)
        assert found.covariance[0].numpy() == pytest.approx(covariance)
        assert found.loc[0].numpy() == pytest.approx(covariance @ (loc / scale**2 + precision @ ROWS.sum(0)))

    def test_gamma_of_known_mean(self):
        found = made(dist.Gamma(tensor([1.5]), tensor([2.0])).to_event(1))
        squares = ((ROWS[:, 0] - 2) ** 2).sum()
        found.update({"value": tensor([-squares / 2]), "log": tensor([len(ROWS) / 2])}, found.moments())
        assert found.concentration.tolist() == pytest.approx([1.5 + 3.5])
        assert found.rate.tolist() == pytest.approx([2 + squares / 2])

    def test_wishart_of_known_mean(self):
        scale = np.array([[0.5, 0.1], [0.1, 0.4]])
        found = made(Wishart(tensor(4.0), tensor(scale)).expand([1]).to_event(1))
        scatter = (ROWS - [2, -1]).T @ (ROWS - [2, -1])
        found.update({"value": tensor([-scatter / 2]), "log": tensor([len(ROWS) / 2])}, found.moments())
        assert found.df.tolist() == [11.0]
        assert found.scale[0].numpy() == pytest.approx(np.linalg.inv(np.linalg.inv(scale) + scatter))


def expectation(density, function, low, high):
    return integrate.quad(lambda t: density.pdf(t) * function(t), low, high, epsabs=1e-12)[0]


class TestAgainstScipy:
    def test_shares(self):
        found = made(dist.Dirichlet(tensor([0.7, 2.0])))
        found.concentration = tensor([3.5, 6.0])
        q, prior = stats.beta(3.5, 6.0), stats.beta(0.7, 2.0)
        logs = expectation(q, np.log, 0, 1), expectation(q, lambda t: np.log1p(-t), 0, 1)
        assert found.moments()["log"].tolist() == pytest.approx(logs, rel=1e-7)
        assert float(found.divergence()) == pytest.approx(expectation(q, lambda t: q.logpdf(t) - prior.logpdf(t), 0, 1), rel=1e-6)
        peak = optimize.minimize_scalar(lambda t: -q.logpdf(t), bounds=(0.01, 0.99), method="bounded", options={"xatol": 1e-10}).x
        assert found.mode.tolist() == pytest.approx([peak, 1 - peak], abs=1e-6)

    def test_positive_numbers(self):
        found = made(dist.Gamma(tensor([1.5]), tensor([2.0])).to_event(1))
        found.concentration, found.rate = tensor([4.0]), tensor([0.5])
        q, prior = stats.gamma(4.0, scale=2.0), stats.gamma(1.5, scale=0.5)
        moments = found.moments()
        assert float(moments["value"]) == pytest.approx(q.mean())
        assert float(moments["log"]) == pytest.approx(expectation(q, np.log, 0, 200), rel=1e-7)
        assert float(found.divergence()) == pytest.approx(expectation(q, lambda t: q.logpdf(t) - prior.logpdf(t), 0, 200), rel=1e-6)
        peak = optimize.minimize_scalar(lambda t: -q.logpdf(t), bounds=(0.1, 50), method="bounded", options={"xatol": 1e-10}).x
        assert float(found.mode) == pytest.approx(peak, abs=1e-5)

    def test_vectors(self):
        found = made(dist.Normal(tensor([0.5, -0.5]), tensor([1.0, 3.0])).expand([1, 2]).to_event(2))
        covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
        found.loc, found.covariance = tensor([[1.0, 2.0]]), tensor([covariance])
        prior, apart = np.diag([1.0, 9.0]), np.array([0.5, 2.5])
        known = np.trace(np.linalg.solve(prior, covariance)) + apart @ np.linalg.solve(prior, apart) - 2
        known = (known + np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1]) / 2
        assert float(found.divergence()) == pytest.approx(known)
        assert found.moments()["covariance"][0].numpy() == pytest.approx(covariance)

    def test_precision_matrices(self):
        """Of 4000 draws of SciPy's own."""
        found = made(Wishart(tensor(4.0), tensor([[0.5, 0.1], [0.1, 0.4]])).expand([1]).to_event(1))
        found.df, found.scale = tensor([7.5]), tensor([[[0.3, -0.1], [-0.1, 0.6]]])
        q, prior = stats.wishart(7.5, found.scale[0].numpy()), stats.wishart(4.0, found.prior_scale[0].numpy())
        drawn = q.rvs(4000, random_state=0)
        moments, logdets = found.moments(), np.linalg.slogdet(drawn)[1]
        assert np.abs(moments["value"][0].numpy() - drawn.mean(0)).max() < 4 * drawn.std(0).max() / 4000**0.5
        assert float(moments["log"]) == pytest.approx(logdets.mean(), abs=4 * logdets.std() / 4000**0.5)
        ratio = q.logpdf(drawn.transpose(1, 2, 0)) - prior.logpdf(drawn.transpose(1, 2, 0))
        assert float(found.divergence()) == pytest.approx(ratio.mean(), abs=4 * ratio.std() / 4000**0.5)
        assert found.mode[0].numpy() == pytest.approx(4.5 * found.scale[0].numpy())  # (df - D - 1) V


@pytest.mark.parametrize(
    ("prior", "log_density"),
    [
        (dist.Dirichlet(tensor([3.0, 2.0])), lambda at: stats.dirichlet([3.0, 2.0]).logpdf(at)),
        (dist.Gamma(tensor([3.0]), tensor([2.0])).to_event(1), lambda at: stats.gamma(3.0, scale=0.5).logpdf(at[0])),
        (dist.Normal(tensor([[0.5]]), tensor([[2.0]])).to_event(2), lambda at: stats.norm(0.5, 2).logpdf(at[0, 0])),
        (Wishart(tensor(4.0), tensor([[0.5]])).expand([1]).to_event(1), lambda at: stats.wishart(4.0, 0.5).logpdf(at[0, 0, 0])),
    ],
    ids=["shares", "positive", "vectors", "matrices"],
)
def test_a_point_costs_its_prior_density(prior, log_density):
    """A point mass has no entropy: it is charged -log p at where it stands, and its moments are those of its value."""
    found = made(prior, point=True)
    assert float(found.divergence()) == pytest.approx(-float(log_density(found.mode.numpy())))
    moments = found.moments()
    if "log" in moments:
        log = np.linalg.slogdet(found.mode.numpy())[1] if found.mode.ndim == 3 else np.log(found.mode.numpy())
        assert moments["log"].numpy() == pytest.approx(log)
    if "covariance" in moments:
        assert not moments["covariance"].any()
    name = next((n for n in ("value", "mean") if n in moments), None)
    assert name is None or torch.equal(moments[name], found.mode)
