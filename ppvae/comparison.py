"""compare: every method from the same start, scored by the same code, and how far each is from the truth."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from ppvae import guides
from ppvae.criticism.gaps import gaps
from ppvae.data import Data, as_data
from ppvae.inference.cavi import CAVI
from ppvae.inference.closed_form import ClosedForm
from ppvae.inference.em import EM
from ppvae.inference.fit import check_guide, check_init, check_method, precision, prepare, refuse, rounded, run, start
from ppvae.inference.method import Method, Progress
from ppvae.inference.result import Fit
from ppvae.inference.svi import SVI
from ppvae.model import Model, ask, check_model
from ppvae.options import counted
from ppvae.program.story import check_story
from ppvae.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Methods: TypeAlias = str | Method | Sequence[str | Method] | None
TRIED: tuple[Method, ...] = (ClosedForm(), EM(), CAVI(), SVI())  # where no methods are named: those of these that the model allows


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. All scores are in nats per row, higher is better.

    model; data: the training rows; held_out: the rows kept back, or None; fits: one for each method and seed.
    hidden: the training rows with the entries back that `holdout_entries` hid, or None; hidden_share: what `holdout_entries` was.
    recipe: the Python that makes the data, or None where they came as they were; asked: how it was called, {option: value} of
    `holdout`, `holdout_entries`, `init`, `guide`, `dtype` and `device` as far as they were given.
    """

    model: Model
    data: Data
    held_out: Data | None
    fits: list[Fit]
    hidden: Data | None
    hidden_share: float
    _scores: list[tuple[Scores, Scores, Scores, Scores | None]] = field(repr=False)
    recipe: str | None = None
    asked: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> list[str]:
        """What each fit's method is called in the tables: its name, or its settings where several settings of it are compared."""
        settings = {fit.method for fit in self.fits}
        shared = {m.name for m in settings if sum(m.name == other.name for other in settings) > 1}
        return [fit.method.describe().removesuffix("()") if fit.method.name in shared else fit.method.name for fit in self.fits]

    @cached_property
    def table(self) -> pd.DataFrame:
        """method, seed, status, log_likelihood, elbo, gap_to_best, kl, steps, seconds; standard errors beside what was estimated.

        With held-out rows also heldout_log_likelihood; with hidden entries hidden_log_likelihood (nats an entry, given the rest of its row)
        and hidden_rmse (of filling them in, in standard deviations of their columns).
        """
        rows = []
        top = np.fmax.reduce([evidence.mean() for evidence, *_ in self._scores])
        for fit, label, (evidence, bound, divergence, held) in zip(self.fits, self.labels, self._scores, strict=True):
            row = {"method": label, "seed": fit.seed, "status": fit.status, "log_likelihood": float(evidence.mean())}
            if not evidence.exact:
                row["log_likelihood_se"] = evidence.mean_standard_error
            row |= {"elbo": float(bound.mean()), "gap_to_best": top - float(evidence.mean()), "kl": float(divergence.mean())}
            if not divergence.exact:
                row["kl_se"] = divergence.mean_standard_error
            if held is not None:
                row["heldout_log_likelihood"] = float(held.mean())
            if self.hidden is not None:
                row |= hidden_scores(fit, self.data, self.hidden, evidence)
            rows.append(row | {"steps": fit.steps, "seconds": fit.seconds})
        return pd.DataFrame(rows)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean and sd over seeds for each method."""
        shown = [c for c in self.table.columns if c not in ("method", "seed", "status")]
        return self.table.groupby("method", sort=False)[shown].agg(["mean", "std"]).rename(columns={"std": "sd"})

    @property
    def best(self) -> Fit:
        """The fit of highest log-likelihood."""
        return self.fits[int(np.nan_to_num([evidence.mean() for evidence, *_ in self._scores], nan=-np.inf).argmax())]

    @cached_property
    def absent(self) -> pd.DataFrame:
        """The scores that the table lacks, and why: score, why; the index is the place of the fit."""
        names = ("log_likelihood", "elbo", "kl")
        found = [
            (place, {"score": name, "why": score.how})
            for place, scores in enumerate(self._scores)
            for name, score in zip(names, scores, strict=False)
            if score is not None and not np.isfinite(score.mean())
        ]
        if self.hidden is not None and self.model.no_density:
            why = "none: the scores of this model are no densities"
            found += [(place, {"score": "hidden_log_likelihood", "why": why}) for place in range(len(self.fits))]
        return pd.DataFrame([row for _, row in found], index=[place for place, _ in found], columns=["score", "why"])

    @cached_property
    def left_out(self) -> dict[str, str]:
        """The methods that `compare` would try by itself but that this model or these data do not allow: {name: why}."""
        reasons = {type(method).__name__: method.refusal(self.model, self.data) for method in TRIED}
        return {name: why for name, why in reasons.items() if why is not None}

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """What each fit's ELBO loses: parameters + approximation + amortization, with standard errors.

        Against the best exact log-likelihood; without one parameters is NaN, and the rest is lost against the fit's own log-likelihood.
        """
        exact = [float(evidence.mean()) for evidence, *_ in self._scores if evidence.exact]
        top = max(exact) if exact else None
        rows = []
        for fit, label, (evidence, bound, *_) in zip(self.fits, self.labels, self._scores, strict=True):
            found = gaps(fit, self.data, top, evidence, bound)
            parts = {n: getattr(found, n) for p in ("parameters", "approximation", "amortization") for n in (p, f"{p}_se")}
            rows.append({"method": label, "seed": fit.seed, **parts, "total": found.total})
        return pd.DataFrame(rows)

    @cached_property
    def distances(self) -> pd.DataFrame:
        """How far each fit is from the best one, whatever the order of components or the rotation of latents.

        For each identifiable quantity the root mean square difference relative to the best fit's own size, and for "log_density" the
        root mean square difference of log p(x_n) over the training rows, in nats.
        """
        best = self.best
        reference = {n: v.detach() for n, v in self.model.identifiable(best.theta).items()}
        at = self.fits.index(best)
        rows = []
        for fit, label, (evidence, *_) in zip(self.fits, self.labels, self._scores, strict=True):
            found = aligned(self.model, self.model.identifiable(fit.theta), reference)
            for name, value in found.items():
                size = float(reference[name].square().mean().sqrt())
                gap = float((value - reference[name]).square().mean().sqrt())
                rows.append({"method": label, "seed": fit.seed, "quantity": name, "distance": gap / size if size else gap})
            apart = np.asarray(evidence) - np.asarray(self._scores[at][0])
            rows.append({"method": label, "seed": fit.seed, "quantity": "log_density", "distance": float(np.sqrt((apart**2).mean()))})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        """The table without the statuses, then each status once."""
        shown = self.table.drop(columns="status").to_string(index=False, float_format=lambda value: f"{value:.6g}")
        said = self.table.groupby("status", sort=False).method.agg(lambda m: ", ".join(dict.fromkeys(m)))
        return "\n".join([shown, *(f"{methods}: {status}" for status, methods in said.items())])

    def plot(self) -> "Figure":
        """Convergence of all methods, against steps and seconds."""
        from ppvae import report

        return report.convergence(self)

    def save(self, path: str | Path) -> Path:
        """Write the report, one HTML file. Raises ValueError if its folder does not exist."""
        from ppvae.report import page

        return page.write(self, path)


def hidden_scores(fit: Fit, train: Data, whole: Data, evidence: Scores) -> dict[str, float]:
    """How well hidden entries are predicted from the observed entries of their rows, one number an entry.

    log p(x_hidden | x_observed) in nats, which is log p(x_hidden, x_observed) - log p(x_observed); and the root mean square error of the
    imputed entries, in standard deviations of their columns. Without a density of rows the first is NaN.
    """
    hidden = whole.observed & ~train.observed
    gained = np.nan if fit.model.no_density else np.asarray(fit.log_likelihood(whole)).sum() - np.asarray(evidence).sum()
    error = ((torch.as_tensor(fit.impute(train)).to(whole.x) - whole.x) / train.scale)[hidden]
    return {"hidden_log_likelihood": float(gained) / int(hidden.sum()), "hidden_rmse": float(error.square().mean().sqrt())}


def aligned(model: Model, values: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`values` with their exchangeable components in the order that matches `reference` best (Hungarian assignment)."""
    values = {name: v.detach() for name, v in values.items()}
    names = [n for n in model.exchangeable if n in values and values[n].ndim and len(values[n]) == len(values[model.exchangeable[0]])]
    if not names:
        return values

    def rows(quantities: dict[str, torch.Tensor]) -> torch.Tensor:
        scaled = [quantities[n].flatten(1) if quantities[n].ndim > 1 else quantities[n][:, None] for n in names]
        spread = [reference[n].flatten().std(correction=0).clamp(min=1e-12) for n in names]
        return torch.cat([s / d for s, d in zip(scaled, spread, strict=True)], 1)

    cost = torch.cdist(rows({n: reference[n] for n in names}), rows(values)).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return values | {n: values[n][torch.as_tensor(order)] for n in names}


