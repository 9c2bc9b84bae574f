"""Exact EM (Dempster, Laird & Rubin 1977): the E-step through additive statistics, the M-step in closed form.

Optional acceleration works on the unconstrained parameters, where every extrapolation is feasible, and is guarded: a step that lowers the
log-likelihood is dropped in favour of plain EM's.
"""

import math
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ppvae.data import Batch, Data
from ppvae.exact import Exact, ExactGuide, Statistics
from ppvae.inference.method import Method, Outcome, Task, floor_warning
from ppvae.messages import few, unknown
from ppvae.model import Model
from ppvae.parameters import Parameters

ACCELERATIONS = ("squarem", "anderson")


@dataclass(frozen=True)
class EM(Method):
    """Exact EM.

    max_steps: an E-step and an M-step each.  tolerance: nats per row; EM stops when a step gains less.
    acceleration: None, "squarem" (Varadhan & Roland 2008, scheme S3) or "anderson" (Walker & Ni 2011, depth 5), both guarded.
    """

    max_steps: int = 5000
    tolerance: float = 1e-10
    acceleration: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.acceleration is not None and self.acceleration not in ACCELERATIONS:
            raise unknown("acceleration", str(self.acceleration), ACCELERATIONS)
        self.at_least(max_steps=1, tolerance=0)

    def refusal(self, model: Model, data: Data) -> str | None:
        if model.closed_forms is None or not model.closed_forms.has("statistics", "maximize"):
            return f"{model.name} gives no closed-form E- and M-step, so exact EM does not apply"
        return None

    def run(self, task: Task) -> Outcome:
        climb = Climb(task, self)
        try:
            {None: plain, "squarem": squarem, "anderson": anderson}[self.acceleration](climb)
        except Stop as stop:
            climb.status, climb.remedy, climb.converged = str(stop), stop.remedy, stop.converged
        warning = floor_warning(task.model, task.theta)
        status = f"{climb.status}; {warning}" if warning else climb.status + climb.remedy
        return Outcome(
            ExactGuide(climb.exact, task.theta), status, climb.converged and warning is None, climb.steps, "closed forms", climb.history
        )


class Stop(Exception):
    """How the climb ends: not an error. The remedy is for parameters that stand on no floor: on one more steps would not help."""

    def __init__(self, status: str, converged: bool, remedy: str = "") -> None:
        super().__init__(status)
        self.converged, self.remedy = converged, remedy


class Climb:
    """The EM map on the unconstrained parameter vector, counted, timed, logged and watched for ascent."""

    def __init__(self, task: Task, method: EM) -> None:
        self.task, self.method = task, method
        assert task.model.closed_forms is not None
        self.exact: Exact = task.model.closed_forms
        self.batches: list[Batch] = self.exact.batches(task.data)
        self.free = [p for p in task.theta.parameters() if p.requires_grad]
        self.began, self.e_steps = time.perf_counter(), 0
        self.history: list[dict[str, float]] = []
        self.best = -math.inf
        self.seen: Tensor | None = None  # where it is the best
        self.rounding = max(1e-10, 16 * torch.finfo(task.data.dtype).eps)  # of a log-likelihood, relative
        self.status, self.remedy, self.converged = "", "", False
        dtype = task.data.dtype
        self.coarse = None if dtype == torch.float64 else str(dtype).removeprefix("torch.")
        self.reached = self.here

    @property
    def steps(self) -> int:
        """An E-step and an M-step each: the last E-step only looks where they led."""
        return self.e_steps - 1

    @property
    def spent(self) -> bool:
        """Whether all steps are taken."""
        return self.steps == self.method.max_steps

    @property
    def here(self) -> Tensor:
        return parameters_to_vector(self.free).detach().clone()

    def move(self, vector: Tensor) -> None:
        with torch.no_grad():  # a copy: the parameters would become views of `vector`, and the M-step writes into them
            vector_to_parameters(vector.clone(), self.free)

    @torch.no_grad()
    def e_step(self, vector: Tensor) -> tuple[float, Statistics]:
        """Log-likelihood per row at `vector`, and the statistics there."""
        self.move(vector)
        statistics = sum_statistics(self.exact, self.task.theta, self.batches)
        self.e_steps += 1
        return float(statistics["log_likelihood"]) / self.task.data.n_rows, statistics

    @torch.no_grad()
    def m_step(self, statistics: Statistics) -> Tensor:
        """The maximiser, from statistics made at the present parameters."""
        try:
            values = maximized(self.exact, self.task.theta, statistics)
        except torch.linalg.LinAlgError as error:
            raise self._singular() from error
        self.task.theta.assign(values)
        self.reached = self.here
        return self.reached

    def __call__(self, vector: Tensor) -> Tensor:
        """The EM step from `vector`, itself the image of a point seen before: ascent is certain, and too small a gain ends the climb.

        After the last step one more E-step says where it led, and so whether it has converged.
        """
        try:
            value, statistics = self.e_step(vector)
        except torch.linalg.LinAlgError as error:
            raise self._singular() from error
        if not value >= self.best - self.rounding * (1 + abs(value)):  # or NaN
            coarse = f", or {self.coarse} is too coarse (use dtype='float64')" if self.coarse else ""
            if self.coarse and self.seen is not None:
                self.move(self.seen)
            raise Stop(
                f"the log-likelihood went from {self.best} to {value} nats per row at step {self.steps}: "
                f"the model's closed forms do not belong to its story (see ppvae.laws.check){coarse}",
                False,
            )
        gain, self.best, self.seen = value - self.best, value, vector
        self._log(value)
        if gain < self.method.tolerance:
            seen = torch.finfo(self.task.data.dtype).eps * abs(value)
            if self.coarse and self.method.tolerance < seen:
                raise Stop(f"stopped where {self.coarse} sees no more gain ({seen:.0e} nats per row): use dtype='float64' to go on", False)
            raise Stop(f"converged: the last step gained less than {self.method.tolerance:g} nats per row", True)
        if self.spent:
            remedy = ": raise max_steps" if self.method.acceleration else ": raise max_steps, or accelerate"
            raise Stop(f"stopped at max_steps={self.method.max_steps} before the tolerance was met", False, remedy)
        return self.m_step(statistics)

    def try_at(self, vector: Tensor) -> Tensor | None:
        """The EM step from an extrapolated `vector`; None where that is no higher than the best so far."""
        if self.e_steps == self.method.max_steps:  # what is left is to look where the last M-step led
            return self(self.reached)
        try:
            value, statistics = self.e_step(vector)
        except torch.linalg.LinAlgError:
            return None
        if not value > self.best:
            return None
        self.best, self.seen = value, vector
        self._log(value)
        return self.m_step(statistics)

    def _singular(self) -> Exception:
        """The end of a climb that meets a matrix without a Cholesky factor, back where the log-likelihood is known."""
        remedy = "use dtype='float64'" if self.coarse else "leave out columns that others determine, or try another seed"
        if self.seen is None:
            return ValueError(
                f"{self.task.model.name}: a matrix of its start is singular in {str(self.task.data.dtype).removeprefix('torch.')}: {remedy}"
            )
        self.move(self.seen)
        return Stop(f"stopped at step {self.steps}, where a matrix was singular (the parameters are those before it): {remedy}", False)

    def _log(self, value: float) -> None:
        seconds = time.perf_counter() - self.began
        self.history.append({"step": self.steps, "seconds": seconds, "elbo": value, "log_likelihood": value})
        self.task.progress(self.steps, self.method.max_steps, f"{value:.6f} nats per row")


