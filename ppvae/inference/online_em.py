"""Online EM: an M-step after every batch (Cappé & Moulines 2009; Liang & Klein 2009, their stepwise EM).

EM's statistics are sums over rows. A running average of those of batches stands in for the sum over all of them,

    s <- (1 - g_t) s + g_t (N / B) S(batch; theta),     theta <- M(s),     g_t = (t + 2)^-a,   1/2 < a <= 1,

so theta moves many times in one pass over the data. Since sum g_t diverges and sum g_t^2 does not, theta goes to where the gradient of the
log-likelihood vanishes. It pays where one pass is long: on a small table, or near the top, EM's whole steps are the quicker ones. The terms
of s were made at different theta, whose means their moments are about: when theta moves, s is taken to the new means (`Exact.recentred`).
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.data import Data
from ppvae.exact import Exact, ExactGuide, Statistics
from ppvae.inference.em import maximized, sum_statistics
from ppvae.inference.method import Method, Outcome, Task, floor_warning
from ppvae.model import Model
from ppvae.scores import exact_log_marginal

DELAY = 2  # steps: Liang & Klein's
ENOUGH = 10  # observed entries for each free parameter, before the first M-step
LOGGED = 100  # points of the history at most
SETTLED = 1e-4  # nats per row that one EM step over all rows may still gain


@dataclass(frozen=True)
class OnlineEM(Method):
    """Stepwise EM on minibatches.

    epochs: passes over the rows.  batch_size: rows a step (None: a twentieth of the rows, 256 at most).  The first M-step waits for ten
    entries of the table for every free parameter of theta.
    forgetting: the exponent a of the steps' sizes, above 0.5 and at most 1: lower ones forget the start sooner, higher ones average more
    rows; 0 keeps nothing of earlier batches, which with all rows as the batch is EM itself.

    >>> import ppvae
    >>> faithful = ppvae.load_data("faithful")
    >>> fit = ppvae.fit(ppvae.models.GMM(2), faithful, OnlineEM())
    >>> fit.converged, round(float(fit.log_likelihood(faithful).mean()), 3)
    (True, -4.155)
    """

    epochs: int = 50
    batch_size: int | None = None
    forgetting: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(epochs=1, batch_size=1)
        if not (0.5 < self.forgetting <= 1 or self.forgetting == 0):
            raise ValueError(f"OnlineEM's forgetting is above 0.5 and at most 1, or 0 to keep nothing, not {self.forgetting}")

    def refusal(self, model: Model, data: Data) -> str | None:
        exact = model.closed_forms
        if exact is None or not exact.has("statistics", "maximize"):
            return f"{model.name} gives no closed-form E- and M-step, so online EM does not apply"
        if not exact.has("recentred"):
            return f"{model.name} does not say how its statistics move with theta (Exact.recentred), so online EM does not apply"
        if self.batch_size is not None and self.batch_size > data.n_rows:
            return f"batch_size={self.batch_size} is larger than the data, {data.n_rows} rows: choose a smaller batch"
        return None

    def run(self, task: Task) -> Outcome:
        walk = Walk(task, self)
        stopped = walk.run()
        warning = floor_warning(task.model, task.theta)
        gain = math.nan if stopped else walk.gain_of_em()
        done = (
            f"ran its {self.epochs} passes in {walk.steps} M-steps; one EM step over all rows from here would gain {gain:.1g} nats per row"
        )
        forgets = self.forgetting == 0 and walk.parts > 1
        remedy = "batches pull theta about where forgetting=0: set it above 0.5, or batch_size to all rows" if forgets else "raise epochs"
        hint = "" if stopped or gain < SETTLED else f": {remedy}"
        status = "; ".join(said for said in (stopped or done + hint, warning) if said)
        return Outcome(ExactGuide(walk.exact, task.theta), status, gain < SETTLED and not warning, walk.steps, "closed forms", walk.history)


class Walk:
    """The running average and theta, moved by one batch at a time."""

    def __init__(self, task: Task, method: OnlineEM) -> None:
        assert task.model.closed_forms is not None
        self.task, self.method = task, method
        self.exact: Exact = task.model.closed_forms
        self.chunk = self.exact.chunk_rows(task.data)
        enough = math.ceil(ENOUGH * task.theta.degrees_of_freedom() * task.data.n_rows / int(task.data.observed.sum()))
        self.enough = min(task.data.n_rows, enough)
        self.parts = math.ceil(task.data.n_rows / (method.batch_size or min(math.ceil(task.data.n_rows / 20), 256)))
        self.average: Statistics = {}
        self.steps = self.seen = 0
        self.began, self.paused = time.perf_counter(), 0.0
        self.history: list[dict[str, float]] = []

    @torch.no_grad()
    def run(self) -> str | None:
        """All passes; a sentence where they end early, with theta as at the last point of the history."""
        epochs, every = self.method.epochs, math.ceil(self.method.epochs / LOGGED)
        self.log(0)
        for epoch in range(1, epochs + 1):
            good = self.task.theta.values()
            try:
                for rows in torch.randperm(self.task.data.n_rows, device=self.task.data.device).tensor_split(self.parts):
                    self.step(rows)
            except torch.linalg.LinAlgError:
                self.task.theta.assign(good)
                return f"stopped in pass {epoch}: a batch's covariances were singular; raise batch_size, or try another seed"
            if epoch % every == 0 or epoch == epochs:
                self.log(epoch)
        return None

    def step(self, rows: Tensor) -> None:
        """Take in a batch; once enough rows were seen, move theta, and the average with it."""
        data, theta = self.task.data, self.task.theta
        found = sum_statistics(self.exact, theta, [data.batch(part) for part in rows.split(self.chunk)])
        size = self.size(len(rows))
        for name, value in found.items():
            new = value * (data.n_rows / len(rows))
            self.average[name] = new if size == 1 else (1 - size) * self.average[name] + size * new
        self.seen += len(rows)
        if self.seen < self.enough:
            return
        values = maximized(self.exact, theta, self.average)
        self.average = self.exact.recentred(theta, self.average, values)
        theta.assign(values)
        self.steps += 1

    def size(self, rows: int) -> float:
        """The weight of a batch: its share of all rows seen until the first M-step, then g_t."""
        if self.steps == 0:
            return rows / (self.seen + rows)
        return (self.steps + DELAY) ** -self.method.forgetting

    def log(self, epoch: int) -> None:
        """A point of the history, with the exact log-likelihood of all rows; its time is not counted."""
        now = time.perf_counter()
        value = float(exact_log_marginal(self.exact, self.task.theta, self.task.data).mean())
        self.history.append({"step": self.steps, "seconds": now - self.began - self.paused, "elbo": value, "log_likelihood": value})
        self.task.progress(epoch, self.method.epochs, f"{value:.6f} nats per row")
        self.paused += time.perf_counter() - now

    @torch.no_grad()
    def gain_of_em(self) -> float:
        """What one EM step over all rows would gain, in nats per row."""
        data, theta = self.task.data, self.task.theta
        here: dict[str, Tensor] = theta.values()
        before = sum_statistics(self.exact, theta, list(data.chunks(self.chunk)))
        theta.assign(self.exact.maximize(theta, before))
        after = exact_log_marginal(self.exact, theta, data).sum()
        theta.assign(here)
        return float(after - before["log_likelihood"]) / data.n_rows
