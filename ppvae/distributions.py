"""Distributions for stories: a multivariate normal that takes a mask, batched over rows."""

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from ppvae.gaussian import LOG_2PI, masked_covariance


class MaskedMultivariateNormal(TorchDistribution):
    """N(loc, covariance) scored on its observed entries alone: log p(x_observed), the missing entries marginalised.

    loc: (..., D).  covariance: (..., D, D).  observed: bool (..., D), or None when every entry is. Differentiable; a wholly missing row
    scores 0; a sample has all D entries. Missing entries of a value are never read.

    >>> d = MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), torch.tensor([[True, False], [False, False]]))
    >>> d.log_prob(torch.tensor([[0.0, 9.0], [9.0, 9.0]]))
    tensor([-0.9189, 0.0000])
    """

    arg_constraints = {"loc": constraints.real_vector, "covariance": constraints.positive_definite}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, covariance: Tensor, observed: Tensor | None = None, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape[:-1], covariance.shape[:-2], () if observed is None else observed.shape[:-1])
        self.loc, self.covariance, self.observed = loc, covariance, observed
        super().__init__(shape, loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        new = type(self).__new__(type(self))
        new.loc, new.covariance, new.observed = self.loc, self.covariance, self.observed
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def rsample(self, sample_shape=torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (torch.linalg.cholesky(self.covariance) @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        residual = value - self.loc
        if self.observed is None:
            covariance, seen = self.covariance, float(self.event_shape[0])
        else:
            residual = torch.where(self.observed, residual, 0.0)
            covariance, seen = masked_covariance(self.covariance, self.observed), self.observed.sum(-1).to(residual)
        tril = torch.linalg.cholesky(covariance)
        logdet = 2 * tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (_whitened(tril, residual).square().sum(-1) + logdet + seen * LOG_2PI)


def _whitened(tril: Tensor, residual: Tensor) -> Tensor:
    """L^-1 r, (..., D). One triangular solve serves all rows that share a factor (a leading dim of tril before a dim of size 1)."""
    if tril.ndim == 2:
        return torch.linalg.solve_triangular(tril, residual.reshape(-1, residual.shape[-1]).mT, upper=False).mT.reshape(residual.shape)
    if tril.shape[-3] == 1 and residual.ndim >= 2:
        return torch.linalg.solve_triangular(tril.squeeze(-3), residual.mT, upper=False).mT
    return torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False).squeeze(-1)
