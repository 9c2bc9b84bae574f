"""Predictive checks: does the fitted model make data like the data?

    p = P(T(x_rep) >= T(x)),  x_rep drawn from the fitted model, ties counted half

A small or a large p says that the model rarely makes a data set with so high or so low a T. Replicates honour missing entries: T sees the
same holes in x_rep as in x. (Gelman et al., Bayesian Data Analysis, 3rd ed., ch. 6.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppvae.criticism.predictive import new_rows, same_rows
from ppvae.data import Data, as_data
from ppvae.options import taken

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppvae.inference.result import Fit

Statistic = Callable[[np.ndarray], object]
Values = dict[str, np.ndarray]

ROWS_KINDS = {"same": "the same rows", "new": "new rows"}

FEWEST = 20  # draws: the tails of 2.5 % are half a draw each

# 64 features have 2016 pairs. Wider tables get one number a feature instead: nobody reads 300,000 correlations.
MOST_FEATURES_IN_PAIRS = 64


@dataclass(frozen=True)
class Criticism:
    """What `check` found.

    table: a row for each kind of replicate, statistic and feature: rows_kind ("same" or "new"), statistic, feature, observed,
        replicated_mean, replicated_sd, p_value. `p_value` is NaN where the statistic is undefined (the skewness of a constant).
    draws: {"same" | "new": {statistic: (S, F)}}, the replicated statistics, F features in the table's order.
    """

    fit: Fit = field(repr=False)
    data: Data
    table: pd.DataFrame = field(repr=False)
    draws: dict[str, Values] = field(repr=False)
    seed: int = 0

    @property
    def n_draws(self) -> int:
        return len(next(iter(self.draws["same"].values())))

    @property
    def surprising(self) -> pd.DataFrame:
        """The rows of the table whose observed value lies outside the central 95 % of its replicates, the furthest (in sd) first."""
        outside = self.table[(self.table["p_value"] < 0.025) | (self.table["p_value"] > 0.975)]
        distance = (outside["observed"] - outside["replicated_mean"]).abs() / outside["replicated_sd"]
        return outside.loc[distance.sort_values(ascending=False, kind="stable").index]

    @property
    def summary(self) -> str:
        """One sentence: how many statistics lie outside the central 95 % of their replicates."""
        defined = self.table.dropna(subset="p_value")
        outside = self.surprising
        parts = [
            f"{(outside['rows_kind'] == kind).sum()} of {(defined['rows_kind'] == kind).sum()} statistics for {words}"
            for kind, words in ROWS_KINDS.items()
        ]
        undefined = len(self.table) - len(defined)
        left_out = f" ({undefined} undefined: a constant has no skewness or correlation)" if undefined else ""
        return f"{' and '.join(parts)} lie outside the central 95 % of their replicates{left_out}"

    def __str__(self) -> str:
        """The summary, and the table."""
        return f"{self.summary}\n{self.table.to_string(index=False, float_format=lambda value: f'{value:.4g}')}"

    def plot(self) -> Figure:
        """Each observed statistic within its replicates."""
        from ppvae import report

        return report.checks(self)

    def to_arviz(self):
        """The fit on this data for ArviZ, with as many draws as the check had: `InferenceData` (0.23) or `DataTree` (1.x)."""
        return self.fit.to_arviz(self.data, draws=self.n_draws, seed=self.seed)


def check(
    fit: Fit, data: object, statistics: Statistic | dict[str, Statistic] | None = None, *, draws: int = 200, seed: int = 0
) -> Criticism:
    """Compare statistics of the data with the same statistics of data drawn from the fit.

    data: what was fitted, or other rows of the same features.
    statistics: None for the mean, sd, min, max and skewness of each feature and the correlation of each pair of features (above 64
        features: the root mean square of each feature's correlations); or a function T(x), or {name: T}, of an (N, D) array with NaN
        where missing that returns a number or a vector (one number a feature, or any length).
    draws: replicated data sets of each kind: "same" rows keep their latents' posterior, "new" rows draw latents from the prior.

    Raises ValueError for a T that fails, or whose result is not numbers of one shape, for fewer than 20 draws, and for a story whose rows
    cannot be drawn.

    >>> import ppvae
    >>> data = ppvae.load_data("faithful")
    >>> criticism = ppvae.check(ppvae.fit(ppvae.models.PPCA(n_latents=1), data), data, np.nanmedian, draws=20)
    >>> criticism.table["rows_kind"].tolist(), criticism.table["statistic"].tolist()
    (['same', 'new'], ['nanmedian', 'nanmedian'])
    """
    from ppvae.inference.result import Fit

    if not isinstance(fit, Fit):
        raise ValueError(f"check takes what ppvae.fit gives, not {fit!r}: fit the model first, or see ppvae.laws.check")
    if taken(draws, int, "draws") < FEWEST:
        raise ValueError(f"a p-value from {draws} draws says little: ask for at least {FEWEST}")
    data = fit.take(as_data(data))
    seen = fit.observed(data.batch())
    evaluate = standard_statistics if statistics is None else _users(statistics)
    mask = data.observed.cpu().numpy()
    observed = {name: value[0] for name, value in evaluate(data.x.double().cpu().numpy()[None], mask).items()}
    batch = data.batch()
    replicates = {
        "same": same_rows(fit.model, fit.theta, batch, draws, seed, fit.guide, seen),
        "new": new_rows(fit.model, fit.theta, batch, draws, seed, fit.guide, seen),
    }
    replicated = {
        kind: _joined(evaluate(seen.table(block).double().cpu().numpy(), mask) for block in blocks) for kind, blocks in replicates.items()
    }
    tables = [_table(kind, name, data.columns, observed[name], replicated[kind][name]) for kind in ROWS_KINDS for name in observed]
    return Criticism(fit, data, pd.concat(tables, ignore_index=True), replicated, seed)


def p_value(observed: np.ndarray | float, replicated: np.ndarray) -> np.ndarray:
    """P(T(x_rep) >= T(x)) over the draws, ties counted half: 1/2 for a statistic that is always the observed one.

    replicated: (S, ...), T of each replicate.  observed: (...), T of the data; or (S, ...) where T depends on parameters too and so
    has a value for each of their draws, T(x, theta_s) beside T(x_rep_s, theta_s). Draws in which either is NaN are left out; NaN where
    none is left.

    >>> p_value(1.0, np.array([0.0, 1.0, 1.0, 3.0]))
    array(0.5)
    """
    replicated = np.asarray(replicated, dtype=float)
    defined = ~np.isnan(replicated) & ~np.isnan(observed)
    # Equal up to the order in which a sum was rounded.
    tied = np.isclose(replicated, observed, rtol=1e-9, atol=0.0)
    score = np.where(tied, 0.5, replicated > observed)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, score, 0.0).sum(0) / defined.sum(0))


def standard_statistics(x: np.ndarray, observed: np.ndarray) -> Values:
    """The default statistics of S tables at once: {name: (S, F)} for x (S, N, D) and its mask (N, D)."""
    values = moments(x, observed)
    n_features = x.shape[-1]
    if n_features > MOST_FEATURES_IN_PAIRS:  # one D x D matrix at a time
        values["rms correlation"] = np.stack([_rms_with_others(correlations(table, observed)) for table in x])
    elif n_features > 1:
        first, second = np.triu_indices(n_features, 1)
        values["correlation"] = correlations(x, observed)[..., first, second]
    return values


def _rms_with_others(pairs: np.ndarray) -> np.ndarray:
    """(D,): the root mean square of each feature's correlations with the others, undefined ones left out."""
    squares = pairs**2
    np.fill_diagonal(squares, np.nan)
    defined = ~np.isnan(squares)
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.where(defined, squares, 0.0).sum(-1) / defined.sum(-1))


