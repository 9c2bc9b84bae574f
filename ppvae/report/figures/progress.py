"""How the methods of a comparison arrived, and what each of them lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from ppvae.report import runs, words
from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.comparison import Comparison
    from ppvae.inference.result import Fit

FLOOR = 1e-6  # nats per row: two runs closer than this are drawn as equal
POINTS = 250  # a curve is thinned to about so many points
MANY_RUNS = 8  # the curves of more runs than this are drawn as pixels, so that a page stays small
BARS = 12
LINE = 36  # letters of a bar's name; a longer one takes more lines
PARTS = {"parameters": "#334155", "approximation": "#8b9bb0", "amortization": "#d3dae3"}
ERRORS = [f"{part}_se" for part in PARTS]


def convergence(comparison: Comparison, columns: int = 2) -> Figure:
    """Each run's way to the best log-likelihood, against steps and against seconds.

    Thick: the log-likelihood, where the run logged it; thin: the ELBO, the run's own objective; a marker: the last step. The vertical
    axis is the gap to the best final log-likelihood of the comparison (nats per row, logarithmic; gaps under 1e-6 are drawn as 1e-6).
    Where no run logged an exact log-likelihood it is the ELBO itself (nats per row, linear), without the first tenth of the steps.
    `columns`: panels side by side. Long histories are averaged over blocks of steps.
    """
    exact = logged(comparison)
    best = _best(comparison) if exact else None
    pixels = len(comparison.fits) > MANY_RUNS
    figure, axes = style.panels(2, columns)
    label = "gap to the best (nats per row)" if exact else "ELBO (nats per row)"
    for ax, clock in zip(axes, ("step", "seconds"), strict=True):
        for fit, colour, marker in _runs(comparison):
            _curve(ax, fit.history, clock, colour, marker, best, pixels)
        low, high = ax.dataLim.intervalx
        ax.set_xscale("log" if high > 20 * low else "linear")
        ax.xaxis.set_minor_formatter(NullFormatter())  # a power of ten is always among so wide a range
        ax.grid(color=style.RULE, linewidth=0.6)
        style.name_axes(ax, x="steps" if clock == "step" else "seconds", y=label)
        if exact:
            ax.set_yscale("log")
            ax.set_ylim(bottom=FLOOR / 2)
        else:
            low, top = _lowest(comparison), ax.dataLim.intervaly[1]
            ax.set_ylim(bottom=None if low is None else low - 0.05 * (top - low))
    methods = runs.labels(comparison)
    colours, markers = style.colours(methods), style.markers(methods)
    style.legend(
        figure, [Line2D([], [], color=colours[m], marker=markers[m], markersize=4, label=style.word(m, 2 * LINE)) for m in colours]
    )
    return figure


def gaps(comparison: Comparison) -> Figure:
    """What each run's ELBO lost, split into parameters, approximation and amortization (`comparison.gaps`).

    One bar a run (of more than 12 runs: one a method, the mean over its seeds), in nats per row; lines at the end of a part are two
    standard errors of it. A part that came out negative (by error, or parameters better than the reference's) is drawn to the left.
    """
    table, names = _bars(runs.gaps(comparison))
    names = [fill(style.word(name, 3 * LINE), LINE) for name in names]
    lines = 1 + max(name.count("\n") for name in names)
    figure, (ax,) = style.panels(1, 1, (4.8, 1.1 + (0.15 + 0.15 * lines) * len(table)))
    rows = np.arange(len(table))
    right, left = np.zeros(len(table)), np.zeros(len(table))
    for part, colour in PARTS.items():
        width = table[part].fillna(0.0).to_numpy(float)
        base = np.where(width >= 0, right, left)
        ax.barh(rows, width, left=base, color=colour, edgecolor="white", linewidth=0.6, height=0.62)
        error = table[f"{part}_se"].fillna(0.0).to_numpy(float)
        known = error > 0
        ax.errorbar((base + width)[known], rows[known], xerr=2 * error[known], fmt="none", ecolor=style.INK, elinewidth=0.9, capsize=2)
        right, left = right + width.clip(min=0), left + width.clip(max=0)
    ax.axvline(0.0, color=style.MUTED, linewidth=0.8)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    # Below the whole figure: long names leave the bars less room than this sentence takes.
    figure.supxlabel(f"lost against {words.lost_against(comparison)} (nats per row)", color=style.INK, fontsize=9)
    style.legend(figure, [Patch(color=colour, label=part) for part, colour in PARTS.items()])
    return figure


def _bars(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows to draw and their names: every run where they are few, else the mean of each method's runs."""
    if len(table) <= BARS:
        return table, [f"{m}, seed {s}" for m, s in zip(table["method"], table["seed"], strict=True)]
    methods = table.groupby("method", sort=False)
    squares = table.assign(**{name: table[name] ** 2 for name in ERRORS}).groupby("method", sort=False)[ERRORS].sum()
    errors = squares.pow(0.5).div(methods.size(), axis=0)
    return pd.concat([methods[list(PARTS)].mean(), errors], axis=1), [f"{method}, {n} seeds" for method, n in methods.size().items()]


def logged(comparison: Comparison) -> bool:
    """Whether some run logged exact log-likelihoods, so that gaps to the best can be drawn."""
    return any(fit.history["log_likelihood"].notna().any() for fit in comparison.fits)


def _runs(comparison: Comparison) -> Iterator[tuple[Fit, str, str]]:
    """(fit, colour, marker) of every run; the rows of the table are the fits, in their order."""
    methods = runs.labels(comparison)
    colours, markers = style.colours(methods), style.markers(methods)
    for fit, method in zip(comparison.fits, methods, strict=True):
        yield fit, colours[method], markers[method]


def _best(comparison: Comparison) -> float:
    """The highest log-likelihood that a run of the comparison ended with."""
    last = [fit.history["log_likelihood"].dropna().to_numpy()[-1:] for fit in comparison.fits]
    return float(np.nanmax(np.concatenate([comparison.table["log_likelihood"].to_numpy(float), *last]), initial=-np.inf))


def _curve(ax: Axes, history, clock: str, colour: str, marker: str, best: float | None, pixels: bool) -> None:
    """Draw one run, as gaps to `best` or, where there is none, as it is."""
    for column, width, alpha in (("elbo", 0.9, 0.45), ("heldout_elbo", 0.9, 0.9), ("log_likelihood", 1.8, 0.9)):
        known = history[history[column].notna() & (history[clock] > 0)]
        if not len(known) or (best is not None and column == "heldout_elbo"):
            continue
        time, value = _thinned(known[clock].to_numpy(float)), _thinned(known[column].to_numpy(float))
        if best is not None:
            value = np.where(best - value > FLOOR, best - value, FLOOR if column == "log_likelihood" else np.nan)
        dashes = "--" if column == "heldout_elbo" else "-"
        ax.plot(time, value, dashes, rasterized=pixels, color=colour, linewidth=width, alpha=alpha, solid_capstyle="round")
        ends = column == "log_likelihood" or (column == "elbo" and history["log_likelihood"].isna().all())
        if ends:
            ax.plot(time[-1:], value[-1:], marker, color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6, zorder=3)


def _lowest(comparison: Comparison) -> float | None:
    """The lowest ELBO that a run logged after a tenth of its steps."""
    late = [fit.history.loc[fit.history["step"] >= 0.1 * fit.history["step"].max(), "elbo"].min() for fit in comparison.fits]
    return None if np.isnan(late).all() else float(np.nanmin(late))


def _thinned(values: np.ndarray) -> np.ndarray:
    """Means over blocks that grow with the step, so that a curve looks the same on a logarithmic axis; the last point is kept.

    >>> _thinned(np.arange(4.0))
    array([0., 1., 2., 3.])
    """
    if len(values) <= POINTS:
        return values
    edges = np.unique(np.geomspace(1, len(values) - 1, POINTS).astype(int))
    edges = np.concatenate([[0], edges])
    return np.append(np.add.reduceat(values[:-1], edges[:-1]) / np.diff(edges), values[-1])
