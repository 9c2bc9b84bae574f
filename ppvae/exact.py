"""Closed forms: what a model may give where the mathematics allows it, and the exact posterior as an object."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae.bijections import carried
from ppvae.data import Batch, Data
from ppvae.parameters import Parameters

if TYPE_CHECKING:
    from ppvae.model import Model

Statistics = dict[str, Tensor]
CHUNK = 4096  # rows in one pass of exact work: large enough for matrix products, small enough to stay in cache


@dataclass(frozen=True)
class Posterior:
    """Each row's distribution of the latents: a finite mixture of Gaussians, p(k, z | x) = w_k N(z; m_k, C_k).

    log_weights: (N, K).  loc: (N, K, L).  scale_tril: (N or 1, K, L, L), the Cholesky factors of C_k.
    component, latent: the story's names for k and z; None for a part that the story does not have (K = 1 or L = 0).
    shape: of the story's z where that is not (L,), such as () for a number; of L entries.
    """

    log_weights: Tensor
    loc: Tensor
    scale_tril: Tensor
    component: str | None = None
    latent: str | None = None
    shape: torch.Size | None = None

    @classmethod
    def gaussian(cls, loc: Tensor, scale_tril: Tensor, latent: str = "z") -> "Posterior":
        """N(loc, scale_tril scale_tril^T) for each row: loc (N, L), scale_tril (N or 1, L, L)."""
        return cls(loc.new_zeros(len(loc), 1), loc.unsqueeze(1), scale_tril.unsqueeze(1), latent=latent)

    @classmethod
    def categorical(cls, log_weights: Tensor, component: str = "component") -> "Posterior":
        """Component probabilities for each row: log_weights (N, K), normalised."""
        rows, parts = log_weights.shape
        empty = log_weights.new_zeros(rows, parts, 0)
        return cls(log_weights, empty, log_weights.new_zeros(1, parts, 0, 0), component=component)

    @classmethod
    def nothing(cls, x: Tensor) -> "Posterior":
        """For a story without latents: rows (N, D) about whose latents there is nothing to say (K = 1, L = 0)."""
        return cls(x.new_zeros(len(x), 1), x.new_zeros(len(x), 1, 0), x.new_zeros(1, 1, 0, 0))

    @classmethod
    def join(cls, parts: "list[Posterior]") -> "Posterior":
        """The posteriors of consecutive rows as one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        shared = len(first.scale_tril) == 1 < len(first.loc)
        tril = first.scale_tril if shared else torch.cat([p.scale_tril.expand(*p.loc.shape, -1) for p in parts])
        weights, loc = torch.cat([p.log_weights for p in parts]), torch.cat([p.loc for p in parts])
        return cls(weights, loc, tril, first.component, first.latent, first.shape)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of z in the story."""
        return self.loc.shape[-1:] if self.shape is None else self.shape

    def shaped(self, z: Tensor) -> Tensor:
        """Values (..., L) in the shape that they have in the story: (..., `event_shape`)."""
        return z.reshape(*z.shape[:-1], *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """(N, L): E[z | x]."""
        return (self.log_weights.exp().unsqueeze(-1) * self.loc).sum(1)

    @property
    def covariance(self) -> Tensor:
        """(N, L, L): Cov[z | x], within and between components."""
        weights = self.log_weights.exp()[..., None, None]
        within = self.scale_tril @ self.scale_tril.mT
        apart = (self.loc - self.mean.unsqueeze(1)).unsqueeze(-1)
        return (weights * (within + apart @ apart.mT)).sum(1)

    def without_component(self) -> "Posterior | None":
        """The distribution of z alone, k summed out; None where that is no longer one Gaussian."""
        if self.component is None:
            return self
        if self.latent is None:
            return Posterior(self.log_weights.new_zeros(len(self.loc), 1), self.loc[:, :1], self.scale_tril[:, :1])
        return replace(self, component=None) if self.loc.shape[1] == 1 else None

    def log_prob(self, latents: dict[str, Tensor]) -> Tensor:
        """(..., N): log p(k, z | x) at latents (..., N) and (..., N, L); a part left out is summed or integrated out."""
        total = self.log_weights
        if self.latent in latents:
            z = latents[self.latent]
            z = z.reshape(*z.shape[: z.ndim - len(self.event_shape)], 1, -1)
            total = total + dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril, validate_args=False).log_prob(z)
        if self.component in latents:
            k = latents[self.component]
            return total.expand(*k.shape, total.shape[-1]).gather(-1, k.unsqueeze(-1)).squeeze(-1)
        return total.logsumexp(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """n draws for each row: {component: (n, N), latent: (n, N, L)}, the parts that the story has."""
        rows, parts, size = self.loc.shape
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator).T
        draws: dict[str, Tensor] = {} if self.component is None else {self.component: k}
        if self.latent is not None:
            noise = torch.randn(n, rows, size, 1, generator=generator, dtype=self.loc.dtype, device=self.loc.device)
            row = torch.arange(rows, device=k.device)
            tril = self.scale_tril.expand(rows, parts, size, size)[row, k]
            draws[self.latent] = self.shaped(self.loc[row, k] + (tril @ noise).squeeze(-1))
        return draws


def kl(q: Posterior, p: Posterior) -> Tensor | None:
    """(N,) nats: the exact KL(q || p), or None where the pair has no closed form (different parts, or mixtures of Gaussians with k lost).

    By the chain rule KL(q(k) || p(k)) + E_q(k) KL(q(z | k) || p(z | k)), valid when both name k or both have one component.
    """
    if (q.component, q.latent) != (p.component, p.latent) or (q.component is None and max(q.loc.shape[1], p.loc.shape[1]) > 1):
        return None
    weights = q.log_weights.exp()
    apart = torch.where(weights > 0, weights * (q.log_weights - p.log_weights), 0.0).sum(-1)
    if q.latent is None:
        return apart
    shape = q.loc.shape
    tril_q, tril_p = (t.scale_tril.expand(*shape, shape[-1]) for t in (q, p))
    ratio = torch.linalg.solve_triangular(tril_p, tril_q, upper=False)
    shift = torch.linalg.solve_triangular(tril_p, (p.loc - q.loc).unsqueeze(-1), upper=False)
    logdet = (tril_p.diagonal(dim1=-2, dim2=-1).log() - tril_q.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    within = 0.5 * (ratio.square().sum((-2, -1)) + shift.square().sum((-2, -1)) - shape[-1]) + logdet
    return apart + (weights * within).sum(-1)


@dataclass(frozen=True)
class Exact:
    """The closed forms of one model: pure functions of theta. A model file subclasses this and overrides what it has.

    `posterior` and `log_marginal` make every score exact; `statistics` and `maximize` give EM, with `recentred` online EM too; `solve`
    gives ClosedForm.
    """

    model: "Model" = field(repr=False)

    def chunk_rows(self, data: Data) -> int:
        """How many rows of these data one pass may take; fewer where each row needs matrices of its own."""
        return CHUNK

    def batches(self, data: Data) -> list[Batch]:
        """What an E-step goes through: the rows once each, in any order, for their statistics add up."""
        return list(data.chunks(self.chunk_rows(data)))

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        """p(latents | x, theta) of each row of the batch."""
        raise NotImplementedError(f"{self.model.name} gives no posterior")

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        """(B,) nats: log p(x_observed | theta) of each row, every constant kept."""
        raise NotImplementedError(f"{self.model.name} gives no marginal likelihood")

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """The E-step: expected sufficient statistics, **additive over rows**, with "log_likelihood" (sum over rows) among them."""
        raise NotImplementedError(f"{self.model.name} gives no E-step")

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        """The M-step: constrained values for exactly `theta.trainable`. `theta` is the one that made the statistics."""
        raise NotImplementedError(f"{self.model.name} gives no M-step")

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        """The statistics that `theta` made, with moments that it took about its means taken about those in `values` instead.

        `values` are constrained values as `maximize` gives them. With this, sums made at different parameters may be added: online EM does.
        """
        raise NotImplementedError(f"{self.model.name} does not say how its statistics move with theta")

    def solve(self, data: Data) -> dict[str, Tensor]:
        """Maximum likelihood in one step, constrained values by name."""
        raise NotImplementedError(f"{self.model.name} gives no closed form")

    def mean_field(self, theta: Parameters, moments: dict[str, dict[str, Tensor]], batch: Batch) -> Tensor:
        """(B,) nats: log sum over the row's latents of exp E_q log p(x, latents | shared), for a q of what all rows share.

        `moments` are q's expected statistics by site, as `ppvae.factors` names them, in which E_q log p must be linear.
        """
        raise NotImplementedError(f"{self.model.name} gives no mean-field bound")

    def cannot_solve(self, data: Data) -> str | None:
        """Why `solve` does not apply to these data, in a sentence; None if it does."""
        return None

    def has(self, *names: str) -> bool:
        """Whether the model's own closed forms include all of these."""
        return all(getattr(type(self), name) is not getattr(Exact, name) for name in names)


