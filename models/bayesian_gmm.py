"""Bayesian Gaussian mixture (Bishop 2006, "Pattern recognition and machine learning", section 10.2).

    w         ~ Dirichlet(a)
    m_k       ~ N(m_0, diag(s_0^2))
    P_k       ~ Wishart(v, V), or for each feature of a diagonal precision Gamma(a_0, b_0)
    k_n       ~ Categorical(w)
    x_n | k_n ~ N(m_k, P_k^-1)

The priors' own parameters are in theta, frozen, at the data's scale as the model's options say; `init={"mean_scale": [10.0, 10.0]}` sets
one outright. Means and precisions are independent a
priori, so each has a conjugate factor given the others: Normal, and Wishart or Gamma.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.distributions import MaskedMultivariateNormal, Wishart
from ppvae.exact import Exact
from ppvae.factors import Moments
from ppvae.gaussian import LOG_2PI, component_densities, pattern_rows
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters
from ppvae.starts import kmeans_partition

COVARIANCES = ("full", "diag")


class BayesianGMMExact(Exact):
    """The mean-field bound."""

    model: "BayesianGMM"

    def chunk_rows(self, data: Data) -> int:
        return pattern_rows(data, self.model.n_components) if self.model.covariance == "full" else super().chunk_rows(data)

    def mean_field(self, theta: Parameters, moments: dict[str, Moments], batch: Batch) -> Tensor:
        """log sum_k exp E[log w_k + log N(x_n; m_k, P_k^-1)]; for full covariances also over the row's missing entries (a looser bound)."""
        means, covariance = moments["means"]["mean"], moments["means"]["covariance"]
        precisions, log_precisions = moments["precisions"]["value"], moments["precisions"]["log"]
        if self.model.covariance == "diag":
            squares = (batch.x.unsqueeze(1) - means).square() + covariance.diagonal(dim1=-2, dim2=-1)
            terms = precisions * squares - log_precisions + LOG_2PI
            density = -0.5 * torch.where(batch.observed.unsqueeze(1), terms, 0.0).sum(-1)
            return (density + moments["weights"]["log"]).logsumexp(-1)
        tril = torch.linalg.cholesky(precisions)
        density = component_densities(batch, means, torch.cholesky_inverse(tril))[0]
        spread = log_precisions - 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - (precisions * covariance).sum((-2, -1))
        bound = (density + 0.5 * spread + moments["weights"]["log"]).logsumexp(-1)
        return torch.where(batch.observed.any(-1), bound, 0.0)