def sum_statistics(exact: Exact, theta: Parameters, batches: list[Batch]) -> Statistics:
    """Statistics of all batches: they are additive over rows."""
    total: Statistics = {}
    for batch in batches:
        for name, value in exact.statistics(theta, batch).items():
            total[name] = total[name] + value if name in total else value
    return total


def maximized(exact: Exact, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
    """The M-step's values. Raises ValueError where it would move what is frozen."""
    values = exact.maximize(theta, statistics)
    frozen = set(values) - set(theta.trainable)
    if frozen:
        raise ValueError(f"{exact.model.name}: EM's M-step moves {few(sorted(frozen))}, which is frozen: use SVI")
    return values


def plain(em: Climb) -> None:
    """One EM step after another."""
    vector = em.here
    while True:
        vector = em(vector)


def squarem(em: Climb) -> None:
    """Two EM steps give a direction and its curvature; go along it as far as they suggest (Varadhan & Roland 2008, S3).

    Where that was too far, the next jump is at most an eighth as long.
    """
    start, limit = em.here, math.inf
    while True:
        first = em(start)
        second = em(first)
        step, bend = first - start, second - 2 * first + start
        length = min(float(step.norm() / bend.norm().clamp(min=1e-300)), limit)
        # At length 1 the extrapolation is plain EM's second step.
        jump = second if length <= 1 else em.try_at(start + 2 * length * step + length**2 * bend)
        start, limit = (second, length / 8) if jump is None else (jump, math.inf)


def anderson(em: Climb, depth: int = 5) -> None:
    """Combine the last steps so that their residuals nearly cancel (Walker & Ni 2011); a plain step where that does not go up."""
    at = em.here
    image = em(at)
    points, residuals = [at], [image - at]
    while True:
        before, proposal = em.best, extrapolated(points, residuals)
        found = None if proposal is None else em.try_at(proposal)
        if found is None or em.best - before < em.method.tolerance:
            # Start anew: a plain step, whose gain also says whether this is the end.
            at = image if found is None else found
            image = em(at)
            points, residuals = [at], [image - at]
        else:
            assert proposal is not None
            at, image = proposal, found
            points, residuals = [*points, at][-depth - 1 :], [*residuals, image - at][-depth - 1 :]


def extrapolated(points: list[Tensor], residuals: list[Tensor]) -> Tensor | None:
    """The combination of points whose residuals, extended linearly, are least; a plain EM step where there is only one point."""
    image = points[-1] + residuals[-1]
    if len(points) == 1:
        return image
    d_residual = torch.stack([b - a for a, b in pairwise(residuals)], -1)
    d_point = torch.stack([b - a for a, b in pairwise(points)], -1)
    weights = torch.linalg.lstsq(d_residual, residuals[-1].unsqueeze(-1), driver="gelsd").solution
    proposal = image - ((d_point + d_residual) @ weights).squeeze(-1)
    return proposal if bool(torch.isfinite(proposal).all()) else None
