"""Exact inference read off the program: a story that is quadratic in its latents given a discrete site needs no formulas.

If log p(x, z | k) is quadratic in z, its gradient and Hessian at one point are the whole posterior and the evidence:

    z | x, k ~ N(H^-1 g, H^-1),     log p(x | k) = log p(x, z* | k) + (L / 2) log 2 pi - (1 / 2) log det H

and log-sum-exp over the enumerated k does the rest. How far the log joint is from that quadratic at random points is the certificate;
without it nothing is claimed.
"""

from dataclasses import dataclass, field
from functools import partial
from math import prod

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch
from ppvae.exact import Exact, Posterior
from ppvae.gaussian import LOG_2PI
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import is_finite, is_row_site, latent_sites, marked, row_total
from ppvae.program.read import without_prior

CERTIFICATE = 1e-8  # relative residual from quadratic: float64 rounding gives 1e-12 or less


@dataclass(frozen=True)
class Derived(Exact):
    """Closed forms derived from the story: posterior and log marginal, for any theta.

    component: the enumerated site, or None.  latents: continuous sites with their event shapes.
    """

    component: str | None = None
    latents: dict[str, torch.Size] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """L, the number of continuous latents of a row."""
        return sum(prod(shape) for shape in self.latents.values())

    def log_joint(self, theta: Parameters, batch: Batch, z: Tensor) -> Tensor:
        """(K, B): log p(x_n, z_kn, k) at z (K, B, L); K = 1 without a discrete site."""
        split = z.split([prod(s) for s in self.latents.values()], -1) if self.latents else ()
        values = {name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in zip(self.latents.items(), split, strict=True)}
        if self.component is None:
            values = {name: value.squeeze(0) for name, value in values.items()}
        story = poutine.condition(partial(self.model.model, theta), data=values)
        with poutine.block():  # a guide may ask for the posterior while it is being traced itself
            trace = poutine.trace(poutine.enum(marked(story), first_available_dim=-2)).get_trace(batch)
        trace.compute_log_prob()
        return row_total(trace, batch).reshape(-1, batch.size)

    def expand(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """mean (K, B, L), the Cholesky factor of the precision (K, B, L, L), and log p(x, k) (K, B)."""
        with torch.enable_grad():
            parts = self.log_joint(theta, batch, batch.x.new_zeros(1, batch.size, self.size)).shape[0]
            z = batch.x.new_zeros(parts, batch.size, self.size).requires_grad_()
            value = self.log_joint(theta, batch, z)
            if self.size == 0:
                return z, batch.x.new_zeros(parts, batch.size, 0, 0), value
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            # One Hessian column of every row and component at a time: rows do not touch each other.
            columns = [torch.autograd.grad(gradient[..., i].sum(), z, create_graph=True)[0] for i in range(self.size)]
        precision = -torch.stack(columns, -1)
        tril = torch.linalg.cholesky((precision + precision.mT) / 2)
        mean = torch.cholesky_solve(gradient.unsqueeze(-1), tril).squeeze(-1)
        logdet = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return mean, tril, value + 0.5 * (gradient * mean).sum(-1) + 0.5 * self.size * LOG_2PI - logdet

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        mean, tril, evidence = self.expand(theta, batch)
        covariance = torch.cholesky_inverse(tril) if self.size else tril
        latent = next(iter(self.latents)) if len(self.latents) == 1 else None
        return Posterior(
            evidence.mT.log_softmax(-1),
            mean.transpose(0, 1),
            (torch.linalg.cholesky(covariance) if self.size else covariance).transpose(0, 1),
            component=self.component,
            latent=latent,
            shape=None if latent is None else self.latents[latent],
        )

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return self.expand(theta, batch)[-1].logsumexp(0)

    def certificate(self, theta: Parameters, batch: Batch) -> float:
        """The largest residual of the log joint from its quadratic at random points, relative to its size."""
        mean, tril, evidence = self.expand(theta, batch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            away = torch.randn_like(mean)
        quadratic = evidence - 0.5 * self.size * LOG_2PI + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        quadratic = quadratic - 0.5 * (tril.mT @ away.unsqueeze(-1)).square().sum((-2, -1))
        there = self.log_joint(theta, batch, mean + away)
        return float(((there - quadratic).abs() / (1 + there.abs())).detach().max())


def derive(model: Model, theta: Parameters, batch: Batch) -> Derived | None:
    """The closed forms of a story with at most one enumerated site and continuous sites in which it is quadratic; None for any other.

    A story that masks a latent's density out has no prior over it, so nothing to derive.

    `batch`: a few rows on which the certificate is made.
    """
    sites = latent_sites(partial(model.model, theta), batch)
    discrete = [n for n, s in sites.items() if is_finite(s)]
    latents = {n: s["fn"].event_shape for n, s in sites.items() if n not in discrete}
    supports = [getattr(sites[n]["fn"].support, "base_constraint", sites[n]["fn"].support) for n in latents]
    readable = all(isinstance(s, type(constraints.real) | type(constraints.real_vector)) for s in supports)
    vectors = any(sites[n]["fn"].event_shape for n in discrete)  # one-hot: a posterior's component is a number
    if len(discrete) > 1 or vectors or len(latents) > 1 or not readable or not all(is_row_site(s) for s in sites.values()):
        return None
    if without_prior(partial(model.model, theta), batch):
        return None
    found = Derived(model, discrete[0] if discrete else None, latents)
    try:
        with pyro.validation_enabled(False):
            certificate = found.certificate(theta, batch)
    except (
        torch.linalg.LinAlgError,
        RuntimeError,
        AssertionError,
    ):  # not concave, not twice differentiable, or z chooses among components
        return None
    return found if certificate < CERTIFICATE else None


def exact_forms(model: Model, theta: Parameters, batch: Batch) -> Exact | None:
    """The model's own posterior and marginal likelihood, else those that its story gives away, else None."""
    own = model.closed_forms
    if own is not None and own.has("posterior", "log_marginal"):
        return own
    return derive(model, theta, batch)
