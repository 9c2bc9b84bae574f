"""PCA with heavy tails: a Student t in place of the Gaussian noise of PPCA, so that a few wild entries do not turn the plane."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from ppvae import Constrained, Model, Parameters


@dataclass(frozen=True)
class RobustPCA(Model):
    n_latents: int = 2

    def init(self, data, generator):
        directions = torch.randn(data.n_features, self.n_latents, generator=generator, dtype=data.dtype)
        noise_scale = Constrained(data.scale.mean() / 2, constraints.positive)
        return Parameters(loadings=directions * noise_scale.value, mean=data.mean, noise_scale=noise_scale)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            noise = dist.StudentT(4.0, theta.mean + z @ theta.loadings.mT, theta.noise_scale)
            pyro.sample("x", noise.mask(batch.observed).to_event(1), obs=batch.x)
