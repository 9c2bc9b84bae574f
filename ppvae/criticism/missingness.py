"""Whether missing entries depend on what was observed: the assumption behind every likelihood of observed entries, made visible."""

from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from ppvae.data import Data, as_data
from ppvae.messages import few

CLEAR = 0.5  # standard deviations: Cohen's medium difference
SIDES = {"value": ("higher", "lower"), "distance": ("further from its mean", "nearer to its mean")}
LEVEL = 0.01  # of the whole table of tests, Bonferroni


def dependence(data: object) -> pd.DataFrame:
    """For each column with holes and each other column: does the other differ where the first is missing? `data`: whatever Data takes.

    Columns: missing (the column with holes), given (the other), measure (of the other: its "value", or its "distance" from its mean, for
    entries that go missing on both sides), difference (of that measure's means, in standard deviations of the column), p_value (Welch's t
    test), plain (half a standard deviation or more that chance does not explain). Missing at random allows a dependence on observed values,
    and then rows with holes may not be dropped; what no table can show is a dependence on the missing values themselves.

    >>> import ppvae
    >>> found = dependence(ppvae.load_data("airquality"))
    >>> list(found.columns)
    ['missing', 'given', 'measure', 'difference', 'p_value', 'plain']
    """
    data = as_data(data)
    x, seen = data.numpy().astype(float), data.observed.cpu().numpy()
    scale = data.scale.cpu().numpy()
    measures = {"value": x, "distance": np.abs(x - data.mean.cpu().numpy())}
    rows = []
    for i, j, measure in product(np.flatnonzero(~seen.all(0)), range(data.n_features), measures):
        y = measures[measure][:, j]
        without, beside = y[~seen[:, i] & seen[:, j]], y[seen[:, i] & seen[:, j]]
        if i == j or min(len(without), len(beside)) < 3 or np.ptp(np.concatenate([without, beside])) == 0:
            continue
        difference = (without.mean() - beside.mean()) / scale[j]
        with np.errstate(divide="ignore", invalid="ignore"):
            p = stats.ttest_ind(without, beside, equal_var=False).pvalue
        rows.append((data.columns[i], data.columns[j], measure, float(difference), float(p)))
    table = pd.DataFrame(rows, columns=["missing", "given", "measure", "difference", "p_value"])
    table["plain"] = (table.difference.abs() >= CLEAR) & (table.p_value * len(table) < LEVEL)
    return table


def apart(data: object) -> list[tuple[str, str]]:
    """Pairs of columns that no row holds both of: how they go together is not in the data, only in the model. `data`: whatever Data takes.

    >>> nan = float("nan")
    >>> apart([[1.0, 2.0, nan], [3.0, nan, 4.0]])
    [('x1', 'x2')]
    """
    data = as_data(data)
    seen = data.observed.double()
    together = (seen.mT @ seen).cpu().numpy()
    return [(data.columns[i], data.columns[j]) for i, j in np.argwhere(np.triu(together == 0, 1))]


def warning(data: Data) -> str | None:
    """A sentence where columns are never observed together, or missingness plainly depends on observed values, else None."""
    return "; ".join(filter(None, (_never_together(data), _dependent(data)))) or None


def _never_together(data: Data) -> str | None:
    pairs = [] if data.complete else apart(data)
    if not pairs:
        return None
    said = few((f"both {a} and {b}" for a, b in pairs), 3)
    return f"no row holds {said}: the data do not identify their covariance, so what a fit says of it comes from the model"


def _dependent(data: Data) -> str | None:
    if data.complete:
        return None
    found = dependence(data)
    plain = found[found.plain].sort_values("p_value")
    if plain.empty:
        return None
    worst = plain.iloc[0]
    higher, lower = SIDES[worst.measure]
    side, others = higher if worst.difference > 0 else lower, len(plain.groupby(["missing", "given"])) - 1
    more = f", and {others} more such pairs" if others else ""
    return (
        f"whether {worst.missing} is missing depends on what was observed "
        f"({worst.given} is {abs(worst.difference):.1f} sd {side} there{more}): "
        "the fit assumes entries missing at random given what is observed, so keep the columns that explain it"
    )
