"""Counts with a common rate: x_nd ~ Poisson(rate_d), log rates with a prior, so that a fit is a posterior."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist

from ppvae import Model, Parameters


@dataclass(frozen=True)
class Rates(Model):
    def init(self, data, generator):
        return Parameters(log_scale=data.mean.clamp(min=1.0).log()).freeze("log_scale")

    def model(self, theta, batch):
        log_rate = pyro.sample("log_rate", dist.Normal(theta.log_scale, 2.0).to_event(1))
        with batch.rows:
            pyro.sample("x", dist.Poisson(log_rate.exp()).mask(batch.observed).to_event(1), obs=batch.x)
