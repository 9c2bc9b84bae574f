"""The E-step of linear Gaussian rows with holes: a small linear system for each row, all of them swept at once.

Each row observes features of its own, so the precision of its latents z, I + W^T Psi^-1 W over those, is its own too. LAPACK takes such
systems one by one, and a call costs more than the arithmetic of so small a matrix. Here rows lie along the last axis, and one operation
does the same step of elimination for all of them.

Shapes: B rows, D features, L latents; u = (z, 1), of length L + 1; `mask` (B, D) is 1 at observed entries and 0 elsewhere. Nothing here
keeps a gradient: `ppvae.gaussian` says the same, row by row, for autograd.
"""

import math

import torch
from torch import Tensor

from ppvae.exact import CHUNK

LOG_2PI = math.log(2 * math.pi)
NUMBERS = 2**20  # in the systems of one pass: beyond that they leave the cache


def rows_in_a_pass(latents: int, components: int = 1) -> int:
    """How many rows to sweep at a time."""
    return max(64, min(CHUNK, NUMBERS // (components * (latents + 1) ** 2)))


@torch.no_grad()
def sweep(systems: Tensor, pivots: int) -> Tensor:
    """Sweep symmetric matrices (M, M, B), in place, on their first `pivots` = P rows and columns; returns the pivots (P, B) that it met.

    [[A, b], [b^T, c]] becomes [[-A^-1, A^-1 b], [b^T A^-1, c - b^T A^-1 b]], and the product of the pivots is det A (Goodnight 1979, "A
    tutorial on the SWEEP operator"). A must be positive definite: then no pivot is small beside what it divides.

    >>> both = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).unsqueeze(-1)
    >>> sweep(both, 1).squeeze().item(), both.squeeze(-1).tolist()
    (2.0, [[-0.5, 0.5], [0.5, 2.5]])
    """
    met = systems.new_empty(pivots, systems.shape[-1])
    for k in range(pivots):
        row = systems[k].clone()
        met[k] = row[k]
        scaled = row / met[k]
        systems.addcmul_(row, scaled.unsqueeze(1), value=-1)
        scaled[k] = -1 / met[k]
        systems[k] = systems[:, k] = scaled
    return met


@torch.no_grad()
def expected_outer(residual: Tensor, mask: Tensor, loadings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """E[u u^T | x] (L+1, L+1, B) and log p(x) (B,) of x = m + W z + noise over each row's observed entries.

    residual: x - m (B, D), zero where missing.  loadings: W (D, L).  noise: the diagonal (D,) of Psi.

    The density is from |x - m - W E[z]|^2 / Psi + |E[z]|^2, a sum of squares in which nothing cancels.
    """
    latents = loadings.shape[1]
    weighted = loadings / noise.unsqueeze(-1)
    i, j, place = packed_symmetric(latents + 1, residual.device)
    pairs = len(i) - latents - 1  # of latents: the last row of the triangle is the score W^T Psi^-1 (x - m), and then 0
    packed = residual.new_zeros(len(i), len(residual))
    torch.mm((loadings[:, i[:pairs]] * weighted[:, j[:pairs]]).mT, mask.mT, out=packed[:pairs])
    torch.mm(weighted.mT, residual.mT, out=packed[pairs:-1])
    packed[place.diagonal()[:-1]] += 1
    systems = packed[place]
    pivots = sweep(systems, latents)
    loc = systems[-1, :-1].clone()
    left = torch.addmm(residual, loc.mT, loadings.mT, alpha=-1).mul_(mask).square_() @ noise.reciprocal()
    constants = mask @ (noise.log() + LOG_2PI)
    log_marginal = -0.5 * (left + loc.square().sum(0) + pivots.log_().sum(0) + constants)
    u = torch.cat([loc, torch.ones_like(loc[:1])])
    systems[-1] = systems[:, -1] = 0.0
    return torch.addcmul(systems, u.unsqueeze(1), u, value=-1).neg_(), log_marginal


@torch.no_grad()
def outer_moments(outer: Tensor, residual: Tensor, mask: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Sums over each feature's observed rows, each row `weights` (B,) times, from what `expected_outer` gives.

    "uu" (D, L+1, L+1): of E[u u^T];  "ur" (D, L+1): of E[u] (x - m);  "rr" (D,): of (x - m)^2;  "count" (D,): of 1.
    """
    i, j, place = packed_symmetric(len(outer), outer.device)
    seen, counted = (mask, residual) if weights is None else (mask * weights.unsqueeze(-1), residual * weights.unsqueeze(-1))
    uu = (outer.flatten(0, 1)[i * len(outer) + j] @ seen)[place]
    return {"uu": uu.movedim(-1, 0), "ur": (outer[-1] @ counted).mT, "rr": (counted * residual).sum(0), "count": seen.sum(0)}


def packed_symmetric(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The lower triangle of a symmetric matrix, row by row: the row and the column of each entry, and each place's entry (size, size)."""
    i, j = torch.tril_indices(size, size, device=device)
    place = torch.empty(size, size, dtype=torch.long, device=device)
    place[i, j] = place[j, i] = torch.arange(len(i), device=device)
    return i, j, place
