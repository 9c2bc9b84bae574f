"""Stories with normalising flows as Pyro ships them: they remember their last input, and networks of conditional ones do not broadcast."""

import copy
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae import Constrained, Model, Parameters

FLOWS = {
    "coupling": lambda d: transforms.affine_coupling(d, [6]),
    "spline": lambda d: transforms.spline(d, count_bins=3, bound=6.0),
    "spline autoregressive": lambda d: transforms.spline_autoregressive(d, hidden_dims=[6], count_bins=3, bound=6.0),
    "conditional coupling": lambda d: transforms.conditional_affine_coupling(d, 1, [6]),
    "conditional spline": lambda d: transforms.conditional_spline(d, 1, [6], count_bins=3, bound=6.0),
    "planar": transforms.planar,
}
RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(60, 1)) @ [[1.0, -0.5]] + 0.5 * RANDOM.normal(size=(60, 2))


@dataclass(frozen=True)
class Flow(Model):
    """x = f(m + w z + e), or f(m + e; z) where the flow is conditional."""

    kind: str = "coupling"

    def init(self, data, generator):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(1 << 30, (), generator=generator)))
            flow = FLOWS[self.kind](data.n_features)
        weights = 0.3 * torch.randn(data.n_features, 1, generator=generator, dtype=data.dtype)
        return Parameters(flow=flow, weights=weights, mean=data.mean, scale=Constrained(data.scale / 2, constraints.positive))

    def rows(self, theta, z):
        conditional = self.kind.startswith("conditional")
        loc = (theta.mean if conditional else theta.mean + z @ theta.weights.mT).expand(*z.shape[:-1], -1)
        base = dist.Normal(loc, theta.scale).to_event(1)
        if conditional:
            return dist.ConditionalTransformedDistribution(base, [theta.flow]).condition(z)
        return dist.TransformedDistribution(base, [theta.flow])

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", self.rows(theta, z), obs=batch.x)


def quadrature(fit, row):
    """log of the integral over z, on a grid, of p(row | z) p(z)."""
    z = torch.linspace(-9, 9, 6001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        terms = fit.model.rows(fit.theta, z).log_prob(torch.as_tensor(row).repeat(len(z), 1)) + dist.Normal(0.0, 1.0).log_prob(z[:, 0])
    return float(terms.logsumexp(0) + np.log(18 / 6000))


@pytest.mark.parametrize("compile", [False, "auto"])
@pytest.mark.parametrize("kind", [kind for kind in FLOWS if kind != "planar"])
def test_flows_train_and_score(kind, compile):
    """Each kind of flow, plain and captured: a row's score is the integral over z at the parameters where training ended."""
    fit = ppvae.fit(Flow(kind), TABLE, ppvae.SVI(steps=8, compile=compile), dtype="float64")
    scores = fit.log_likelihood(TABLE[:3], draws=2000)
    errors = np.zeros(3) if scores.standard_error is None else np.asarray(scores.standard_error)
    truth = [quadrature(fit, row) for row in TABLE[:3]]
    assert (np.abs(np.asarray(scores) - truth) < 5 * errors + 1e-6).all()
    assert fit.sample(5).shape == (5, 2)
    copy.deepcopy(fit.theta)  # as every further method does


@pytest.mark.parametrize(
    ("kind", "objective"), [("spline autoregressive", "elbo"), ("spline autoregressive", "iwae"), ("conditional coupling", "elbo")]
)
def test_a_captured_flow_trains_as_a_plain_one(kind, objective):
    """Also a spline autoregressive flow, whose network is found under two names: theta must be what was trained."""
    method = ppvae.SVI(steps=10, objective=objective, particles=2)
    plain, captured = (
        ppvae.fit(Flow(kind), TABLE, ppvae.SVI(**method.config() | {"compile": c}), dtype="float64") for c in (False, "auto")
    )
    for name, value in plain.params.items():
        np.testing.assert_allclose(captured.params[name], value, rtol=1e-9, atol=1e-12)


def test_a_flow_without_inverse_is_told_to_stay_in_guides():
    with pytest.raises(ValueError, match="this flow has no inverse, so it draws and cannot score rows"):
        ppvae.fit(Flow("planar"), TABLE, ppvae.SVI(steps=1))


@dataclass(frozen=True)
class Twice(Model):
    """A regression of x on z through a network that theta holds under two names."""

    def init(self, data, generator):
        network = nn.Linear(1, data.n_features)
        with torch.no_grad():
            network.weight.fill_(0.1)
            network.bias.fill_(0.0)
        return Parameters(first=network, second=nn.Sequential(network))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((theta.first(z) + theta.second(z)) / 2, 1.0).to_event(1), obs=batch.x)


def test_a_network_under_two_names_is_trained(tmp_path):
    fits = [ppvae.fit(Twice(), TABLE + 3.0, ppvae.SVI(steps=30, compile=c, learning_rate=0.1)) for c in (False, "auto")]
    assert fits[1].engine.startswith("captured")
    assert np.abs(fits[1].params["first.bias"]).min() > 0.5
    np.testing.assert_allclose(fits[1].params["first.bias"], fits[0].params["first.bias"], rtol=1e-4)
    again = ppvae.load(fits[1].save(tmp_path / "fit"))
    np.testing.assert_array_equal(again.params["second.0.bias"], fits[1].params["first.bias"])


class Noting(nn.Module):
    """A network that notes what it said last."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, z):
        self.said = self.linear(z)
        return self.said


def test_what_keeps_its_graph_can_be_copied():
    theta = Parameters(network=Noting(), flow=transforms.affine_coupling(2, [3]))
    theta.network(torch.ones(4, 1))
    theta.flow(torch.ones(4, 2, requires_grad=True))
    copied = copy.deepcopy(theta)
    assert copied.network.linear.weight is not theta.network.linear.weight
    torch.testing.assert_close(copied.network.said, theta.network.said)
