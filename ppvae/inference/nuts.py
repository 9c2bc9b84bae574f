"""The No-U-Turn sampler (Hoffman & Gelman 2014), Pyro's, for stories in which everything unknown has a prior.

It draws from the posterior of what all rows share; the rows' own latents are summed out, or integrated out where the story is quadratic
in them. The log joint and its gradient are captured once as a graph of tensor operations, as for SVI, instead of running the story at
every leapfrog step.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import MCMC
from pyro.infer import NUTS as Kernel
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ppvae.bijections import bijection
from ppvae.data import Batch, Data
from ppvae.inference.fit import start
from ppvae.inference.method import Method, Outcome, Task
from ppvae.inference.svi import COMPILING_PAYS
from ppvae.messages import few
from ppvae.model import Model
from ppvae.program.capture import CaptureError, CompileError, capture, compiled, operations, tensors_of
from ppvae.program.derive import Derived
from ppvae.program.given import continuous, given, moved
from ppvae.program.joint import enumerated_trace, log_joint, shared_total
from ppvae.shared import Draws, Place, places, shared_sites

LOGGED = 100  # points of the history
LEAPFROGS = 8  # a usual number of gradients a draw, to judge whether compiling pays
MIXED = 1.01  # rank-normalised split r-hat below which chains agree (Vehtari et al. 2021)
EFFECTIVE = 100  # draws of each chain, in the bulk and in the tails, for diagnostics to be believed (the same)


@dataclass(frozen=True)
class NUTS(Method):
    """Pyro's NUTS with a diagonal mass matrix.

    draws: from each chain, after `warmup` steps that are thrown away.  chains: one after another, from points around the model's start.
    max_tree_depth: of a trajectory, 2^depth leapfrog steps at most.  target_accept: of the step size's adaptation.
    """

    draws: int = 500
    warmup: int = 500
    chains: int = 4
    max_tree_depth: int = 10
    target_accept: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(draws=4, warmup=1, chains=1, max_tree_depth=1)
        if not 0 < self.target_accept < 1:
            raise ValueError(f"NUTS's target_accept lies between 0 and 1, not {self.target_accept}")

    def refusal(self, model: Model, data: Data) -> str | None:
        sketch = data.summary().sketch()
        theta = start(model, sketch, 0)
        networks = tuple(name for name, _ in theta.named_children())
        if theta.trainable or networks:
            return f"NUTS draws only what has a prior, but {model.name} learns {few([*theta.trainable, *networks])} as parameters"
        shared = shared_sites(model, theta, sketch)
        if not shared:
            return f"NUTS draws what all rows share, but in {model.name} they share no latent"
        own = continuous(model, theta, sketch.head(), set(shared))
        if own and given(model, theta, sketch.head(), {n: site["value"] for n, site in shared.items()}) is None:
            return (
                f"NUTS draws what all rows share, but {few(own)} of {model.name} is each row's own and has no formula to integrate it out"
            )
        return None

    def run(self, task: Task) -> Outcome:
        posterior = Posterior(task, self)
        chains = [posterior.chain(number) for number in range(self.chains)]
        values = relabelled(task.model, {n: torch.stack([c[n] for c in chains]) for n in posterior.sites}, posterior.start)
        status, converged = diagnosed(values, posterior.divergences)
        return Outcome(Draws(values), status, converged, self.chains * self.draws, posterior.engine, posterior.history)


class Posterior:
    """The log joint of one fit over the unconstrained values of what all rows share, and chains through it."""

    def __init__(self, task: Task, method: NUTS) -> None:
        self.task, self.method = task, method
        self.program = partial(task.model.model, task.theta)
        self.sites: dict[str, Place] = places(task.model, task.theta, task.data)
        self.start = {name: place.value for name, place in self.sites.items()}
        self.position = nn.ParameterDict({name: p.start.clone() for name, p in self.sites.items()})  # in an order of its own
        self.batch: Batch = task.data.batch()
        self.rows: Derived | None = None
        if continuous(task.model, task.theta, self.batch, set(self.sites)):
            drawn = {name: site["value"] for name, site in shared_sites(task.model, task.theta, task.data).items()}
            self.rows = given(task.model, task.theta, self.batch, drawn)
        self.began = time.perf_counter()
        self.potential, self.engine = self._prepare()
        self.history: list[dict[str, float]] = []
        self.divergences = self.done = 0

    def constrained(self, free: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The sites' values at unconstrained numbers {site: (P,)}, and the log Jacobian of that map."""
        values, jacobian = {}, self.batch.x.new_zeros(())
        for name, place in self.sites.items():
            to_support, flat = bijection(place.support), free[name].reshape(place.free_shape)
            values[name] = to_support(flat)
            jacobian = jacobian + to_support.log_abs_det_jacobian(flat, values[name]).sum()
        return values, jacobian

    def loss(self, batch: Batch) -> Tensor:
        """Minus the log joint of the data and the unconstrained values, total nats."""
        return self.energy(self.position, batch)

    def energy(self, free: Any, batch: Batch) -> Tensor:
        """() the same at given unconstrained values."""
        values, jacobian = self.constrained(free)
        if self.rows is None:
            return -(log_joint(self.program, batch, values).sum() + jacobian)
        prior = shared_total(enumerated_trace(self.program, batch, values, None))
        return -(self.log_likelihood(values, batch).sum() + prior + jacobian)

    def log_likelihood(self, values: dict[str, Tensor], batch: Batch) -> Tensor:
        """(B,): log p(x_n | what all rows share)."""
        if self.rows is None:
            return log_joint(self.program, batch, values, given_shared=True)
        return moved(self.rows, values).log_marginal(self.task.theta, batch)

    def _prepare(self) -> tuple[Any, str]:
        """The potential energy with its gradient, captured where it can be, and how that runs."""
        parameters, tensors = [p.detach().clone() for p in self.position.values()], tensors_of(self.batch)
        try:
            graph = capture(self.position, self.loss, self.batch)
        except CaptureError as error:
            return self._plain, f"plain Pyro: the story could not be captured ({error})"
        gradients = self.method.chains * (self.method.draws + self.method.warmup) * LEAPFROGS
        engine = "captured"
        if gradients * operations(graph) >= COMPILING_PAYS:
            try:
                graph, engine = compiled(graph, parameters, tensors), "captured and compiled"
            except CompileError as error:
                engine = f"captured, not compiled: {error}"
        return partial(Energy.apply, lambda values: graph(values, tensors)), engine

    def _plain(self, *values: Tensor) -> Tensor:
        return self.energy(dict(zip(self.position, values, strict=True)), self.batch)

    def chain(self, number: int) -> dict[str, Tensor]:
        """{site: (S, ...)}: the draws of one chain, which begins a few posterior widths from the start."""
        width = self.task.data.n_rows**-0.5
        fixed = {name: p.start for name, p in self.sites.items() if not p.start.numel()}  # such as the weight of one component, which is 1
        begin = {n: p.start + 2 * width * p.unit * torch.randn_like(p.start) for n, p in self.sites.items() if n not in fixed}
        kernel: Any = Kernel(
            potential_fn=lambda free: self.potential(*((fixed | free)[name] for name in self.position)),
            max_tree_depth=self.method.max_tree_depth,
            target_accept_prob=self.method.target_accept,
        )
        sampler = MCMC(kernel, self.method.draws, self.method.warmup, initial_params=begin, disable_progbar=True, hook_fn=self._log)
        sampler.run()
        self.divergences += sum(len(found) for found in sampler.diagnostics()["divergences"].values())
        with torch.no_grad():
            drawn = sampler.get_samples() | {name: start.expand(self.method.draws, -1) for name, start in fixed.items()}
            return {
                name: bijection(place.support)(drawn[name].reshape(self.method.draws, *place.free_shape)).contiguous()
                for name, place in self.sites.items()
            }

    def _log(self, kernel: Any, free: dict[str, Tensor], stage: str, step: int) -> None:
        self.done += 1
        total = self.method.chains * (self.method.draws + self.method.warmup)
        if self.done % max(1, total // LOGGED) == 0:
            with torch.no_grad():
                rows = self.log_likelihood(self.constrained({n: p.start for n, p in self.sites.items()} | free)[0], self.batch)
            seconds = time.perf_counter() - self.began
            self.history.append({"step": self.done, "seconds": seconds, "log_likelihood": float(rows.mean())})
            self.task.progress(self.done, total, stage.lower())


class Energy(torch.autograd.Function):
    """The potential energy from a graph that gives value and gradient at once."""

    @staticmethod
    def forward(ctx: Any, graph: Any, *values: Tensor) -> Tensor:
        with torch.no_grad():
            value, ctx.gradients = graph([v.detach() for v in values])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(outer[0] * gradient for gradient in ctx.gradients)


def relabelled(model: Model, chains: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws {site: (C, S, K, ...)} with their exchangeable components in the order nearest to the start's (Hungarian assignment).

    The posterior is the same in any order, so chains may differ in it, and means over draws would mix components.
    """
    names = [name for name in model.exchangeable if name in chains]
    if not names or len(start[names[0]]) == 1:
        return chains
    drawn = [chains[n].flatten(0, 1) for n in names]
    spread = [d.std() for d in drawn]
    rows = torch.cat([(d / s).flatten(2) if d.ndim > 2 else (d / s).unsqueeze(-1) for d, s in zip(drawn, spread, strict=True)], -1)
    goal = torch.cat([(start[n] / s).reshape(len(start[n]), -1) for n, s in zip(names, spread, strict=True)], -1)
    cost = torch.cdist(goal.expand(len(rows), -1, -1), rows).square().cpu().numpy()
    order = torch.stack([torch.as_tensor(linear_sum_assignment(c)[1]) for c in cost])
    each = torch.arange(len(rows)).unsqueeze(1)
    return chains | {n: d[each, order].unflatten(0, chains[n].shape[:2]) for n, d in zip(names, drawn, strict=True)}


def diagnosed(chains: dict[str, Tensor], divergences: int) -> tuple[str, bool]:
    """A sentence on how far the chains {site: (C, S, ...)} may be believed, and whether they may.

    They may where chains agree in place and in spread, and the middle and the tails of each number have enough draws (Vehtari et al. 2021).
    """
    from ppvae.criticism.arviz import convergence

    r_hat, bulk, tail = convergence({name: value.cpu().numpy() for name, value in chains.items()})
    n_chains, draws = next(iter(chains.values())).shape[:2]
    said = (
        f"r-hat at most {r_hat:.3f}, effective sample size at least {bulk:.0f} in the bulk and {tail:.0f} in the tails of "
        f"{n_chains * draws}, {divergences or 'no'} divergences"
    )
    enough = min(bulk, tail) >= EFFECTIVE * n_chains
    if r_hat < MIXED and enough and not divergences:
        return said, True
    if divergences:
        return f"{said}: raise target_accept, or give the story tighter priors", False
    return f"{said}: raise draws and warmup" + (f", for {EFFECTIVE} effective draws a chain" if r_hat < MIXED else ""), False
