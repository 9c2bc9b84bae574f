"""Factor analysis (Rubin & Thayer 1982, "EM algorithms for ML factor analysis").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ N(W z_n + m, Psi)      Psi diagonal

Marginally x_n ~ N(m, W W^T + Psi): the latents explain what features have in common, Psi what each has of its own. EM is exact (their
eq. 5 and 6, here with the missing entries left out feature by feature); there is no closed form. In a Heywood case the likelihood
rises as one feature's own variance runs to zero: it then stops on a floor, and the status of the fit says so.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.linear_gaussian import LinearGaussianExact, check_table, degrees_of_freedom
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters
from ppvae.starts import spread

NOISE_FLOOR = 0.005  # of each feature's variance, as in R's factanal: nearer to zero EM hardly moves, and a Heywood case would go unnoticed


class FactorAnalysisExact(LinearGaussianExact):
    """Closed forms of factor analysis: posterior, marginal and EM with any pattern of missing entries."""

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> dict[str, Tensor]:
        """One variance for each feature."""
        return {"noise_variance": torch.maximum(left / count, NOISE_FLOOR * theta.unit_noise_variance)}


@dataclass(frozen=True)
class FactorAnalysis(Model):
    """Factor analysis with `n_latents` = L < D latent dimensions.

    Parameters of a fit: `loadings` (D, L), `mean` (D,), `noise_variance` (D,).

    >>> import ppvae
    >>> fit = ppvae.fit(FactorAnalysis(n_latents=2), ppvae.load_data("wine"))
    >>> fit.params["noise_variance"].shape, round(float(fit.log_likelihood(ppvae.load_data("wine")).sum()), 3)
    ((13,), -3477.043)
    """

    n_latents: int = 2

    exact = FactorAnalysisExact

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_latents=1)

    def check(self, data: Data) -> None:
        check_table(data, self.n_latents)

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        noise = torch.randn(data.n_features, self.n_latents, generator=generator, dtype=torch.float64).to(data.x)
        unit = spread(data)
        return Parameters(
            loadings=Constrained(noise * unit.unsqueeze(-1) / (2 * self.n_latents) ** 0.5, unit=unit.unsqueeze(-1)),
            mean=Constrained(data.mean, unit=unit),
            noise_variance=Constrained(unit.square() / 2, constraints.positive, unit=unit.square(), floor=NOISE_FLOOR),
        )

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            loc = theta.mean + z @ theta.loadings.mT
            pyro.sample("x", dist.Normal(loc, theta.noise_variance.sqrt()).mask(batch.observed).to_event(1), obs=batch.x)

    def guide(self, data: Data) -> str:
        """Linear with one covariance: the posterior of complete rows is exactly that."""
        return "linear"

    def identifiable(self, theta: Parameters) -> dict[str, Tensor]:
        """The mean, each feature's own variance, and what features share; W itself may be rotated freely."""
        return {"mean": theta.mean, "shared_covariance": theta.loadings @ theta.loadings.mT, "noise_variance": theta.noise_variance}

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """D L + 2 D, less the L (L - 1) / 2 of a rotation; a Gaussian's D (D + 3) / 2 where that would be more."""
        return degrees_of_freedom(theta, "noise_variance")
