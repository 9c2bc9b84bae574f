"""Missing entries given the observed ones: conditional means, proper multiple imputations, their coverage, and pooling over them.

Missing at random is assumed: whether an entry is missing may depend on what is observed, not on what is missing.
"""

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from ppvae.criticism.predictive import mean_of, posterior_draws
from ppvae.data import Batch, Data, check_share
from ppvae.distributions import MaskedNormal
from ppvae.exact import Exact
from ppvae.inference.method import seeded
from ppvae.messages import few
from ppvae.options import counted
from ppvae.program.joint import Site, finite_draws, in_draws, is_finite, latent_sites, log_joint, random_sites, unwrapped
from ppvae.program.observed import Observed
from ppvae.program.widened import weighted_draws
from ppvae.scores import warn_of_few
from ppvae.tables import as_frame, column_names, completed_like, rounded_by_float64

if TYPE_CHECKING:
    from ppvae.inference.result import Fit

ENTRIES = 2**21  # numbers in one run of the story
SHARED = 200  # draws of what all rows share
WEIGHTED = 1000  # draws of a row's latents where they are weighted by importance
RESAMPLES = 1000  # tries to draw rows among which every column is observed
FAR = 20  # times as far from the means, in standard deviations, as anything observed in the row: no regression that holds up goes there


@dataclass(frozen=True)
class Latents:
    """Latents of the rows of a batch, S of each, with their weights: {site: (S, B, ...)}, weights (S, B) summing to 1 over S.

    effective_sample_size: (B,), how many draws of equal weight those weighted by importance are worth; inf where none had to be weighted.
    """

    values: dict[str, Tensor]
    weights: Tensor
    effective_sample_size: Tensor

    @classmethod
    def equal(cls, values: dict[str, Tensor], draws: int, effective_sample_size: Tensor) -> "Latents":
        """Draws of equal weight."""
        return cls(values, torch.full_like(effective_sample_size, 1 / draws).expand(draws, -1), effective_sample_size)

    def resample(self, draws: int) -> "Latents":
        """`draws` of them for each row, in proportion to their weights, now of equal weight. Uses torch's global generator."""
        chosen = torch.multinomial(self.weights.mT, draws, replacement=True).mT
        rows = torch.arange(chosen.shape[1], device=chosen.device)
        return Latents.equal({name: v[chosen, rows] for name, v in self.values.items()}, draws, self.effective_sample_size)


def posterior_latents(fit: "Fit", exact: Exact | None, batch: Batch, draws: int | None) -> Latents:
    """The latents of each row given its observed entries.

    exact: the closed forms of these rows, if there are any. With them: `draws` exact draws; or, for draws=None, the mean of each component
    with the component's weight, from which every expectation that is linear in z is exact. Without: draws from the guide, weighted by
    importance; where the rows share latents, draws of those and of each row's own given them, of equal weight. Finite latents that the
    guide leaves out are drawn given the others; where there are no others, every combination of their values counts by its probability.
    """
    if fit.shared:
        return latents_given_shared(fit, batch, draws or SHARED)
    unweighted, sites = torch.full_like(batch.x[:, 0], torch.inf), latent_sites(fit.program, batch)
    if sites and all(is_finite(site) for site in sites.values()) and (exact is None or len(sites) > 1):
        found = combinations(fit, sites, batch)
        return found if draws is None else found.resample(draws)
    if exact is not None:
        posterior = exact.posterior(fit.theta, batch)
        if draws is not None:
            return Latents.equal(posterior.sample(draws), draws, unweighted)
        values = {} if posterior.latent is None else {posterior.latent: posterior.shaped(posterior.loc.transpose(0, 1))}
        if posterior.component is not None:
            parts = torch.arange(posterior.loc.shape[1], device=batch.x.device)
            values[posterior.component] = parts.unsqueeze(1).expand(-1, batch.size)
        return Latents(values, posterior.log_weights.exp().mT, unweighted)
    values, log_weights = weighted_draws(fit.program, fit.guide, batch, WEIGHTED)
    weights = log_weights.softmax(0)
    values |= finite_draws(fit.program, batch, values, [name for name in sites if name not in values], WEIGHTED)
    found = Latents(values, weights, 1 / weights.square().sum(0))
    return found if draws is None else found.resample(draws)


