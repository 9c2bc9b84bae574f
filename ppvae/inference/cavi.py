"""Coordinate ascent variational inference (Bishop 2006, section 10.1; Blei, Kucukelbir & McAuliffe 2017).

The posterior of what all rows share is taken as a product of factors, q(theta) = prod_j q_j(theta_j), and so is that of the rows given
them. Each factor in turn is set to the best one given the others, exp E_{-j} log p(x, latents, theta), which for conjugate priors is a
formula (`ppvae.factors`). The bound never falls. With point masses for factors and flat priors, this is EM.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ppvae.data import Batch, Data
from ppvae.factors import Factors, Moments
from ppvae.inference.method import Method, Outcome, Task
from ppvae.model import Model
from ppvae.shared import places


@dataclass(frozen=True)
class CAVI(Method):
    """Coordinate ascent on the mean-field bound.

    max_sweeps: over all factors, at most.  tolerance: nats per row; CAVI stops when a sweep gains less.
    point: put each factor's mass on its mode: the maximum a posteriori, and EM's fixed point where the priors are flat.
    It begins at the model's `shared_start`, and at the prior's median of what that leaves out. The history's elbo, from before the first
    sweep to after the last, is the bound that `fit.elbo` gives; of points, which have none, it has the log-likelihood.
    """

    max_sweeps: int = 2000
    tolerance: float = 1e-10
    point: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(max_sweeps=1, tolerance=0)

    def refusal(self, model: Model, data: Data) -> str | None:
        if model.closed_forms is None or not model.closed_forms.has("mean_field"):
            return f"{model.name} gives no mean-field bound over parameters with priors, so CAVI does not apply"
        return None

    def run(self, task: Task) -> Outcome:
        began = time.perf_counter()
        field = MeanField(task, self.point)
        history: list[dict[str, float]] = []
        status, converged = f"stopped at max_sweeps={self.max_sweeps} before the tolerance was met: raise max_sweeps", False
        before = -torch.inf
        for sweep, (rows, bound) in enumerate(field.climb()):
            said = {"log_likelihood": rows} if self.point else {"elbo": bound}  # points have no bound
            history.append({"step": sweep, "seconds": time.perf_counter() - began, **said})
            task.progress(sweep, self.max_sweeps, f"{bound:.6f} nats per row")
            if not bound >= before - max(1e-10, 16 * torch.finfo(task.data.dtype).eps) * (1 + abs(bound)):
                coarse = "" if task.data.dtype == torch.float64 else "use dtype='float64', or "
                status = (
                    f"the bound went from {before} to {bound} at sweep {sweep}: {coarse}the model's mean_field does not belong to its story"
                )
                break
            if bound - before < self.tolerance:
                status, converged = f"converged: the last sweep gained less than {self.tolerance:g} nats per row", True
            if converged or sweep == self.max_sweeps:
                break
            before = bound
        return Outcome(field.guide, status, converged, sweep, "closed forms", history)


class MeanField:
    """The factors of one fit, and the sweeps over them."""

    def __init__(self, task: Task, point: bool) -> None:
        assert task.model.closed_forms is not None
        self.task, self.exact = task, task.model.closed_forms
        self.chunks: list[Batch] = list(task.data.chunks(self.exact.chunk_rows(task.data)))
        self.guide = Factors(task.model, task.theta, task.data, point)
        self.factors = self.guide.factors
        # The start is a point; every factor's first update is made from it.
        start = places(task.model, task.theta, task.data)
        moments = {name: part.moments_at(start[name].value) for name, part in self.factors.items()}
        gradients = {name: self.gradient(moments, name)[1] for name in self.factors}
        for name, part in self.factors.items():
            part.update(gradients[name], moments[name])

    def climb(self) -> Iterator[tuple[float, float]]:
        """The rows' part of the bound, and all of it, nats per row, at the factors as they are; then each is updated in turn, and again."""
        n_rows = self.task.data.n_rows
        while True:
            for place, (name, part) in enumerate(self.factors.items()):
                moments = self.guide.moments()
                value, gradient = self.gradient(moments, name)
                if place == 0:
                    yield value / n_rows, (value - self.guide.divergence()) / n_rows
                part.update(gradient, moments[name])

    def gradient(self, moments: dict[str, Moments], name: str) -> tuple[float, Moments]:
        """The rows' part of the bound, total nats, and its gradient in the moments of one factor."""
        own = {key: value.detach().requires_grad_() for key, value in moments[name].items()}
        total, sums = 0.0, {key: torch.zeros_like(value) for key, value in own.items()}
        for batch in self.chunks:
            with torch.enable_grad():
                value = self.exact.mean_field(self.task.theta, {**moments, name: own}, batch).sum()
            for key, part in zip(own, torch.autograd.grad(value, list(own.values()), materialize_grads=True), strict=True):
                sums[key] += part
            total += float(value.detach())
        return total, sums
