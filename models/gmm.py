"""Gaussian mixture (McLachlan & Peel 2000, "Finite mixture models", chapter 3).

    k_n       ~ Categorical(w)
    x_n | k_n ~ N(m_k, C_k)

C_k is full, diagonal or spherical for each component, or one full covariance tied between all. With `component="summed"` the story sums
k out, so its ELBO is the log-likelihood; with "guided" an encoder q(k | x) stands in for the posterior, and what that costs is visible.
"""

from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.distributions import MaskedMultivariateNormal
from ppvae.exact import Exact, Posterior, Statistics
from ppvae.gaussian import LOG_2PI, component_densities, mixture_moments, pattern_batches, pattern_rows, shifted_moments
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters, floored
from ppvae.starts import kmeans_partition

COVARIANCES = ("full", "tied", "diag", "spherical")
FLOOR = 1e-6  # of the variance within clusters: below it a component has collapsed onto a few rows
REACH = 30  # sds within clusters: a step of a mean is a share of what it may have to travel, and lands within its cluster
EMPTY = 1e-10  # rows: a component with fewer keeps its place and shape


class GMMExact(Exact):
    """Closed forms of the mixture: responsibilities, marginal and EM, for any pattern of missing entries."""

    model: "GMM"

    def chunk_rows(self, data: Data) -> int:
        return pattern_rows(data, self.model.n_components) if self.model.matrices else super().chunk_rows(data)

    def batches(self, data: Data) -> list[Batch]:
        return pattern_batches(data, self.model.n_components) if self.model.matrices else super().batches(data)

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        joint = self._density(theta, batch)[0] + theta.weights.log()
        return Posterior.categorical(joint.log_softmax(-1))

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return (self._density(theta, batch)[0] + theta.weights.log()).logsumexp(-1)

    def _density(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor]:
        """log p(x_n | k) (B, K); x_n - m_k with missing entries at their expectation (B, K, D)."""
        means, covariances = theta.means, theta.covariances
        components, features = means.shape
        if not self.model.matrices:  # features are independent given k: what is missing simply drops out
            variances = covariances if covariances.ndim == 2 else covariances.unsqueeze(-1).expand(-1, features)
            residual = batch.x.unsqueeze(1) - means
            terms = residual.square() / variances + variances.log() + LOG_2PI
            if not batch.complete:
                seen = batch.observed.unsqueeze(1)
                terms, residual = torch.where(seen, terms, 0.0), torch.where(seen, residual, 0.0)
            return -0.5 * terms.sum(-1), residual
        return component_densities(batch, means, covariances.expand(components, features, features))[:2]

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """Responsibility-weighted moments of x_n - m_k: "rows" (K,), "count" (K, D) for diagonal covariances, "sum" (K, D), "scatter"."""
        if self.model.matrices:
            means = theta.means
            return mixture_moments(batch, theta.weights.log(), means, theta.covariances.expand(*means.shape, means.shape[-1]))
        density, residual = self._density(theta, batch)
        joint = density + theta.weights.log()
        log_marginal = joint.logsumexp(-1, keepdim=True)
        r = (joint - log_marginal).exp()
        weighted, count = r.unsqueeze(-1) * residual, r.mT @ batch.observed.to(r.dtype)
        found = {"count": count, "sum": weighted.sum(0), "scatter": (weighted * residual).sum(0)}
        return {"log_likelihood": log_marginal.sum(), "rows": r.sum(0), **found}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        rows, scatter = statistics["rows"], statistics["scatter"]
        count = (statistics["count"] if not self.model.matrices else rows.unsqueeze(-1)).clamp(min=EMPTY)
        step = statistics["sum"] / count
        weights = rows.clamp(min=EMPTY)
        alive = (rows > EMPTY)[:, None]
        if self.model.covariance == "spherical":
            left = (scatter - count * step.square()).sum(-1) / count.sum(-1)
            covariances = torch.where(alive[:, 0], left, theta.covariances).clamp(min=FLOOR * theta.unit_covariances)
        elif self.model.covariance == "diag":
            covariances = torch.where(alive & (count > EMPTY), scatter / count - step.square(), theta.covariances)
            covariances = torch.maximum(covariances, FLOOR * theta.unit_covariances)
        else:
            left = scatter - rows[:, None, None] * step.unsqueeze(-1) * step.unsqueeze(-2)
            covariances = left.sum(0) / rows.sum() if self.model.covariance == "tied" else left / count.unsqueeze(-1)
            if self.model.covariance == "full":
                covariances = torch.where(alive.unsqueeze(-1), covariances, theta.covariances)
            covariances = floored(covariances, theta.unit_covariances, FLOOR)
        return {"weights": weights / weights.sum(), "means": theta.means + step, "covariances": covariances}

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        count = statistics["rows"].unsqueeze(-1) if self.model.matrices else statistics["count"]
        shift = theta.means - values["means"]
        return statistics | shifted_moments(count, statistics["sum"], statistics["scatter"], shift)


