"""Mixtures of linear Gaussian models: local PPCA and local factor analysis.

    k_n            ~ Categorical(w)
    z_n            ~ N(0, I_L)
    x_n | k_n, z_n ~ N(W_k z_n + m_k, Psi_k)

Psi_k is s_k^2 I in `MixturePPCA` (Tipping & Bishop 1999, "Mixtures of probabilistic principal component analysers") and diagonal in
`MixtureFA` (Ghahramani & Hinton 1996, "The EM algorithm for mixtures of factor analyzers"). Given k each row is a linear Gaussian model,
so the posterior is a mixture of K Gaussians. The M-step finds W_k and m_k together, by one regression on (z, 1) in which each row counts
as often as its responsibility says (their appendix, eq. 12), and then Psi_k: no step is conditional on another, so this is EM, not ECM.
Missing entries are left out feature by feature.
"""

from dataclasses import dataclass
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.exact import Exact, Posterior, Statistics
from ppvae.gaussian import factor_log_marginal, factor_moments, factor_posterior, factor_regression, shifted_factor_moments
from ppvae.linear_gaussian import check_table, degrees_of_freedom
from ppvae.messages import unknown
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters
from ppvae.starts import kmeans_partition
from ppvae.sweep import expected_outer, outer_moments, rows_in_a_pass

# Of the least noise in a cluster of the start: a component that collapses onto a few rows, or a Heywood case of one (see FactorAnalysis).
NOISE_FLOOR = 0.005
NO_NOISE = 1e-6  # of the variance within the clusters: as PPCA's floor
EMPTY = 1e-10  # rows: a component with fewer keeps its place and shape


