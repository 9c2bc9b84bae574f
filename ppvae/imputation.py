"""Missing entries given the observed ones: conditional means, proper multiple imputations, their coverage, and pooling over them.

Missing at random is assumed: whether an entry is missing may depend on what is observed, not on what is missing.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from ppvae.criticism.predictive import posterior_draws
from ppvae.data import Batch, Data
from ppvae.distributions import MaskedNormal
from ppvae.inference.method import seeded
from ppvae.program.joint import in_draws, latent_sites, log_joint, log_joint_given_shared, random_sites
from ppvae.tables import completed

if TYPE_CHECKING:
    from ppvae.inference.result import Fit

ENTRIES = 2**21  # numbers in one run of the story
SHARED = 200  # draws of what all rows share
WEIGHTED = 1000  # draws of a row's latents where they are weighted by importance


@dataclass(frozen=True)
class Latents:
    """Latents of the rows of a batch, S of each, with their weights: {site: (S, B, ...)}, weights (S, B) summing to 1 over S."""

    values: dict[str, Tensor]
    weights: Tensor

    @property
    def effective_sample_size(self) -> Tensor:
        """(B,): 1 / sum of squared weights."""
        return 1 / self.weights.square().sum(0)

    def resample(self, draws: int) -> "Latents":
        """`draws` of them for each row, in proportion to their weights, now of equal weight. Uses torch's global generator."""
        chosen = torch.multinomial(self.weights.mT, draws, replacement=True).mT
        rows = torch.arange(chosen.shape[1], device=chosen.device)
        return Latents(
            {name: v[chosen, rows] for name, v in self.values.items()}, torch.full_like(self.weights[:1], 1 / draws).expand(draws, -1)
        )


def posterior_latents(fit: "Fit", batch: Batch, draws: int | None) -> Latents:
    """The latents of each row given its observed entries.

    With closed forms: `draws` exact draws; or, for draws=None, the mean of each component with the component's weight, from which every
    expectation that is linear in z is exact. Without: draws from the guide, weighted by importance; where the rows share latents, draws of
    those and of each row's own given them, of equal weight.
    """
    if fit.shared:
        return latents_given_shared(fit, batch, draws or SHARED)
    if fit.exact is not None:
        posterior = fit.exact.posterior(fit.theta, batch)
        if draws is not None:
            values = posterior.sample(draws)
            return Latents(values, batch.x.new_full((draws, batch.size), 1 / draws))
        values = {} if posterior.latent is None else {posterior.latent: posterior.shaped(posterior.loc.transpose(0, 1))}
        if posterior.component is not None:
            parts = torch.arange(posterior.loc.shape[1], device=batch.x.device)
            values[posterior.component] = parts.unsqueeze(1).expand(-1, batch.size)
        return Latents(values, posterior.log_weights.exp().mT)
    trace = poutine.trace(in_draws(fit.guide, WEIGHTED)).get_trace(batch)
    trace.compute_log_prob()
    sites = random_sites(trace)
    values = {name: site["value"] for name, site in sites.items()}
    log_q = sum(site["log_prob"] / batch.scale for site in sites.values())
    found = Latents(values, (log_joint(fit.program, batch, values, WEIGHTED) - log_q).softmax(0))
    return found if draws is None else found.resample(draws)


def latents_given_shared(fit: "Fit", batch: Batch, draws: int) -> Latents:
    """Draws from the guide, {site: (S, B, ...)} and (S, 1, ...) for what all rows share; a site that it leaves out, given those."""
    uniform = batch.x.new_full((draws, batch.size), 1 / draws)
    sites = random_sites(poutine.trace(in_draws(fit.guide, draws)).get_trace(batch))
    values = {name: site["value"] for name, site in sites.items()}
    left = {name: site for name, site in latent_sites(fit.program, batch).items() if name not in values}
    if all(site["fn"].has_enumerate_support for site in left.values()):
        for name in left:
            terms = log_joint_given_shared(fit.program, batch, values, draws)  # (K, S, B)
            values[name] = pyro.distributions.Categorical(logits=terms.movedim(0, -1)).sample()
        return Latents(values, uniform)
    each = [posterior_draws(fit.model, fit.theta, fit.guide, batch, 1) for _ in range(draws)]
    stacked = {name: torch.stack([drawn[name] for drawn in each]) for name in each[0]}
    return Latents({name: v.unsqueeze(1) if name in fit.shared else v for name, v in stacked.items()}, uniform)


