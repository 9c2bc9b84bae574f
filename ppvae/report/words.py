"""What a comparison came to, in sentences for someone who did not run it; and numbers as the report writes them."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

LEVEL = 1e-3  # nats per row: methods closer than this are called level
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


@dataclass(frozen=True)
class Standing:
    """How far one method's runs ended from the best log-likelihood: the nearest, the mean and the farthest, in nats per row.

    error: two standard errors of the difference where the log-likelihood is an estimate, else 0. unfinished: runs that did not converge.
    """

    method: str
    runs: int
    unfinished: int
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


def standings(comparison) -> list[Standing]:
    """The methods of a comparison, best first; those without a finite log-likelihood last."""
    table = comparison.table.assign(converged=[fit.converged for fit in comparison.fits])
    errors = table["log_likelihood_se"].fillna(0.0) if "log_likelihood_se" in table else pd.Series(0.0, index=table.index)
    of_best = errors[table["gap_to_best"].idxmin()] if table["gap_to_best"].notna().any() else 0.0
    found = []
    for method, runs in table.groupby("method", sort=False):
        gap = runs["gap_to_best"].replace([np.inf, -np.inf], np.nan).dropna()
        error = 2 * math.hypot(of_best, errors[gap.idxmin()]) if len(gap) else 0.0
        spread = (gap.min(), gap.mean(), gap.max()) if len(gap) else (math.nan,) * 3
        found.append(Standing(str(method), len(runs), int((~runs["converged"]).sum()), *map(float, spread), error))
    return sorted(found, key=lambda s: (not s.scored, s.nearest))


def headline(comparison) -> str:
    """What was compared and what came out, in one sentence."""
    best, *others = standings(comparison)
    if not best.scored:
        return f"No method reached a finite log-likelihood on {comparison.data.name}"
    if not others:
        return f"{best.method} reaches {nats(comparison.table['log_likelihood'].max())} nats per row on {comparison.data.name}"
    return "; ".join([f"{best.method} fits {comparison.data.name} best", *(_behind(s) for s in others)])


def _behind(standing: Standing) -> str:
    if not standing.scored:
        return f"{standing.method} reached no finite log-likelihood"
    if standing.level:
        return f"{standing.method} is level with it ({difference(standing.nearest)} nats per row behind)"
    return f"{standing.method} is {difference(standing.nearest)} nats per row behind"


def setting(comparison) -> str:
    """The model, the data and the runs."""
    data, fits = comparison.data, comparison.fits
    methods, starts = comparison.table["method"].nunique(), comparison.table["seed"].nunique()
    held = "" if comparison.held_out is None else f"; {comparison.held_out.n_rows} more rows were held out and only scored"
    by = "one method" if methods == 1 else f"{methods} methods, each from the same start" + ("s" if starts > 1 else "")
    return (
        f"{comparison.model.describe()} was fitted to {data.name} ({_size(data)}) by {by}: "
        f"{count(len(fits), 'run')} from {count(starts, 'seed')}{held}."
    )


def findings(comparison) -> list[str]:
    """What came out beyond the headline: the best score, spreads over seeds, the guides' cost, time, and what went wrong."""
    ranked = [s for s in standings(comparison) if s.scored]
    said = []
    if ranked:
        best = comparison.best
        row = comparison.table.loc[comparison.table["gap_to_best"].idxmin()]
        error = row.get("log_likelihood_se", math.nan)
        how = f"an estimate, standard error {difference(error)}" if np.isfinite(error) else "exact"
        score = f"The best log-likelihood is {nats(row['log_likelihood'])} nats per row ({row['method']}, seed {best.seed}; {how})."
        said.append(score)
        if ranked[0].error > 0:
            said.append(f"Differences below about {difference(ranked[0].error)} nats per row are within the error of these estimates.")
    said += [_spread(s) for s in ranked if s.runs > 1]
    if ranked:
        said += [
            _guide_cost(method, kl) for method, kl in comparison.table.groupby("method", sort=False)["kl"].mean().items() if kl > LEVEL
        ]
    spent = comparison.table.groupby("method", sort=False)["seconds"].median()
    said.append(
        "A run took "
        + ", ".join(f"{seconds(s)} by {m}" for m, s in spent.items())
        + (" (medians)." if len(spent) < len(comparison.fits) else ".")
    )
    unfinished = [(m, fit) for m, fit in zip(comparison.table["method"], comparison.fits, strict=True) if not fit.converged]
    said += [f"{method}, seed {fit.seed}, did not converge: {fit.status}." for method, fit in unfinished[:4]]
    if len(unfinished) > 4:
        said.append(f"So did {len(unfinished) - 4} more runs; see the table.")
    return said


def verdict(criticism) -> str:
    """How far the fitted model makes data like the data, in one sentence."""
    defined = criticism.table["p_value"].notna().sum()
    like = defined - len(criticism.surprising)
    return f"{criticism.fit.model.describe()} makes data like {criticism.data.name} in {like} of {defined} statistics"


def circumstances(criticism) -> str:
    """The fit and the data of predictive checks."""
    fit, data = criticism.fit, criticism.data
    by = f"{type(fit.method).__name__} (seed {fit.seed}: {fit.status})"
    return f"{fit.model.describe()} was fitted by {by} and set against {data.name} ({_size(data)})."


def _spread(s: Standing) -> str:
    if s.farthest == 0:
        return f"Every seed of {s.method} reached the best log-likelihood."
    if s.farthest < LEVEL:
        return f"Every seed of {s.method} ended within {difference(s.farthest)} nats per row of the best."
    mean, worst = difference(s.mean), difference(s.farthest)
    return f"Over {s.runs} seeds {s.method} ended {mean} nats per row below the best on average, {worst} at worst."


def _guide_cost(method: object, kl: float) -> str:
    return f"The guide of {method} costs {difference(kl)} nats per row: so far is its ELBO below its own log-likelihood."


def _size(data) -> str:
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
    if abs(value) < 1e-6:
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
    >>> seconds(0.0341), seconds(41.3), seconds(200)
    ('0.03 s', '41 s', '3 min 20 s')
    """
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
