"""The conditional variational autoencoder (Sohn, Lee & Yan 2015, "Learning structured output representation").

    z_n            ~ N(0, I_L)
    x_n | z_n, y_n ~ Bernoulli(f(z_n, y_n)) or N(f(z_n, y_n), v I_D)

y is the context: known for every row and modelled by no one. What y says of x need not go through z, so z is left with what y does not say
(of a digit, its style), and `fit.sample(n, context=y)` generates rows for a chosen y.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch

from ppvae.data import Batch, Data
from ppvae.models.vae import VAE
from ppvae.networks import Rescaled
from ppvae.parameters import Parameters


@dataclass(frozen=True)
class CVAE(VAE):
    """A VAE whose encoder and decoder are both given the row's context; the fields are `VAE`'s.

    The context is numbers, `Data(x, context=...)` (N, C), or words in a frame with names. Classes may be given as one column each:
    `pandas.get_dummies(labels)`.

    >>> import numpy as np, pandas as pd, ppvae
    >>> iris = ppvae.load_data("iris")
    >>> data = ppvae.Data(iris.numpy(), context=pd.get_dummies(iris.labels))
    >>> fit = ppvae.fit(CVAE(n_latents=1, hidden=(16,), likelihood="gaussian"), data, ppvae.SVI(steps=50))
    >>> fit.sample(3, context=[0, 1, 0]).shape
    (3, 4)
    """

    def check(self, data: Data) -> None:
        if data.context is None:
            raise ValueError(f"{self.name}: the data have no context: give what each row is conditioned on, Data(x, context=...)")
        super().check(data)

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        theta = super().init(data, generator)
        assert data.context is not None  # `check` has seen to it
        theta.context = Rescaled(data.context)
        return theta

    def decoder(self, n_inputs: int, data: Data):
        assert data.context is not None
        return super().decoder(n_inputs + data.context.shape[1], data)

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            y = theta.context(batch.context).expand(*z.shape[:-1], -1)
            entries = self.entries(theta, theta.decoder(torch.cat([z, y], -1)))
            pyro.sample("x", entries.mask(batch.observed).to_event(1), obs=batch.x)