def _row_distribution(fit: "Fit", batch: Batch, latents: Latents) -> pyro.distributions.TorchDistribution:
    """The story's distribution of x at these latents, (S, B) in shape."""
    draws = latents.weights.shape[0]
    story = poutine.condition(in_draws(fit.program, draws), data=latents.values)
    return random_sites(poutine.trace(story).get_trace(batch))["x"]["fn"]


def _mean(fn: pyro.distributions.TorchDistribution, x: Tensor) -> Tensor:
    return fn.conditional(x)[0] if isinstance(fn, MaskedNormal) else fn.mean


def _draw(fn: pyro.distributions.TorchDistribution, x: Tensor) -> Tensor:
    return fn.complete(x) if isinstance(fn, MaskedNormal) else fn.sample()


def conditional_mean(fit: "Fit", data: Data) -> tuple[Tensor, Tensor]:
    """(N, D): the table with E[x_missing | x_observed, theta] in its holes; and (N,) each row's effective sample size, inf where exact."""
    tables, sizes = [], []
    with torch.no_grad(), pyro.validation_enabled(False):
        for batch in data.chunks(_rows(data, WEIGHTED if fit.exact is None else 16)):
            latents = posterior_latents(fit, batch, None)
            mean = _mean(_row_distribution(fit, batch, latents), batch.x)
            expected = (latents.weights.unsqueeze(-1) * mean).sum(0) if mean.ndim == 3 else mean
            tables.append(torch.where(batch.observed, batch.x, expected))
            sizes.append(latents.effective_sample_size if fit.exact is None else torch.full_like(batch.x[:, 0], torch.inf))
    return torch.cat(tables), torch.cat(sizes)


def proper_draws(fit: "Fit", data: Data, draws: int) -> Tensor:
    """(M, N, D): completed tables, latents and noise drawn. Uses torch's global generator."""
    tables = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for batch in data.chunks(_rows(data, max(draws, WEIGHTED if fit.exact is None else 0))):
            latents = posterior_latents(fit, batch, draws)
            drawn = _draw(_row_distribution(fit, batch, latents), batch.x)
            tables.append(torch.where(batch.observed, batch.x, drawn))
    return torch.cat(tables, 1)


