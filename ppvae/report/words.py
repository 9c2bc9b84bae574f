"""What a comparison came to, in sentences for someone who did not run it; and numbers as the report writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppvae.messages import few
from ppvae.report import runs

if TYPE_CHECKING:
    from ppvae.comparison import Comparison
    from ppvae.criticism.checks import Criticism
    from ppvae.data import Data

EQUAL, LEVEL = 1e-6, 1e-3  # nats per row: methods closer than this are called equal, or level
MINUS, PLUS_MINUS, TIMES = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

TERMS = {
    "nats per row": "the unit of every score here: a natural logarithm, averaged over the rows of the table. Higher is better; 0.7 nats "
    "more means that the model finds each row about twice as likely.",
    "log-likelihood": "the average log-probability (density) that the fitted model gives to a row. It depends on the parameters alone.",
    "ELBO": "the evidence lower bound: what variational methods maximise. It never exceeds the log-likelihood, and equals it where the "
    "guide q(z | x) is the exact posterior p(z | x).",
    "KL": "KL(q || posterior), how far the guide is from the exact posterior: the log-likelihood less the ELBO.",
    "gap": "how far a run is below the best log-likelihood of this comparison.",
}
TERMS_WITH_PRIORS = TERMS | {
    "log-likelihood": "the average log posterior predictive density of a row: what the model gives it, averaged over the posterior of what "
    "all rows share.",
    "ELBO": "the evidence lower bound, for the log of p(all rows) per row, the parameters integrated out. It equals that where the guide "
    "is the exact posterior; it lies below the log-likelihood by what the parameters cost.",
    "KL": "KL(q || posterior) of what all rows share, per row: the log-evidence less the ELBO.",
}
HIDDEN_TERM = {
    "hidden entries": "observed entries that were kept from every fit and then scored: the log-probability (density) of each given the "
    "rest of its row, in nats an entry (higher is better), and the root mean square error of filling them in, in standard deviations of "
    "their columns (lower is better; the column's mean has about 1).",
}


@dataclass(frozen=True)
class Standing:
    """How far one method's runs ended from the best log-likelihood: the nearest, the mean and the farthest, in nats per row.

    error: two standard errors of the difference where the log-likelihood is an estimate, else 0.
    """

    method: str
    runs: int
    nearest: float
    mean: float
    farthest: float
    error: float

    @property
    def scored(self) -> bool:
        return math.isfinite(self.nearest)

    @property
    def level(self) -> bool:
        return self.nearest < max(LEVEL, self.error)


def terms(comparison: Comparison) -> dict[str, str]:
    """The words of this comparison and what they mean."""
    known = TERMS_WITH_PRIORS if comparison.best.shared else TERMS
    return known if comparison.hidden is None else known | HIDDEN_TERM


def standings(comparison: Comparison) -> list[Standing]:
    """The methods of a comparison, best first (equal ones as in the table); those without a finite log-likelihood last."""
    table = runs.scores(comparison).replace([np.inf, -np.inf], np.nan).sort_values("gap_to_best", kind="stable")
    errors = table.get("log_likelihood_se", pd.Series(0.0, table.index)).fillna(0.0)
    found = []
    for method, own in table.groupby("method", sort=False):
        gap, error = own["gap_to_best"], 2 * math.hypot(errors.iloc[0], errors.loc[own.index].iloc[0])
        found.append(Standing(str(method), len(own), float(gap.min()), float(gap.mean()), float(gap.max()), error))
    order = {name: place for place, name in enumerate(runs.labels(comparison))}
    return sorted(found, key=lambda s: (not s.scored, 0.0 if s.nearest < EQUAL else s.nearest, order[s.method]))


def headline(comparison: Comparison) -> str:
    """What was compared and what came out, in one sentence."""
    ranked, name = standings(comparison), comparison.data.name
    if not ranked[0].scored:
        return f"No method reached a finite log-likelihood on {name}"
    if len(ranked) == 1:
        return f"{ranked[0].method} reaches {nats(comparison.table['log_likelihood'].max())} nats per row on {name}"
    equal = [s.method for s in ranked if s.nearest < EQUAL]
    first = f"{few(equal, len(equal))} fit {name} equally well" if len(equal) > 1 else f"{equal[0]} fits {name} best"
    return "; ".join([first, *(_behind(s) for s in ranked[len(equal) :])])


def _behind(standing: Standing) -> str:
    if not standing.scored:
        return f"{standing.method} reached no finite log-likelihood"
    if standing.level:
        return f"{standing.method} is level ({difference(standing.nearest)} nats per row behind)"
    return f"{standing.method} is {difference(standing.nearest)} nats per row behind"


def setting(comparison: Comparison) -> str:
    """The model, the data and the runs."""
    fits = comparison.fits
    data = comparison.data if comparison.hidden is None else comparison.hidden
    methods, starts = len(set(runs.labels(comparison))), comparison.table["seed"].nunique()
    held = "" if comparison.held_out is None else f"; {comparison.held_out.n_rows} more rows were held out and only scored"
    held += f"; {hidden(comparison)}" if comparison.hidden is not None else ""
    by = "one method" if methods == 1 else f"{methods} methods, each from the same start" + ("s" if starts > 1 else "")
    return (
        f"{comparison.model.describe()} was fitted to {data.name} ({_size(data)}) by {by}: "
        f"{count(len(fits), 'run')} from {count(starts, 'seed')}{held}."
    )


def hidden(comparison: Comparison) -> str:
    """How many of the observed entries were hidden from the fits; nothing where none were."""
    if comparison.hidden is None:
        return ""
    observed, kept = int(comparison.hidden.observed.sum()), int(comparison.data.observed.sum())
    return f"{observed - kept} of the {observed} observed entries were hidden from every fit and only scored"


def findings(comparison: Comparison) -> list[str]:
    """What came out beyond the headline: the best score, spreads over seeds, the guides' cost, time, and what went wrong."""
    table = runs.scores(comparison)
    ranked = [s for s in standings(comparison) if s.scored]
    methods = table.groupby("method", sort=False)
    said = []
    if ranked:
        best = table.sort_values("gap_to_best", kind="stable").iloc[0]
        error = best.get("log_likelihood_se", math.nan)
        how = "exact" if not np.isfinite(error) else f"an estimate, standard error {difference(error)}" if error > EQUAL else "an estimate"
        said.append(
            f"The best log-likelihood is {nats(best['log_likelihood'])} nats per row ({best['method']}, seed {best['seed']}; {how})."
        )
        error = max(s.error for s in ranked)
        if error > EQUAL and len(table) > 1:
            said.append(f"Differences below about {difference(error)} nats per row are within the error of these estimates.")
    if comparison.model.no_density:
        said.append(f"Beware: {comparison.model.no_density}. BIC and AIC have no meaning here.")
    absent = runs.absent(comparison).groupby(["method", "why"], sort=False)["score"]
    said += [_absence(str(method), str(why), scores) for (method, why), scores in absent]
    said += [_spread(s) for s in ranked if s.runs > 1]
    said += [_guide_cost(str(method), kl) for method, kl in methods["kl"].mean().items() if kl > LEVEL]
    if "heldout_log_likelihood" in table:
        said.append(f"On the held-out rows {_highest(methods['heldout_log_likelihood'].mean(), table)} nats per row.")
    if "hidden_log_likelihood" in table and not comparison.model.no_density:
        said.append(f"On the hidden entries {_highest(methods['hidden_log_likelihood'].mean(), table)} nats an entry.")
    spent = ", ".join(f"{seconds(time)} by {method}" for method, time in methods["seconds"].median().items())
    said.append(f"A run took {spent}{' (medians)' if len(table) > len(methods) else ''}.")
    unfinished = [(m, fit) for m, fit in zip(table["method"], comparison.fits, strict=True) if not fit.converged]
    said += [f"{method}, seed {fit.seed}, did not converge: {fit.status}." for method, fit in unfinished[:4]]
    if len(unfinished) > 4:
        said.append(f"Nor did {len(unfinished) - 4} more runs; see the table.")
    return said


