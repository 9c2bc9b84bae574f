"""Gaussian algebra for batches of rows: linear-Gaussian posteriors and masked densities. No loop over rows or patterns.

Shapes: B rows, D features, L latents, K components. `observed` (B, D) is 1 or True at observed entries, and None when every entry is.
"""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.exact import CHUNK
from ppvae.patterns import Patterns

LOG_2PI = math.log(2 * math.pi)


def factor_posterior(residual: Tensor, loadings: Tensor, noise: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The posterior of z in x = W z + noise given residual = x - m: its mean (..., B, L) and the Cholesky factor of its precision.

    precision = I + W^T Psi^-1 W over the observed features: (..., 1, L, L) for complete rows, else (..., B, L, L). `residual` is
    (..., B, D), zero where missing; `loadings` (..., D, L); `noise` (..., D), the diagonal of Psi; "..." is nothing, or one set of
    parameters for each component.
    """
    latents = loadings.shape[-1]
    weighted = loadings / noise.unsqueeze(-1)
    eye = torch.eye(latents, dtype=loadings.dtype, device=loadings.device)
    if observed is None:
        precision = (eye + loadings.mT @ weighted).unsqueeze(-3)
    else:
        pairs = (loadings.unsqueeze(-1) * weighted.unsqueeze(-2)).flatten(-2)
        precision = eye + (observed.to(loadings.dtype) @ pairs).unflatten(-1, (latents, latents))
    tril = torch.linalg.cholesky(precision)
    score = residual @ weighted
    if tril.shape[-3] == 1:  # one system, all rows as its right-hand sides
        return torch.cholesky_solve(score.mT, tril.squeeze(-3)).mT, tril
    return torch.cholesky_solve(score.unsqueeze(-1), tril).squeeze(-1), tril


def factor_log_marginal(residual: Tensor, loadings: Tensor, noise: Tensor, observed: Tensor | None, loc: Tensor, tril: Tensor) -> Tensor:
    """(..., B): log N(residual; 0, W W^T + Psi) over the observed features, from the posterior that `factor_posterior` gives.

    r^T C^-1 r is the least of |r - W z|^2 / psi + |z|^2, reached at the posterior mean: a sum of squares, so nothing cancels.
    """
    left = residual - loc @ loadings.mT
    logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if observed is None:
        constants = noise.log().sum(-1, keepdim=True) + noise.shape[-1] * LOG_2PI
    else:
        mask = observed.to(residual.dtype)
        left = left * mask
        constants = (mask @ (noise.log() + LOG_2PI).unsqueeze(-1)).squeeze(-1)
    squares = (left.square() @ noise.reciprocal().unsqueeze(-1)).squeeze(-1)
    return -0.5 * (squares + loc.square().sum(-1) + logdet + constants)


def factor_moments(
    residual: Tensor, loc: Tensor, tril: Tensor, weights: Tensor | None = None, ones: Tensor | None = None
) -> dict[str, Tensor]:
    """Expected moments of u = (z, 1) and of the residual r = x - m over complete rows, each `weights` (..., B) times.

    `ones` (B, 1) takes the place of the 1 in u, for rows that stand for others: its squares sum to the number of those.

    "uu" (..., 1, L+1, L+1), which all features share: sum of E[u u^T];  "ur" (..., D, L+1): sum of E[u] r;  "rr" (..., D): sum of r^2;
    "count" (..., D). `ppvae.sweep.outer_moments` is the same with missing entries.
    """
    root = inverse_tril(tril)
    within = torch.nn.functional.pad(root.mT @ root, (0, 1, 0, 1))
    ones = loc.new_ones(loc.shape[-2], 1) if ones is None else ones
    u = torch.cat([loc, ones.expand_as(loc[..., :1])], -1)
    counted = u if weights is None else weights.unsqueeze(-1) * u
    rows = ones.square().sum(-2) if weights is None else weights.sum(-1, keepdim=True)
    uu = (counted.mT @ u).unsqueeze(-3) + rows[..., None, None] * within
    squares = residual.square() if weights is None else weights.unsqueeze(-1) * residual.square()
    count = rows.expand(*rows.shape[:-1], residual.shape[-1])
    return {"uu": uu, "ur": residual.mT @ counted, "rr": squares.sum(-2), "count": count}


def factor_regression(moments: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Least squares of each feature on u = (z, 1): its weights (..., D, L+1) and what they leave of "rr" (..., D)."""
    uu, ur = moments["uu"], moments["ur"]
    tril = torch.linalg.cholesky(uu)
    if uu.shape[-3] == 1:
        weights = torch.cholesky_solve(ur.mT, tril.squeeze(-3)).mT
    else:
        weights = torch.cholesky_solve(ur.unsqueeze(-1), tril).squeeze(-1)
    return weights, moments["rr"] - (ur * weights).sum(-1)


def shifted_factor_moments(moments: dict[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """`factor_moments` of the residuals r + shift from those of r: shift (..., D)."""
    first = moments["ur"][..., -1]
    ur = moments["ur"] + shift.unsqueeze(-1) * moments["uu"][..., -1]
    return moments | {"ur": ur, "rr": moments["rr"] + shift * (first + ur[..., -1])}


def shifted_moments(count: Tensor, total: Tensor, scatter: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """The sums of r + shift and of its products from those of r: count (..., 1 or D), total and shift (..., D).

    scatter: (..., D, D) of outer products, or (..., D) of squares.
    """
    moved = total + count * shift
    if scatter.ndim == total.ndim:
        return {"sum": moved, "scatter": scatter + shift * (total + moved)}
    outer = total.unsqueeze(-1) * shift.unsqueeze(-2) + shift.unsqueeze(-1) * moved.unsqueeze(-2)
    return {"sum": moved, "scatter": scatter + outer}


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


def pattern_rows(data: Data, components: int) -> int:
    """Rows in a pass of `component_densities`: with holes each may have a pattern of its own, with matrices (K, D, D)."""
    return CHUNK if data.complete else max(64, min(CHUNK, 2**22 // (components * data.n_features**2)))


def pattern_batches(data: Data, components: int) -> list[Batch]:
    """Batches for `mixture_moments`: all complete rows at once, for it cuts them itself; with holes, rows of one pattern side by side."""
    if data.complete:
        return [data.batch()]
    by_pattern = Patterns.of(data.observed).of_row.argsort(stable=True)
    return list(data.take(by_pattern).chunks(pattern_rows(data, components)))


def component_densities(batch: Batch, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What Gaussians N(m_k, C_k) say of each row's observed entries: means (K, D), covariances (K, D, D).

    Returns log N(x_o; m_k, C_k) (B, K); E[x | x_o, k] - m_k (B, K, D); and Cov[x | x_o, k] for each pattern of missing entries
    (P, K, D, D), None where none are missing. Work on a pattern is done once for all of its rows.
    """
    components, features = means.shape
    if batch.complete:
        tril = torch.linalg.cholesky(covariances)
        return log_density(whitened(batch.x, means, tril), tril), batch.x.unsqueeze(1) - means, None
    patterns = batch.patterns
    root, regression, conditional, logdet = conditional_matrices(covariances, patterns.unique)
    centre = means.mean(0)
    rows = torch.cat([torch.where(batch.observed, batch.x - centre, 0.0), torch.ones_like(batch.x[:, :1])], 1)
    offsets = (means - centre) * patterns.unique.unsqueeze(1)  # (P, K, D)
    both = torch.cat([root, regression], -2)  # (P, K, 2D, D)
    affine = torch.cat([both, -both @ offsets.unsqueeze(-1)], -1)  # on (x - centre, 1)
    white, residual = patterns.apply(affine.flatten(1, 2).mT, rows).unflatten(-1, (components, 2 * features)).split(features, -1)
    seen = patterns.unique.sum(-1, keepdim=True).to(rows)
    constants = (-0.5 * (logdet + seen * LOG_2PI))[patterns.of_row]
    return constants - 0.5 * white.square().sum(-1), residual, conditional


def expected_moments(batch: Batch, weights: Tensor, residual: Tensor, conditional: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over rows of w_nk E[d | x_o, k] (K, D) and w_nk E[d d^T | x_o, k] (K, D, D), where d = x - m_k.

    weights: (B, K).  residual, conditional: as `component_densities` gives them.
    """
    weighted = weights.unsqueeze(-1) * residual
    scatter = weighted.permute(1, 2, 0) @ residual.transpose(0, 1)  # (K, D, B) @ (K, B, D); einsum would copy both
    if conditional is not None:
        scatter = scatter + torch.einsum("pk,pkde->kde", batch.patterns.sum_rows(weights), conditional)
    return weighted.sum(0), scatter


@torch.no_grad()
def mixture_moments(batch: Batch, log_weights: Tensor, means: Tensor, covariances: Tensor) -> dict[str, Tensor]:
    """The E-step of a mixture of N(m_k, C_k): log_weights (K,), means (K, D), covariances (K, D, D). Keeps no gradient.

    Returns "log_likelihood" (), and the responsibility-weighted "rows" (K,), "sum" (K, D) and "scatter" (K, D, D) of x - m_k.
    """
    trils, centre = torch.linalg.cholesky(covariances), means.mean(0)
    away = torch.linalg.solve_triangular(trils, (means - centre).unsqueeze(-1), upper=False).square().sum((-2, -1)).max()
    if away < torch.finfo(means.dtype).eps ** -0.5:  # half of the digits are left when moments around the centre move to the means
        if batch.complete:
            return _moments_around(centre, batch.x, log_weights, means, trils)
        return _moments_by_pattern(centre, batch, log_weights, means, covariances)
    parts = [_moments_by_row(part, log_weights, means, covariances) for part in batch.chunks(CHUNK)]
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def _moments_by_pattern(centre: Tensor, batch: Batch, log_weights: Tensor, means: Tensor, covariances: Tensor) -> dict[str, Tensor]:
    """`mixture_moments` of rows with holes: what is expected of a row is linear in it, by its pattern's matrix, so that the products of a
    pattern's rows (x - centre, 1) with themselves are all that its matrices need to see."""
    components, patterns = len(means), batch.patterns
    root, regression, conditional, logdet = conditional_matrices(covariances, patterns.unique)
    rows = torch.cat([torch.where(batch.observed, batch.x - centre, 0.0), torch.ones_like(batch.x[:, :1])], 1)
    offsets = ((means - centre) * patterns.unique.unsqueeze(1)).unsqueeze(-1)  # (P, K, D, 1)
    whiten = torch.cat([root, -root @ offsets], -1)
    white = patterns.apply(whiten.flatten(1, 2).mT, rows).unflatten(-1, (components, -1))
    constants = -0.5 * (logdet + patterns.unique.sum(-1, keepdim=True).to(rows) * LOG_2PI)
    joint = (log_weights + constants)[patterns.of_row] - 0.5 * white.square().sum(-1)
    log_marginal = joint.logsumexp(-1, keepdim=True)
    products = patterns.weighted_products(rows, (joint - log_marginal).exp())
    expect = torch.cat([regression, -regression @ offsets], -1)  # E[x - m | x_o]
    first, count = expect @ products, products[..., -1, -1]
    second = first @ expect.mT + count[..., None, None] * conditional
    return {"log_likelihood": log_marginal.sum(), "rows": count.sum(0), "sum": first[..., -1].sum(0), "scatter": second.sum(0)}


def _moments_by_row(batch: Batch, log_weights: Tensor, means: Tensor, covariances: Tensor) -> dict[str, Tensor]:
    """`mixture_moments` for any pattern of missing entries and any means, through x - m_k of every row and component (B, K, D)."""
    density, residual, conditional = component_densities(batch, means, covariances)
    joint = density + log_weights
    log_marginal = joint.logsumexp(-1, keepdim=True)
    r = (joint - log_marginal).exp()
    total, scatter = expected_moments(batch, r, residual, conditional)
    return {"log_likelihood": log_marginal.sum(), "rows": r.sum(0), "sum": total, "scatter": scatter}


SCRATCH = 2**19  # numbers: what is written and read again at once stays in cache


def _moments_around(centre: Tensor, x: Tensor, log_weights: Tensor, means: Tensor, trils: Tensor) -> dict[str, Tensor]:
    """`mixture_moments` of complete rows (B, D): nearly all of the work is in two matrix products, one that whitens the rows by every
    component and one of the weighted rows with the rows.

    Both have a triangle for a result or a factor, which is cut into bands: at band i only the first i + 1 of them meet. Rows run along the
    last axis, and sums over them are kept in float64.
    """
    components, features = means.shape
    roots = inverse_tril(trils)
    shifts = (roots @ (means - centre).unsqueeze(-1)).squeeze(-1)
    constants = log_weights - trils.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * features * LOG_2PI
    n_bands = min(4, 1 + features // 4)
    edges = [features * i // n_bands for i in range(n_bands + 1)]
    bands = [(a, b, roots[:, a:b, :b].flatten(0, 1), shifts[:, a:b].reshape(-1, 1)) for a, b in pairwise(edges)]
    sums = partial(torch.zeros, dtype=torch.float64, device=x.device)
    total, rows, first, second = sums(()), sums(components), sums(components, features), sums(components, features, features)
    width = components * -(-features // n_bands)
    piece = max(1024, min(2**14, SCRATCH // width))
    scratch = x.new_empty(width * min(piece, len(x)))
    for part in x.split(piece):
        xt = (part - centre).mT.contiguous()
        joint = constants.unsqueeze(-1)
        for a, b, root, shift in bands:
            white = torch.addmm(shift, root, xt[:b], beta=-1, out=scratch[: len(root) * len(part)].view(len(root), -1))
            joint = torch.add(joint, white.square_().unflatten(0, (components, b - a)).sum(1), alpha=-0.5)
        log_marginal = joint.logsumexp(0)
        r = (joint - log_marginal).exp_()
        total += log_marginal.sum()
        rows += r.sum(1)
        first += r @ xt.mT
        for a, b, root, _ in bands:
            weighted = scratch[: len(root) * len(part)].view(components, b - a, -1)
            torch.mul(r.unsqueeze(1), xt[a:b], out=weighted)
            second[:, a:b, :b] += (weighted.flatten(0, 1) @ xt[:b].mT).unflatten(0, (components, b - a))
    second = second.tril() + second.tril(-1).mT
    return {"log_likelihood": total, "rows": rows, **shifted_moments(rows.unsqueeze(-1), first, second, centre - means)}
