"""The multivariate normal, fitted by maximum likelihood (Little & Rubin 2019, "Statistical analysis with missing data", section 11.2).

    x_n ~ N(m, C)

There are no latents but the entries that are missing. Where there are none, m and C are the mean and the covariance (divisor N). Else EM:
the E-step puts each missing entry at its regression on the row's observed ones, the M-step adds back the variance that is left around it.
"""

from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.distributions import MaskedMultivariateNormal
from ppvae.exact import Exact, Posterior, Statistics
from ppvae.gaussian import component_densities, mixture_moments, pattern_batches, pattern_rows, shifted_moments
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters, floored
from ppvae.starts import spread

FLOOR = 1e-6  # of the data's own variance


class GaussianExact(Exact):
    """Closed forms of the normal: marginal, EM for any pattern of missing entries, and the maximum likelihood of complete data."""

    def chunk_rows(self, data: Data) -> int:
        return pattern_rows(data, 1)

    def batches(self, data: Data) -> list[Batch]:
        return pattern_batches(data, 1)

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        return Posterior.nothing(batch.x)

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return component_densities(batch, theta.mean.unsqueeze(0), theta.covariance.unsqueeze(0))[0].squeeze(-1)

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """Expected moments of x - m: "rows" (), "sum" (D,), "scatter" (D, D)."""
        found = mixture_moments(batch, batch.x.new_zeros(1), theta.mean.unsqueeze(0), theta.covariance.unsqueeze(0))
        return {name: value if name == "log_likelihood" else value.squeeze(0) for name, value in found.items()}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        step = statistics["sum"] / statistics["rows"]
        covariance = statistics["scatter"] / statistics["rows"] - step.outer(step)
        return {"mean": theta.mean + step, "covariance": floored(covariance, theta.unit_covariance, FLOOR)}

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        shift = theta.mean - values["mean"]
        return statistics | shifted_moments(statistics["rows"], statistics["sum"], statistics["scatter"], shift)

    def cannot_solve(self, data: Data) -> str | None:
        return None if data.complete else "gaussian has a closed form for complete data only"

    def solve(self, data: Data) -> dict[str, Tensor]:
        return {"mean": data.mean, "covariance": floored(data.batch().covariance, spread(data).outer(spread(data)), FLOOR)}


@dataclass(frozen=True)
class Gaussian(Model):
    """The multivariate normal, with any entries missing. It has no configuration.

    Parameters of a fit: `mean` (D,), `covariance` (D, D).

    >>> import ppvae
    >>> fit = ppvae.fit(Gaussian(), ppvae.load_data("airquality"))
    >>> fit.method.name, fit.params["mean"].round(3)
    ('em', array([ 41.871, 184.847,   9.958,  77.882]))
    """

    exact = GaussianExact

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """Each column's own mean, moved by a tenth of its spread at random, and its own variance."""
        shift, unit = torch.randn(data.n_features, generator=generator, dtype=torch.float64).to(data.x), spread(data)
        return Parameters(
            mean=Constrained(data.mean + 0.1 * unit * shift, unit=unit),
            covariance=Constrained(unit.square().diag(), constraints.positive_definite, unit=unit.outer(unit), floor=FLOOR),
        )

    def model(self, theta: Parameters, batch: Batch) -> None:
        observed = None if batch.complete else batch.observed
        with batch.rows:
            pyro.sample("x", MaskedMultivariateNormal(theta.mean, theta.covariance, observed), obs=batch.x)
