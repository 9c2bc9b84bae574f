"""Gaussian algebra for batches of rows: linear-Gaussian posteriors and masked densities. No loop over rows or patterns.

Shapes: B rows, D features, L latents, K components. `observed` is None when every entry is.
"""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def factor_posterior(residual: Tensor, loadings: Tensor, noise_variance: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The posterior of z in x = W z + noise given residual = x - m: its mean (B, L) and the Cholesky factor of its precision.

    precision = I + W^T Psi^-1 W over the observed features: (1, L, L) for complete rows, else (B, L, L). `residual` is (B, D), zero where
    missing; `loadings` (D, L); `noise_variance` () or (D,).
    """
    features, latents = loadings.shape
    weighted = loadings / noise_variance.expand(features).unsqueeze(-1)
    eye = torch.eye(latents, dtype=loadings.dtype, device=loadings.device)
    if observed is None:
        precision = (eye + loadings.mT @ weighted).unsqueeze(0)
    else:
        pairs = (loadings.unsqueeze(-1) * weighted.unsqueeze(-2)).reshape(features, -1)
        precision = eye + (observed.to(loadings.dtype) @ pairs).reshape(-1, latents, latents)
    tril = torch.linalg.cholesky(precision)
    score = residual @ weighted
    loc = torch.cholesky_solve(score.T, tril[0]).T if len(tril) == 1 else torch.cholesky_solve(score.unsqueeze(-1), tril).squeeze(-1)
    return loc, tril


def factor_log_marginal(
    residual: Tensor, loadings: Tensor, noise_variance: Tensor, observed: Tensor | None, loc: Tensor, tril: Tensor
) -> Tensor:
    """(B,): log N(residual; 0, W W^T + Psi) over the observed features, from the posterior that `factor_posterior` gives.

    r^T C^-1 r is the least of |r - W z|^2 / psi + |z|^2, reached at the posterior mean: a sum of squares, so nothing cancels.
    """
    noise = noise_variance.expand(len(loadings))
    left = residual - loc @ loadings.mT
    logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if observed is None:
        seen, spread = residual.shape[-1], noise.log().sum()
    else:
        mask = observed.to(residual.dtype)
        left = left * mask
        seen, spread = mask.sum(-1), mask @ noise.log()
    return -0.5 * ((left.square() / noise).sum(-1) + loc.square().sum(-1) + logdet + spread + seen * LOG_2PI)


def inverse_tril(tril: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix (..., D, D)."""
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    return torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False)


def masked_covariance(covariance: Tensor, observed: Tensor) -> Tensor:
    """The covariance (..., D, D) with missing rows and columns replaced by the identity's.

    Its Cholesky factor is that of the observed block, with ones at the missing entries: a masked density needs no pattern-by-pattern code.
    """
    both = observed.unsqueeze(-1) & observed.unsqueeze(-2)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return torch.where(both, covariance, eye)


def whitened(x: Tensor, means: Tensor, trils: Tensor) -> Tensor:
    """L_k^-1 (x_n - m_k) for every row and component, (B, K, D), by one matrix product: means (K, D), trils (K, D, D)."""
    components, features = means.shape
    roots = inverse_tril(trils)
    centre = means.mean(0)  # taken out first, so that far-away data lose no digits in the product
    shifts = torch.einsum("kde,ke->kd", roots, means - centre)
    return ((x - centre) @ roots.reshape(-1, features).mT).reshape(-1, components, features) - shifts


def log_density(white: Tensor, trils: Tensor) -> Tensor:
    """(B, K): log N(x_n; m_k, L_k L_k^T) from the whitened rows."""
    logdet = trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - logdet - 0.5 * white.shape[-1] * LOG_2PI


def conditional_matrices(covariances: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a pattern of missing entries does to a Gaussian: covariances (K, D, D), patterns (P, D).

    Returns, each for (P, K): the root W (D, D), with |W r|^2 = r_o^T C_oo^-1 r_o; the regression G (D, D), with G r = E[x - m | x_o];
    Cov[x | x_o] (D, D), zero at observed entries; and log det C_oo. `r` is zero where missing.
    """
    mask = observed.to(covariances.dtype)[:, None]
    tril = torch.linalg.cholesky(masked_covariance(covariances, observed[:, None]))
    logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    root = inverse_tril(tril) * mask.unsqueeze(-2)
    seen = covariances * mask.unsqueeze(-2)  # C with only the observed columns
    half = root @ seen.mT  # W C_o.
    regression = half.mT @ root
    conditional = covariances - half.mT @ half
    hidden = (1 - mask).unsqueeze(-1) * (1 - mask).unsqueeze(-2)
    return root, regression, conditional * hidden, logdet
