"""Gradient ascent on the marginal likelihood itself, exact or by naive Monte Carlo.

Where log p(x | theta) is known, or follows from the story, nothing else is needed: no bound, no guide, no E-step. Where it is an integral
without a formula, the naive way is to average the likelihood over draws from the prior,

    log p(x) = log E_p(z) p(x | z)  ~  log (1/S) sum_s p(x | z_s),     z_s ~ p(z),

an importance sample whose proposal knows nothing of x. Few draws land where p(x | z) is large, so the average has a huge variance, and its
logarithm is too low by about half of its relative variance (the delta method). Maximising it moves theta to where the posterior is near
the prior, so that draws from the prior do hit: that serves the estimate, not the likelihood. The remedy is a guide that looks at x.
"""

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn

from ppvae.data import Batch, Data
from ppvae.exact import Exact, ExactGuide
from ppvae.inference.draws import Prior, nothing_free, sketched, trained_guide, undrawable
from ppvae.inference.lbfgs import ascend
from ppvae.inference.method import Method, Outcome, Task, floor_warning, seeded
from ppvae.inference.objectives import importance_rows
from ppvae.inference.svi import SVI, Training
from ppvae.messages import unknown
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.derive import LOST, Derived, exact_forms, holds
from ppvae.program.joint import is_finite, latent_sites
from ppvae.scores import by_draws, exact_log_marginal, sampled_evidence

ESTIMATORS = ("auto", "exact", "naive")
REPEATS = 10  # of the naive estimate, for its standard error


