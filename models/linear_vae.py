"""The linear VAE (Lucas, Tucker, Grosse & Norouzi 2019, "Don't blame the ELBO!").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ N(W z_n + m, s^2 I_D)
    q(z | x)  = N(V x + c, diag(d(x)))

The story is probabilistic PCA's, with encoder and decoder trained together as in a VAE. Where its ELBO is highest the encoder is the exact
posterior, so the bound is tight and theta is PPCA's maximum likelihood, with columns of W along the principal axes: an independent q wants
them orthogonal. Its scores are exact, so what training has left is known to the last digit.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.exact import Exact, Posterior
from ppvae.guides import Family
from ppvae.models.ppca import PPCA, PPCAExact
from ppvae.parameters import Parameters


class LinearVAEExact(Exact):
    """PPCA's posterior and marginal likelihood, for scores; what fits it is gradient steps."""

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        return PPCAExact(self.model).posterior(theta, batch)

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return PPCAExact(self.model).log_marginal(theta, batch)


@dataclass(frozen=True)
class LinearVAE(PPCA):
    """A VAE with linear encoder and decoder and `n_latents` = L < D latent dimensions.

    Parameters of a fit: `loadings` (D, L), `mean` (D,), `noise_variance` ().

    >>> import ppvae
    >>> iris = ppvae.load_data("iris")
    >>> fit = ppvae.fit(LinearVAE(n_latents=2), iris, ppvae.SVI(steps=20))
    >>> bool((fit.elbo(iris) <= fit.log_likelihood(iris)).all()), fit.elbo(iris).exact
    (True, True)
    """

    exact: ClassVar[type[Exact]] = LinearVAEExact

    def guide(self, data: Data) -> Family:
        """Mean and scales linear in the row."""
        return Family("diagonal", ())
