"""Coordinate ascent variational inference (Bishop 2006, section 10.1; Blei, Kucukelbir & McAuliffe 2017).

The posterior of what all rows share is taken as a product of factors, q(theta) = prod_j q_j(theta_j), and so is that of the rows given
them. Each factor in turn is set to the best one given the others, exp E_{-j} log p(x, latents, theta), which for conjugate priors is a
formula (`ppvae.factors`). The bound never falls. With point masses for factors and flat priors, this is EM.
"""

import time
from dataclasses import dataclass

import torch

from ppvae.data import Batch, Data
from ppvae.factors import Factors, Moments
from ppvae.inference.method import Method, Outcome, Task
from ppvae.model import Model


@dataclass(frozen=True)
class CAVI(Method):
    """Coordinate ascent on the mean-field bound.

    max_sweeps: over all factors, at most.  tolerance: nats per row; CAVI stops when a sweep gains less.
    point: put each factor's mass on its mode: the maximum a posteriori, and EM's fixed point where the priors are flat.
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
        for sweep in range(1, self.max_sweeps + 1):
            bound = field.sweep()
            history.append({"step": sweep, "seconds": time.perf_counter() - began, "elbo": bound})
            task.progress(sweep, self.max_sweeps, f"{bound:.6f} nats per row")
            if not bound >= before - 1e-10 * (1 + abs(bound)):
                status = f"the bound went from {before} to {bound} at sweep {sweep}: the model's mean_field does not belong to its story"
                break
            if bound - before < self.tolerance:
                status, converged = f"converged: the last sweep gained less than {self.tolerance:g} nats per row", True
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
        start = task.model.shared_start(task.theta, task.data, torch.Generator().manual_seed(task.seed))
        moments = {name: part.moments_at(start[name].to(task.data.x)) for name, part in self.factors.items()}
        gradients = {name: self.gradient(moments, name)[1] for name in self.factors}
        for name, part in self.factors.items():
            part.update(gradients[name], moments[name])

    def sweep(self) -> float:
        """Update each factor in turn; the bound, nats per row, before the last update."""
        bound = -torch.inf
        for name, part in self.factors.items():
            moments = {other: f.moments() for other, f in self.factors.items()}
            value, gradient = self.gradient(moments, name)
            bound = value - sum(float(f.divergence()) for f in self.factors.values())
            part.update(gradient, moments[name])
        return bound / self.task.data.n_rows

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