def lost_against(comparison: Comparison) -> str:
    """What the gaps of a comparison are measured from."""
    if comparison.best.shared:
        return "the log-evidence"
    return "its own log-likelihood" if comparison.gaps["parameters"].isna().all() else "the best log-likelihood"


def verdict(criticism: Criticism) -> str:
    """How far the fitted model makes data like the data, in one sentence."""
    defined = criticism.table["p_value"].notna().sum()
    like = defined - len(criticism.surprising)
    return f"{criticism.fit.model.describe()} makes data like {criticism.data.name} in {like} of {defined} statistics"


def circumstances(criticism: Criticism) -> str:
    """The fit and the data of predictive checks."""
    fit, data = criticism.fit, criticism.data
    by = f"{type(fit.method).__name__} (seed {fit.seed}: {fit.status})"
    return f"{fit.model.describe()} was fitted by {by} and set against {data.name} ({_size(data)})."


def _spread(s: Standing) -> str:
    if s.farthest < EQUAL:
        return f"Every seed of {s.method} reached the best log-likelihood."
    if s.farthest < LEVEL:
        return f"Every seed of {s.method} ended within {difference(s.farthest)} nats per row of the best."
    mean, worst = difference(s.mean), difference(s.farthest)
    return f"Over {s.runs} seeds {s.method} ended {mean} nats per row below the best on average, {worst} at worst."


