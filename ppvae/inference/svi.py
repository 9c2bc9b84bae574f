"""Stochastic variational inference (Hoffman et al. 2013; Kingma & Welling 2014) on a Pyro story and guide.

The program is captured once as a graph of tensor operations and stepped with fused Adam (`ppvae.program.capture`); where that cannot be
done, Pyro's own ELBO object runs at every step. Neither touches a global parameter store.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae import guides
from ppvae.data import Batch, Data
from ppvae.inference.method import Method, Outcome, Task, floor_warning, seeded
from ppvae.inference.objectives import Rows, objective, reweighed_rows
from ppvae.messages import few
from ppvae.program.capture import CaptureError, CompileError, capture, compiled, operations, tensors_of
from ppvae.program.derive import LOST, exact_forms, holds
from ppvae.program.joint import AsWide, is_row_site, random_sites, sites_of
from ppvae.program.values import moved, reads_numbers
from ppvae.scores import exact_log_marginal

LOGGED = 100  # points of the history
FEW_STEPS = 200  # of which none can say that an objective has settled: the learning rate had no time to fall slowly
BETAS, EPS = (0.9, 0.99), 1e-8  # of Adam
WARM_UP = 0.1  # share of the steps in which the learning rate rises
COMPILING_PAYS = 1_000_000  # tensor operations: what compiling costs (10 to 20 seconds on two slow cores) and saves are then about even
FULL_BATCH = 512  # rows: smaller data sets are used whole at every step


@dataclass(frozen=True)
class SVI(Method):
    """SVI with Adam under a one-cycle schedule.

    steps: gradient steps.  batch_size: rows a step (None: all rows up to 512, else 256).
    particles: draws from the guide for each row (None: 1, or 20 for "iwae" and "dreg", which with one are the ELBO).
    objective: "elbo", "analytic_kl", "iwae" or "dreg", see `ppvae.inference.objectives`.
    beta, kl_warmup, free_bits: the weight of the KL to the prior, the share of the steps over which it rises from 0, and the nats of each
        latent dimension's KL that cost nothing. With beta < 1 or free_bits > 0 what is maximised bounds nothing, and the status says so;
        the ELBO in the history, held-out or of the fit, is always the true one.
    learning_rate: the peak (None: 0.03, or 0.003 where theta holds networks).
    compile: "auto" captures the program where it can, and compiles the graph where the steps to come win that back; True insists on both;
        False runs Pyro.
    holdout: a share of the rows kept out of training; SVI stops when their smoothed ELBO has not risen for `patience` logged points (a
        hundredth of the steps each), and keeps the parameters of the best one. The posterior of what all rows share is no such choice: at
        those parameters it takes the rest of the steps, and where nothing else is learnt, all of them. 0: no early stop.
    """

    guided: ClassVar[bool] = True

    steps: int = 3000
    batch_size: int | None = None
    particles: int | None = None
    objective: str = "elbo"
    beta: float = 1.0
    kl_warmup: float = 0.0
    free_bits: float = 0.0
    learning_rate: float | None = None
    compile: bool | str = "auto"
    holdout: float = 0.0
    patience: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = objective(self.objective)
        if self.reweighed and chosen.analytic is None:
            raise ValueError(f"objective={self.objective!r} has no KL for beta, kl_warmup and free_bits: use 'elbo' or 'analytic_kl'")
        self.at_least(beta=0, free_bits=0, steps=1, batch_size=1, particles=1, patience=1)
        if not 0 <= self.kl_warmup <= 1:
            raise ValueError(f"SVI's kl_warmup is a share of the steps from 0 to 1, not {self.kl_warmup}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile is True, False or 'auto', not {self.compile!r}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"SVI's holdout is a share of the rows from 0 up to 1, not {self.holdout}")

    @property
    def draws(self) -> int:
        """Draws from the guide for each row."""
        return self.particles or objective(self.objective).particles

    @property
    def reweighed(self) -> bool:
        """Whether the KL to the prior counts otherwise than in the ELBO at some step."""
        return (self.beta, self.kl_warmup, self.free_bits) != (1.0, 0.0, 0.0)

    def kl_weight(self, step: int) -> float:
        """The weight of the KL at a step: `beta`, reached in a straight line from 0 over the warm-up."""
        rise = self.kl_warmup * self.steps
        return self.beta * min(1.0, step / rise) if rise else self.beta

    def unbounded(self) -> str | None:
        """A sentence for an objective that is not the ELBO where training ends; None for one that is."""
        if self.beta == 1 and self.free_bits == 0:
            return None
        if self.beta > 1 and self.free_bits == 0:
            return f"what was maximised (beta={self.beta:g}) lies below the ELBO, which is what the history and the fit give"
        return (
            f"what was maximised (beta={self.beta:g}, free_bits={self.free_bits:g}) is no lower bound on the evidence; "
            "the ELBO in the history and of the fit is"
        )

    def batch_rows(self, n_rows: int) -> int:
        """Rows a step for a data set of `n_rows`."""
        if self.batch_size is not None:
            return self.batch_size
        return n_rows if n_rows <= FULL_BATCH else FULL_BATCH // 2

    def rows_at_once(self, data: Data) -> int:
        return min(self.batch_rows(data.n_rows), data.n_rows) * self.draws

    def refusal(self, model, data: Data) -> str | None:
        rows = data.n_rows - round(self.holdout * data.n_rows)  # as Data.split has it
        if self.batch_size is not None and self.batch_size > rows:
            what = f"what holdout={self.holdout:g} leaves of the data" if self.holdout else "the data"
            return f"batch_size={self.batch_size} is larger than {what}, {rows} rows: choose a smaller batch"
        return None

    def run(self, task: Task) -> Outcome:
        if self.holdout and reads_numbers(partial(task.model.model, moved(task.theta)), task.data.head()):
            raise ValueError(f"{task.model.name}: the story reads the rows' numbers, so none can be held out: leave holdout at 0")
        data, held = (task.data, None) if self.holdout == 0 else task.data.split(self.holdout, task.seed)
        guide = guides.build(task.model, task.theta, data, task.guide)
        training = Training(self, task, data, held, guide)
        training.loop()
        warning = floor_warning(task.model, task.theta)
        untrained = training.step.untrained()
        status = "; ".join(said for said in (training.status, training.lost, self.unbounded(), untrained, warning) if said)
        converged = training.converged and not warning and not untrained
        return Outcome(guide, status, converged, training.done, training.step.engine, training.history)


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate at a step: a cosine up to the peak, then a cosine down to nearly nothing (Smith & Topin 2018)."""
    rise = max(1.0, WARM_UP * steps)
    if step < rise:
        return peak * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise)))
    fall = (step - rise) / max(1.0, steps - rise)
    return peak * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, fall))))


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1): PyTorch's fused kernel for all parameters at once, without its optimizer's bookkeeping.

    The kernel pairs numbers by their places in memory, whatever their places in the tensors. A gradient may lie there in another order than
    its parameter (that of `W` in an einsum does), so it is given contiguous ones; parameters that are not, such as views of a larger
    table, are left to PyTorch's optimizer.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = [p for p in parameters if p.is_contiguous()]
        self.means, self.squares = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))
        views = [p for p in parameters if not p.is_contiguous()]
        self.others = torch.optim.Adam(views, betas=BETAS, eps=EPS) if views else None
        self.done = torch.zeros((), device=self.parameters[0].device if self.parameters else None)

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """One step along the gradients that lie on the parameters."""
        if self.others:
            self.others.param_groups[0]["lr"] = rate
            self.others.step()
        if not self.parameters:
            return
        self.done += 1
        gradients: list[Any] = [p.grad for p in self.parameters]
        torch._fused_adam_(
            self.parameters, [g.contiguous() for g in gradients], self.means, self.squares, [], [self.done] * len(gradients),
            lr=rate, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
        )  # fmt: skip


