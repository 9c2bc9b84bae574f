"""The one place that knows ArviZ's versions: 0.23 (`InferenceData`) and 1.x (`xarray.DataTree`).

`to_arviz` takes arrays alone. `fit_to_arviz` says what a fit's groups mean.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppvae.data import Data
    from ppvae.inference.result import Fit

Arrays = dict[str, np.ndarray]
Groups = dict[str, Arrays]

DRAWS, TABLES = 1000, 100  # by default; ArviZ's summaries ask for some hundred draws, and a replicated table is as large as the data


def to_arviz(groups: Groups, dims: dict[str, list[str]] | None = None, coords: dict[str, Any] | None = None):
    """Named arrays as ArviZ's container: `InferenceData` in ArviZ 0.23, `DataTree` in 1.x.

    groups: {group: {name: array}}. Sampled groups have (chains, draws, ...) in front; groups named `..._data` have neither.
    dims: {name: the names of its other axes}.  coords: {axis: its labels}.
    Read a group as `container["posterior"]` in both.

    >>> container = to_arviz({"posterior": {"z": np.zeros((1, 4, 3))}}, dims={"z": ["row"]})
    >>> container["posterior"]["z"].dims
    ('chain', 'draw', 'row')
    """
    arviz = _quietly_imported()
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups, dims=dims, coords=coords)
    return arviz.from_dict(**groups, dims=dims, coords=coords)


def convergence(chains: Arrays) -> tuple[float, float, float]:
    """The largest r-hat, and the least effective sample sizes in the bulk and in the tails, of all numbers in {name: (C, S, ...)}.

    r-hat is the rank-normalised one, of the numbers and of their distances from the median (Vehtari et al. 2021); a single chain is taken
    as two halves. Numbers that are the same in every draw are left out. NaN for too few draws to say.

    >>> convergence({"z": np.random.default_rng(0).standard_normal((4, 500, 2))})[0] < 1.01
    True
    """
    arviz = _quietly_imported()
    numbers = np.concatenate([value.reshape(*value.shape[:2], -1) for value in chains.values()], -1)
    n_chains, draws, _ = numbers.shape
    moving = [one for one in np.moveaxis(numbers, -1, 0) if (one != one[0, 0]).any()]
    if not moving:
        return 1.0, float(n_chains * draws), float(n_chains * draws)
    halves = [one if n_chains > 1 else one[:, : draws // 2 * 2].reshape(2, -1) for one in moving]
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # of a chain that stands still r-hat is infinite
        warnings.simplefilter("ignore")
        r_hat = [float(arviz.rhat(one)) if one.shape[1] >= 4 else np.nan for one in halves]
        bulk, tail = ([float(arviz.ess(one, method=method)) for one in moving] for method in ("bulk", "tail"))
    return float(np.max(r_hat)), float(np.min(bulk)), float(np.min(tail))


def _quietly_imported() -> ModuleType:
    """ArviZ 0.23 greets the first import of a day with a FutureWarning about 1.0, which this module takes care of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        return importlib.import_module("arviz")


