"""From the real numbers to the support of a distribution and back, with the Jacobian: torch's bijections, and one for covariances."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import IndependentTransform


def bijection(support: constraints.Constraint) -> Transform:
    """The bijection from unconstrained values onto `support`; torch has none onto positive definite matrices.

    Raises ValueError for a support that has none, such as the whole numbers.

    >>> bijection(constraints.positive)(torch.zeros(2))
    tensor([1., 1.])
    """
    if isinstance(support, type(constraints.independent(constraints.real, 1))):
        return IndependentTransform(bijection(support.base_constraint), support.reinterpreted_batch_ndims)
    if isinstance(support, type(constraints.positive_definite)):
        return PositiveDefinite()
    try:
        return biject_to(support)
    except NotImplementedError as error:
        finite = (
            "a discrete one of finitely many values takes infer={'enumerate': 'parallel'}, a vector one site an entry; else give a guide"
        )
        kind = finite if support.is_discrete else "give a guide"
        raise ValueError(f"a latent whose support is {support} has no Gaussian guide: {kind}") from error


def free_shape(event_shape: torch.Size, support: constraints.Constraint) -> torch.Size:
    """The shape of the real numbers behind an event: K - 1 for a simplex of K, D (D + 1) / 2 for a covariance."""
    return bijection(support).inverse_shape(event_shape)


def carried(base: dist.TorchDistribution, event_shape: torch.Size, support: constraints.Constraint) -> dist.TorchDistribution:
    """A distribution over flat numbers (P,) as one over events of this shape and support."""
    real = isinstance(getattr(support, "base_constraint", support), type(constraints.real))  # a copied guide holds copied constraints
    if len(event_shape) == 1 and real:
        return base
    transforms = [dist.transforms.ReshapeTransform(base.event_shape, free_shape(event_shape, support))]
    return dist.TransformedDistribution(base, transforms if real else [*transforms, bijection(support)])


def unit_tril(diagonal: Tensor, below: Tensor) -> Tensor:
    """Lower triangular matrices (..., n, n) from their diagonals (..., n) and the entries below, row by row."""
    size = diagonal.shape[-1]
    row, column = torch.tril_indices(size, size, -1, device=diagonal.device)
    flat = diagonal.new_zeros(*diagonal.shape[:-1], size * size)
    flat = flat.index_copy(-1, row * size + column, below)
    return flat.unflatten(-1, (size, size)) + torch.diag_embed(diagonal)


class PositiveDefinite(Transform):
    """D (D + 1) / 2 real numbers to a positive definite matrix (D, D): the logs of its Cholesky factor's diagonal, then what is below."""

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefinite)

    def __hash__(self) -> int:
        return hash(PositiveDefinite)

    def _call(self, x: Tensor) -> Tensor:
        size = (math.isqrt(8 * x.shape[-1] + 1) - 1) // 2
        tril = unit_tril(x[..., :size].exp(), x[..., size:])
        return tril @ tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        tril = torch.linalg.cholesky(y)
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1, device=y.device)
        return torch.cat([tril.diagonal(dim1=-2, dim2=-1).log(), tril[..., row, column]], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """D log 2 + sum_i (D - i + 2) log L_ii for i = 1..D: of L L^T in L, and of L's diagonal in its logs (Muirhead 1982, 2.1.9)."""
        size = y.shape[-1]
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return (powers * x[..., :size]).sum(-1) + size * math.log(2)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        size = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        size = shape[-1]
        return torch.Size((*shape[:-2], size * (size + 1) // 2))
