"""Maximum likelihood in one step, where the model knows it."""

import time
from dataclasses import dataclass

from ppvae.data import Data
from ppvae.exact import ExactGuide
from ppvae.inference.method import Method, Outcome, Task, floor_warning
from ppvae.model import Model
from ppvae.scores import exact_log_marginal


@dataclass(frozen=True)
class ClosedForm(Method):
    """The maximum likelihood by formula; needs complete data in most models."""

    def refusal(self, model: Model, data: Data) -> str | None:
        if model.closed_forms is None or not model.closed_forms.has("solve"):
            return f"{model.name} has no closed-form maximum likelihood"
        return model.closed_forms.cannot_solve(data)

    def run(self, task: Task) -> Outcome:
        began = time.perf_counter()
        exact = task.model.closed_forms
        assert exact is not None
        task.theta.assign(exact.solve(task.data))
        seconds = time.perf_counter() - began
        value = float(exact_log_marginal(exact, task.theta, task.data).mean())
        warning = floor_warning(task.theta)
        return Outcome(
            ExactGuide(exact, task.theta),
            "exact: the maximum likelihood by formula" + (f"; {warning}" if warning else ""),
            warning is None,
            1,
            "closed forms",
            [{"step": 1, "seconds": seconds, "elbo": value, "log_likelihood": value}],
        )