def combinations(fit: "Fit", sites: dict[str, Site], batch: Batch) -> Latents:
    """Every combination of the values of finite latents, with its probability in each row; draws where there are too many."""
    unweighted = torch.full_like(batch.x[:, 0], torch.inf)
    supports = {name: site["fn"].enumerate_support(expand=False) for name, site in sites.items()}
    count = prod(len(support) for support in supports.values())
    if count > WEIGHTED:
        return Latents.equal(finite_draws(fit.program, batch, {}, list(sites), WEIGHTED), WEIGHTED, unweighted)
    places = torch.cartesian_prod(*(torch.arange(len(support), device=batch.x.device) for support in supports.values())).reshape(count, -1)
    values = {}
    for place, (name, support) in zip(places.unbind(1), supports.items(), strict=True):
        shape = sites[name]["fn"].event_shape
        values[name] = support.reshape(len(support), *shape)[place].unsqueeze(1).expand(count, batch.size, *shape)
    return Latents(values, log_joint(fit.program, batch, values, count).softmax(0), unweighted)


def latents_given_shared(fit: "Fit", batch: Batch, draws: int) -> Latents:
    """Draws from the guide, {site: (S, B, ...)} and (S, 1, ...) for what all rows share; a site that it leaves out, given those."""
    unweighted = torch.full_like(batch.x[:, 0], torch.inf)
    sites = random_sites(poutine.trace(in_draws(fit.guide, draws)).get_trace(batch))
    values = {name: site["value"] for name, site in sites.items()}
    left = {name: site for name, site in latent_sites(fit.program, batch).items() if name not in values}
    if all(site["fn"].has_enumerate_support for site in left.values()):
        return Latents.equal(values | finite_draws(fit.program, batch, values, list(left), draws), draws, unweighted)
    each = [posterior_draws(fit.model, fit.theta, fit.guide, batch, 1) for _ in range(draws)]
    stacked = {name: torch.stack([drawn[name] for drawn in each]) for name in each[0]}
    return Latents.equal({name: v.unsqueeze(1) if name in fit.shared else v for name, v in stacked.items()}, draws, unweighted)


def _row_distributions(fit: "Fit", seen: Observed, batch: Batch, latents: Latents) -> dict[str, pyro.distributions.TorchDistribution]:
    """The story's distribution of each observed site that has missing entries, at these latents, (S, B) in shape.

    Raises ValueError for one that does not say how a row's missing entries depend on its observed ones.
    """
    draws = latents.weights.shape[0]
    story = poutine.condition(in_draws(fit.program, draws), data=latents.values)
    sites = random_sites(poutine.trace(story).get_trace(batch))
    holed = [name for name, columns in seen.columns.items() if not batch.observed[:, columns].all()]
    for name in holed:
        base, there = unwrapped(sites[name]["fn"]), batch.observed[:, seen.columns[name]]
        some = bool((there.any(1) & ~there.all(1)).any())
        if (some or name in seen.totals) and base.event_shape and not isinstance(base, MaskedNormal):
            raise ValueError(
                f"{fit.model.name}: {type(base).__name__} does not say how the missing entries of a row depend on the observed ones: "
                f"impute with a model whose {name} is normal, or a distribution of single entries given the latents, .to_event(1)"
            )
    return {name: sites[name]["fn"] for name in holed}


def _mean(fn: pyro.distributions.TorchDistribution, value: Tensor) -> Tensor | None:
    """E[missing entries | observed ones] of a site with this value; None where it has no formula."""
    base = unwrapped(fn)
    return base.conditional(value)[0] if isinstance(base, MaskedNormal) else mean_of(fn)


def _draw(fn: pyro.distributions.TorchDistribution, value: Tensor) -> Tensor:
    base = unwrapped(fn)
    return base.complete(value) if isinstance(base, MaskedNormal) else fn.sample()


def _readable(fit: "Fit", data: Data) -> Observed:
    """What the story observes of these rows. Raises ValueError where that does not say what their missing entries may be."""
    seen = fit.observed(data.batch())
    holes = ~data.observed.all(0)
    seen.check_table(holes.nonzero().flatten().tolist())
    seen.check_holes(holes)
    return seen