class MixtureExact(Exact):
    """Closed forms of both mixtures: posterior, marginal and EM, for any pattern of missing entries. K leads every shape."""

    model: "_Mixture"

    def chunk_rows(self, data: Data) -> int:
        return super().chunk_rows(data) if data.complete else rows_in_a_pass(self.model.n_latents, self.model.n_components)

    def _latent(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x - m_k (K, B, D); E[z | x, k] (K, B, L); the Cholesky factors of its precision (K, B or 1, L, L); log p(x, k) (K, B)."""
        loadings, mask = theta.loadings, batch.mask
        noise = theta.noise_variances.reshape(len(loadings), -1).expand(loadings.shape[:2])
        residual = batch.x - theta.means.unsqueeze(1)
        residual = residual if mask is None else torch.where(batch.observed, residual, 0.0)
        loc, tril = factor_posterior(residual, loadings, noise, mask)
        density = factor_log_marginal(residual, loadings, noise, mask, loc, tril)
        return residual, loc, tril, density + theta.weights.log().unsqueeze(-1)

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        _, loc, tril, joint = self._latent(theta, batch)
        scale_tril = torch.linalg.cholesky(torch.cholesky_inverse(tril))
        return Posterior(joint.log_softmax(0).mT, loc.transpose(0, 1), scale_tril.transpose(0, 1), "component", "z")

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return self._latent(theta, batch)[-1].logsumexp(0)

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """ "rows" (K,), and for each component the responsibility-weighted moments of `ppvae.gaussian.factor_moments`."""
        if batch.mask is not None:
            return self._statistics_with_holes(theta, batch.x, batch.mask)
        residual, loc, tril, joint = self._latent(theta, batch)
        log_marginal = joint.logsumexp(0)
        r = (joint - log_marginal).exp()
        return {"log_likelihood": log_marginal.sum(), "rows": r.sum(1), **factor_moments(residual, loc, tril, r)}

    def _statistics_with_holes(self, theta: Parameters, x: Tensor, mask: Tensor) -> Statistics:
        """`statistics` where each row of each component has a posterior covariance of its own."""
        residuals = [torch.addcmul(x, mask, mean, value=-1) for mean in theta.means]
        noises = theta.noise_variances.reshape(len(residuals), -1).expand(theta.means.shape)
        found = [expected_outer(e, mask, w, noise) for e, w, noise in zip(residuals, theta.loadings, noises, strict=True)]
        joint = torch.stack([density for _, density in found]) + theta.weights.log().unsqueeze(-1)
        log_marginal = joint.logsumexp(0)
        r = (joint - log_marginal).exp()
        parts = [outer_moments(outer, e, mask, rows) for (outer, _), e, rows in zip(found, residuals, r, strict=True)]
        moments = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return {"log_likelihood": log_marginal.sum(), "rows": r.sum(1), **moments}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        """A feature that no row of a component holds keeps what it had there."""
        count, uu = statistics["count"], statistics["uu"]
        alive = count > EMPTY
        eye = torch.eye(uu.shape[-1], dtype=uu.dtype, device=uu.device)
        solvable = torch.where(alive[:, : uu.shape[1], None, None], uu, eye)
        regression, left = factor_regression({**statistics, "uu": solvable})
        rows = statistics["rows"].clamp(min=EMPTY)
        return {
            "weights": rows / rows.sum(),
            "means": torch.where(alive, theta.means + regression[..., -1], theta.means),
            "loadings": torch.where(alive.unsqueeze(-1), regression[..., :-1], theta.loadings),
            "noise_variances": self.model.noise(theta, left, count),
        }

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        return shifted_factor_moments(statistics, theta.means - values["means"])


@dataclass(frozen=True)
class _Mixture(Model):
    """What both mixtures share; they differ in `noise` and in their start."""

    n_components: int = 2
    n_latents: int = 1
    component: str = "summed"

    exact = MixtureExact
    exchangeable: ClassVar[tuple[str, ...]] = ("weights", "means", "covariances")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_components < 1 or self.n_latents < 1:
            raise ValueError(f"n_components and n_latents must be at least 1, not {self.n_components} and {self.n_latents}")
        if self.component not in ("summed", "guided"):
            raise unknown("component", self.component, ("summed", "guided"))

    @property
    def guided_component(self) -> bool:
        return self.component == "guided"

    def check(self, data: Data) -> None:
        check_table(data, self.n_latents)
        if data.n_rows < self.n_components:
            raise ValueError(
                f"{self.n_components} components need at least as many rows, but there are {data.n_rows}: ask for fewer components"
            )

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> Tensor:
        """The M-step for the noise, from the expected squares (K, D) that the regressions leave, and the rows (K, D) behind them."""
        raise NotImplementedError(f"{self.name} gives no M-step for its noise: define noise(self, theta, left, count)")

    def model(self, theta: Parameters, batch: Batch) -> None:
        noise_scales = theta.noise_variances.sqrt().reshape(self.n_components, -1)
        with batch.rows:
            k = pyro.sample("component", dist.Categorical(theta.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            loc = theta.means[k] + (theta.loadings[k] @ z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, noise_scales[k]).mask(batch.observed).to_event(1), obs=batch.x)

    def identifiable(self, theta: Parameters) -> dict[str, Tensor]:
        """Weights, means and each component's covariance; each W_k may be rotated freely."""
        noise = theta.noise_variances.reshape(self.n_components, -1).expand(theta.means.shape)
        covariances = theta.loadings @ theta.loadings.mT + torch.diag_embed(noise)
        return {"weights": theta.weights, "means": theta.means, "covariances": covariances}

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """All numbers, less the L (L - 1) / 2 of a rotation in each component, whose covariance has D (D + 1) / 2 at the most."""
        return degrees_of_freedom(theta, "noise_variances")


class MixturePPCA(_Mixture):
    """A mixture of `n_components` = K PPCAs, each with `n_latents` = L < D latent dimensions.

    component: "summed" out of the story, or "guided" by an encoder q(k | x).
    Parameters of a fit: `weights` (K,), `means` (K, D), `loadings` (K, D, L), `noise_variances` (K,).

    >>> import ppvae
    >>> fit = ppvae.fit(MixturePPCA(n_components=3, n_latents=1), ppvae.load_data("iris"))
    >>> fit.transform(ppvae.load_data("iris")).shape, fit.params["noise_variances"].shape
    ((150, 1), (3,))
    """

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """k-means, then PCA in each cluster."""
        found = kmeans_partition(data, self.n_components, generator)
        loadings, noise = local_pca(found.covariances, self.n_latents)
        unit = found.within.mean()
        # Not of `unit`: where columns differ in scale the noise is rightly far below the mean variance.
        spread = found.least(local_pca(found.own, self.n_latents)[1], found.weights @ noise).maximum(NO_NOISE * unit)
        return Parameters(
            weights=Constrained(found.weights, constraints.simplex),
            means=Constrained(found.means, unit=unit.sqrt()),
            loadings=Constrained(loadings, unit=unit.sqrt()),
            noise_variances=Constrained(noise, constraints.positive, unit=spread, floor=NOISE_FLOOR),
        )

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> Tensor:
        """One variance for each component."""
        rows = count.sum(-1)
        found = torch.where(rows > EMPTY, left.sum(-1) / rows.clamp(min=EMPTY), theta.noise_variances)
        return found.clamp(min=NOISE_FLOOR * theta.unit_noise_variances)


class MixtureFA(_Mixture):
    """A mixture of `n_components` = K factor analyses, each with `n_latents` = L < D latent dimensions.

    component: "summed" out of the story, or "guided" by an encoder q(k | x).
    Parameters of a fit: `weights` (K,), `means` (K, D), `loadings` (K, D, L), `noise_variances` (K, D).

    >>> import ppvae
    >>> fit = ppvae.fit(MixtureFA(n_components=2, n_latents=1), ppvae.load_data("iris"))
    >>> fit.predict(ppvae.load_data("iris")).shape, fit.params["noise_variances"].shape
    ((150,), (2, 4))
    """

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """k-means, then PCA in each cluster, of features at variance 1 within the clusters."""
        found = kmeans_partition(data, self.n_components, generator)
        scale = found.within.sqrt()
        loadings, noise = local_pca(found.covariances / scale.outer(scale), self.n_latents)
        unit = found.least(found.own.diagonal(dim1=-2, dim2=-1), found.within)
        return Parameters(
            weights=Constrained(found.weights, constraints.simplex),
            means=Constrained(found.means, unit=scale),
            loadings=Constrained(loadings * scale.unsqueeze(-1), unit=scale.unsqueeze(-1)),
            noise_variances=Constrained(noise.unsqueeze(-1) * found.within, constraints.positive, unit=unit, floor=NOISE_FLOOR),
        )

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> Tensor:
        """One variance for each feature of each component."""
        found = torch.where(count > EMPTY, left / count.clamp(min=EMPTY), theta.noise_variances)
        return torch.maximum(found, NOISE_FLOOR * theta.unit_noise_variances)


def local_pca(covariances: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """PPCA of each covariance (K, D, D) by its eigenvectors: loadings (K, D, L) and noise variances (K,)."""
    values, vectors = torch.linalg.eigh(covariances)
    noise = values[:, :-n_latents].mean(-1)
    top = (values[:, -n_latents:] - noise.unsqueeze(-1)).clamp(min=0.0).sqrt()
    return vectors[..., -n_latents:] * top.unsqueeze(-2), noise
