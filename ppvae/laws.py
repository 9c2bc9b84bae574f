"""The laws: what every model's story and closed forms owe each other, checked on anyone's model.

1. Bayes. For any z: log p(x, z) traced from the story less log p(z | x) is log p(x), row by row. No Monte Carlo.
2. Tightness. With the exact posterior as guide the ELBO is log p(x) with no variance; scaled minibatches average to the full log joint.
3. Ascent. No EM step lowers log p(x); where EM has converged, its gradient in theta leads no higher.
4. Coverage. `maximize` returns exactly the trainable names, with their shapes and constraints.
5. Bound. The ELBO is at most log p(x), up to 4 standard errors, for a guide that was never trained.
6. Additivity. Statistics of parts sum to the statistics of the whole, and say the same when they are moved to other means.
7. One objective. The captured loss is Pyro's own ELBO, value and gradients.
8. Missing. A row without an entry scores as its marginal over that entry; a wholly missing row scores 0.
9. Importance weights. With the exact posterior as guide the bound of K draws is log p(x) for every K; with the prior as guide it rises
   with K and stays below; minibatches average to the full-data value.
10. Mean field. The bound of CAVI is the rows' log-likelihood where q is a point, and for a q with a spread the expectation of log p(x, k)
   less log q(k) (where entries are missing, at most that: they are latents of the bound too); no sweep lowers it.

All in float64, on a few rows. What a law needs and a model does not have makes it "does not apply".
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, pairwise
from math import inf

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.distributions import VonMises
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae import guides
from ppvae.data import Batch, Data, as_data
from ppvae.exact import Exact, ExactGuide
from ppvae.inference.cavi import MeanField
from ppvae.inference.em import EM, sum_statistics
from ppvae.inference.fit import prepare, start
from ppvae.inference.method import Task, seeded
from ppvae.inference.objectives import OBJECTIVES, Rows
from ppvae.inference.svi import SVI, Step
from ppvae.model import Model, check_model
from ppvae.parameters import Parameters
from ppvae.program.capture import FROZEN
from ppvae.program.derive import exact_forms
from ppvae.program.joint import (
    Program,
    elbo_rows,
    in_draws,
    is_finite,
    is_row_site,
    latent_sites,
    log_joint,
    log_terms,
    random_sites,
    sites_of,
    unwrapped,
)
from ppvae.program.observed import observed
from ppvae.program.story import traced
from ppvae.scores import exact_log_marginal

ROWS = 200
LOOKS = 8  # of law 8 at a density: peaks from 10^-12 to 10^30 times as wide as the column
ROUNDING = 1e-8  # relative, float64: a few thousand operations of one part in 10^16, and solves of condition up to 10^4


class NotApplicable(Exception):
    """Not an error: the model lacks what the law speaks of; the message says what."""


@dataclass(frozen=True)
class Bench:
    """One model on a few rows, at its start: what every law works on."""

    model: Model
    data: Data
    theta: Parameters
    seed: int

    @property
    def program(self) -> Program:
        return partial(self.model.model, self.theta)

    @property
    def batch(self) -> Batch:
        return self.data.batch()

    @property
    def exact(self) -> Exact:
        exact = self.forms
        if exact is None:
            raise NotApplicable("neither the model nor its story gives an exact posterior")
        return exact

    @cached_property
    def forms(self) -> Exact | None:
        """The model's own exact posterior and marginal, else those that its story gives away, else None."""
        return exact_forms(self.model, self.theta, self.batch)

    @property
    def em(self) -> Exact:
        exact = self.model.closed_forms
        if exact is None or not exact.has("statistics", "maximize"):
            raise NotApplicable("the model gives no E- and M-step")
        return exact

    @cached_property
    def rounding(self) -> float:
        """The relative error that rounding explains: that of any sum, or of a distance to the mean, in sd, where 0 is many sd away."""
        return max(ROUNDING, 8 * torch.finfo(torch.float64).eps * float((self.data.mean.abs() / self.data.scale).max()))

    def guide(self) -> nn.Module:
        """The model's own guide, untrained."""
        with seeded(self.seed):
            return guides.build(self.model, self.theta, self.data)

    def latents(self) -> dict[str, Tensor]:
        """One value for each latent site of each row, from the story's prior."""
        with seeded(self.seed), torch.no_grad():
            trace = poutine.trace(self.program).get_trace(self.batch)
        return {n: s["value"] for n, s in random_sites(trace).items() if n in self.latent_names}

    @cached_property
    def latent_names(self) -> set[str]:
        return set(latent_sites(self.program, self.batch))

    @cached_property
    def shared(self) -> set[str]:
        """The names of the latents that all rows share."""
        return {n for n, s in latent_sites(self.program, self.batch).items() if not is_row_site(s)}

    def of_rows(self, latents: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The latents of these rows, and what all rows share."""
        return {n: v if n in self.shared else v[rows] for n, v in latents.items()}


@dataclass(frozen=True)
class Verdicts:
    """What `check` found. table: law, name, verdict ("holds", "fails", "does not apply"), error, tolerance, note."""

    table: pd.DataFrame

    @property
    def passed(self) -> bool:
        """No law fails."""
        return not (self.table.verdict == "fails").any()

    def __getitem__(self, law: int) -> str:
        """The verdict of a law by its number."""
        return str(self.table.set_index("law").verdict[law])


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the size of what is compared (at least 1)."""
    a, b = a.detach(), b.detach()
    if not a.numel():  # one latent has nothing below the diagonal of its covariance
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def bayes(bench: Bench) -> tuple[float, float]:
    """Log joint less log posterior, at draws from the prior, against the log marginal."""
    exact, batch, latents = bench.exact, bench.batch, bench.latents()
    posterior, marginal = exact.posterior(bench.theta, batch), exact.log_marginal(bench.theta, batch)
    error = _relative(log_joint(bench.program, batch, latents) - posterior.log_prob(latents), marginal)
    summed = {n: v for n, v in latents.items() if n != posterior.component}
    if len(summed) < len(latents):  # the component left to the story's own sum
        error = max(error, _relative(log_joint(bench.program, batch, summed) - posterior.log_prob(summed), marginal))
    return error, bench.rounding


def tightness(bench: Bench) -> tuple[float, float]:
    """Two scaled halves against the whole, and draws of the ELBO under the exact posterior against the log marginal."""
    error = 0.0
    latents, whole = bench.latents(), bench.batch
    half = bench.data.n_rows // 2
    parts = [torch.arange(0, half), torch.arange(half, 2 * half)]

    def scaled(rows: Tensor, of: Data) -> Tensor:
        held = bench.of_rows(latents, rows)
        return torch.as_tensor(poutine.trace(poutine.condition(bench.program, data=held)).get_trace(of.batch(rows)).log_prob_sum())

    even = bench.data.take(torch.arange(2 * half))
    error = _relative(torch.stack([scaled(rows, even) for rows in parts]).mean(), scaled(torch.arange(2 * half), even))
    exact = bench.forms
    if exact is not None:
        with seeded(bench.seed):
            draws = elbo_rows(bench.program, ExactGuide(exact, bench.theta), whole, 5)
        error = max(error, _relative(draws, exact.log_marginal(bench.theta, whole).expand_as(draws)))
    return error, bench.rounding


def ascent(bench: Bench) -> tuple[float, float]:
    """Twenty EM steps that may not go down, then EM to its end and the gradient there."""
    exact, theta = bench.em, copy.deepcopy(bench.theta)
    chunks = [bench.batch]
    before, worst = -inf, 0.0
    for _ in range(20):
        now = float(exact_log_marginal(exact, theta, bench.data).mean())
        worst = max(worst, (before - now) / (1 + abs(now)))
        before = now
        theta.assign(exact.maximize(theta, sum_statistics(exact, theta, chunks)))
    if worst > 1e-10:
        return worst, 1e-10
    EM(max_steps=20_000, tolerance=1e-15, acceleration="squarem").run(Task(bench.model, bench.data, theta, None, bench.seed))
    if theta.at_floor():
        raise NotApplicable("EM ended on a floor, where the gradient need not vanish")
    return _gain(exact, theta, bench.batch), bench.rounding


def _gain(exact: Exact, theta: Parameters, batch: Batch) -> float:
    """How far log p(x) rises along its gradient in theta, relative, at the best of steps of every length, where theta is left.

    A gradient of 0 leads nowhere. How small one must be depends on how theta is scaled; what it gains does not.
    """
    free = [p for p in theta.parameters() if p.requires_grad]
    with torch.enable_grad():
        top = exact.log_marginal(theta, batch).mean()
        gradients = torch.autograd.grad(top, free)
    start, slope = [p.detach().clone() for p in free], float(sum(g.square().sum() for g in gradients)) ** 0.5
    best = before = float(top.detach())
    with torch.no_grad():
        for length in (2.0**-k for k in range(50)) if slope > 0 else ():
            for p, at, g in zip(free, start, gradients, strict=True):
                p.copy_(at + length / slope * g)
            best = max(best, float(exact.log_marginal(theta, batch).mean()))
    return (best - before) / max(1.0, abs(before))


def coverage(bench: Bench) -> tuple[float, float]:
    """What one M-step returns, against what theta trains."""
    found = bench.em.maximize(bench.theta, sum_statistics(bench.em, bench.theta, [bench.batch]))
    if set(found) != set(bench.theta.trainable):
        raise AssertionError(f"maximize gives {sorted(found)}, but theta trains {sorted(bench.theta.trainable)}")
    try:
        copy.deepcopy(bench.theta).assign(found)
    except ValueError as error:
        raise AssertionError(str(error)) from error
    return 0.0, 0.0


def bound(bench: Bench) -> tuple[float, float]:
    """Where no marginal is known, the rows are emptied: the evidence of a row without entries is 0 in any model."""
    exact, batch = bench.forms, bench.batch
    if exact is None:
        batch = replace(batch, x=torch.zeros_like(batch.x), observed=torch.zeros_like(batch.observed), complete=False)
        evidence = batch.x.new_zeros(batch.size)
    else:
        evidence = exact.log_marginal(bench.theta, batch).detach()
    with seeded(bench.seed), torch.no_grad():
        draws = elbo_rows(bench.program, bench.guide(), batch, 200)
    over = (draws - evidence).mean(1)
    return float(over.mean()), 4 * float(over.std() / len(over) ** 0.5) + bench.rounding


def additivity(bench: Bench) -> tuple[float, float]:
    """Statistics of two unequal parts against those of all rows; and the M-step from statistics that were moved to other means."""
    exact, n = bench.em, bench.data.n_rows
    whole = sum_statistics(exact, bench.theta, [bench.batch])
    parts = sum_statistics(exact, bench.theta, [bench.data.batch(torch.arange(0, n // 3)), bench.data.batch(torch.arange(n // 3, n))])
    error = max(_relative(parts[name], whole[name]) for name in whole)
    if exact.has("recentred"):
        elsewhere = copy.deepcopy(bench.theta)
        with seeded(bench.seed), torch.no_grad():
            for free in (p for p in elsewhere.parameters() if p.requires_grad):
                free.add_(0.1 * torch.randn_like(free))
        here = exact.maximize(bench.theta, whole)
        there = exact.maximize(elsewhere, exact.recentred(bench.theta, whole, elsewhere.values()))
        error = max([error, *(_relative(there[name], here[name]) for name in here)])
    return error, bench.rounding


def one_objective(bench: Bench) -> tuple[float, float]:
    """Loss and gradients of every objective, captured and run by Pyro from the same random state."""
    worst = 0.0
    rows = torch.arange(bench.data.n_rows // 2)  # a minibatch: the N / B scale is part of the objective
    sums_out = any(is_finite(site) for site in sites_of(bench.program, bench.data.head()).values())
    usual = [
        (name, min(of.particles, 3))
        for name, of in OBJECTIVES.items()
        if (of.sums_out or not sums_out) and (of.analytic is not None or not bench.shared)
    ]
    for name, particles in [*usual, ("elbo", 3)]:
        results = []
        for compile in ("auto", False):
            guide = bench.guide()
            task = Task(bench.model, bench.data, copy.deepcopy(bench.theta), None, bench.seed)
            with seeded(bench.seed):
                step = Step(SVI(steps=1, objective=name, particles=particles, compile=compile), task, guide, bench.data, (rows,))
                if compile == "auto" and not step.engine.startswith("captured"):
                    raise AssertionError(FROZEN) if FROZEN in step.engine else NotApplicable(step.engine)
                for _ in range(2):  # the second run counts: a graph may have frozen what changes from call to call
                    torch.manual_seed(bench.seed)
                    value = step.run(rows)
            results.append([value, *(p.grad for p in step.parameters)])
        worst = max(worst, *(_relative(a, b) for a, b in zip(*results, strict=True)))
    return worst, bench.rounding


def importance_weights(bench: Bench, bound: Rows = OBJECTIVES["iwae"].rows) -> tuple[float, float]:
    """The worst of the three claims, each error in units of its own tolerance. `bound` is the one under trial."""
    latents = {n: s for n, s in sites_of(bench.program, bench.batch).items() if not s["is_observed"]}
    if bench.shared:
        raise NotApplicable("some latents are shared by all rows")
    exact = bench.forms
    log_marginal = None if exact is None else exact.log_marginal(bench.theta, bench.batch).detach()
    worst = 0.0
    if exact is not None and log_marginal is not None:
        with seeded(bench.seed), torch.no_grad():
            bounds = [bound(bench.program, ExactGuide(exact, bench.theta), bench.batch, k) for k in (1, 1, 5, 5, 25, 25)]
        worst = max(_relative(b, log_marginal) for b in bounds) / bench.rounding
    prior = poutine.block(bench.program, hide_fn=lambda site: site["type"] == "sample" and site["name"] not in latents)
    with seeded(bench.seed), torch.no_grad():
        many, few = (torch.stack([bound(bench.program, prior, bench.batch, k) for _ in range(20)]) for k in (50, 5))
        halves = torch.arange(bench.data.n_rows).tensor_split(2)
        parts = torch.cat([torch.stack([bound(bench.program, prior, bench.data.batch(h), 5) for _ in range(20)]) for h in halves], 1)
    worst = max(worst, _above(few - many))  # rises with K
    if log_marginal is not None:
        worst = max(worst, _above(many - log_marginal))  # stays below
    return max(worst, _above(parts - few), _above(few - parts)), 1.0


def mean_field(bench: Bench) -> tuple[float, float]:
    """The worst of three claims, each error in units of its own tolerance."""
    exact = bench.model.closed_forms
    if exact is None or not exact.has("mean_field"):
        raise NotApplicable("the model gives no mean-field bound")
    field = MeanField(Task(bench.model, bench.data, bench.theta, None, bench.seed), point=False)
    point = {name: value for name, value in bench.latents().items() if name in bench.shared}
    moments = {name: field.factors[name].moments_at(value) for name, value in point.items()}
    at_point = log_joint(bench.program, bench.batch, point, given_shared=True)
    worst = _relative(exact.mean_field(bench.theta, moments, bench.batch), at_point) / bench.rounding

    with seeded(bench.seed), torch.no_grad():
        sites = random_sites(poutine.trace(in_draws(field.guide, 500)).get_trace(bench.batch))
        drawn = log_terms(bench.program, bench.batch, {n: site["value"] for n, site in sites.items()}, 500)  # (K, S, B)
        bound = exact.mean_field(bench.theta, {n: part.moments() for n, part in field.factors.items()}, bench.batch)
    log_q = drawn.mean(1, keepdim=True).log_softmax(0)  # the best q(k) for these draws
    excess = bound - (log_q.exp() * (drawn - log_q)).sum(0)
    whole = bench.batch.observed.all(1)
    worst = max(worst, _above(excess), _above(-excess[:, whole]) if whole.any() else 0.0)

    bounds = [bound for _, bound in islice(field.climb(), 20)]
    return max(worst, max((a - b) / (1e-10 * (1 + abs(b))) for a, b in pairwise(bounds))), 1.0


def _above(difference: Tensor) -> float:
    """How far the mean of a difference, of independent repeats (R, N), lies above 0, in units of 4 standard errors."""
    means = difference.mean(1)
    return float(means.mean() / (4 * means.std() / len(means) ** 0.5 + ROUNDING))


def missing(bench: Bench) -> tuple[float, float]:
    """Remove one entry of each of a few rows, and sum or integrate over all that it may be: both scores must agree. Columns of other kinds
    are tried apart."""
    return max(_removed(bench, columns, outcomes) for columns, outcomes in _kinds(bench)), bench.rounding


def _removed(bench: Bench, columns: Sequence[int], outcomes: Tensor | None) -> float:
    """The error where each of a few rows loses an entry of one of these columns."""
    rows = torch.arange(min(4, bench.data.n_rows))
    column = torch.tensor(columns)[rows % len(columns)]
    latents = bench.of_rows(bench.latents(), rows)
    score = _joint(bench, latents) if bench.forms is None else _marginal(bench, bench.forms)

    batch = bench.data.batch(rows)
    observed = batch.observed.clone()
    observed[rows, column] = False
    holes = replace(batch, x=torch.where(observed, batch.x, 0.0), observed=observed, complete=False)
    seen = batch.observed.clone()
    seen[rows, column] = True

    def filled(values: Tensor) -> Tensor:
        """The score of each row with each of its values (rows, n) in the place of its removed entry."""
        n = values.shape[1]
        x = batch.x.repeat_interleave(n, 0)
        x[torch.arange(len(x)), column.repeat_interleave(n)] = values.flatten()
        context = None if batch.context is None else batch.context.repeat_interleave(n, 0)
        full = replace(batch, x=x, observed=seen.repeat_interleave(n, 0), index=rows.repeat_interleave(n), context=context, n_total=len(x))
        return score(full, n).detach().reshape(len(rows), n)

    if outcomes is None:
        integrated = log_integral(filled, bench.data.mean[column], bench.data.scale[column])
    else:
        integrated = filled(outcomes.expand(len(rows), -1)).logsumexp(1)
    error = _relative(score(holes, 1), integrated)

    nothing = replace(batch, x=torch.zeros_like(batch.x), observed=torch.zeros_like(batch.observed), complete=False)
    error = max(error, float((score(nothing, 1) - _prior(bench, nothing, latents)).detach().abs().max()))
    garbage = replace(holes, x=torch.where(observed, batch.x, 1e3 if outcomes is None else outcomes[-1]))
    return max(error, _relative(score(garbage, 1), score(holes, 1)))


Score = Callable[[Batch, int], Tensor]


def _marginal(bench: Bench, exact: Exact) -> Score:
    def score(batch: Batch, repeats: int) -> Tensor:
        return exact.log_marginal(bench.theta, batch)

    return score


def _joint(bench: Bench, latents: dict[str, Tensor]) -> Score:
    """The rows' log joint at fixed latents, where there is no marginal: the mask acts in the likelihood, given z."""

    def score(batch: Batch, repeats: int) -> Tensor:
        held = bench.of_rows(latents, torch.arange(batch.size // repeats).repeat_interleave(repeats))
        return log_joint(bench.program, batch, held, given_shared=True)

    return score


def _prior(bench: Bench, batch: Batch, latents: dict[str, Tensor]) -> Tensor:
    """What a wholly missing row must score: 0, or the prior of the latents that are held fixed."""
    if bench.forms is not None:
        return batch.x.new_zeros(batch.size)
    trace = poutine.trace(poutine.condition(bench.program, data=latents)).get_trace(batch)
    trace.compute_log_prob()
    return torch.as_tensor(sum(trace.nodes[name]["log_prob"] / batch.scale for name in latents if name not in bench.shared))


def _kinds(bench: Bench) -> list[tuple[list[int], Tensor | None]]:
    """The columns by what their entries may be, each with the values of those where there are finitely many, and None for real numbers."""
    seen, sites = observed(bench.model, bench.theta, bench.batch), sites_of(bench.program, bench.batch)
    kinds: dict[object, tuple[list[int], Tensor | None]] = {}
    without = "no site observes columns of the table as they are"
    for column in range(bench.data.n_features):
        for name in seen.observers(column):
            support = sites[name]["fn"].support
            base = getattr(support, "base_constraint", support)
            if isinstance(base, type(constraints.boolean)):
                values = [0.0, 1.0]
            elif isinstance(base, constraints.integer_interval):
                values = torch.arange(int(base.lower_bound), int(base.upper_bound) + 1).tolist()
            elif isinstance(base, type(constraints.real)) and not isinstance(unwrapped(sites[name]["fn"]), VonMises):
                values = []
            else:
                without = f"no rule for integrating over {type(base).__name__.strip('_')}"
                continue
            outcomes = torch.tensor(values, dtype=torch.float64) if values else None
            kinds.setdefault(tuple(values), ([], outcomes))[0].append(column)
    if not kinds:
        raise NotApplicable(without)
    return list(kinds.values())


def log_integral(log_density: Callable[[Tensor], Tensor], centre: Tensor, width: Tensor) -> Tensor:
    """The log of the integral of exp(log_density) over the real line, (rows,); `log_density` takes values (rows, n).

    The line is mapped by sinh: dense near the centre, out to 10^4 widths, and the trapezoid rule converges geometrically. Looks at ever
    other widths find the peak and how wide it is, where the column's own mean and sd do not say it: a step out of 10^4, or in of 40.
    """
    for _ in range(LOOKS):
        values, _ = _line(centre, width, 801)
        found = log_density(values)
        peak, top = found.max(1, keepdim=True)
        place = torch.arange(values.shape[1]).expand_as(values)
        low = found < peak - 1
        left = torch.where(low & (place < top), place, 0).amax(1, keepdim=True)
        right = torch.where(low & (place > top), place, values.shape[1] - 1).amin(1, keepdim=True)
        centre, ends = values.gather(1, top).squeeze(1), values.gather(1, torch.cat([left, right], 1))
        width = (ends[:, 1] - ends[:, 0]) / 2
    values, log_step = _line(centre, width, 8001)
    return (log_density(values) + log_step).logsumexp(1) + width.log()


def _line(centre: Tensor, width: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Values along the real line, (rows, points), and the logs of their steps in widths, (points,)."""
    t = torch.linspace(-10, 10, points, dtype=torch.float64)
    return centre.unsqueeze(1) + width.unsqueeze(1) * t.sinh(), (t.cosh() * (t[1] - t[0])).log()


LAWS: dict[int, tuple[str, Callable[[Bench], tuple[float, float]]]] = {
    1: ("Bayes", bayes),
    2: ("tightness", tightness),
    3: ("ascent", ascent),
    4: ("coverage", coverage),
    5: ("bound", bound),
    6: ("additivity", additivity),
    7: ("one objective", one_objective),
    8: ("missing", missing),
    9: ("importance weights", importance_weights),
    10: ("mean field", mean_field),
}


def check(model: Model, data: object, *, seed: int = 0, only: Iterable[int] = LAWS) -> Verdicts:
    """Check a model, yours too, against the laws, on up to 200 rows of the data. `only`: the numbers of the laws to check.

    Raises ValueError for data that the model cannot take, and for a story that fails, as `ppvae.fit` does.

    >>> import ppvae
    >>> verdicts = check(ppvae.models.PPCA(n_latents=1), ppvae.load_data("iris"))
    >>> verdicts.passed, verdicts[1]
    (True, 'holds')
    """
    data = prepare(check_model(model), as_data(data), None)
    with seeded(seed):
        few = data.take(torch.randperm(data.n_rows)[:ROWS].sort().values) if data.n_rows > ROWS else data
    theta = start(model, few, seed)
    traced(model, theta, few)  # what else may be wrong with a story is for the laws to say
    bench = Bench(model, few, theta, seed)
    rows = []
    with pyro.validation_enabled(False), seeded(seed):
        for number in only:
            name, law = LAWS[number]
            try:
                error, tolerance = law(bench)
                verdict, note = ("holds" if error <= tolerance else "fails"), ""
            except NotApplicable as reason:
                error, tolerance, verdict, note = np.nan, np.nan, "does not apply", str(reason)
            except (AssertionError, ValueError, RuntimeError, ArithmeticError) as problem:
                error, tolerance, verdict, note = np.nan, np.nan, "fails", f"{type(problem).__name__}: {problem}"
            rows.append({"law": number, "name": name, "verdict": verdict, "error": error, "tolerance": tolerance, "note": note})
    return Verdicts(pd.DataFrame(rows))
