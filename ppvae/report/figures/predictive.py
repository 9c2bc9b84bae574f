"""Does the fitted model make data like these? Replicated statistics beside the observed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.criticism.checks import Criticism

SOLID, DASHED = (0.0, ()), (0.0, (4.0, 2.0))  # colour is never the only clue
KINDS = {"same": ("the same rows, redrawn", style.PALETTE[0], SOLID), "new": ("new rows", style.PALETTE[4], DASHED)}
PAIRS = "correlation"
FEW_PAIRS = 3  # correlations drawn as histograms; more of them are a matrix
STRONG = 4.0  # replicate standard deviations at which the colours of a matrix end
NAMED = 12  # more features than this are not named beside a matrix


def checks(criticism: Criticism, limit: int = 24, columns: int = 4) -> Figure:
    """Each statistic of each feature: the observed value (black line) among its replicates (outlines), for the same rows and for new
    rows, with p = P(T(replicate) >= T(observed)).

    Of more than `limit` panels, those whose observed value lies furthest out, each statistic in turn.
    Four features or more: their correlations are left to `correlations`.
    Raises ValueError where nothing is defined that could be drawn.
    """
    shown = panels_of(criticism.table)[:limit]
    if not shown:
        raise ValueError("checks: none of these statistics is defined on this data")
    figure, axes = style.panels(len(shown), columns, (2.15, 1.75))
    for ax, (statistic, place, feature) in zip(axes, shown, strict=True):
        _histograms(ax, criticism, statistic, place, f"{statistic}, {feature}" if feature else statistic)
    handles = [Line2D([], [], color=colour, linestyle=dashes, linewidth=1.4, label=words) for words, colour, dashes in KINDS.values()]
    style.legend(figure, [Line2D([], [], color=style.INK, linewidth=1.6, label="observed"), *handles], columns=3)
    return figure


def correlations(criticism: Criticism, columns: int = 2) -> Figure:
    """The correlation of each pair of features. Left: observed (below the diagonal) and in new rows from the model (above it): a right
    model gives a symmetric picture. Right: observed less replicated, in standard deviations of the replicates.
    Raises ValueError where the criticism holds no correlations (one feature, a user's own statistics, more than 64 features).
    """
    pairs = criticism.table[(criticism.table["statistic"] == PAIRS) & (criticism.table["rows_kind"] == "new")]
    if not len(pairs):
        raise ValueError("correlations: this criticism holds none; run check(fit, data) with its own statistics on 2 to 64 features")
    n = criticism.data.n_features
    both, apart = np.full((n, n), np.nan), np.full((n, n), np.nan)
    first, second = np.triu_indices(n, 1)
    both[second, first], both[first, second] = pairs["observed"], pairs["replicated_mean"]
    apart[second, first] = (pairs["observed"] - pairs["replicated_mean"]) / pairs["replicated_sd"].replace(0.0, np.nan)
    figure, axes = style.panels(2, columns, (4.2, 3.7))
    pictures = ((both, 1.0, "below: observed, above: model"), (apart, STRONG, "observed less model (sd of replicates)"))
    for ax, (values, most, title) in zip(axes, pictures, strict=True):
        image = ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
        bar = figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=8, colors=style.MUTED)
        bar.outline.set_visible(False)
        names = [style.word(name) for name in criticism.data.columns] if n <= NAMED else []
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ax.tick_params(length=0)
        style.name_axes(ax, title=title)
    return figure


def pairs_of(table: pd.DataFrame) -> bool:
    """Whether the pairs of features are many enough for `correlations` to be drawn in place of histograms."""
    return int(((table["statistic"] == PAIRS) & (table["rows_kind"] == "new")).sum()) > FEW_PAIRS


def panels_of(table: pd.DataFrame) -> list[tuple[str, int, str]]:
    """What `checks` would draw: (statistic, place in its draws, feature); the furthest out of each statistic, then the next of each."""
    found = []
    for statistic, rows in table[table["rows_kind"] == table["rows_kind"].iloc[0]].groupby("statistic", sort=False):
        if statistic == PAIRS and len(rows) > FEW_PAIRS:
            continue
        found += [(str(statistic), place, str(feature)) for place, feature in enumerate(rows["feature"])]
    distance = (table["observed"] - table["replicated_mean"]).abs() / table["replicated_sd"]
    outness = distance.where(table["p_value"].notna()).groupby([table["statistic"], table["feature"]]).max()
    found = [panel for panel in found if np.isfinite(outness[panel[0], panel[2]])]
    furthest = sorted(found, key=lambda panel: -outness[panel[0], panel[2]])
    turns = {panel: [p for p in furthest if p[0] == panel[0]].index(panel) for panel in furthest}
    return sorted(furthest, key=lambda panel: turns[panel])


def _histograms(ax: Axes, criticism: Criticism, statistic: str, place: int, title: str) -> None:
    rows = criticism.table[criticism.table["statistic"] == statistic]
    observed = rows["observed"].iloc[place]
    draws = {kind: values[statistic][:, place] for kind, values in criticism.draws.items()}
    edges = _bins(np.concatenate([d[~np.isnan(d)] for d in draws.values()]))
    said = []
    for kind, values in draws.items():
        counts, _ = np.histogram(values[~np.isnan(values)], edges)
        _, colour, dashes = KINDS[kind]
        ax.stairs(counts, edges, fill=True, color=colour, alpha=0.18)
        ax.stairs(counts, edges, color=colour, linestyle=dashes, linewidth=1.2)
        p = rows.loc[rows["rows_kind"] == kind, "p_value"].iloc[place]
        said.append(f"{kind} p = {p:.2f}" if np.isfinite(p) else f"{kind} p undefined")
    ax.axvline(observed, color=style.INK, linewidth=1.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=4)
    style.name_axes(ax, title=style.word(title, 27))
    ax.set_xlabel(", ".join(said), color=style.MUTED, fontsize=7.5)


def _bins(values: np.ndarray, count: int = 24) -> np.ndarray:
    """Equal bins from the least to the greatest value; about a lone value where replicates do not differ beyond rounding."""
    low, high = values.min(), values.max()
    size = max(abs(low), abs(high))
    margin = 0.05 * size or 1.0 if high - low <= 1e-9 * size else 0.0
    return np.linspace(low - margin, high + margin, count + 1)
