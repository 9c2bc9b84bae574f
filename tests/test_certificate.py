"""Closed forms are read off a story only where it is quadratic in its latents: on every row, near and far, wherever theta goes."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import constraints

import ppvae
from ppvae import Constrained, Model, Parameters
from ppvae.inference.fit import start
from ppvae.program.derive import derive

RNG = np.random.default_rng(0)
GROUP = (np.arange(40) >= 30).astype(float)
X = RNG.normal(size=(40, 2)) * 1.5
DATA = ppvae.Data(X, context=GROUP)


class Story(Model):
    """One latent number a row; what x's means are in it is `loc`, and their spread `scale`."""

    def init(self, data, generator):
        return Parameters(w=torch.tensor([1.0, 0.5]), c=torch.zeros(2), s=Constrained(torch.tensor(0.8), constraints.positive))

    def loc(self, theta, z, group):
        return theta.w * z

    def noise(self, theta, z, loc):
        return dist.Normal(loc, theta.s)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            noise = self.noise(theta, z, self.loc(theta, z, batch.context))
            pyro.sample("x", noise.mask(batch.observed).to_event(1), obs=batch.x)


def story(**parts):
    return type("Bent", (Story,), parts)()


def certified(model, data=DATA, moving=False):
    theta = start(model, data, 0)
    return derive(model, theta, data.batch(), moving)


@pytest.mark.parametrize(
    "parts",
    [
        {"loc": lambda self, theta, z, g: theta.w * torch.relu(z + 1.0)},
        {"loc": lambda self, theta, z, g: theta.w * z.clamp(-2, 2)},
        {"loc": lambda self, theta, z, g: theta.w * z.clamp(min=-5)},
        {"loc": lambda self, theta, z, g: theta.w * z.abs()},
        {"loc": lambda self, theta, z, g: theta.w * torch.where(g == 1, z.exp(), z)},
        {"loc": lambda self, theta, z, g: theta.w * (z + 1e-3 * torch.sin(6.2831853 * z))},
        {"noise": lambda self, theta, z, loc: dist.Normal(loc, theta.s * (1 + z.square()))},
        {"noise": lambda self, theta, z, loc: dist.AsymmetricLaplace(loc, theta.s, 1.5)},
        {"noise": lambda self, theta, z, loc: dist.StudentT(30.0, loc, theta.s)},
    ],
    ids=["relu", "clamp", "clamp far out", "abs", "one group", "ripple", "scale", "asymmetric Laplace", "Student t"],
)
def test_what_only_looks_quadratic_has_no_closed_forms(parts):
    assert certified(story(**parts)) is None


def test_what_is_quadratic_has():
    """The closed form is the dense normal's, whatever the context adds to the mean or to the spread."""
    model = story(loc=lambda self, theta, z, g: theta.w * z + g, noise=lambda self, theta, z, loc: dist.Normal(loc, theta.s))
    exact, theta = certified(model, moving=True), start(model, DATA, 0)
    found = exact.log_marginal(theta, DATA.batch()).detach()
    cov = np.outer([1.0, 0.5], [1.0, 0.5]) + 0.64 * np.eye(2)
    assert np.abs(found.numpy() - stats.multivariate_normal(np.zeros(2), cov).logpdf(X - GROUP[:, None])).max() < 1e-6  # 0.8 is float32's


def test_a_coefficient_that_starts_at_0_is_looked_at_where_it_goes():
    bent = story(loc=lambda self, theta, z, g: theta.w * z + theta.c * z**2)
    assert certified(bent) is not None  # at c = 0 it is linear
    assert certified(bent, moving=True) is None
    theta = start(bent, DATA, 0)
    theta.assign({"c": torch.tensor([0.0, 0.3])})
    assert derive(bent, theta, DATA.batch()) is None
    held = type("Held", (type(bent),), {"init": lambda self, data, generator: Story.init(self, data, generator).freeze("c")})()
    assert certified(held, moving=True) is not None