def _guide_cost(method: str, kl: float) -> str:
    return f"The guide of {method} costs {difference(kl)} nats per row: so far is its ELBO below its own log-likelihood."


def _highest(means: pd.Series, table: pd.DataFrame) -> str:
    """The methods of the highest mean score over seeds."""
    if means.isna().all():
        return "no method reaches a finite score in"
    best = list(means.index[means > means.max() - LEVEL])
    scored = "scores best," if len(best) < len(means) else "scores" if len(best) == 1 else "score alike,"
    over = "" if table["seed"].nunique() == 1 else " on average over seeds,"
    return f"{few(best, len(best))} {scored}{over} {nats(means.max())}"


def _absence(method: str, why: str, scores: pd.Series) -> str:
    """Why a method has none of these scores. A score's own words on it begin with how it stands: "none: ", "unknown: "."""
    names = {"log_likelihood": "log-likelihood", "elbo": "ELBO", "kl": "KL", "hidden_log_likelihood": "log-likelihood of hidden entries"}
    reason = why.partition(": ")[2] or "the result is not a finite number"
    return f"There is no {' and no '.join(names[s] for s in dict.fromkeys(scores))} for {method}: {reason}."


def _size(data: Data) -> str:
    size = f"{count(data.n_rows, 'row')}, {count(data.n_features, 'feature')}"
    return size if data.complete else f"{size}, {1.0 - float(data.observed.double().mean()):.1%} of the entries missing"


def count(number: int, noun: str) -> str:
    """
    >>> count(1, "row"), count(3, "row")
    ('1 row', '3 rows')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def nats(value: float) -> str:
    """A score, to a ten-thousandth of a nat per row.

    >>> nats(-4.15529)
    '−4.1553'
    """
    return f"{value:.4f}".replace("-", MINUS) if math.isfinite(value) else "none"


def difference(value: float) -> str:
    """A difference between scores, to two significant digits, without powers of ten.

    >>> difference(0.000312), difference(3e-9), difference(12.34)
    ('0.00031', 'less than 0.000001', '12')
    """
    if not math.isfinite(value):
        return "none"
    if abs(value) < EQUAL:
        return "0" if value == 0 else "less than 0.000001"
    places = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".replace("-", MINUS)


def briefly(value: float) -> str:
    """`difference` as a table has it.

    >>> briefly(3e-9)
    '<0.000001'
    """
    return difference(value).replace("less than ", "<")


def seconds(value: float) -> str:
    """
    >>> seconds(0.0341), seconds(0.001), seconds(41.3), seconds(200)
    ('0.03 s', '<0.01 s', '41 s', '3 min 20 s')
    """
    if value < 0.01:
        return "<0.01 s"
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plain(value: float) -> str:
    """A parameter or a statistic, to four significant digits.

    >>> plain(3.0), plain(1234.5678), plain(-0.000012345)
    ('3', '1235', '−1.234e−05')
    """
    return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else "none"