def moments(x: np.ndarray, observed: np.ndarray) -> Values:
    """Mean, sd (divisor n), min, max and skewness of each feature's observed entries: (..., D) each, for x (..., N, D).

    >>> {name: value.item() for name, value in moments(np.array([[1.0], [3.0]]), np.array([[True], [True]])).items()}
    {'mean': 2.0, 'sd': 1.0, 'min': 1.0, 'max': 3.0, 'skewness': 0.0}
    """
    n = observed.sum(-2)
    low = np.where(n > 0, np.where(observed, x, np.inf).min(-2), np.nan)
    high = np.where(n > 0, np.where(observed, x, -np.inf).max(-2), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A constant's mean and spread are known without rounding.
        mean = np.where(low == high, low, np.where(observed, x, 0.0).sum(-2) / n)
        centred = np.where(observed, x - mean[..., None, :], 0.0)
        sd = np.sqrt((centred**2).sum(-2) / n)
        skewness = (centred**3).sum(-2) / n / sd**3
    return {"mean": mean, "sd": sd, "min": low, "max": high, "skewness": skewness}


def correlations(x: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """(..., D, D): the correlation of each pair of features over the rows that have both; NaN where either is constant there."""
    scale = moments(x, observed)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(observed, (x - scale["mean"][..., None, :]) / scale["sd"][..., None, :], 0.0)
        turned = z.swapaxes(-1, -2)
        if observed.all():
            return np.clip(turned @ z / len(observed), -1.0, 1.0)
        seen = np.broadcast_to(observed, z.shape).astype(float)
        both = observed.astype(float).T @ observed
        mean = turned @ seen / both
        variance = turned**2 @ seen / both - mean**2
        variance = np.where(variance > 1e-12, variance, np.nan)  # in units of the whole column's: less is rounding
        covariance = turned @ z / both - mean * mean.swapaxes(-1, -2)
        return np.clip(covariance / np.sqrt(variance * variance.swapaxes(-1, -2)), -1.0, 1.0)


def _users(statistics: Statistic | dict[str, Statistic]) -> Callable[[np.ndarray, np.ndarray], Values]:
    """The user's functions, called table by table with NaN where missing."""
    named = statistics if isinstance(statistics, dict) else {getattr(statistics, "__name__", "statistic"): statistics}
    wrong = [name for name, function in named.items() if not callable(function)]
    if wrong or not named:
        raise ValueError("statistics must be a function T(x) of an (N, D) array, or a dict {name: T}")

    def evaluate(x: np.ndarray, observed: np.ndarray) -> Values:
        tables = np.where(observed, x, np.nan)
        return {name: _stacked(name, [_numbers(name, function, table.copy()) for table in tables]) for name, function in named.items()}

    return evaluate


def _numbers(name: str, function: Statistic, table: np.ndarray) -> np.ndarray:
    wants = f"it must take an {table.shape} array with NaN where missing and return a number or a vector"
    try:
        result = function(table)
    except Exception as error:  # the user's own code: whatever it raises, say which statistic it was
        raise ValueError(f"the statistic {name!r} failed ({type(error).__name__}: {error}): {wants}") from error
    try:
        values = np.atleast_1d(np.asarray(result, dtype=float))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the statistic {name!r} returned {result!r}: {wants}") from error
    if values.ndim != 1:
        raise ValueError(f"the statistic {name!r} returned an array of shape {values.shape}: {wants}")
    return values


def _stacked(name: str, values: list[np.ndarray]) -> np.ndarray:
    sizes = {len(v) for v in values}
    if len(sizes) > 1:
        raise ValueError(
            f"the statistic {name!r} returned {min(sizes)} and {max(sizes)} numbers for tables of one shape: return as many for each"
        )
    return np.stack(values)


def _joined(parts: Iterable[Values]) -> Values:
    found = list(parts)
    return {name: _stacked(name, [row for part in found for row in part[name]]) for name in found[0]}


def _table(kind: str, name: str, columns: tuple[str, ...], observed: np.ndarray, replicated: np.ndarray) -> pd.DataFrame:
    _stacked(name, [observed, replicated[0]])
    defined = ~np.isnan(replicated)
    n = np.where(defined.any(0), defined.sum(0), np.nan)
    mean = np.where(defined, replicated, 0.0).sum(0) / n
    sd = np.sqrt(np.where(defined, (replicated - mean) ** 2, 0.0).sum(0) / n)
    return pd.DataFrame(
        {
            "rows_kind": kind,
            "statistic": name,
            "feature": _labels(name, columns, len(observed)),
            "observed": observed,
            "replicated_mean": mean,
            "replicated_sd": sd,
            "p_value": p_value(observed, replicated),
        }
    )


def _labels(name: str, columns: tuple[str, ...], size: int) -> list[str]:
    """What each number of a statistic is about: a feature, a pair of features, the whole table (""), or just its place."""
    if name == "correlation" and size == len(columns) * (len(columns) - 1) // 2:
        return [f"{a} ~ {b}" for a, b in combinations(columns, 2)]
    if size == len(columns):
        return list(columns)
    return [""] if size == 1 else [str(i) for i in range(size)]