def impute(fit: "Fit", source: Any, draws: int | None, seed: int, bootstrap: bool) -> Any:
    """What `fit.impute` gives: the means in the form of `source`, or `draws` tables (M, N, D) in the order of its columns."""
    if draws is None and bootstrap:
        raise ValueError("bootstrap draws the parameters of each table: say how many tables, draws=20")
    if bootstrap and fit.numbered:
        raise ValueError(
            f"{fit.model.name}: rows cannot be drawn anew where the story or the guide reads their numbers: leave bootstrap out"
        )
    draws = None if draws is None else counted(draws, "draws")
    own = fit.trained_on.table(source, besides=True)
    data = fit.take(own)
    with seeded(seed, fit.device):
        if draws is None:
            filled, sizes = conditional_mean(fit, data)
        else:
            filled, sizes = bootstrapped_draws(fit, data, draws, seed) if bootstrap else proper_draws(fit, data, draws)
    warn_of_few(sizes, WEIGHTED, data, "their imputations are rough (fit.imputation_sample_size), so train the guide for longer")
    warn_of_far(fit, filled, data)
    values = own.given_back(filled, fit.trained_on).cpu().numpy()
    whole = completed_like(source, own.columns, values) if draws is None else values
    if whole is values:
        warn_of_rounding(source, own)
    return whole


def warn_of_rounding(source: Any, own: Data) -> None:
    """Warn where an array of float64 cannot hold what was observed."""
    frame = pd.DataFrame(source) if isinstance(source, np.ndarray) and source.ndim == 2 and source.dtype.kind in "iuO" else as_frame(source)
    if frame is None:
        return
    names = own.columns if len(frame.columns) == own.n_features else column_names(frame)
    rounded = [name for place, name in enumerate(names) if name in own.columns and rounded_by_float64(frame.iloc[:, place])]
    if rounded:
        warnings.warn(
            f"what is observed in {few(rounded)} is rounded to float64, in which whole numbers are exact up to 2^53: "
            "impute a frame without draws, which keeps them",
            stacklevel=4,
        )


def warn_of_far(fit: "Fit", filled: Tensor, data: Data) -> None:
    """Warn, once, where imputed entries (..., N, D) lie much further out than anything that was observed in their rows."""
    mean, scale = (filled.new_tensor(value) for value in (fit.trained_on.mean, fit.trained_on.scale))
    distance = ((filled - mean) / scale).abs().reshape(-1, *data.x.shape)
    observed = torch.where(data.observed, distance, 1.0).amax(-1, keepdim=True).clamp(min=1.0)
    excess = torch.where(data.observed, 0.0, distance / observed)
    if not (excess > FAR).any():
        return
    table, row, column = np.unravel_index(int(excess.argmax()), excess.shape)
    reason = fit.model.no_density or "its row's observed entries do not determine it, so use a model with fewer parameters, or more rows"
    warnings.warn(
        f"{data.columns[column]} of row {row} is imputed {distance[table, row, column]:.3g} standard deviations from its mean: {reason}",
        stacklevel=4,
    )


def conditional_mean(fit: "Fit", data: Data) -> tuple[Tensor, Tensor]:
    """(N, D): the table with E[x_missing | x_observed, theta] in its holes; and (N,) each row's effective sample size (`Latents`).

    Uses torch's global generator where it is not exact. Raises ValueError where such a mean does not exist.
    """
    tables, sizes = [], []
    seen = _readable(fit, data)
    with torch.no_grad(), pyro.validation_enabled(False):
        exact = fit.exact_on(data)
        for batch in data.chunks(_rows(data, WEIGHTED if exact is None else 16)):
            latents = posterior_latents(fit, exact, batch, None)
            expected = batch.x.clone()
            for name, fn in _row_distributions(fit, seen, batch, latents).items():
                found = _mean(fn, seen.value(name, batch.x))
                mean = expected.new_full((1,), torch.nan) if found is None else seen.flat(name, found)
                expected[:, seen.columns[name]] = (latents.weights.unsqueeze(-1) * mean).sum(0) if mean.ndim == 3 else mean
            tables.append(torch.where(batch.observed, batch.x, expected))
            sizes.append(latents.effective_sample_size)
    filled = torch.cat(tables)
    unknown = data.columns[int((~torch.isfinite(filled)).any(0).int().argmax())] if not torch.isfinite(filled).all() else None
    if unknown is not None:
        raise ValueError(
            f"{fit.model.name}: a missing entry of {unknown} has no finite mean under this fit, as classes have none: draw them instead, "
            "impute(data, draws=20)"
        )
    return filled, torch.cat(sizes)