@dataclass(frozen=True)
class DirectML(Method):
    """Maximum likelihood by gradients.

    estimator: "exact", by L-BFGS on all rows; "naive", the log of a mean over draws from the prior, by Adam; "auto": exact where it can be.
    steps: gradient steps at most.  tolerance: nats per row; the exact one stops when a step gains less.
    draws, batch_size, learning_rate: of the naive one: draws from the prior for each row, and the rest as in SVI.

    >>> import ppvae
    >>> iris = ppvae.load_data("iris")
    >>> fit = ppvae.fit(ppvae.models.PPCA(2), iris, DirectML())
    >>> round(float(fit.log_likelihood(iris).mean()), 6)
    -2.699752
    """

    guided: ClassVar[bool] = True

    estimator: str = "auto"
    steps: int = 1000
    tolerance: float = 1e-10
    draws: int = 100
    batch_size: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS)
        self.at_least(steps=1, draws=1, tolerance=0)
        self.adam()  # which refuses what is wrong with the rest

    def adam(self) -> SVI:
        """The naive estimate as an objective of SVI: importance sampling with the prior as guide."""
        return SVI(steps=self.steps, objective="iwae", particles=self.draws, batch_size=self.batch_size, learning_rate=self.learning_rate)

    def refusal(self, model: Model, data: Data) -> str | None:
        theta, batch = sketched(model, data)
        exact = exact_forms(model, theta, data.batch(), moving=True)
        if exact is not None and self.estimator != "naive":
            return nothing_free(model, data)
        latents = latent_sites(partial(model.model, theta), batch).values()
        summed = all(is_finite(site) for site in latents)
        if exact is not None and summed:
            return f"{model.name} has no latents, or its story sums them out, which leaves nothing to draw: use estimator='exact'"
        reason = undrawable(model, data) or nothing_free(model, data)
        if reason is None and self.estimator == "exact":
            return (
                f"{model.name}: its marginal likelihood has no closed form that is given or follows from its story: use SVI, or "
                "estimator='naive' to see why"
            )
        return reason or self.adam().refusal(model, data)

    def run(self, task: Task) -> Outcome:
        exact = exact_forms(task.model, task.theta, task.data.batch(), moving=True)
        if exact is None or self.estimator == "naive":
            return self.run_naive(task, exact)
        return self.run_exact(task, exact)

    @pyro.validation_enabled(False)
    def run_exact(self, task: Task, exact: Exact) -> Outcome:
        began, data, theta = time.perf_counter(), task.data, task.theta
        chunks, free = list(data.chunks(exact.chunk_rows(data))), [p for p in theta.parameters() if p.requires_grad]
        history: list[dict[str, float]] = []
        status, converged = f"stopped at steps={self.steps} before the tolerance was met: raise steps", False
        good, before = copy.deepcopy(theta.state_dict()), -math.inf
        try:
            for step, value in enumerate(ascend(lambda: (exact.log_marginal(theta, b).sum() / data.n_rows for b in chunks), free)):
                if not math.isfinite(value):
                    raise torch.linalg.LinAlgError
                history.append({"step": step, "seconds": time.perf_counter() - began, "elbo": value, "log_likelihood": value})
                task.progress(step, self.steps, f"{value:.6f} nats per row")
                if value - before < self.tolerance:
                    status, converged = f"converged: the last step gained less than {self.tolerance:g} nats per row", True
                if converged or step == self.steps:
                    break
                good, before = copy.deepcopy(theta.state_dict()), value
        except torch.linalg.LinAlgError:
            beyond = copy.deepcopy(theta)
            theta.load_state_dict(good)
            if bent(exact, beyond, data):
                why = "beyond the last point, whose parameters these are, the story has no closed forms: use SVI"
            else:
                why = "the log-likelihood was no longer finite (the parameters are those of the last point); try another seed, or EM"
            status = f"stopped: {why}"
        warning, steps = floor_warning(task.model, theta), max(0, len(history) - 1)
        if not holds(exact, theta, data.batch()):
            said = f"stopped: {LOST}, so what rose was no log-likelihood: use SVI"
            return Outcome(trained_guide(task), said, False, steps, "L-BFGS", [])
        said = f"{status}; {warning}" if warning else status
        return Outcome(ExactGuide(exact, theta), said, converged and warning is None, steps, "L-BFGS", history)

    def run_naive(self, task: Task, exact: Exact | None) -> Outcome:
        prior = Prior(task)
        training = Training(self.adam(), task, task.data, None, prior)
        training.loop()
        guide = trained_guide(task) if exact is None else ExactGuide(exact, task.theta)
        warning = floor_warning(task.model, task.theta)
        status = "; ".join(said for said in (training.status, self.verdict(task, exact, prior, guide), warning) if said)
        return Outcome(guide, status, training.converged and warning is None, training.done, training.step.engine, training.history)

    def verdict(self, task: Task, exact: Exact | None, prior: Prior, guide: nn.Module) -> str:
        """What the naive estimate says at the end, and what is true."""
        program = partial(task.model.model, task.theta)

        def repeats(batch: Batch, draws: int) -> Tensor:
            return torch.stack([importance_rows(program, prior, batch, draws) for _ in range(REPEATS)])

        with seeded(task.seed, task.data.device):
            means = by_draws(repeats, task.data, self.draws, shared=False).mean(1)
            if exact is None:
                how, truth = "importance sampling from a trained guide", float(sampled_evidence(program, guide, task.data).mean())
            else:
                how, truth = "the exact log-likelihood", float(exact_log_marginal(exact, task.theta, task.data).mean())
        error = float(means.std()) / math.sqrt(REPEATS)
        said = f"the naive estimate with draws={self.draws} from the prior says {float(means.mean()):.4f} (s.e. {error:.1g}) nats per row"
        return f"{said}, {how} {truth:.4f}"


def bent(exact: Exact, theta: Parameters, data: Data) -> bool:
    """Whether a story has scores at theta, but no longer the closed forms that were read off it."""
    if not isinstance(exact, Derived) or not exact.size or not all(bool(p.isfinite().all()) for p in theta.parameters()):
        return False
    try:
        return not holds(exact, theta, data.batch())
    except torch.linalg.LinAlgError:  # the story itself has none
        return False