@dataclass(frozen=True)
class GMM(Model):
    """A mixture of `n_components` = K Gaussians.

    covariance: "full", "tied", "diag" or "spherical".  component: "summed" out of the story, or "guided" by an encoder q(k | x).
    Parameters of a fit: `weights` (K,), `means` (K, D), `covariances` (K, D, D); tied (D, D), diag (K, D), spherical (K,).

    >>> import ppvae
    >>> fit = ppvae.fit(GMM(n_components=2), ppvae.load_data("faithful"))
    >>> round(float(fit.log_likelihood(ppvae.load_data("faithful")).sum()), 3)
    -1130.264
    """

    n_components: int = 2
    covariance: str = "full"
    component: str = "summed"

    exact = GMMExact
    exchangeable: ClassVar[tuple[str, ...]] = ("weights", "means", "covariances")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_components=1)
        if self.covariance not in COVARIANCES:
            raise unknown("covariance", self.covariance, COVARIANCES)
        if self.component not in ("summed", "guided"):
            raise unknown("component", self.component, ("summed", "guided"))

    @property
    def matrices(self) -> bool:
        """Whether the covariances are full matrices."""
        return self.covariance in ("full", "tied")

    @property
    def guided_component(self) -> bool:
        return self.component == "guided"

    def check(self, data: Data) -> None:
        if data.n_rows < self.n_components:
            raise ValueError(
                f"{self.n_components} components need at least as many rows, but there are {data.n_rows}: ask for fewer components"
            )
        if data.constant:
            raise ValueError(f"a mixture's likelihood is unbounded where a column is constant ({few(data.constant)}): drop it, or use PPCA")

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """k-means++ and k-means on standardised rows; each cluster's covariance is shrunk towards the pooled one."""
        found = kmeans_partition(data, self.n_components, generator)
        weights, covariances, within = found.weights, found.covariances, found.within
        own = found.own.diagonal(dim1=-2, dim2=-1)
        if self.covariance == "tied":
            covariances = (weights[:, None, None] * covariances).sum(0)
            unit = within.sqrt().outer(within.sqrt())
        elif self.covariance == "full":
            sds = found.least(own, within).sqrt()
            unit = sds.outer(sds)
        elif self.covariance == "diag":
            covariances, unit = covariances.diagonal(dim1=-2, dim2=-1), found.least(own, within)
        else:
            covariances, unit = covariances.diagonal(dim1=-2, dim2=-1).mean(-1), found.least(own.mean(-1), within.mean())
        support = constraints.positive_definite if self.matrices else constraints.positive
        return Parameters(
            weights=Constrained(weights, constraints.simplex),
            means=Constrained(found.means, unit=torch.minimum(data.scale, REACH * within.sqrt())),
            covariances=Constrained(covariances, support, unit=unit, floor=FLOOR),
        )

    def model(self, theta: Parameters, batch: Batch) -> None:
        means, covariances = theta.means, theta.covariances
        with batch.rows:
            k = pyro.sample("component", dist.Categorical(theta.weights), infer={"enumerate": "parallel"})
            if self.matrices:
                covariance = covariances if self.covariance == "tied" else covariances[k]
                x = MaskedMultivariateNormal(means[k], covariance, None if batch.complete else batch.observed)
            else:
                scale = covariances.sqrt()[k] if self.covariance == "diag" else covariances.sqrt()[k].unsqueeze(-1)
                x = dist.Normal(means[k], scale).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)