def proper_draws(fit: "Fit", data: Data, draws: int) -> tuple[Tensor, Tensor]:
    """(M, N, D): completed tables, latents and noise drawn; and sizes as in `conditional_mean`. Uses torch's global generator."""
    tables, sizes = [], []
    seen = _readable(fit, data)
    with torch.no_grad(), pyro.validation_enabled(False):
        exact = fit.exact_on(data)
        for batch in data.chunks(_rows(data, max(draws, WEIGHTED if exact is None else 0))):
            latents = posterior_latents(fit, exact, batch, draws)
            drawn = batch.x.repeat(draws, 1, 1)
            for name, fn in _row_distributions(fit, seen, batch, latents).items():
                drawn[..., seen.columns[name]] = seen.flat(name, _draw(fn, seen.value(name, batch.x))).to(drawn)
            tables.append(torch.where(batch.observed, batch.x, drawn))
            sizes.append(latents.effective_sample_size)
    return torch.cat(tables, 1), torch.cat(sizes)


def _rows(data: Data, draws: int) -> int:
    return max(1, ENTRIES // (draws * data.n_features))


def bootstrapped_draws(fit: "Fit", data: Data, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """(M, N, D): each completed table from parameters of their own, refitted to rows drawn with replacement (Efron 1994); and the least
    sizes as in `conditional_mean`.

    Rows are drawn such that every column is observed in some of them. The refits start from this fit's parameters and guide, and use its
    method. Raises ValueError where columns are observed in so few rows that no such draw is found.
    """
    from ppvae.inference.fit import run

    tables, sizes = [], []
    for m in range(draws):
        with seeded((seed + m) % 2**63, data.device) as generator:
            theta = copy.deepcopy(fit.theta)
            again = run(fit.method, fit.model, resampled(data, generator), theta, seed=(seed + m) % 2**63, guide=fit.guide)
            table, size = proper_draws(again, data, 1)
        tables.append(table)
        sizes.append(size)
    return torch.cat(tables), torch.stack(sizes).amin(0)


def resampled(data: Data, generator: torch.Generator) -> Data:
    """N rows drawn with replacement, such that every column is observed in some of them."""
    for _ in range(RESAMPLES):
        drawn = data.take(torch.randint(data.n_rows, (data.n_rows,), generator=generator).to(data.device))
        if not drawn.unobserved:
            return drawn
    rarest = data.columns[int(data.n_observed.argmin())]
    raise ValueError(
        f"bootstrap: each of {RESAMPLES} draws of the rows left a column without entries, and {rarest} has fewest: drop it, or bootstrap"
    )


@dataclass(frozen=True)
class Pooled:
    """An estimate over M imputations (Rubin 1987, section 3.3), each (P,).

    With U the mean of the M variances, B the variance of the M estimates and T = U + (1 + 1/M) B:

    estimate: the mean of the M estimates.  standard_error: sqrt(T).  missing_variance: lambda = (1 + 1/M) B / T, the share of the variance
    that the missing entries cause.  degrees_of_freedom: nu = (M - 1) / lambda^2, of the estimate's t distribution.  missing_information:
    gamma = lambda + (1 - lambda) 2 / (nu + 3), the fraction of information about the estimate that is missing ("fmi"): lambda,
    corrected for a finite number of imputations (van Buuren 2018, section 2.3.5).  Where the analysis gives no variance, U = 0, it says
    nothing of such a share: lambda and gamma are NaN, and nu is M - 1.
    """

    estimate: np.ndarray
    standard_error: np.ndarray
    degrees_of_freedom: np.ndarray
    missing_variance: np.ndarray
    missing_information: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The confidence interval of each estimate. Raises ValueError for a level that is not between 0 and 1."""
        check_share("level is a share", level)
        half = stats.t.ppf((1 + level) / 2, self.degrees_of_freedom) * self.standard_error
        return self.estimate - half, self.estimate + half


def pool(tables: Iterable, analysis: Callable[[Any], tuple[Any, Any]]) -> Pooled:
    """Pool an analysis of completed tables by Rubin's rules.

    tables: M completed tables, as `fit.impute(data, draws=M)` gives them.  analysis: table -> (estimate, its variance), numbers or (P,).
    Raises ValueError for fewer than 2 tables, for one table in the place of several, and for what is no such pair of finite numbers, of
    the same shapes for every table.

    >>> tables = [np.array([[1.0], [2.0 + m / 10]]) for m in range(5)]
    >>> pooled = pool(tables, lambda t: (t.mean(0), t.var(0, ddof=1) / len(t)))
    >>> pooled.estimate.round(2).tolist()
    [1.6]
    """
    if not callable(analysis):
        raise ValueError(f"the analysis must be a function of a table, not {analysis!r}")
    single = getattr(tables, "ndim", 3) < 3 or hasattr(tables, "columns")
    if single or not isinstance(tables, Iterable):
        raise ValueError("pool takes several completed tables, as fit.impute(data, draws=20) gives them: not a single one")
    found = [_pair(analysis(table)) for table in tables]
    if len(found) < 2:
        raise ValueError("pooling needs at least 2 imputed tables: raise draws")
    if len({(estimate.shape, variance.shape) for estimate, variance in found}) > 1:
        raise ValueError("the analysis must give (estimate, variance) of the same shapes for every table")
    estimates, variances = (np.stack(part) for part in zip(*found, strict=True))
    m, within = len(found), variances.mean(0)
    total = within + (1 + 1 / m) * estimates.var(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(within > 0, 1 - within / total, np.nan)  # exactly 0 where the estimates differ by rounding alone
        freedom = np.where(within > 0, (m - 1) / share**2, m - 1)
    return Pooled(estimates.mean(0), np.sqrt(total), freedom, share, share + (1 - share) * 2 / (freedom + 3))


def _pair(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """An estimate and its variance, as arrays of at least one dimension."""
    try:
        estimate, variance = (np.atleast_1d(np.asarray(part, dtype=float)) for part in result)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the analysis must give (estimate, its variance), two numbers or arrays, not {result!r}") from error
    if estimate.shape != variance.shape:
        remedy = "of a covariance matrix take the diagonal" if variance.shape == estimate.shape * 2 else "one variance for each estimate"
        raise ValueError(f"the analysis gives an estimate of shape {estimate.shape} but variances of shape {variance.shape}: {remedy}")
    if not (np.isfinite(estimate).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise ValueError("the analysis must give finite estimates and variances from 0 up: a variance is the square of a standard error")
    return estimate, variance


def coverage(
    fit: "Fit", data: Any, share: float = 0.1, draws: int = 200, levels: Iterable[float] = (0.5, 0.8, 0.95), seed: int = 0
) -> pd.DataFrame:
    """Hide a share of the known entries, and see how often their intervals cover them.

    Each hidden entry's interval is the central one of its `draws` imputations under the fit's parameters (which have seen the entry: the
    report is about the spread of the imputations, not about theta). Columns: level, covered, standard_error, entries.

    Raises ValueError for a share that hides nothing or a whole column, for levels that are not between 0 and 1 or need more draws, and for
    a model without a density of rows.
    """
    if fit.model.no_density:
        raise ValueError(f"no coverage: {fit.model.no_density}")
    draws = counted(draws, "draws")
    levels = _levels(levels, draws)
    data = fit.take(data)
    with seeded(seed, data.device):
        holes = data.with_holes(share, seed)
        tables, sizes = proper_draws(fit, holes, draws)
    hide = data.observed & ~holes.observed
    warn_of_few(sizes, WEIGHTED, holes, "their intervals are rough, so train the guide for longer")
    drawn = tables[:, hide]
    truth = data.x[hide]
    rows = []
    for level in levels:
        # The truth's rank among M draws is uniform over M + 1 places, so the edges lie at that share of M + 1 (Hyndman & Fan 1996, type 6).
        tail = max(((draws + 1) * (1 - level) / 2 - 1) / (draws - 1), 0.0)
        low, high = drawn.quantile(tail, 0), drawn.quantile(1 - tail, 0)
        inside = ((truth >= low) & (truth <= high)).double()
        rows.append(
            {
                "level": level,
                "covered": float(inside.mean()),
                "standard_error": sqrt(level * (1 - level) / len(truth)),
                "entries": len(truth),
            }
        )
    return pd.DataFrame(rows)


def _levels(levels: Any, draws: int) -> list[float]:
    """Levels of intervals from `draws` draws, of which the widest covers (M - 1) / (M + 1)."""
    found = list(levels) if isinstance(levels, Iterable) else [levels]
    if not found:
        raise ValueError("coverage needs at least one level between 0 and 1, such as levels=[0.95]")
    for level in found:
        check_share("a level is a share", level)
        least = ceil(round((1 + level) / (1 - level), 6))
        if draws < least:
            raise ValueError(f"a {level:.6g} interval needs at least {least} draws, not {draws}: raise draws, or lower the level")
    return found


__all__ = ["Pooled", "bootstrapped_draws", "conditional_mean", "coverage", "impute", "pool", "proper_draws"]