def _rows(data: Data, draws: int) -> int:
    return max(1, ENTRIES // (draws * data.n_features))


def bootstrapped_draws(fit: "Fit", data: Data, draws: int, seed: int) -> Tensor:
    """(M, N, D): each completed table from parameters of their own, refitted to rows drawn with replacement (Efron 1994).

    The refits start from this fit's parameters and use its method.
    """
    from ppvae.inference.fit import run

    tables = []
    for m in range(draws):
        with seeded(seed + m, data.device) as generator:
            rows = torch.randint(data.n_rows, (data.n_rows,), generator=generator).to(data.device)
        again = run(fit.method, fit.model, data.take(rows), copy.deepcopy(fit.theta).requires_grad_(True), seed=seed + m)
        with seeded(seed + m, data.device):
            tables.append(proper_draws(again, data, 1))
    return torch.cat(tables)


@dataclass(frozen=True)
class Pooled:
    """An estimate over multiple imputations (Rubin 1987, chapter 3), each (P,).

    estimate; standard_error: of the pooled estimate, within and between imputations; degrees_of_freedom: of its t distribution;
    missing_information: the share of the variance that the missing entries cause.
    """

    estimate: np.ndarray
    standard_error: np.ndarray
    degrees_of_freedom: np.ndarray
    missing_information: np.ndarray

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The confidence interval of each estimate."""
        half = stats.t.ppf((1 + level) / 2, self.degrees_of_freedom) * self.standard_error
        return self.estimate - half, self.estimate + half


def pool(tables: Sequence, analysis: Callable[[object], tuple[object, object]]) -> Pooled:
    """Pool an analysis of completed tables by Rubin's rules.

    tables: M completed tables, as `fit.impute(data, draws=M)` gives them.  analysis: table -> (estimate, its variance), numbers or (P,).
    Raises ValueError for fewer than 2 tables or shapes that change from table to table.

    >>> tables = [np.array([[1.0], [2.0 + m / 10]]) for m in range(5)]
    >>> pooled = pool(tables, lambda t: (t.mean(0), t.var(0, ddof=1) / len(t)))
    >>> pooled.estimate.round(2).tolist()
    [1.6]
    """
    if len(tables) < 2:
        raise ValueError("pooling needs at least 2 imputed tables: raise draws")
    found = [analysis(table) for table in tables]
    try:
        estimates, variances = (np.stack([np.atleast_1d(np.asarray(f[i], dtype=float)) for f in found]) for i in (0, 1))
    except ValueError as error:
        raise ValueError("the analysis must give (estimate, variance) of the same shapes for every table") from error
    if estimates.shape != variances.shape:
        raise ValueError(f"the analysis gives estimates of shape {estimates.shape[1:]} but variances of shape {variances.shape[1:]}")
    m = len(tables)
    within, between = variances.mean(0), estimates.var(0, ddof=1)
    total = within + (1 + 1 / m) * between
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, (1 + 1 / m) * between / total, 0.0)
        freedom = np.where(share > 0, (m - 1) / share**2, np.inf)
    return Pooled(estimates.mean(0), np.sqrt(total), freedom, share)


def coverage(
    fit: "Fit", data: Data, share: float = 0.1, draws: int = 200, levels: Sequence[float] = (0.5, 0.8, 0.95), seed: int = 0
) -> pd.DataFrame:
    """Hide a share of the known entries, and see how often their intervals cover them.

    Each hidden entry's interval is the central one of its `draws` imputations under the fit's parameters (which have seen the entry: the
    report is about the spread of the imputations, not about theta). Columns: level, covered, standard_error, entries.

    Raises ValueError for a share that hides nothing or a whole column, and for fewer than 2 draws.
    """
    if draws < 2:
        raise ValueError(f"an interval needs at least 2 draws, not {draws}")
    data = fit.take(data)
    holes = data.with_holes(share, seed)
    hide = data.observed & ~holes.observed
    with seeded(seed, data.device):
        drawn = proper_draws(fit, holes, draws)[:, hide]
    truth = data.x[hide]
    rows = []
    for level in levels:
        # The truth's rank among M draws is uniform over M + 1 places, so the edges lie at that share of M + 1 (Hyndman & Fan 1996, type 6).
        tail = min(max(((draws + 1) * (1 - level) / 2 - 1) / (draws - 1), 0.0), 0.5)
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


def like_source(values: np.ndarray, source: Any, data: Data) -> Any:
    """A completed table in the form in which it came: a pandas or polars frame with its columns, index and dtypes, else an array."""
    if isinstance(source, pd.DataFrame):
        return completed(source, data.columns, values)
    if hasattr(source, "with_columns"):  # polars
        holes = ~data.observed.cpu().numpy()
        filled = [type(source[name])(name, values[:, i]) for i, name in enumerate(data.columns) if holes[:, i].any()]
        return source.with_columns(filled)
    return values


__all__ = ["Pooled", "bootstrapped_draws", "conditional_mean", "coverage", "like_source", "pool", "proper_draws"]
