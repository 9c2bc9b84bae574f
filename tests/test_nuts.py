"""What is said of a sampler's chains, and fits that rest on few draws."""

from dataclasses import dataclass, replace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppvae
from ppvae.inference.nuts import diagnosed
from ppvae.parameters import Parameters
from ppvae.shared import Draws

NOISE = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPREADS = torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64).unsqueeze(1)
# Wide for 80 draws in the middle of each half: the chain's tails are seen twice.
BLOCKS = NOISE * torch.where((torch.arange(1000) % 500 - 240).abs() < 40, 6.0, 1.0)


def numbers(said: str) -> list[float]:
    """r-hat, and effective sample sizes in the bulk and in the tails, as printed."""
    words = said.replace(",", "").split()
    return [float(words[words.index("most") + 1]), float(words[words.index("least") + 1]), float(words[words.index("and") + 1])]


@pytest.mark.parametrize("chains", [NOISE, NOISE * SPREADS, NOISE + SPREADS, BLOCKS], ids=["mixed", "spread", "place", "tails"])
def test_what_is_said_is_arviz_s(chains):
    said, converged = diagnosed({"mu": chains}, 0)
    r_hat, bulk, tail = numbers(said)
    assert r_hat == pytest.approx(float(az.rhat(chains.numpy())), abs=6e-4)
    assert (bulk, tail) == pytest.approx([float(az.ess(chains.numpy(), method=m)) for m in ("bulk", "tail")], abs=0.6)
    assert converged == (chains is NOISE)


def test_chains_of_one_mean_and_two_spreads_have_not_converged():
    """The classic r-hat of these chains is 1.001; folded about the median their ranks are nothing alike."""
    said, converged = diagnosed({"other": NOISE.unsqueeze(-1), "mu": NOISE * SPREADS}, 0)
    assert not converged
    assert numbers(said)[0] > 1.1
    assert said.endswith("raise draws and warmup")


def test_a_hundred_effective_draws_a_chain():
    said, converged = diagnosed({"mu": NOISE[:, :60]}, 0)
    assert not converged
    assert said.endswith("raise draws and warmup, for 100 effective draws a chain")
    assert diagnosed({"mu": NOISE[:1]}, 0)[1]
    assert diagnosed({"mu": NOISE}, 2) == (diagnosed({"mu": NOISE}, 0)[0].replace("no div", "2 div") + DIVERGED, False)


DIVERGED = ": raise target_accept, or give the story tighter priors"


def test_units_and_what_never_moves():
    """A simplex of one share is 1 in every draw, which says nothing; a chain that stands still elsewhere than the others says all."""
    plain = diagnosed({"mu": NOISE}, 0)
    assert diagnosed({"mu": 1e-30 * NOISE, "weights": torch.ones(4, 1000, 1)}, 0) == plain
    assert diagnosed({"weights": torch.ones(4, 1000, 1)}, 0)[1]
    stuck = torch.arange(4.0, dtype=torch.float64).unsqueeze(1).expand(4, 1000)
    assert not diagnosed({"mu": stuck, "other": NOISE}, 0)[1]
    drifting = NOISE[:1] + torch.linspace(0, 3, 1000)
    assert not diagnosed({"mu": drifting}, 0)[1]
    assert not diagnosed({"mu": NOISE[:1, :5]}, 0)[1]


@dataclass(frozen=True)
class Coins(ppvae.Model):
    """x_n ~ N(4 k_n, 1), k_n ~ Bernoulli(p), p ~ Beta(1, 1)."""

    def init(self, data, generator):
        return Parameters(step=torch.tensor(4.0)).freeze("step")

    def model(self, theta, batch):
        p = pyro.sample("p", dist.Beta(theta.step / 4, theta.step / 4))
        with batch.rows:
            k = pyro.sample("k", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(theta.step * k.unsqueeze(-1), 1.0).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_posterior_of_few_draws(count):
    """Each row's probability of k = 1, averaged over the draws that there are, each once."""
    x = np.array([[0.0], [1.9], [2.1], [4.0]])
    fit = ppvae.fit(Coins(), x, ppvae.SVI(steps=1))
    p = torch.linspace(0.2, 0.8, 2 * count, dtype=torch.float64).reshape(2, count)
    sampled = replace(fit, guide=Draws({"p": p}))
    odds = p.flatten() / (1 - p.flatten()) * torch.exp(torch.as_tensor(4 * x - 8))
    found = sampled.posterior(x).log_weights.exp()[:, 1]
    torch.testing.assert_close(found, (odds / (1 + odds)).mean(1))
    assert sampled.predict(x).tolist() == (found > 0.5).long().tolist()
