"""The variational autoencoder (Kingma & Welling 2014, "Auto-encoding variational Bayes").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ Bernoulli(f(z_n))            likelihood="bernoulli"
    x_n | z_n ~ N(f(z_n), v I_D)             likelihood="gaussian": v is 1, one number, one a feature, or decoded too, v = g(z_n)

f and g are one neural network, the decoder. Nothing is closed here: the ELBO is a bound, and the evidence is estimated by importance
sampling. Missing entries drop out of the likelihood, so objective="iwae" on data with holes is MIWAE (Mattei & Frellsen 2019).
"""

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.guides import NETWORKS, Family
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.networks import check_images, image_decoder, perceptron
from ppvae.parameters import Constrained, Parameters
from ppvae.starts import check_varies, spread

LIKELIHOODS = ("bernoulli", "gaussian")
NOISES = ("shared", "unit", "feature", "decoded")
NOISE_FLOOR = 1e-4  # of the features' variance: a flexible decoder could otherwise drive the noise to zero


@dataclass(frozen=True)
class VAE(Model):
    """A VAE with `n_latents` latent dimensions.

    hidden: units of the encoder's layers, mirrored in the decoder.  likelihood: "bernoulli" for entries in [0, 1] (entries between are
    scored by their expected log-probability, the cross-entropy), or "gaussian".  noise: a Gaussian's variance, "shared" by all entries,
    fixed at 1 ("unit"), one a "feature", or "decoded" from z.  network: "dense", or "convolutional" for images: `hidden` then gives
    channels, and each layer halves the image.
    Parameters of a fit: the decoder's weights; for a Gaussian `mean` (D,) and, unless it is decoded, `noise_variance` () or (D,).

    >>> import ppvae
    >>> fit = ppvae.fit(VAE(n_latents=2, hidden=(16,), likelihood="gaussian"), ppvae.load_data("iris"), ppvae.SVI(steps=50))
    >>> fit.transform(ppvae.load_data("iris")).shape
    (150, 2)
    """

    n_latents: int = 5
    hidden: tuple[int, ...] = (64,)
    likelihood: str = "bernoulli"
    noise: str = "shared"
    network: str = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, options in (("likelihood", LIKELIHOODS), ("noise", NOISES), ("network", NETWORKS)):
            if getattr(self, kind) not in options:
                raise unknown(kind, getattr(self, kind), options)
        self.at_least(n_latents=1, hidden=1)
        if self.likelihood == "bernoulli" and self.noise != "shared":
            raise ValueError(f"noise={self.noise!r} is a Gaussian's, and a Bernoulli has none: use likelihood='gaussian'")

    def check(self, data: Data) -> None:
        if self.network == "convolutional":
            check_images(data.image_shape, self.hidden)
        if self.likelihood == "gaussian":
            check_varies(data)
        if self.likelihood == "bernoulli":
            outside = ((data.x < 0) | (data.x > 1)).any(0).tolist()
            if any(outside):
                names = few(c for c, bad in zip(data.columns, outside, strict=True) if bad)
                raise ValueError(
                    f"likelihood='bernoulli' takes entries in [0, 1], but {names} has others: rescale the data "
                    "(--rescale, data.rescaled()) or use likelihood='gaussian'"
                )

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        decoder: Any = self.decoder(self.n_latents, data).to(data.x)
        if self.likelihood == "bernoulli":
            with torch.no_grad():  # start at the data's own mean
                decoder[-1].bias.copy_(torch.logit(data.mean.clamp(0.01, 0.99)))
            return Parameters(decoder=decoder)
        variance = data.variance.mean()
        mean = Constrained(data.mean, unit=variance.sqrt())
        if self.noise == "decoded":
            return Parameters(decoder=decoder, mean=mean)
        if self.noise == "unit":
            one = Constrained(torch.ones_like(variance), constraints.positive)
            return Parameters(decoder=decoder, mean=mean, noise_variance=one).freeze("noise_variance")
        unit = spread(data).square() if self.noise == "feature" else variance
        noise_variance = Constrained(unit / 2, constraints.positive, unit=unit, floor=NOISE_FLOOR)
        return Parameters(decoder=decoder, mean=mean, noise_variance=noise_variance)

    def decoder(self, n_inputs: int, data: Data) -> nn.Sequential:
        """The encoder's mirror image, with an output for every entry, and another where its variance is decoded."""
        layers, outputs = tuple(reversed(self.hidden)), 2 if self.noise == "decoded" else 1
        if self.network == "convolutional":
            return image_decoder(n_inputs, layers, data.image_shape or (0, 0), outputs)
        return perceptron(n_inputs, layers, outputs * data.n_features)

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            entries = self.entries(theta, theta.decoder(z))
            pyro.sample("x", entries.mask(batch.observed).to_event(1), obs=batch.x)

    def entries(self, theta: Parameters, out: Tensor) -> dist.TorchDistribution:
        """Each entry's distribution given the decoder's output; a Gaussian's decoder works in units of the data's spread."""
        if self.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out, validate_args=False)
        if self.noise == "decoded":
            out, spread = out.chunk(2, -1)
            variance = theta.unit_mean.square() * (NOISE_FLOOR + nn.functional.softplus(spread))
        else:
            variance = theta.noise_variance
        return dist.Normal(theta.mean + theta.unit_mean * out, variance.sqrt())

    def guide(self, data: Data) -> Family:
        """A diagonal Gaussian for each row; `fit(..., guide="full")` gives it a full covariance through the same encoder."""
        return Family("diagonal", self.hidden, self.network)
