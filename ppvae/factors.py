"""Factors of a mean-field posterior q(theta) = prod_j q_j(theta_j), each of its conjugate prior's family.

For a factor with sufficient statistics t(theta_j), the best q_j given the others has the natural parameters of its prior plus the gradient
of the expected log-likelihood in E[t(theta_j)] (Winn & Bishop 2005, eq. 17; Hoffman et al. 2013, eq. 14). So a factor needs to know its
`moments`, and to be `updated` by a gradient in them; a point mass at its mode is the special case in which CAVI is EM.
"""

from collections.abc import Callable
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppvae.data import Batch, Data
from ppvae.distributions import Wishart
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import Site
from ppvae.shared import shared_sites

Moments = dict[str, Tensor]


class Factor(nn.Module):
    """One factor, of a family of distributions of the whole site.

    Its parameters are buffers by name, those of the prior with `prior_` in front. `point` puts q's mass on its mode.
    """

    family: ClassVar[Callable[..., dist.TorchDistribution]]

    def __init__(self, point: bool, **prior: Tensor) -> None:
        super().__init__()
        self.point, self.names = point, tuple(prior)
        for name, value in prior.items():
            self.register_buffer(f"prior_{name}", value.clone())
            self.register_buffer(name, value.clone())

    @property
    def prior(self) -> dist.TorchDistribution:
        """The prior of the whole site."""
        return self.family(**{name: getattr(self, f"prior_{name}") for name in self.names})

    @property
    def distribution(self) -> dist.TorchDistribution:
        """q of the whole site."""
        if self.point:
            return dist.Delta(self.mode, event_dim=self.mode.ndim)
        return self.family(**{name: getattr(self, name) for name in self.names})

    def moments(self) -> Moments:
        """The expected statistics of q."""
        return self.moments_at(self.mode) if self.point else self.expected()

    def divergence(self) -> Tensor:
        """() nats: KL(q || prior); for a point, which has no entropy, less the log prior at it."""
        return -self.prior.log_prob(self.mode) if self.point else self.kl()

    def kl(self) -> Tensor:
        return kl_divergence(self.distribution, self.prior)

    @property
    def mode(self) -> Tensor:
        raise NotImplementedError

    def expected(self) -> Moments:
        raise NotImplementedError

    @staticmethod
    def moments_at(value: Tensor) -> Moments:
        """The statistics of a point mass at `value`."""
        raise NotImplementedError

    def update(self, gradient: Moments, at: Moments) -> None:
        """Set q to the best factor, given the gradient of the expected log-likelihood in its moments, taken where those are `at`."""
        raise NotImplementedError