@dataclass(frozen=True)
class BayesianGMM(Model):
    """A mixture of `n_components` = K Gaussians with priors on weights, means and precisions.

    covariance: "full" or "diag".
    concentration: a, of each component; below 1 the prior prefers few.  mean_spread: the prior sd of a component's mean around the data's,
    in the data's sds.  prior_rows: how many rows the prior of a covariance weighs as, above D - 1 for a full one (None: D + 1; diag: two).
    Shared latents: `weights` (K,), `means` (K, D), `precisions` (K, D, D), for diag (K, D). Theta, frozen: `concentration` (K,),
    `mean_loc` and `mean_scale` (D,); for full `precision_df` () and `precision_scale` (D, D), for diag `precision_shape` and
    `precision_rate` (D,). The rows that a covariance's prior weighs as have the spread within the clusters of k-means, so there must be
    more rows than components.

    >>> import ppvae
    >>> fit = ppvae.fit(BayesianGMM(n_components=2), ppvae.load_data("faithful"))
    >>> fit.method.name, fit.params["means"].round(1).tolist()
    ('cavi', [[2.0, 54.5], [4.3, 80.0]])
    """

    n_components: int = 2
    covariance: str = "full"
    concentration: float = 1.0
    mean_spread: float = 2.0
    prior_rows: float | None = None

    exact: ClassVar[type[Exact]] = BayesianGMMExact
    exchangeable: ClassVar[tuple[str, ...]] = ("weights", "means", "precisions")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(n_components=1)
        if self.covariance not in COVARIANCES:
            raise unknown("covariance", self.covariance, COVARIANCES)
        for name in ("concentration", "mean_spread", "prior_rows"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{name} must be above 0 and finite, not {value}")

    def check(self, data: Data) -> None:
        if data.n_rows <= self.n_components:
            if self.n_components == 1:
                raise ValueError("a component needs more rows than one, for a spread within it, but there is 1: give more rows")
            raise ValueError(
                f"{self.n_components} components need more rows than that, for a spread within clusters, but there are {data.n_rows}: "
                "ask for fewer components"
            )
        if data.constant:
            raise ValueError(f"a mixture cannot be fitted where a column is constant ({few(data.constant)}): drop it")
        if self.covariance == "full" and self.prior_rows is not None and self.prior_rows <= data.n_features - 1:
            raise ValueError(f"prior_rows={self.prior_rows:g} must be above {data.n_features - 1}, the number of features less 1: raise it")

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """The priors, at the data's own scale; the same for every seed."""
        found = kmeans_partition(data, self.n_components, torch.Generator().manual_seed(0))
        variance = found.weights @ found.covariances.diagonal(dim1=-2, dim2=-1)
        theta = {
            "concentration": Constrained(data.x.new_full((self.n_components,), self.concentration), constraints.positive),
            "mean_loc": Constrained(data.mean, unit=data.scale),
            "mean_scale": Constrained(self.mean_spread * data.scale, constraints.positive, unit=data.scale),
        }
        if self.covariance == "full":
            df = data.x.new_tensor(self.prior_rows or data.n_features + 1.0)
            theta["precision_df"] = Constrained(df, constraints.greater_than(data.n_features - 1.0))
            theta["precision_scale"] = Constrained((1 / (df * variance)).diag(), constraints.positive_definite)
        else:
            shape = (self.prior_rows or 2.0) / 2
            theta["precision_shape"] = Constrained(torch.full_like(variance, shape), constraints.positive)
            theta["precision_rate"] = Constrained(shape * variance, constraints.positive)
        return Parameters(**theta).freeze(*theta)

    def shared_start(self, theta: Parameters, data: Data, generator: torch.Generator) -> dict[str, Tensor]:
        """The k-means partition."""
        found = kmeans_partition(data, self.n_components, generator)
        if self.covariance == "diag":
            precisions = 1 / found.covariances.diagonal(dim1=-2, dim2=-1)
        else:
            precisions = torch.cholesky_inverse(torch.linalg.cholesky(found.covariances))
        return {"weights": found.weights, "means": found.means, "precisions": precisions}

    def model(self, theta: Parameters, batch: Batch) -> None:
        components, features = self.n_components, batch.x.shape[-1]
        weights = pyro.sample("weights", dist.Dirichlet(theta.concentration))
        means = pyro.sample("means", dist.Normal(theta.mean_loc, theta.mean_scale).expand([components, features]).to_event(2))
        if self.covariance == "full":
            prior = Wishart(theta.precision_df, theta.precision_scale).expand([components]).to_event(1)
        else:
            prior = dist.Gamma(theta.precision_shape, theta.precision_rate).expand([components, features]).to_event(2)
        precisions = pyro.sample("precisions", prior)
        with batch.rows:
            k = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
            loc = Vindex(means)[..., k, :]
            if self.covariance == "full":
                covariances = torch.cholesky_inverse(torch.linalg.cholesky(precisions))
                chosen = Vindex(covariances)[..., k, :, :]
                x = MaskedMultivariateNormal(loc, chosen, None if batch.complete else batch.observed)
            else:
                x = dist.Normal(loc, Vindex(precisions)[..., k, :].rsqrt()).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """As many as the mixture's own: K - 1 weights, the means, and the free entries of the precisions."""
        components, features = self.n_components, len(theta.mean_loc)
        entries = features * (features + 1) // 2 if self.covariance == "full" else features
        return components - 1 + components * (features + entries)