def test_scores_change_their_name_where_theta_has_bent_the_story():
    """What is exact at the start is estimated at the end, within 4 standard errors of the integral."""
    bent = story(loc=lambda self, theta, z, g: theta.w * z + theta.c * z**2)
    z = RNG.normal(size=(40, 1))
    x = z * [1.0, 0.5] + z**2 * [0.0, 0.4] + 0.5 * RNG.normal(size=(40, 2))
    data = ppvae.Data(x, context=GROUP)
    with pytest.raises(ValueError, match="does not read the context"):
        ppvae.fit(bent, data, ppvae.SVI(steps=5))
    data = ppvae.Data(x)
    bent = type("Alone", (type(bent),), {"model": lambda self, theta, batch: Story.model(self, theta, _with(batch))})()
    fit = ppvae.fit(bent, data, ppvae.SVI(steps=150, compile=False))
    scores, p = fit.log_likelihood(data), fit.params
    assert not scores.exact
    assert "log_likelihood" not in fit.history or fit.history.log_likelihood.isna().all()

    def joint(t, row):
        return np.exp(stats.norm.logpdf(x[row], p["w"] * t + p["c"] * t**2, p["s"]).sum()) * stats.norm.pdf(t)

    for row in range(0, 40, 8):
        right = np.log(integrate.quad(joint, -8, 8, args=(row,), limit=200)[0])
        assert abs(scores.values[row] - right) < 4 * scores.standard_error[row] + 1e-3


def test_one_row_among_many_is_looked_at():
    """A single row of another kind, between those that a glance takes in."""
    model, group = story(loc=lambda self, theta, z, g: theta.w * torch.where(g == 1, z.exp(), z)), np.zeros(40)
    group[17] = 1.0
    assert certified(model, ppvae.Data(X, context=group)) is None
    assert certified(model, ppvae.Data(np.delete(X, 17, 0), context=np.delete(group, 17))) is not None


@pytest.mark.parametrize(
    "method",
    [
        ppvae.SVI(steps=150, learning_rate=0.1, compile=False),
        ppvae.DirectML(steps=60),
        ppvae.MonteCarloEM(steps=6),
        ppvae.VariationalEM(rounds=4, e_steps=10, m_steps=20, learning_rate=0.1, compile=False),
    ],
    ids=lambda method: method.name,
)
def test_a_story_that_bends_on_the_way_is_found_out(method):
    """x's mean is c, and from c = 1 on the latent's square comes in: neither at the start nor a step beside it is there anything to see."""

    class Later(Story):
        def model(self, theta, batch):
            with batch.rows:
                z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
                loc = theta.c + theta.w * z + torch.relu(theta.c - 1) * z**2
                pyro.sample("x", dist.Normal(loc, theta.s).mask(batch.observed).to_event(1), obs=batch.x)

    x = X + 3.0
    fit = ppvae.fit(Later(), x, method)
    scores, p, z = fit.log_likelihood(x), fit.params, np.linspace(-9, 9, 4001)[:, None, None]
    assert not fit.converged
    if method.name == "direct_ml":  # it stays where its objective is what it says
        assert "beyond the last point, whose parameters these are, the story has no closed forms: use SVI" in fit.status
        assert p["c"].max() < 1
        assert scores.exact
    else:
        assert p["c"].max() > 1
        assert not scores.exact
        assert "log_likelihood" not in fit.history or fit.history.log_likelihood.isna().all()
    if method.name in ("svi", "monte_carlo_em"):  # which began with the closed forms
        assert "do not hold where theta has come to" in fit.status
    loc = p["c"] + p["w"] * z + np.maximum(p["c"] - 1, 0) * z**2
    known = np.log((np.exp(stats.norm.logpdf(x, loc, p["s"]).sum(-1)) * stats.norm.pdf(z[..., 0])).sum(0) * 18 / 4000)
    errors = 0.0 if scores.exact else np.asarray(scores.standard_error)
    assert (np.abs(np.asarray(scores) - known) < 5 * errors + 0.01).all()


def _with(batch):
    from dataclasses import replace

    return replace(batch, context=batch.x.new_zeros(batch.size, 1))


@dataclass(frozen=True)
class Steered(Model):
    """A finite choice that z steers."""

    def init(self, data, generator):
        return Parameters(gate=torch.tensor([0.0]), m=torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            k = pyro.sample("k", dist.Bernoulli(logits=(z * theta.gate).sum(-1)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(theta.m[k.long()] + z, 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_a_choice_steered_by_a_latent_is_looked_at_where_theta_goes():
    data = ppvae.Data(X)
    assert certified(Steered(), data) is not None  # at a gate of 0 it is steered by nothing
    assert certified(Steered(), data, moving=True) is None