class ExactGuide(nn.Module):
    """A guide that samples each row's latents from the exact posterior: with it the ELBO is the log-likelihood.

    Sites that the story sums out by enumeration are left to the enumeration.
    """

    theta: Parameters

    def __init__(self, exact: Exact, theta: Parameters) -> None:
        super().__init__()
        self.exact = exact
        self.__dict__["theta"] = theta  # not a submodule: the guide has no parameters of its own

    def forward(self, batch: Batch) -> None:
        posterior = self.exact.posterior(self.theta, batch)
        guided = self.exact.model.guided_component
        with batch.rows:
            if posterior.component is not None and guided:
                infer: Any = {"enumerate": "parallel"} if posterior.latent is None else {}
                k = pyro.sample(posterior.component, dist.Categorical(logits=posterior.log_weights), infer=infer)
            if posterior.latent is not None:
                parts = dist.MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril)
                if posterior.component is None:
                    z = dist.MultivariateNormal(posterior.loc[:, 0], scale_tril=posterior.scale_tril[:, 0])
                elif guided:
                    row = torch.arange(batch.size, device=k.device)
                    tril = posterior.scale_tril.expand(*posterior.loc.shape, -1)
                    z = dist.MultivariateNormal(posterior.loc[row, k], scale_tril=tril[row, k])
                else:
                    z = dist.MixtureSameFamily(dist.Categorical(logits=posterior.log_weights), parts)
                shape = posterior.event_shape
                pyro.sample(posterior.latent, carried(z, shape, constraints.independent(constraints.real, len(shape))))
