"""The variational autoencoder (Kingma & Welling 2014, "Auto-encoding variational Bayes").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ Bernoulli(f(z_n))            likelihood="bernoulli"
    x_n | z_n ~ N(f(z_n), s^2 I_D)           likelihood="gaussian"

f is a neural network, the decoder. Nothing is closed here: the ELBO is a bound, and the evidence is estimated by importance sampling.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.guides import Family, perceptron
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters

NOISE_FLOOR = 1e-4  # of the mean variance of the features: a flexible decoder could otherwise drive the noise to zero


@dataclass(frozen=True)
class VAE(Model):
    """A VAE with `n_latents` latent dimensions and `hidden` units in the decoder (and, mirrored, in the encoder).

    likelihood: "bernoulli" for entries in [0, 1] (entries between are scored by their expected log-probability, the cross-entropy), or
    "gaussian" with one noise variance for all features. Parameters of a fit: the decoder's weights, and `noise_variance` ().

    >>> import ppvae
    >>> fit = ppvae.fit(VAE(n_latents=2, hidden=(16,), likelihood="gaussian"), ppvae.load_data("iris"), ppvae.SVI(steps=50))
    >>> fit.transform(ppvae.load_data("iris")).shape
    (150, 2)
    """

    n_latents: int = 5
    hidden: tuple[int, ...] = (64,)
    likelihood: str = "bernoulli"

    def __post_init__(self) -> None:
        if self.likelihood not in ("bernoulli", "gaussian"):
            raise unknown("likelihood", self.likelihood, ("bernoulli", "gaussian"))
        if self.n_latents < 1 or any(width < 1 for width in self.hidden):
            raise ValueError("n_latents and every width in hidden must be at least 1")

    def check(self, data: Data) -> None:
        if self.likelihood == "bernoulli":
            outside = ((data.x < 0) | (data.x > 1)).any(0).tolist()
            if any(outside):
                names = few(c for c, bad in zip(data.columns, outside, strict=True) if bad)
                raise ValueError(
                    f"likelihood='bernoulli' takes entries in [0, 1], but {names} has others: rescale the data "
                    "(--rescale, data.rescaled()) or use likelihood='gaussian'"
                )

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        decoder = perceptron(self.n_latents, tuple(reversed(self.hidden)), data.n_features).to(data.x)
        with torch.no_grad():  # start at the data's own mean
            decoder[-1].bias.copy_(torch.logit(data.mean.clamp(0.01, 0.99)) if self.likelihood == "bernoulli" else torch.zeros_like(data.mean))
        if self.likelihood == "bernoulli":
            return Parameters(decoder=decoder)
        variance = data.variance.mean()
        return Parameters(
            decoder=decoder,
            mean=Constrained(data.mean, unit=variance.sqrt()),
            noise_variance=Constrained(variance / 2, constraints.positive, unit=variance, floor=NOISE_FLOOR),
        )

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            out = theta.decoder(z)
            if self.likelihood == "bernoulli":
                likelihood = dist.Bernoulli(logits=out, validate_args=False)
            else:  # the decoder works in units of the data's spread
                scale = theta.noise_variance.sqrt()
                likelihood = dist.Normal(theta.mean + theta.unit_mean * out, scale)
            pyro.sample("x", likelihood.mask(batch.observed).to_event(1), obs=batch.x)

    def guide(self, data: Data) -> Family:
        """The decoder's mirror image, with a diagonal Gaussian for each row."""
        return Family("diagonal", self.hidden)
