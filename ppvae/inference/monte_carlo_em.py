"""Monte Carlo EM: the E-step by draws, the M-step by gradients, for any story (Wei & Tanner 1990).

    E-step:  z_ns ~ p(z | x_n, theta), with weights v_ns         M-step:  theta <- argmax sum_n sum_s v_ns log p(x_n, z_ns | theta)

Draws come from the exact posterior where it is known or follows from the story, and weigh the same; else from a guide that is trained anew
at each theta, and weigh p(x, z) / q(z | x), normalised. The M-step has no model-specific code: L-BFGS on the story's own log joint.

A step may be all noise. So its gain in the expected log joint, which no more than bounds the gain in log-likelihood, is measured on draws
of its own, where nothing was fitted, with its standard error; when it is within two of them of nothing, there are too few draws, and
there are more at the next step (Booth & Hobert 1999; Caffo, Jank & Jones 2005).
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn

from ppvae.data import Data
from ppvae.exact import ExactGuide
from ppvae.inference.draws import Drawn, exact_posterior, nothing_free, posterior_draws, sketched, trained_guide, undrawable
from ppvae.inference.lbfgs import ascend
from ppvae.inference.method import Method, Outcome, Task, floor_warning
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.derive import LOST, Derived, exact_forms, holds
from ppvae.program.joint import log_joint

M_STEPS = 20  # of L-BFGS at most: an M-step that only rises is enough (generalised EM)
CERTAIN = 2  # standard errors
IN_A_ROW = 3  # steps that gain nothing before it stops (Booth & Hobert 1999): a few draws may be alike by chance


@dataclass(frozen=True)
class MonteCarloEM(Method):
    """EM with sampled latents.

    steps: EM steps at most.  draws: of each row's latents in the first step.  growth: how many times as many there are after a step whose
    gain was lost in noise, up to `max_draws`.  tolerance: nats per row; it stops after three steps that surely gained less.
    guide_steps: gradient steps of the guide at each theta, where there is no exact posterior.

    >>> import ppvae
    >>> faithful = ppvae.load_data("faithful")
    >>> fit = ppvae.fit(ppvae.models.GMM(2), faithful, MonteCarloEM())
    >>> fit.converged, round(float(fit.log_likelihood(faithful).mean()), 3)
    (True, -4.155)
    """

    guided: ClassVar[bool] = True

    steps: int = 100
    draws: int = 10
    growth: float = 1.5
    max_draws: int = 1000
    tolerance: float = 1e-4
    guide_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1, guide_steps=1, draws=2, growth=1, max_draws=self.draws)
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0 (nats per row), not {self.tolerance}")

    def refusal(self, model: Model, data: Data) -> str | None:
        return undrawable(model, data) or nothing_free(model, data) or self.summed(model, data)

    def summed(self, model: Model, data: Data) -> str | None:
        """A sentence for a story whose finite latents are summed out, which leaves nothing to draw; None for another."""
        theta, batch = sketched(model, data)
        exact = exact_forms(model, theta, batch)
        if not isinstance(exact, Derived) or not exact.several:
            return None
        return f"{model.name} sums out {few(exact.several)}, which leaves nothing to draw"

    def rows_at_once(self, data: Data) -> int:
        return data.n_rows * self.draws

    def run(self, task: Task) -> Outcome:
        climb = NoisyClimb(task, self)
        with pyro.validation_enabled(False):
            status, converged = climb.run()
        if climb.exact is not None and not holds(climb.exact, task.theta, task.data.batch()):
            return Outcome(
                trained_guide(task), f"stopped: {LOST}, so its draws are of no posterior: use SVI", False, climb.step, climb.engine
            )
        warning = floor_warning(task.model, task.theta)
        said = f"{status}; {warning}" if warning else status
        return Outcome(climb.guide, said, converged and warning is None, climb.step, climb.engine, climb.history)


class NoisyClimb:
    """EM steps by draws, counted and logged."""

    def __init__(self, task: Task, method: MonteCarloEM) -> None:
        self.task, self.method, self.draws, self.step = task, method, method.draws, 0
        self.began = time.perf_counter()
        self.history: list[dict[str, float]] = []
        self.exact = exact_posterior(task, exact_forms(task.model, task.theta, task.data.batch(), moving=True))
        self.guide: nn.Module = trained_guide(task) if self.exact is None else ExactGuide(self.exact, task.theta)
        self.engine = "draws from the exact posterior" if self.exact else "weighted draws from a trained guide"

    def run(self) -> tuple[str, bool]:
        """Climb; returns a sentence, and whether the end is settled."""
        method, theta, said, quiet, lost = self.method, self.task.theta, "", 0, False
        while True:
            if self.exact is not None and not holds(self.exact, theta, self.task.data.batch()):
                return f"stopped: {LOST}", False
            found = self.e_step()
            self.log(found)
            if quiet == IN_A_ROW or self.step == method.steps:
                break
            before = copy.deepcopy(theta)
            fresh = self.e_step(trained=True)
            if not self.m_step(found):
                theta.load_state_dict(before.state_dict())
                return "stopped: the expected log joint was no longer finite (theta is as before); raise draws, or try another seed", False
            gain, error = self.gain(before, fresh)
            self.step += 1
            said = f"the last step gained {gain:.1g} (s.e. {error:.1g}) nats per row at {self.draws} draws a row"
            quiet = quiet + 1 if abs(gain) + CERTAIN * error < method.tolerance else 0
            lost = gain < CERTAIN * error
            if lost:
                self.draws = min(math.ceil(self.draws * method.growth), method.max_draws)
        if quiet == IN_A_ROW:
            return f"converged: {said}", True
        remedy = "lost in noise: raise max_draws" if lost else "and may gain more: raise steps"
        return f"stopped at steps={method.steps}: {said}, {remedy}", False

    def e_step(self, trained: bool = False) -> list[Drawn]:
        """Draws at the present theta. `trained`: the guide has seen this theta already."""
        if self.exact is None and not trained and self.step:
            self.guide = trained_guide(replace(self.task, guide=self.guide), self.method.guide_steps, compile=False)
        return posterior_draws(self.task, self.exact or self.guide, self.draws)

    def m_step(self, found: list[Drawn]) -> bool:
        """Climb the expected log joint at these draws; False where it is not finite."""
        free, before = [p for p in self.task.theta.parameters() if p.requires_grad], -math.inf

        def terms() -> Iterator[Tensor]:
            return ((part.weights * self.log_joint(part, self.task.theta)).sum() / self.task.data.n_rows for part in found)

        for taken, value in enumerate(ascend(terms, free)):
            if not math.isfinite(value):
                return False
            if taken == M_STEPS or value - before < 0.01 * self.method.tolerance:
                break
            before = value
        return True

    def log_joint(self, part: Drawn, theta: Parameters) -> Tensor:
        """(S, B): log p(x_n, z_ns | theta)."""
        return log_joint(partial(self.task.model.model, theta), part.batch, part.latents, len(part.weights))

    @torch.no_grad()
    def gain(self, before: Parameters, fresh: list[Drawn]) -> tuple[float, float]:
        """What the step gained in the expected log joint, nats per row, and its standard error, at draws that it was not fitted to."""
        gain, variance = 0.0, 0.0
        for part in fresh:
            change = self.log_joint(part, self.task.theta) - self.log_joint(part, before)
            mean = (part.weights * change).sum(0)
            gain += float(mean.sum())
            spread = (part.weights * (change - mean)).square().sum(0)
            variance += float((spread / (1 - part.weights.square().sum(0)).clamp(min=1e-6)).sum())  # at equal weights, S / (S - 1)
        return gain / self.task.data.n_rows, math.sqrt(variance) / self.task.data.n_rows

    def log(self, found: list[Drawn]) -> None:
        value = float(torch.cat([part.evidence for part in found]).mean())
        point = {"step": self.step, "seconds": time.perf_counter() - self.began, "elbo": value}
        self.history.append(point | ({} if self.exact is None else {"log_likelihood": value}))
        self.task.progress(self.step, self.method.steps, f"{value:.4f} nats per row, {self.draws} draws a row")