class DirichletFactor(Factor):
    """Shares w (K,). Moments: "log" (K,), E log w."""

    concentration: Tensor
    prior_concentration: Tensor

    @staticmethod
    def family(concentration: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(concentration)

    def expected(self) -> Moments:
        return {"log": self.concentration.digamma() - self.concentration.sum(-1, keepdim=True).digamma()}

    @staticmethod
    def moments_at(value: Tensor) -> Moments:
        return {"log": value.log()}

    @property
    def mode(self) -> Tensor:
        above = (self.concentration - 1).clamp(min=torch.finfo(self.concentration.dtype).tiny)
        return above / above.sum(-1, keepdim=True)

    def update(self, gradient: Moments, at: Moments) -> None:
        self.concentration = self.prior_concentration + gradient["log"]


class NormalFactor(Factor):
    """Vectors m_k (K, D), each with a covariance of its own. Moments: "mean" (K, D), "covariance" (K, D, D)."""

    loc: Tensor
    prior_loc: Tensor
    covariance: Tensor
    prior_covariance: Tensor

    @staticmethod
    def family(loc: Tensor, covariance: Tensor) -> dist.TorchDistribution:
        return dist.MultivariateNormal(loc, covariance).to_event(loc.ndim - 1)

    def expected(self) -> Moments:
        return {"mean": self.loc, "covariance": self.covariance}

    @staticmethod
    def moments_at(value: Tensor) -> Moments:
        return {"mean": value, "covariance": torch.zeros_like(value).diag_embed()}

    @property
    def mode(self) -> Tensor:
        return self.loc

    def update(self, gradient: Moments, at: Moments) -> None:
        # In mean and covariance the natural gradient needs no second moment about the origin, so nothing cancels (Khan & Rue 2023).
        prior = torch.linalg.inv(self.prior_covariance)
        tril = torch.linalg.cholesky(prior - 2 * symmetric(gradient["covariance"]))
        pull = gradient["mean"] + (prior @ (self.prior_loc - at["mean"]).unsqueeze(-1)).squeeze(-1)
        self.loc = at["mean"] + torch.cholesky_solve(pull.unsqueeze(-1), tril).squeeze(-1)
        self.covariance = torch.cholesky_inverse(tril)


class GammaFactor(Factor):
    """Positive numbers of any shape. Moments: "value", E tau; "log", E log tau."""

    concentration: Tensor
    prior_concentration: Tensor
    rate: Tensor
    prior_rate: Tensor

    @staticmethod
    def family(concentration: Tensor, rate: Tensor) -> dist.TorchDistribution:
        return dist.Gamma(concentration, rate).to_event(rate.ndim)

    def expected(self) -> Moments:
        return {"value": self.concentration / self.rate, "log": self.concentration.digamma() - self.rate.log()}

    @staticmethod
    def moments_at(value: Tensor) -> Moments:
        return {"value": value, "log": value.log()}

    @property
    def mode(self) -> Tensor:
        return (self.concentration - 1).clamp(min=torch.finfo(self.rate.dtype).eps) / self.rate

    def update(self, gradient: Moments, at: Moments) -> None:
        self.concentration = self.prior_concentration + gradient["log"]
        self.rate = self.prior_rate - gradient["value"]


class WishartFactor(Factor):
    """Precision matrices (K, D, D). Moments: "value", E Lambda; "log" (K,), E log det Lambda."""

    df: Tensor
    prior_df: Tensor
    scale: Tensor
    prior_scale: Tensor

    @staticmethod
    def family(df: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return Wishart(df, scale).to_event(df.ndim)

    def expected(self) -> Moments:
        q = Wishart(self.df, self.scale)
        return {"value": q.mean, "log": q.expected_logdet}

    @staticmethod
    def moments_at(value: Tensor) -> Moments:
        return {"value": value, "log": torch.linalg.slogdet(value).logabsdet}

    @property
    def mode(self) -> Tensor:
        above = (self.df - self.scale.shape[-1] - 1).clamp(min=torch.finfo(self.df.dtype).eps)
        return above[..., None, None] * self.scale

    def kl(self) -> Tensor:
        """E_q [log q - log p]: both densities are linear in the moments."""
        q, prior, found = Wishart(self.df, self.scale), Wishart(self.prior_df, self.prior_scale), self.expected()
        own = self.df * self.scale.shape[-1]  # tr(scale^-1 E Lambda)
        other = torch.linalg.solve(self.prior_scale, found["value"]).diagonal(dim1=-2, dim2=-1).sum(-1)
        return (q.log_density(found["log"], own) - prior.log_density(found["log"], other)).sum()

    def update(self, gradient: Moments, at: Moments) -> None:
        self.df = self.prior_df + 2 * gradient["log"]
        tril = torch.linalg.cholesky(torch.linalg.inv(self.prior_scale) - 2 * symmetric(gradient["value"]))
        self.scale = torch.cholesky_inverse(tril)


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part: a gradient in a symmetric matrix may come with its halves unequal."""
    return (matrix + matrix.mT) / 2


def factor(name: str, site: Site, point: bool) -> Factor:
    """The factor of a site of the story, in the family of its prior, and starting there.

    Raises ValueError for a prior that is not conjugate to a normal's parameters: Dirichlet, Normal, Gamma and Wishart are.
    """
    shape = site["fn"].event_shape
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, dist.Dirichlet):
        return DirichletFactor(point, concentration=fn.concentration.expand(shape))
    if isinstance(fn, dist.Normal):
        return NormalFactor(point, loc=fn.loc.expand(shape), covariance=fn.variance.expand(shape).diag_embed())
    if isinstance(fn, dist.Gamma):
        return GammaFactor(point, concentration=fn.concentration.expand(shape), rate=fn.rate.expand(shape))
    if isinstance(fn, Wishart):
        return WishartFactor(point, df=fn.df.expand(shape[:-2]), scale=fn.scale.expand(shape))
    raise ValueError(
        f"CAVI knows no factor for {name!r}, whose prior is {type(fn).__name__}: use Dirichlet, Normal, Gamma or Wishart, or SVI"
    )


class Factors(nn.Module):
    """A mean-field guide: each of the story's shared latents from its own factor."""

    def __init__(self, model: Model, theta: Parameters, data: Data, point: bool) -> None:
        super().__init__()
        self.point = point
        self.factors: dict[str, Factor] = {n: factor(n, site, point) for n, site in shared_sites(model, theta, data).items()}
        for name, part in self.factors.items():
            self.add_module(name, part)

    def moments(self) -> dict[str, Moments]:
        """The expected statistics of each factor."""
        return {name: part.moments() for name, part in self.factors.items()}

    def divergence(self) -> float:
        """KL(q || prior), total nats, as `Factor.divergence` has it."""
        return sum(float(part.divergence()) for part in self.factors.values())

    def forward(self, batch: Batch) -> None:
        for name, part in self.factors.items():
            pyro.sample(name, part.distribution)