class Shuffled:
    """Which rows a step takes: a fixed number in shuffled order, drawn on the data's device; nothing where it takes them all."""

    def __init__(self, data: Data, rows: int) -> None:
        self.n_rows, self.rows, self.device = data.n_rows, rows, data.device
        self.order, self.at = torch.empty(0, dtype=torch.long, device=data.device), 0

    def __call__(self) -> tuple[Tensor, ...]:
        if self.rows == self.n_rows:
            return ()
        if self.at + self.rows > len(self.order):
            self.order, self.at = torch.randperm(self.n_rows, device=self.device), 0
        self.at += self.rows
        return (self.order[self.at - self.rows : self.at],)


def picked(table: Batch, *chosen: Tensor) -> Batch:
    """The chosen rows; all where none are named."""
    return table.take(*chosen) if chosen else table


class Step:
    """Loss (negative objective, nats per row) of some rows, with its gradients left on the parameters; `engine` says how it runs."""

    def __init__(self, method: SVI, task: Task, guide: nn.Module, data: Data, chosen: tuple[Tensor, ...]) -> None:
        self.task, self.table = task, data.batch()
        self.tensors = tensors_of(self.table)
        self.program = partial(task.model.model, task.theta)
        self.guide, self.method = guide, method
        self.module = nn.ModuleDict({"theta": task.theta, "guide": guide})
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(f"{task.model.name}: every parameter is frozen and the guide has none, so there is nothing to learn")
        if any(getattr(m, "sparse", False) for m in self.module.modules()):
            raise ValueError(f"{task.model.name}: Adam has no steps for sparse gradients: give the embedding sparse=False")
        buffers = {name: b.clone() for name, b in self.module.named_buffers()}  # which trial runs may move
        head = data.head()
        self.enumerated = any(
            site["infer"].get("enumerate") == "parallel" for p in (self.program, guide) for site in sites_of(p, head).values()
        )
        self.objective = objective(method.objective)
        drawn = {n: s for n, s in sites_of(guide, head).items() if not s["infer"].get("enumerate")}
        self.stuck = next((name for name, site in drawn.items() if not site["fn"].has_rsample), None)
        self.kl_weight = torch.tensor(method.kl_weight(0), dtype=data.dtype, device=data.device)
        self._refuse(task, head)
        self.run, self.engine = self._choose(chosen)
        self.module.load_state_dict(buffers, strict=False)

    def _refuse(self, task: Task, batch: Batch) -> None:
        """Raise ValueError for an objective that does not hold for this story and guide."""
        name, sites = self.method.objective, sites_of(self.guide, batch)
        if self.enumerated and (self.method.reweighed or not self.objective.sums_out):
            raise ValueError(
                f"{task.model.name}: the story sums out a discrete site, which only objective='elbo', 'iwae' and 'dreg' do, without beta, "
                f"kl_warmup or free_bits: leave out {'those' if self.objective.sums_out else f'objective={name!r}'}"
            )
        if self.objective.analytic is None and not all(is_row_site(site) for site in sites.values()):
            raise ValueError(f"{task.model.name}: objective={name!r} weighs a row's latents, but some lie outside batch.rows: use 'elbo'")
        if self.stuck and (self.objective.analytic is None or self.method.reweighed):
            raise ValueError(
                f"{task.model.name}: the guide's site {self.stuck!r} has no reparametrised gradient, which objective={name!r} with these "
                "settings needs: use objective='elbo' without beta, kl_warmup or free_bits"
            )

    def untrained(self) -> str | None:
        """A sentence for a guide's sites that the objective sums out, so that their part of the guide learns nothing; None without any."""
        if self.objective.analytic is not None:
            return None
        summed = [n for n, s in sites_of(self.guide, self.task.data.head()).items() if s["infer"].get("enumerate") == "parallel"]
        if not summed:
            return None
        name = self.method.objective
        return f"the guide of {few(summed)} learnt nothing, since objective={name!r} sums it out: use 'elbo', or no such guide"

    def _choose(self, chosen: tuple[Tensor, ...]) -> tuple[Callable[..., Tensor], str]:
        """How to run a step on rows like the `chosen` ones, and a sentence on it."""
        if self.method.compile is False:
            return self._plain(), "plain Pyro, as asked"
        if self.stuck:
            reason = f"site {self.stuck!r} has no reparametrised gradient, so Pyro's score-function estimator is used"
            return self._plain(), f"plain Pyro: {reason}"
        others = tuple(torch.arange(len(rows), device=rows.device) for rows in chosen)
        try:
            graph = capture(self.module, self.loss, self.table, self.kl_weight, *chosen, other=(self.kl_weight, *others))
        except CaptureError as error:
            if self.method.compile is True:
                raise ValueError(f"compile=True, but the story or guide cannot be captured ({error}): use compile='auto'") from error
            return self._plain(), f"plain Pyro: the program could not be captured ({error})"
        if self.method.compile == "auto" and self.method.steps * operations(graph) < COMPILING_PAYS:
            return partial(self._captured, graph), "captured; too few steps to win back a compilation"
        self.task.progress(0, self.method.steps, "compiling the program")
        try:
            return partial(self._captured, compiled(graph, self.parameters, self.tensors, self.kl_weight, *chosen)), "captured and compiled"
        except CompileError as error:
            if self.method.compile is True:
                raise ValueError(f"compile=True, but {error}: mend that, or use compile='auto'") from error
            return partial(self._captured, graph), f"captured, not compiled: {error}"

    def loss(self, table: Batch, weight: Tensor, *chosen: Tensor) -> Tensor:
        """The objective on the chosen rows (none named: all) as a tensor program, nats per row; `weight` () is the KL's."""
        batch = picked(table, *chosen)
        rows: Rows = self.objective.rows
        if self.method.reweighed:
            assert self.objective.analytic is not None  # SVI refuses the others
            rows = partial(reweighed_rows, analytic=self.objective.analytic, weight=weight, free_bits=self.method.free_bits)
        return -rows(self.program, self.guide, batch, None if self.method.draws == 1 else self.method.draws).mean()

    def _plain(self) -> Callable[..., Tensor]:
        """Pyro's own ELBO object at every step; the same tensor program, run line by line, where Pyro has none."""
        elbo: Any = None if self.method.reweighed else self.objective.plain(self.enumerated, self.method.draws)

        def run(*chosen: Tensor) -> Tensor:
            with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False), AsWide():
                if elbo is None:
                    loss = self.loss(self.table, self.kl_weight, *chosen)
                else:
                    batch = picked(self.table, *chosen)
                    loss = elbo.differentiable_loss(self.program, self.guide, batch) / batch.n_total
                gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            self._leave(gradients)
            return loss.detach()

        return run

    def _captured(self, graph: Callable, *chosen: Tensor) -> Tensor:
        with torch.no_grad():
            loss, gradients = graph(self.parameters, self.tensors, self.kl_weight, *chosen)
        self._leave(gradients)
        return loss

    def _leave(self, gradients) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def posterior_of_shared(guide: nn.Module, batch: Batch) -> set[nn.Parameter]:
    """The guide's parameters that its draws of what all rows share come from."""
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), torch.enable_grad():
        sites = [site for site in random_sites(poutine.trace(guide).get_trace(batch)).values() if not is_row_site(site)]
        # By the density of a draw, and for points, which have none, by the draw itself.
        said = sum(site["fn"].log_prob(site["value"].detach()).sum() + site["value"].sum() for site in sites)
    own = [p for p in guide.parameters() if p.requires_grad]
    if not own or not isinstance(said, Tensor) or not said.requires_grad:
        return set()
    return {p for p, gradient in zip(own, torch.autograd.grad(said, own, allow_unused=True), strict=True) if gradient is not None}


