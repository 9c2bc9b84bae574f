"""Scores by Monte Carlo: around what dense algebra gives, and as far from it as their standard errors say."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from classic import observed_density

import ppvae
from ppvae.inference.fit import start
from ppvae.models import PPCA
from ppvae.scores import sampled_elbo, sampled_evidence

IRIS = ppvae.load_data("iris").take(range(0, 150, 3)).with_holes(0.3)
IRIS = IRIS.take(IRIS.observed.any(1).nonzero().squeeze(1))
THETA = start(PPCA(1), IRIS, 0)
PROGRAM = partial(PPCA(1).model, THETA)
W, M, V = (THETA.values()[name].numpy() for name in ("loadings", "mean", "noise_variance"))
SEEN = ~np.isnan(IRIS.numpy())
VARIANCE = np.array([1 / (1 + W[o, 0] @ W[o, 0] / V) for o in SEEN])
MEAN = np.array([c * (W[o, 0] @ (row[o] - M[o])) / V for row, o, c in zip(IRIS.numpy(), SEEN, VARIANCE, strict=True)])
EVIDENCE = observed_density(IRIS.numpy(), M, W @ W.T + V * np.eye(4))
KL = -np.log(1.3) + (1.3**2 + 0.5**2 - 1) / 2  # of N(m + s / 2, (1.3 s)^2) from N(m, s^2)
REPEATS = 40


class Off(torch.nn.Module):
    """A guide that stands half a standard deviation beside the posterior, and is wider."""

    def forward(self, batch):
        mean, sd = (torch.as_tensor(value).unsqueeze(-1) for value in (MEAN, VARIANCE**0.5))
        with batch.rows:
            pyro.sample("z", dist.Normal(mean + 0.5 * sd, 1.3 * sd).to_event(1))


@pytest.mark.parametrize(("score", "truth"), [(sampled_elbo, EVIDENCE - KL), (sampled_evidence, EVIDENCE)], ids=["elbo", "evidence"])
def test_errors_are_what_they_say(score, truth):
    """Row by row and in the mean, over repeated draws, the squares of (value - truth) / error average to 1."""
    found = [score(PROGRAM, Off(), IRIS, 500) for _ in range(REPEATS)]
    rows = (np.stack([np.asarray(s) for s in found]) - truth) / np.stack([np.asarray(s.standard_error) for s in found])
    assert np.sqrt((rows**2).mean()) == pytest.approx(1, abs=5 / np.sqrt(2 * rows.size))
    means = [(np.asarray(s).mean() - truth.mean()) / s.mean_standard_error for s in found]
    assert np.sqrt(np.mean(np.square(means))) == pytest.approx(1, abs=5 / np.sqrt(2 * REPEATS))
