"""Probabilistic PCA (Tipping & Bishop 1999, "Probabilistic principal component analysis").

    z_n       ~ N(0, I_L)
    x_n | z_n ~ N(W z_n + m, s^2 I_D)

Marginally x_n ~ N(m, W W^T + s^2 I). The maximum likelihood is known in closed form (their eq. 7 and 8), and EM is exact (section 3.3,
here with the missing entries left out feature by feature).
"""

from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.guides import Family
from ppvae.linear_gaussian import LinearGaussianExact, check_table, degrees_of_freedom
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters

NOISE_FLOOR = 1e-6  # of the mean variance of the features


class PPCAExact(LinearGaussianExact):
    """Closed forms of PPCA: posterior, marginal, EM with any pattern of missing entries, and the maximum likelihood of complete data."""

    model: "PPCA"

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> dict[str, Tensor]:
        """One variance for all features."""
        return {"noise_variance": (left.sum() / count.sum()).clamp(min=NOISE_FLOOR * theta.unit_noise_variance)}

    def cannot_solve(self, data: Data) -> str | None:
        return None if data.complete else "ppca has a closed form for complete data only"

    def solve(self, data: Data) -> dict[str, Tensor]:
        """The L leading eigenvectors of the covariance, stretched; the noise is the mean of the eigenvalues left out."""
        size = self.model.n_latents
        values, vectors = torch.linalg.eigh(data.batch().covariance)
        noise = values[:-size].mean().clamp(min=NOISE_FLOOR * data.variance.mean())
        top = (values[-size:] - noise).clamp(min=0.0).sqrt()
        return {"loadings": (vectors[:, -size:] * top).flip(-1), "mean": data.mean, "noise_variance": noise}


@dataclass(frozen=True)
class PPCA(Model):
    """Probabilistic PCA with `n_latents` = L < D latent dimensions.

    Parameters of a fit: `loadings` (D, L), `mean` (D,), `noise_variance` ().

    >>> import ppvae
    >>> fit = ppvae.fit(PPCA(n_latents=2), ppvae.load_data("iris"))
    >>> round(float(fit.params["noise_variance"]), 6)
    0.050682
    """

    n_latents: int = 2

    exact: ClassVar[type[Exact]] = PPCAExact

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_latents=1)

    def check(self, data: Data) -> None:
        check_table(data, self.n_latents)

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        variance = data.variance.mean()
        noise = torch.randn(data.n_features, self.n_latents, generator=generator, dtype=torch.float64).to(data.x)
        return Parameters(
            loadings=Constrained(noise * (variance / (2 * self.n_latents)).sqrt(), unit=variance.sqrt()),
            mean=Constrained(data.mean, unit=variance.sqrt()),
            noise_variance=Constrained(variance / 2, constraints.positive, unit=variance, floor=NOISE_FLOOR),
        )

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            loc = theta.mean + z @ theta.loadings.mT
            pyro.sample("x", dist.Normal(loc, theta.noise_variance.sqrt()).mask(batch.observed).to_event(1), obs=batch.x)

    def guide(self, data: Data) -> Family | str:
        """Linear with one covariance: the posterior of complete rows is exactly that."""
        return "linear"

    def identifiable(self, theta: Parameters) -> dict[str, Tensor]:
        """The mean and the marginal covariance; W itself may be rotated freely."""
        eye = torch.eye(len(theta.mean), dtype=theta.mean.dtype, device=theta.mean.device)
        return {"mean": theta.mean, "covariance": theta.loadings @ theta.loadings.mT + theta.noise_variance * eye}

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """D L + 1 + D, less the L (L - 1) / 2 of a rotation."""
        return degrees_of_freedom(theta, "noise_variance")
