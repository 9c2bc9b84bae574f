"""Lower bounds on the log-likelihood along a curve through theta: what EM climbs, and what a worse guide leaves.

    L(theta, q) = E_q[log p(x, z | theta) - log q(z)] = log p(x | theta) - KL(q(z) || p(z | x, theta))

With q = p(z | x, theta_k) the bound touches the log-likelihood at theta_k, and its highest point is EM's next theta (Neal & Hinton 1998, "A
view of the EM algorithm"). A curve is theta as a function of one number t, so that bound and log-likelihood can be drawn; on it, EM is
that of the model whose only parameter is t.

Nothing is sampled. Where the exact posterior is a mixture of Gaussians, log p(x, z, k) is quadratic in z, and so is log q(z, k). The mean
of a quadratic under a Gaussian is its mean over 2 L points, m +- sqrt(L) c_i with c_i the columns of the Cholesky factor.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppvae.data import Batch, Data, as_data
from ppvae.exact import Exact, Posterior
from ppvae.messages import unknown
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.derive import exact_forms
from ppvae.program.joint import Program, log_joint
from ppvae.threads import threads_for

COARSE = 21  # places among which the highest point of a bound is looked for first

Curve = Callable[[float], Parameters]
Guiding = Callable[[Posterior], Posterior]


def between(start: Parameters, end: Parameters) -> Curve:
    """The line through two thetas of one model, straight in the unconstrained parameters: `start` at t = 0, `end` at t = 1."""
    a, b = (parameters_to_vector(theta.parameters()).detach() for theta in (start, end))

    def at(t: float) -> Parameters:
        theta = copy.deepcopy(start)
        with torch.no_grad():
            vector_to_parameters(a + t * (b - a), theta.parameters())
        return theta

    return at


def moving(theta: Parameters, name: str, place: tuple[int, ...] = ()) -> Curve:
    """`theta` with one number changed: t is entry `place` of the parameter `name`.

    Raises ValueError for an unknown name; the curve does for a t that the parameter's constraint forbids.
    """
    if name not in theta.names:
        raise unknown("parameter", name, theta.names)

    def at(t: float) -> Parameters:
        moved = copy.deepcopy(theta)
        value = moved.values()[name]
        value[place] = t
        moved.assign({name: value})
        return moved

    return at


def bound(program: Program, q: Posterior, batch: Batch) -> Tensor:
    """(B,) nats: E_q[log p(x, z, k) - log q(z, k)] of each row, exactly, for a story that is quadratic in z given k.

    q must speak of every latent of the story.
    """
    rows, parts, size = q.loc.shape
    columns = size**0.5 * q.scale_tril.mT
    points = (q.loc.unsqueeze(2) + torch.cat([columns, -columns], 2)).permute(1, 2, 0, 3) if size else q.loc.new_zeros(parts, 1, rows, 0)
    each = points.shape[1]
    latents = {}
    if q.latent is not None:
        latents[q.latent] = q.shaped(points.flatten(0, 1))
    if q.component is not None:
        latents[q.component] = torch.arange(parts, device=q.loc.device).repeat_interleave(each).unsqueeze(1).expand(-1, rows)
    terms = log_joint(program, batch, latents, parts * each) - q.log_prob(latents)
    weights = q.log_weights.exp().mT.repeat_interleave(each, 0) / each
    return torch.where(weights > 0, weights * terms, 0.0).sum(0)


@dataclass(frozen=True)
class Bounds:
    """Bounds along a curve, in nats per row.

    table: a row for each place t on the curve (the index): `log_likelihood`, and a column for each bound.
    marks: a row for each bound: `t`, where its guide was made, with the `bound` there; `peak`, where the bound is highest, with its
        `height`, and the `log_likelihood` there, which is at least as high.
    """

    table: pd.DataFrame = field(repr=False)
    marks: pd.DataFrame


def climb(model: Model, data: object, curve: Curve, start: float, span: tuple[float, float], steps: int = 4, points: int = 101) -> Bounds:
    """EM on a curve from t = `start`: the bounds that touch the log-likelihood at t_0, t_1, ..., each t the peak of the bound before.

    span: the part of the curve that is looked at, at so many `points`; a step stays within it.
    Raises ValueError for a model without latents or without an exact posterior, and for a start outside the span.

    >>> import ppvae
    >>> faithful = ppvae.load_data("faithful")
    >>> model = ppvae.models.GMM(n_components=2)
    >>> fit = ppvae.fit(model, faithful)
    >>> found = climb(model, faithful, moving(fit.theta, "means", (0, 0)), start=3.0, span=(1.5, 3.5), steps=2, points=20)
    >>> bool((found.marks["log_likelihood"] >= found.marks["height"]).all())
    True
    """
    along = _Along(model, as_data(data), curve, span, points)

    def made() -> Iterator[tuple[str, float, Posterior]]:
        t = start
        for k in range(steps):
            q = along.posterior(t)
            yield f"EM's bound at step {k}", t, q
            t = along.peak(q)

    return along.all(made())


def under(
    model: Model,
    data: object,
    curve: Curve,
    at: float,
    span: tuple[float, float],
    guides: Mapping[str, Guiding] | None = None,
    points: int = 101,
) -> Bounds:
    """Bounds along a curve under several guides, each made from the exact posterior at t = `at`; None: those in GUIDES.

    Raises ValueError as `climb` does.
    """
    along = _Along(model, as_data(data), curve, span, points)
    p = along.posterior(at)
    return along.all((name, at, of(p)) for name, of in (guides or GUIDES).items())


def independent(p: Posterior) -> Posterior:
    """The best guide that has the latents independent given the component: the same means, variances 1 / P_ii for precisions P."""
    root = torch.linalg.inv(p.scale_tril)
    precision = (root.mT @ root).diagonal(dim1=-2, dim2=-1)
    return replace(p, scale_tril=torch.diag_embed(precision.rsqrt()))


def widened(p: Posterior, factor: float = 2.0) -> Posterior:
    """Standard deviations `factor` times as large, and component probabilities to the power 1 / factor."""
    return replace(p, log_weights=(p.log_weights / factor).log_softmax(-1), scale_tril=factor * p.scale_tril)


def shifted(p: Posterior, by: float = 1.0) -> Posterior:
    """Means moved by so many standard deviations along each column of the Cholesky factor."""
    return replace(p, loc=p.loc + by * p.scale_tril.sum(-1))


GUIDES: dict[str, Guiding] = {
    "the exact posterior": lambda p: p,
    "the best diagonal one": independent,
    "twice as wide": widened,
    "shifted by one sd": shifted,
}


class _Along:
    """Log-likelihood and bounds of one data set along one curve."""

    def __init__(self, model: Model, data: Data, curve: Curve, span: tuple[float, float], points: int) -> None:
        self.model, self.curve, self.span = model, curve, span
        self.places = np.linspace(*span, points)
        theta = curve(float(self.places[0]))
        raw = next(theta.parameters())
        data = data.to(raw.dtype, raw.device)
        self.batch, self.entries = data.batch(), data.x.numel()
        exact = exact_forms(model, theta, self.batch)
        if exact is None:
            raise ValueError(f"{model.name} has no exact posterior, so no bound touches its log-likelihood: look at fit.elbo(data) instead")
        self.exact: Exact = exact
        q = self.posterior(span[0])
        if q.component is None and q.latent is None:
            raise ValueError(f"{model.name} has no latents, so its log-likelihood is its own bound: choose a model with latents")

    def posterior(self, t: float) -> Posterior:
        if not self.span[0] <= t <= self.span[1]:
            raise ValueError(f"t = {t:g} lies outside the span from {self.span[0]:g} to {self.span[1]:g}: start within it")
        with torch.no_grad():
            return self.exact.posterior(self.curve(t), self.batch)

    def bound(self, q: Posterior, t: float) -> float:
        with torch.no_grad(), threads_for(self.entries):
            return float(bound(partial(self.model.model, self.curve(t)), q, self.batch).mean())

    def log_likelihood(self, t: float) -> float:
        with torch.no_grad(), threads_for(self.entries):
            return float(self.exact.log_marginal(self.curve(t), self.batch).mean())

    def peak(self, q: Posterior) -> float:
        """Where in the span the bound is highest."""
        coarse = np.linspace(*self.span, COARSE)
        best = int(np.argmax([self.bound(q, float(t)) for t in coarse]))
        low, high = coarse[max(0, best - 1)], coarse[min(len(coarse) - 1, best + 1)]
        found = minimize_scalar(
            lambda t: -self.bound(q, float(t)), bounds=(low, high), method="bounded", options={"xatol": 1e-9 * (high - low)}
        )
        return float(found.x)

    def all(self, made: Iterator[tuple[str, float, Posterior]]) -> Bounds:
        columns = {"log_likelihood": [self.log_likelihood(float(t)) for t in self.places]}
        marks = {}
        for name, t, q in made:
            columns[name] = [self.bound(q, float(place)) for place in self.places]
            peak = self.peak(q)
            height = self.bound(q, peak)
            marks[name] = {"t": t, "bound": self.bound(q, t), "peak": peak, "height": height, "log_likelihood": self.log_likelihood(peak)}
        return Bounds(pd.DataFrame(columns, index=pd.Index(self.places, name="t")), pd.DataFrame(marks).T)
