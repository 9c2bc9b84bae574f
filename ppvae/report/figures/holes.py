"""Which entries are missing, and which of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.data import Data

PATTERNS = 16  # the most common ones; the rest share the last line
NAMED = 30  # more features than this are numbered by the axis, not named
LETTERS = 10  # to an inch of the figure's width, its margins counted in


def missingness(data: Data) -> Figure:
    """The share of each feature's entries that is missing (top), and the patterns of missing features (dark) with the number of rows
    that have each, the most common first (at most 16 patterns).
    Raises ValueError where nothing is missing.
    """
    if data.complete:
        raise ValueError("missingness: every entry of this data set is observed")
    absent = ~np.isfinite(data.numpy())
    patterns, counts = np.unique(absent, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = order[:PATTERNS]
    rest = int(counts[order[PATTERNS:]].sum())

    features = np.arange(data.n_features) + 0.5
    width = np.clip(1.6 + 0.5 * data.n_features, 3.6, 8.0)
    figure = style.Drawing(width, 2.2 + 0.2 * len(shown))
    share, grid = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (1.0, 0.24 * len(shown) + 0.3)})
    style.tidy(share)
    style.tidy(grid)

    share.bar(features, absent.mean(0), color=style.MODEL, width=0.8)
    share.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    share.yaxis.set_major_locator(MaxNLocator(3))
    style.name_axes(share, y="missing")

    grid.pcolormesh(patterns[shown], cmap=style.PAPER_TO_INK, vmax=1.3, edgecolors=style.RULE, linewidth=0.4, rasterized=True)
    grid.invert_yaxis()
    grid.set_yticks(np.arange(len(shown)) + 0.5, [f"{count} rows" for count in counts[shown]])
    grid.tick_params(length=0)
    if data.n_features <= NAMED:
        names = [style.word(name) for name in data.columns]
        beside = data.n_features * max(map(len, names)) < LETTERS * width
        grid.set_xticks(features, names, rotation=0 if beside else 90)
    for spine in grid.spines.values():
        spine.set_visible(False)
    others = len(order) - len(shown)
    style.name_axes(grid, x=f"and {others} rarer patterns in {rest} rows" if others else "")
    return figure
