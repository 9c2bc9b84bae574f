"""Maximum likelihood in one step, where the model knows it."""

import time
from dataclasses import dataclass

import torch

from ppvae.data import Data
from ppvae.exact import Exact, ExactGuide
from ppvae.inference.em import sum_statistics
from ppvae.inference.method import Method, Outcome, Task, floor_warning
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.scores import exact_log_marginal


@dataclass(frozen=True)
class ClosedForm(Method):
    """The maximum likelihood by formula; needs complete data in most models."""

    def refusal(self, model: Model, data: Data) -> str | None:
        if model.closed_forms is None or not model.closed_forms.has("solve"):
            return f"{model.name} has no closed-form maximum likelihood"
        return model.closed_forms.cannot_solve(data)

    def entries(self, data: Data, theta: Parameters) -> int:
        """Those of a covariance: the rows enter through their products, on threads of their own."""
        return data.n_features**2

    def run(self, task: Task) -> Outcome:
        began = time.perf_counter()
        exact = task.model.closed_forms
        assert exact is not None
        task.theta.assign(exact.solve(task.data))
        seconds = time.perf_counter() - began
        value = self._log_likelihood(exact, task)
        warning = floor_warning(task.model, task.theta)
        return Outcome(
            ExactGuide(exact, task.theta),
            "exact: the maximum likelihood by formula" + (f"; {warning}" if warning else ""),
            warning is None,
            1,
            "closed forms",
            [{"step": 1, "seconds": seconds, "elbo": value, "log_likelihood": value}],
        )

    @torch.no_grad()
    def _log_likelihood(self, exact: Exact, task: Task) -> float:
        """Nats per row; by the E-step where there is one, which need not look at each row."""
        if exact.has("statistics"):
            return float(sum_statistics(exact, task.theta, exact.batches(task.data))["log_likelihood"]) / task.data.n_rows
        return float(exact_log_marginal(exact, task.theta, task.data).mean())
