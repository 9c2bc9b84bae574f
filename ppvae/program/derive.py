"""Exact inference read off the program: a story that is quadratic in its latents given a discrete site needs no formulas.

If log p(x, z | k) is quadratic in z, its gradient and Hessian at one point are the whole posterior and the evidence:

    z | x, k ~ N(H^-1 g, H^-1),     log p(x | k) = log p(x, z* | k) + (L / 2) log 2 pi - (1 / 2) log det H

and log-sum-exp over the enumerated k does the rest. The certificate is how far the log joint is from that quadratic, on every row that is
to be scored, at points near its peak and far from it, on either side, and where the prior puts z; without it nothing is claimed. What is to
hold while theta moves must hold a step away from theta too: in a coefficient's start at 0 nothing shows of what it multiplies.

A story whose latents are all finite needs no certificate: they are summed out, whatever their number and order (see
`ppvae.program.elimination`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch
from ppvae.exact import CHUNK, Exact, Posterior
from ppvae.gaussian import LOG_2PI
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import is_finite, is_row_site, latent_sites, log_sum, marked, own_enumeration, row_total
from ppvae.program.read import without_prior
from ppvae.program.values import moved, some_rows

LOST = "the closed forms that the story has where it starts do not hold where theta has come to"
CERTIFICATE = 1e-8  # relative residual from quadratic: float64 rounding gives 1e-12 or less
NEAR_AND_FAR = (0.3, -1.0, 3.0, -10.0, 30.0)  # sds of each row's posterior
PRIOR = (1.0, -1.0, 5.0, -5.0)  # times a draw of the prior


@dataclass(frozen=True)
class Derived(Exact):
    """Closed forms derived from the story: posterior and log marginal, for any theta.

    component: the one enumerated site, or None.  latents: continuous sites with their event shapes.  several: finite sites that are summed
    out for good, where they are more than one, or one-hot.
    """

    component: str | None = None
    latents: dict[str, torch.Size] = field(default_factory=dict)
    several: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """L, the number of continuous latents of a row."""
        return sum(prod(shape) for shape in self.latents.values())

    def log_joint(self, theta: Parameters, batch: Batch, z: Tensor) -> Tensor:
        """(K, B): log p(x_n, z_kn, k) at z (K, B, L); K = 1 without a component."""
        split = z.split([prod(s) for s in self.latents.values()], -1) if self.latents else ()
        values = {name: part.reshape(*part.shape[:-1], *shape) for (name, shape), part in zip(self.latents.items(), split, strict=True)}
        if self.component is None:
            values = {name: value.squeeze(0) for name, value in values.items()}
        story = poutine.condition(partial(self.model.model, theta), data=values)
        with poutine.block(), own_enumeration():  # a guide may ask for the posterior while it is being traced itself
            trace = poutine.trace(poutine.enum(marked(story), first_available_dim=-2)).get_trace(batch)
        trace.compute_log_prob()
        if self.component is None:
            return log_sum(trace, batch, given_shared=True).expand(1, batch.size)
        return row_total(trace, batch).reshape(-1, batch.size)

    def expand(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """mean (K, B, L), the Cholesky factor of the precision (K, B, L, L), and log p(x, k) (K, B)."""
        mean, tril, evidence = self._expanded(theta, batch)
        return (mean, tril, evidence) if torch.is_grad_enabled() else (mean.detach(), tril.detach(), evidence.detach())

    def _expanded(self, theta: Parameters, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The same with its gradients in theta, whether or not the caller keeps any: they take gradients in z."""
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
        """The largest residual of the log joint of these rows from its quadratic, at points near and far, relative to its size."""
        if self.size == 0:
            return 0.0
        with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            torch.manual_seed(0)
            mean, tril, evidence = (value.detach() for value in self.expand(theta, batch))
            peak = evidence - 0.5 * self.size * LOG_2PI + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            worst = 0.0
            for z in self._points(theta, batch, mean, tril):
                quadratic = peak - 0.5 * (tril.mT @ (z - mean).unsqueeze(-1)).square().sum((-2, -1))
                there = self.log_joint(theta, batch, z).detach()
                # What is nowhere possible is so wherever z lies: -inf at the peak too.
                off = torch.where(there == quadratic, 0.0, (there - quadratic).abs() / (1 + there.abs()))
                worst = max(worst, float(off.nan_to_num(nan=torch.inf).max()))
        return worst

    def _points(self, theta: Parameters, batch: Batch, mean: Tensor, tril: Tensor) -> Iterator[Tensor]:
        """Points (K, B, L) for the certificate: so many sds from each row's peak, in directions of their own, and the prior's draws and
        their opposites, as they are and further out."""
        for radius in NEAR_AND_FAR:
            away = radius * torch.randn_like(mean).unsqueeze(-1)
            yield mean + torch.linalg.solve_triangular(tril.mT, away, upper=True).squeeze(-1)
        sites = latent_sites(partial(self.model.model, theta), batch)
        prior = torch.cat([sites[name]["value"].reshape(batch.size, -1) for name in self.latents], -1)
        for times in PRIOR:
            yield (times * prior).expand(mean.shape)


def shaped(model: Model, theta: Parameters, batch: Batch) -> Derived | None:
    """Closed forms as they would be for a story of this shape, if it were quadratic; None for a story of another shape.

    Its latents are finite, or real and in one site beside at most one finite site. A story that masks a latent's density out has no prior
    over it, so nothing to derive.
    """
    program, batch = partial(model.model, theta), some_rows(batch)
    sites = latent_sites(program, batch)
    finite = [n for n, s in sites.items() if is_finite(s)]
    latents = {n: s["fn"].event_shape for n, s in sites.items() if n not in finite}
    supports = [getattr(sites[n]["fn"].support, "base_constraint", sites[n]["fn"].support) for n in latents]
    readable = all(isinstance(s, type(constraints.real) | type(constraints.real_vector)) for s in supports)
    single = len(finite) == 1 and not sites[finite[0]]["fn"].event_shape  # one-hot: a posterior's component is a number
    if len(latents) > 1 or (latents and len(finite) > single) or not readable or not all(is_row_site(s) for s in sites.values()):
        return None
    if without_prior(program, batch):
        return None
    return Derived(model, finite[0] if single else None, latents, several=() if single else tuple(finite))


def derive(model: Model, theta: Parameters, batch: Batch, moving: bool = False) -> Derived | None:
    """The closed forms of a story at theta, certified on every row of `batch`; None where they do not hold.

    moving: they are to hold while theta moves, so they must a step away from it too.
    """
    found = shaped(model, theta, batch)
    if found is None or found.size == 0:
        return found
    points = (theta, moved(theta)) if moving else (theta,)
    try:
        # A few rows first: most stories end there.
        parts = [some_rows(batch), *batch.chunks(CHUNK)]
        return found if all(found.certificate(point, part) < CERTIFICATE for part in parts for point in points) else None
    except (torch.linalg.LinAlgError, RuntimeError, AssertionError):  # not concave, not twice differentiable, or z chooses among components
        return None


def holds(exact: Exact, theta: Parameters, batch: Batch) -> bool:
    """Whether closed forms are still exact where theta has come to: those that a model gives are, those read off a story are looked at."""
    return not isinstance(exact, Derived) or derive(exact.model, theta, batch) is not None


def exact_forms(model: Model, theta: Parameters, batch: Batch, moving: bool = False) -> Exact | None:
    """The model's own posterior and marginal likelihood, else those that its story gives away on these rows (as `derive`), else None."""
    own = model.closed_forms
    if own is not None and own.has("posterior", "log_marginal"):
        return own
    return derive(model, theta, batch, moving)
