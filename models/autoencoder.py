"""The autoencoder (Hinton & Salakhutdinov 2006), the deterministic baseline: the smallest squared error through a code of L numbers.

    minimise  sum_n ||x_n - f(z_n)||^2,   z_n = e(x_n)

Told as a story: x_n | z_n ~ N(f(z_n), I_D) with a guide that puts all its mass on e(x_n), and codes that have no prior. The "ELBO" of a
row is then -||x_n - f(z_n)||^2 / 2 less a constant, and bounds nothing: there is no density of x, and `fit.log_likelihood` says so. To have
something to draw, the story draws codes from N(0, I_L), but masked out, so that they do not count: nothing ever asks the codes to look
like that, and what `fit.sample` decodes from them shows why an autoencoder does not generate.

With hidden=() encoder and decoder are linear, and the decoder spans the principal subspace (Baldi & Hornik 1989).
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppvae.data import Batch, Data
from ppvae.guides import Standardize
from ppvae.model import Model
from ppvae.networks import perceptron
from ppvae.parameters import Constrained, Parameters
from ppvae.starts import check_varies


class Encoder(nn.Module):
    """The code of each row, as a guide that is certain of it."""

    def __init__(self, model: "Autoencoder", data: Data) -> None:
        super().__init__()
        features = Standardize(data)
        self.code = nn.Sequential(features, perceptron(features.n_outputs, model.hidden, model.n_latents))

    def forward(self, batch: Batch) -> None:
        with batch.rows:
            pyro.sample("z", dist.Delta(self.code(batch), event_dim=1))


@dataclass(frozen=True)
class Autoencoder(Model):
    """An autoencoder with codes of `n_latents` numbers and `hidden` units in the encoder, mirrored in the decoder; () is linear.

    Missing entries leave the error out. Parameters of a fit: the decoder's weights and `mean` (D,).

    >>> import ppvae
    >>> iris = ppvae.load_data("iris")
    >>> fit = ppvae.fit(Autoencoder(n_latents=2, hidden=()), iris, ppvae.SVI(steps=50))
    >>> fit.decode(fit.transform(iris)).shape
    (150, 4)
    """

    n_latents: int = 2
    hidden: tuple[int, ...] = (64,)

    no_density = (
        "an autoencoder has no density, since its codes have no prior; its scores are minus half the squared error of a row, "
        "less a constant, so use VAE for a likelihood"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_latents=1, hidden=1)

    def check(self, data: Data) -> None:
        check_varies(data)

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        decoder = perceptron(self.n_latents, tuple(reversed(self.hidden)), data.n_features).to(data.x)
        return Parameters(decoder=decoder, mean=Constrained(data.mean, unit=data.variance.mean().sqrt()))

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1).mask(False))
            loc = theta.mean + theta.unit_mean * theta.decoder(z)  # in units of the data's spread
            pyro.sample("x", dist.Normal(loc, 1.0).mask(batch.observed).to_event(1), obs=batch.x)

    def guide(self, data: Data) -> Encoder:
        return Encoder(self, data)
