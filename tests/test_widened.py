"""Importance sampling from a guide with wider tails: a guide that is too narrow still gives the evidence, within its own error."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import ppvae
from ppvae.data import Data
from ppvae.program.joint import log_weights
from ppvae.program.widened import weighted_draws, wide
from ppvae.scores import sampled_evidence

LOADINGS = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.7, 0.9]], dtype=torch.float64)
X = np.random.default_rng(0).normal(size=(40, 3))
DATA = Data(X)
COVARIANCE = LOADINGS.numpy().T @ LOADINGS.numpy() + 0.25 * np.eye(3)
EVIDENCE = stats.multivariate_normal(np.zeros(3), COVARIANCE).logpdf(X)


def story(batch):
    with batch.rows:
        z = pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADINGS, 0.5).to_event(1), obs=batch.x)


class Narrow(nn.Module):
    """The exact posterior of each row, `width` times as wide."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, batch):
        precision = torch.eye(2, dtype=torch.float64) + LOADINGS @ LOADINGS.mT / 0.25
        mean = torch.linalg.solve(precision, LOADINGS @ batch.x.mT / 0.25).mT
        tril = self.width * torch.linalg.cholesky(torch.linalg.inv(precision))
        with batch.rows:
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=tril))


def means(width, repeats=20):
    torch.manual_seed(0)
    scores = [sampled_evidence(story, Narrow(width), DATA, 1000) for _ in range(repeats)]
    return np.array([s.mean() for s in scores]) - EVIDENCE.mean(), np.array([s.mean_standard_error for s in scores])


@pytest.mark.parametrize("width", [1.0, 0.4])
def test_errors_cover_the_truth(width):
    """Of 20 repeats some 19 lie within 2 errors; 15 or fewer would come once in 10^4. The guide alone, at 0.4, covers none."""
    off, errors = means(width)
    assert (np.abs(off) < 2 * errors).sum() > 15
    torch.manual_seed(0)
    with torch.no_grad():
        alone = log_weights(story, Narrow(0.4), DATA.batch(), 1000).logsumexp(0) - np.log(1000)
    assert EVIDENCE.mean() - float(alone.mean()) > 10 * errors.max()


def test_weights_are_over_the_density_of_the_mixture():
    """log q of a draw is that of the mixture's three parts, by SciPy."""
    torch.manual_seed(0)
    with torch.no_grad():
        values, weights = weighted_draws(story, Narrow(0.5), DATA.batch(), 30)
    z = values["z"].numpy()
    precision = np.eye(2) + LOADINGS.numpy() @ LOADINGS.numpy().T / 0.25
    cov, mean = 0.25 * np.linalg.inv(precision), np.linalg.solve(precision, LOADINGS.numpy() @ X.T / 0.25).T
    log_q = [np.log(1 / 3) + stats.multivariate_normal(np.zeros(2), w**2 * cov).logpdf(z - mean) for w in (1, 2, 4)]
    log_p = stats.norm.logpdf(z).sum(-1) + stats.norm.logpdf(X, z @ LOADINGS.numpy(), 0.5).sum(-1)
    assert np.abs(weights.numpy() - (log_p - np.logaddexp.reduce(log_q))).max() < 1e-9


@pytest.mark.parametrize(
    ("fn", "sd"),
    [
        (dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1), 3.0),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), 3.0),
        (dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.ReshapeTransform((2,), (2, 1))]), 3.0),
        (dist.Uniform(torch.zeros(2), 1.0).to_event(1), 12**-0.5),
    ],
)
def test_gaussian_noise_is_widened_and_nothing_else(fn, sd):
    torch.manual_seed(0)
    assert float(wide(fn, torch.tensor(3.0)).sample((20_000,)).std()) == pytest.approx(sd, rel=0.03)


def test_imputations_of_latents_that_no_guide_draws():
    """Two coins a row, summed out: the conditional mean of a missing entry is that of their four combinations, exactly."""

    class Coins(ppvae.Model):
        def init(self, data, generator):
            return ppvae.Parameters(w=torch.tensor([[4.0, 4.0], [2.0, 2.5]], dtype=torch.float64), s=torch.tensor(0.0, dtype=torch.float64))

        def model(self, theta, batch):
            with batch.rows:
                a = pyro.sample("a", dist.Bernoulli(batch.x.new_tensor(0.3)), infer={"enumerate": "parallel"})
                b = pyro.sample("b", dist.Bernoulli(batch.x.new_tensor(0.6)))
                loc = a.unsqueeze(-1) * theta.w[0] + b.unsqueeze(-1) * theta.w[1]
                pyro.sample("x", dist.Normal(loc, theta.s.exp()).mask(batch.observed).to_event(1), obs=batch.x)

    x = np.array([[0.1, np.nan], [3.2, np.nan], [np.nan, 2.0], [6.0, 6.4]])
    fit = ppvae.fit(Coins(), x, ppvae.SVI(steps=1, learning_rate=1e-12, compile=False))
    w, s = fit.params["w"], np.exp(fit.params["s"])
    places = [(a, b, np.log((0.3, 0.7)[a == 0] * (0.6, 0.4)[b == 0])) for a in (0, 1) for b in (0, 1)]
    for row, hole in ((0, 1), (1, 1), (2, 0)):
        seen = 1 - hole
        logs = np.array([p + stats.norm.logpdf(x[row, seen], a * w[0, seen] + b * w[1, seen], s) for a, b, p in places])
        shares = np.exp(logs - np.logaddexp.reduce(logs))
        right = sum(share * (a * w[0, hole] + b * w[1, hole]) for share, (a, b, _) in zip(shares, places, strict=True))
        assert abs(fit.impute(x)[row, hole] - right) < 1e-9
    assert np.isinf(fit.imputation_sample_size(x)).all()
    with pytest.raises(ValueError, match="a row has a and b, and no posterior names them all"):
        fit.predict(x)