def fit_to_arviz(fit: Fit, data: Data, draws: int | None = None, seed: int = 0):
    """A fit on `data` for ArviZ, independent draws in one chain. Rows in which nothing is observed are left out.

    draws: of every group. None: 1000 of what all rows share and of the log-likelihood, 100 of what each row has of its own (its latents
    and its replicates), which take the memory of 100 tables.

    posterior: the latents of each row, `z` (row, latent) and `component` (row), from the exact posterior or the guide.
    posterior_predictive: `x` (row, feature), the same rows again; NaN where the data are missing, so that plots compare like with like. Of
    a story with other observed sites each of them, with the columns that it observes: (row,) for one, else (row, site_feature).
    log_likelihood: `log_marginal` (row), nats: log p(x_n | theta), the latents integrated out.
    observed_data: the same, NaN where missing.  constant_data: theta, a point estimate, under its public names.

    A point estimate has no draws, and with a constant log-likelihood leave-one-out scores would see no overfitting. So where the model has
    an exact marginal, theta in `log_likelihood` varies by its large-sample law (`ppvae.criticism.leverage`): `az.loo` then estimates the
    score of rows left out, and its p the number of parameters that the data identify. Elsewhere the log-likelihood is an importance
    sampling estimate and varies by its standard error alone: p is near 0, and only held-out rows show overfitting.
    A story without latents has theta itself, repeated, as its posterior.

    Where all rows share latents, their draws are the posterior (a sampler's chains, all of them; each row's own latents are left out
    beside those), and the log-likelihood of a row is that given each draw.
    """
    from ppvae.criticism.predictive import posterior_predictive
    from ppvae.program.joint import is_row_site, sites_of
    from ppvae.program.observed import is_computed

    rows = data.observed.any(1).nonzero().squeeze(1)
    if fit.numbered and len(rows) < data.n_rows:
        raise ValueError(f"{fit.model.name}: the story or the guide reads the rows' numbers, and rows without an entry would be left out")
    data = data.take(rows)
    tables, draws = (TABLES, DRAWS) if draws is None else (draws, draws)
    seen = fit.observed(data.batch())
    found = posterior_predictive(fit.model, fit.theta, data.batch(), tables, seed, fit.guide, seen)
    seen.check_table()
    drawn = {name: value.cpu().numpy() for name, value in found.items()}
    sites = sites_of(fit.program, data.head())
    latents = {name: drawn[name] for name, site in sites.items() if name in drawn and (not site["is_observed"] or is_computed(site))}
    replicated = {name: seen.flat(name, found[name]).cpu().numpy() for name in seen.columns}
    table, names = data.numpy(), np.array(data.columns)
    observed = {name: table[:, columns] for name, columns in seen.columns.items()}
    scalar = [name for name in observed if not seen.shapes[name]]
    fixed = {name: np.broadcast_to(value, (tables, *np.shape(value))) for name, value in fit.params.items()}
    sampled: Groups = {
        "posterior": latents if not all(is_computed(sites[name]) for name in latents) else fixed | latents,
        "posterior_predictive": {name: np.where(np.isnan(observed[name]), np.nan, value) for name, value in replicated.items()},
        "log_likelihood": {} if fit.shared else {"log_marginal": _log_likelihood(fit, data, draws, seed)},
    }
    groups = {group: {name: value[np.newaxis] for name, value in values.items()} for group, values in sampled.items()}
    if fit.shared:
        groups["posterior"] = fit.shared_chains(draws, seed)
        groups["log_likelihood"] = {"log_marginal": _given_shared(fit, data, groups["posterior"])}
    groups |= {"observed_data": observed, "constant_data": fit.params}
    for name in scalar:
        observed[name] = observed[name][..., 0]
        groups["posterior_predictive"][name] = groups["posterior_predictive"][name][..., 0]
    dims: dict[str, list[str]] = {"log_marginal": ["row"]}
    coords: dict[str, Any] = {"row": rows.cpu().numpy()}
    for name, columns in seen.columns.items():
        axis = "feature" if columns == list(range(data.n_features)) else f"{name}_feature"
        dims[name] = ["row"] if name in scalar else ["row", axis]
        coords |= {} if name in scalar else {axis: list(names[columns])}
    for name in latents:
        if is_row_site(sites[name]) and drawn[name].shape[1:2] == (data.n_rows,):
            axes = range(drawn[name].ndim - 2)
            dims[name] = ["row", *("latent" if name == "z" and len(axes) == 1 else f"{name}_{axis}" for axis in axes)]
    return to_arviz(groups, dims, coords)


def _log_likelihood(fit: Fit, data: Data, draws: int, seed: int) -> np.ndarray:
    """(S, N): log p(x_n | theta) with the spread that `fit_to_arviz` describes."""
    from ppvae.criticism.leverage import log_likelihood_draws

    exact = fit.exact_on(data)
    if exact is not None:
        return log_likelihood_draws(exact.log_marginal, fit.theta, data, draws, seed).cpu().numpy()
    scores = fit.log_likelihood(data)
    noise = np.random.default_rng(seed).standard_normal((draws, len(scores)))
    return np.asarray(scores) + noise * np.asarray(scores.standard_error)


def _given_shared(fit: Fit, data: Data, chains: Arrays) -> np.ndarray:
    """(C, S, N): log p(x_n | shared) at each draw, {site: (C, S, ...)}. Raises ValueError where a row's own latents stay in the way."""
    import torch

    from ppvae.program.given import rows_log_likelihood

    drawn = {name: torch.as_tensor(value).to(data.x).flatten(0, 1) for name, value in chains.items()}
    found = rows_log_likelihood(fit.model, fit.theta, data, drawn)
    if found is None:
        raise ValueError(f"{fit.model.name}: given what all rows share, a row's own latents cannot be integrated out of its likelihood")
    return found.unflatten(0, next(iter(chains.values())).shape[:2]).cpu().numpy()