class Training:
    """The loop: batches, steps, the schedule, and a log that never waits for the device between its points.

    What moves at a step, when a point of the history is due and what it holds are methods, for other ways of going round.
    """

    more = "steps"  # the setting to raise where the end is not settled

    def __init__(self, method: SVI, task: Task, data: Data, held: Data | None, guide: nn.Module) -> None:
        self.method, self.task, self.data, self.held = method, task, data, held
        self.batches = Shuffled(data, min(method.batch_rows(data.n_rows), data.n_rows))
        self.exact = exact_forms(task.model, task.theta, task.data.batch(), moving=True)
        self.began = time.perf_counter()
        self.step = Step(method, task, guide, data, self.batches())
        has_networks = any(True for m in task.theta.children() for _ in m.parameters())
        self.peak = method.learning_rate or (0.003 if has_networks else 0.03)
        self.optimizer = Adam(self.step.parameters)
        self.paused, self.done = 0.0, 0
        self.history: list[dict[str, float]] = []
        self.lost: str | None = None
        self.status, self.converged, self.title = "", True, objective(method.objective).title
        self.smoothed: list[float] = []
        self.best = -math.inf
        self.best_state: dict[str, Tensor] | None = None
        # What held-out rows choose is the rest: a posterior learns nothing by heart, and is that of the training rows at its end alone.
        self.posterior = set() if held is None else posterior_of_shared(guide, data.head())
        self.settling: Adam | None = None

    def loop(self) -> None:
        """Train; ends with the parameters of the last finite point, or of the best held-out one."""
        steps = self.method.steps
        losses: list[Tensor] = []
        last_good = self._state()
        self.log([])
        for step in range(steps):
            try:
                losses.append(self.advance(step))
            except torch.linalg.LinAlgError:
                losses.append(torch.tensor(math.nan))
            self.done = step + 1
            if self.due():
                if not self.log(losses):
                    self._restore(last_good)
                    self.converged, self.status = False, f"stopped: {self._trouble()}"
                    self._restore(last_good)  # buffers too
                    return
                losses, last_good = [], self._state()
                if self._should_stop():
                    self._restore(self.best_state)
                    best = f"best {self.best:.4f} nats per row"
                    self.status = f"stopped early at step {self.done}: the held-out {self.title} no longer rises ({best})"
                    if not self.posterior:
                        return
                    self.status += "; from there the posterior of what all rows share was trained alone"
                    self.settling, self.best_state = Adam(list(self.posterior)), None
        if self.best_state is not None:
            self._restore(self.best_state)
        self.lose()
        self.status = self.status or self._final_status()

    def _trouble(self) -> str:
        """What is not finite, and what to try, from one more run at the last good parameters."""
        point = f"the parameters of step {self.history[-1]['step']}"
        try:
            value = float(self.step.run(*self.batches()))
        except torch.linalg.LinAlgError:
            value = math.nan
        if not math.isfinite(value):
            return f"the {self.title} is not finite at {point}; look for a log, a root or a division that fails there, or give another init"
        if not all(bool(p.grad.isfinite().all()) for p in self.step.parameters if p.grad is not None):
            cause = "a root or a norm at 0, or a torch.where with a side that is not finite"
            return f"the {self.title} is finite at {point}, but its gradient is not; look for {cause}"
        remedy = f"try a lower learning_rate than {self.peak:g}, more particles or another seed"
        return f"the {self.title} was no longer finite by step {self.done} (the fit has {point}); {remedy}"

    def advance(self, step: int) -> Tensor:
        """One gradient step on the next batch; the loss before it."""
        optimizer = self.turn(step)
        if self.method.kl_warmup:
            self.step.kl_weight.fill_(self.method.kl_weight(step))
        loss = self.step.run(*self.batches())
        optimizer.move(one_cycle(step, self.method.steps, self.peak))
        return loss

    def turn(self, step: int) -> Adam:
        """What moves at this step: everything, until held-out rows have chosen."""
        return self.settling or self.optimizer

    def due(self) -> bool:
        """Whether a point of the history is due."""
        return self.done % max(1, self.method.steps // LOGGED) == 0 or self.done == self.method.steps

    def value(self, losses: list[Tensor]) -> float:
        """The objective at this point: its mean over the steps since the last one."""
        return -float(torch.stack(losses).mean()) if losses else math.nan

    def log(self, losses: list[Tensor]) -> bool:
        """Add a point to the history; False where the objective is no longer finite. Its own time is not counted as training."""
        paused = time.perf_counter()
        seconds = paused - self.began - self.paused
        elbo = self.value(losses)
        point = {"step": self.done, "seconds": seconds, "elbo": elbo}
        # A loss is that before its step, whose gradient may be none even where the loss is finite.
        finite = not losses or (math.isfinite(elbo) and all(bool(p.isfinite().all()) for p in self.step.parameters))
        if finite and self.exact is not None:
            try:
                with pyro.validation_enabled(False):  # a score that is none ends in a status
                    point["log_likelihood"] = float(exact_log_marginal(self.exact, self.task.theta, self.task.data).mean())
            except torch.linalg.LinAlgError:  # a covariance that is none any more, or closed forms that do not hold here
                finite = self.lose()
        if finite and self.held is not None:
            point["heldout_elbo"] = self._heldout()
        if finite:
            self.history.append(point)
        self.task.progress(self.done, self.method.steps, f"{self.title} {elbo:.4f} nats per row" if losses else "")
        self.paused += time.perf_counter() - paused
        return finite

    def lose(self) -> bool:
        """Drop closed forms that no longer hold, and what the history has from them; False where they hold."""
        if self.exact is None or holds(self.exact, self.task.theta, self.task.data.batch()):
            return False
        self.exact, self.lost = None, f"{LOST}, so the history has no log-likelihood"
        for point in self.history:
            point.pop("log_likelihood", None)
        return True

    @torch.no_grad()
    def _heldout(self) -> float:
        """The objective's mean over the held-out rows, at the same draws in each point.

        They bear no more of the KL of what all rows share than as many training rows do.
        """
        assert self.held is not None
        batch, draws = replace(self.held.batch(), n_total=self.data.n_rows), max(10, self.method.draws)
        with seeded(self.task.seed, self.data.device):
            return float(self.step.objective.rows(self.step.program, self.step.guide, batch, draws).mean())

    def _should_stop(self) -> bool:
        """Whether the held-out rows have seen no rise for long; keeps the best state of what they choose."""
        if self.held is None or self.settling or self.posterior.issuperset(self.step.parameters):
            return False
        recent = [p["heldout_elbo"] for p in self.history[-5:] if "heldout_elbo" in p]
        self.smoothed.append(sum(recent) / len(recent))
        if self.smoothed[-1] > self.best:
            left = {name for name, p in self.step.module.named_parameters() if p in self.posterior}
            self.best, self.best_state = self.smoothed[-1], {n: v for n, v in self._state().items() if n not in left}
        return len(self.smoothed) - 1 - self.smoothed.index(max(self.smoothed)) >= self.method.patience

    def _final_status(self) -> str:
        """Whether the end looks settled: the exact score where there is one, else the ELBO, against the middle of the run.

        Lately nothing moves whatever its distance from the top, since the learning rate has run out.
        """
        key = "log_likelihood" if "log_likelihood" in self.history[-1] else "elbo"
        points = [p[key] for p in self.history if p["step"] > 0]
        if len(points) < 10 or self.done < FEW_STEPS:
            self.converged = False
            return f"ran all its steps, too few to say whether the {self.title} has settled: raise {self.more}"
        tenth, half = len(points) // 10, len(points) // 2
        middle, last = points[half - tenth : half + tenth], points[-tenth:]
        gain = sum(last) / len(last) - sum(middle) / len(middle)
        self.converged = gain < 0.03 + 0.01 * abs(last[-1])
        if self.converged:
            return f"ran all its steps; the {self.title} has settled"
        return f"ran all its steps, but the {self.title} rose by {gain:.2g} nats per row in their second half: raise {self.more}"

    def _state(self) -> dict[str, Tensor]:
        return copy.deepcopy(self.step.module.state_dict())

    def _restore(self, state: dict[str, Tensor] | None) -> None:
        assert state is not None
        self.step.module.load_state_dict(state, strict=False)
