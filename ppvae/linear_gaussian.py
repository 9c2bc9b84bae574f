"""Closed forms that the linear Gaussian models share.

    z_n       ~ N(0, I_L)
    x_n | z_n ~ N(W z_n + m, Psi)      Psi diagonal

Marginally x_n ~ N(m, W W^T + Psi). They differ in what they let Psi be: PPCA one number, factor analysis one for each feature, PCA a
vanishing constant.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.exact import Exact, Posterior, Statistics
from ppvae.gaussian import factor_log_marginal, factor_moments, factor_posterior, factor_regression, shifted_factor_moments
from ppvae.parameters import Parameters
from ppvae.starts import check_varies
from ppvae.sweep import expected_outer, outer_moments, rows_in_a_pass


def check_table(data: Data, n_latents: int) -> None:
    """Raise ValueError for a table without variance to explain, and for as many latents as features."""
    check_varies(data)
    if n_latents >= data.n_features:
        raise ValueError(f"n_latents={n_latents} must be below the number of features, {data.n_features}: choose fewer latents")


def degrees_of_freedom(theta: Parameters, noise: str) -> int:
    """The free numbers of `theta`: its `loadings` (..., D, L) count up to a rotation, and with the `noise` as a covariance at the most.

    W W^T is the same for W R, which takes L (L - 1) / 2 numbers from the D L; and W W^T + Psi has D (D + 1) / 2, whatever is in it.
    """
    n_features, n_latents = theta.loadings.shape[-2:]
    n_components = theta.loadings.shape[:-2].numel()
    if "loadings" not in theta.trainable:
        return theta.degrees_of_freedom()
    rotations = n_latents * (n_latents - 1) // 2
    own = n_features * n_latents - rotations + (getattr(theta, noise).numel() // n_components if noise in theta.trainable else 0)
    beyond = max(0, own - n_features * (n_features + 1) // 2)
    return theta.degrees_of_freedom() - n_components * (rotations + beyond)


@dataclass(frozen=True)
class LinearGaussianExact(Exact):
    """Posterior, marginal and EM for `loadings` (D, L), `mean` (D,) and `noise_variance` () or (D,), with any pattern of missing entries.

    A model gives `noise`, its M-step for Psi.
    """

    model: Any = field(repr=False)  # one with n_latents

    def noise(self, theta: Parameters, left: Tensor, count: Tensor) -> dict[str, Tensor]:
        """The noise variances, from the expected squares (D,) that the regression leaves of each feature and its observed rows (D,)."""
        raise NotImplementedError(f"{self.model.name} gives no M-step for its noise")

    def batches(self, data: Data) -> list[Batch]:
        return [data.batch()] if data.complete else super().batches(data)

    def chunk_rows(self, data: Data) -> int:
        return super().chunk_rows(data) if data.complete else rows_in_a_pass(self.model.n_latents)

    def _latent(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """residual (B, D), posterior mean (B, L), the Cholesky factor of the posterior precision, log p(x) (B,)."""
        loadings, mask = theta.loadings, batch.mask
        noise = theta.noise_variance.expand(len(loadings))
        residual = batch.x - theta.mean
        residual = residual if mask is None else torch.where(batch.observed, residual, 0.0)
        loc, tril = factor_posterior(residual, loadings, noise, mask)
        return residual, loc, tril, factor_log_marginal(residual, loadings, noise, mask, loc, tril)

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        _, loc, tril, _ = self._latent(theta, batch)
        return Posterior.gaussian(loc, torch.linalg.cholesky(torch.cholesky_inverse(tril)))

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return self._latent(theta, batch)[-1]

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """Moments of u = (z, 1) and of x - m; see `ppvae.gaussian.factor_moments`."""
        if (mask := batch.mask) is not None:
            residual = torch.addcmul(batch.x, mask, theta.mean, value=-1)
            outer, log_marginal = expected_outer(residual, mask, theta.loadings, theta.noise_variance.expand(len(theta.mean)))
            return {"log_likelihood": log_marginal.sum(), **outer_moments(outer, residual, mask)}
        if batch.size > batch.x.shape[1] + 1:
            return self._statistics_of_products(theta, batch)
        residual, loc, tril, log_marginal = self._latent(theta, batch)
        return {"log_likelihood": log_marginal.sum(), **factor_moments(residual, loc, tril)}

    def _statistics_of_products(self, theta: Parameters, batch: Batch) -> Statistics:
        """`statistics` of complete rows: sums over rows of what is quadratic in x - m, so D + 1 rows with the same products will do.

        An E-step then takes as long for a million rows as for a few. A row of zeros has the log-likelihood that every row starts from.
        """
        loadings, (mean, root) = theta.loadings, batch.condensed
        noise, weight = theta.noise_variance.expand(len(loadings)), batch.size**0.5
        rows = torch.cat([root, weight * (mean - theta.mean).unsqueeze(0), torch.zeros_like(root[:1])])
        ones = torch.zeros_like(rows[:, :1])
        ones[-2] = weight
        loc, tril = factor_posterior(rows, loadings, noise, None)
        scores = factor_log_marginal(rows, loadings, noise, None, loc, tril)
        log_likelihood = scores[:-1].sum() + (batch.size - len(rows) + 1) * scores[-1]
        return {"log_likelihood": log_likelihood, **factor_moments(rows, loc, tril, ones=ones)}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        """Least squares of each feature on u gives its loadings and the step of its mean; what is left over is the noise."""
        weights, left = factor_regression(statistics)
        noise = self.noise(theta, left, statistics["count"])
        return {"loadings": weights[:, :-1], "mean": theta.mean + weights[:, -1], **noise}

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        return shifted_factor_moments(statistics, theta.mean - values["mean"])