@torch.inference_mode(False)  # as fit
def compare(
    model: Model,
    data: object,
    methods: Methods = None,
    *,
    seeds: int = 1,
    holdout: float = 0.0,
    holdout_entries: float = 0.0,
    init: dict[str, object] | None = None,
    guide: guides.Guide | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Fit a model by several methods from the same starts, and score them alike.

    methods: config objects, or words as on the command line ("em,svi:steps=500"); None: all that the model allows of ClosedForm, EM,
    CAVI and SVI.  seeds: starts 0 to seeds - 1, each shared by all methods.  holdout: a share of the rows kept out of training and scored.
    holdout_entries: a share of the training rows' entries hidden from the fits and scored (nats and rms error for each hidden entry).
    The rest as in `ppvae.fit`.

    Raises ValueError as `ppvae.fit` does, and for a method that the model does not allow.

    >>> import ppvae
    >>> found = compare(ppvae.models.PPCA(n_latents=2), ppvae.load_data("iris"), [ppvae.ClosedForm(), ppvae.EM()])
    >>> found.table.gap_to_best.round(6).tolist()
    [0.0, 0.0]
    """
    seeds = counted(seeds, "seeds")
    check_model(model)
    data = as_data(data)
    ask(model, "check", data)
    train, held = (data, None) if holdout == 0 else data.split(holdout)
    train = prepare(model, train, device)
    hidden, train = (None, train) if holdout_entries == 0 else (train, train.with_holes(holdout_entries))
    starts = {seed: start(model, train, seed, init) for seed in range(seeds)}
    check_story(model, starts[0], train)
    train = rounded(train, precision(starts[0], dtype))
    held = None if held is None else held.to(train.dtype, train.device)
    hidden = None if hidden is None else hidden.to(train.dtype)
    chosen = _methods(model, train, methods)
    check_guide(guide, chosen)
    check_init(init, starts[0], chosen)
    plan = list(product(range(seeds), chosen))
    fits, scores = [], []
    for done, (seed, method) in enumerate(plan):
        theta = copy.deepcopy(starts[seed])
        fit = run(method, model, train, theta, seed=seed, guide=guide, progress=_inside(progress, done, len(plan), method, seed))
        fits.append(fit)
        evidence, bound = fit.log_likelihood(train), fit.elbo(train)
        scores.append((evidence, bound, fit.kl(train), None if held is None else fit.log_likelihood(held)))
    options = {
        "holdout": holdout, "holdout_entries": holdout_entries, "init": init, "guide": guide, "dtype": dtype, "device": device,
    }  # fmt: skip
    asked = {name: value for name, value in options.items() if value is not None and not (isinstance(value, int | float) and value == 0)}
    return Comparison(model, train, held, fits, hidden, holdout_entries, scores, data.recipe, asked)


def _methods(model: Model, data: Data, methods: Methods) -> list[Method]:
    from ppvae.registry import load_methods

    if methods is None:
        return [m for m in TRIED if m.refusal(model, data) is None]
    given = [methods] if isinstance(methods, str | Method) else list(methods)
    chosen = [method for one in given for method in (load_methods(one) if isinstance(one, str) else [one])]
    if not chosen:
        raise ValueError("compare needs at least one method")
    for place, method in enumerate(chosen):
        check_method(method)
        if method in chosen[:place]:
            raise ValueError(f"{method.describe()} is asked for twice, which is the same fit twice: name it once, or ask for more seeds")
        refuse(method, model, data)
    return chosen


def _inside(progress: Progress | None, done: int, fits: int, method: Method, seed: int) -> Progress | None:
    """Progress of one fit as part of the whole: each fit counts 1000."""
    if progress is None:
        return None
    return lambda step, steps, note: progress(
        1000 * done + 1000 * step // max(1, steps), 1000 * fits, f"{method.name}, seed {seed}: {note}"
    )
