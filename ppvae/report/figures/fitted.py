"""What was fitted: the density over the data, and the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ppvae.data import Data
from ppvae.program.joint import sites_of
from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.inference.result import Fit

SHARES = (0.95, 0.8, 0.5)  # of the fitted model's probability, inside the contours
GRID = 70  # cells along an axis of the density grid


def density(fit: Fit, data: Data, features: int = 4, seed: int = 0) -> Figure:
    """The fitted density over the data.

    One feature: its histogram under the density, or the share of each whole number where the story counts. Two: the rows, and contours
    that hold 50, 80 and 95 % of the fitted model's probability (from `fit.log_likelihood` on a grid, in the data's units). More: those
    `features` of them that hang together most, each against each: the rows in grey, as many new rows drawn from the model in colour.
    Raises ValueError for data with a context (the density is another one for every row) and for images (see `samples`).
    """
    if data.context is not None:
        raise ValueError("density: this fit is conditional on a context, so each row has a density of its own")
    if data.image_shape is not None:
        raise ValueError("density: these rows are images; draw samples(fit, n) or reconstructions(fit, data)")
    data = fit.take(data)
    if data.n_features == 1:
        return _shares(fit, data) if counts(fit, data) else _density_line(fit, data)
    if data.n_features == 2:
        return _density_contours(fit, data)
    return _scatter_matrix(data, fit.sample(data.n_rows, seed=seed), _hanging_together(data, features))


def latent_space(fit: Fit, data: Data) -> Figure:
    """Where each row lies in latent space: its posterior mean, coloured by `data.labels` where classes are known.

    Of more than two latents, the two whose posterior means vary most; of one, its histogram.
    Raises ValueError where the model has no continuous latent variable.
    """
    z = np.asarray(fit.transform(data))
    classes, member = _classes(data)
    colours, markers = style.colours(classes), style.markers(classes)
    figure, (ax,) = style.panels(1, 1, (4.6, 3.8))
    if z.shape[1] == 1:
        edges = np.histogram_bin_edges(z[:, 0], bins=40).tolist()
        ax.hist([z[m, 0] for m in member], edges, stacked=True, color=[colours[c] for c in classes])
        style.name_axes(ax, x="posterior mean of latent 1", y="rows")
    else:
        first, second = sorted(np.argsort(-z.var(0), kind="stable")[:2])
        for name, rows in zip(classes, member, strict=True):
            _points(ax, z[rows][:, [first, second]], colours[name], markers[name], pixels=len(z) > style.MANY_POINTS)
        style.name_axes(ax, x=f"posterior mean of latent {first + 1}", y=f"posterior mean of latent {second + 1}")
    if len(classes) > 1:
        handles = [Line2D([], [], linestyle="", color=colours[c], marker=markers[c], markersize=5, label=style.word(c)) for c in classes]
        style.legend(figure, handles, columns=5)
    return figure


def counts(fit: Fit, data: Data) -> bool:
    """Whether the story's rows are whole numbers, so that it gives them probabilities and no densities."""
    sites = sites_of(fit.program, data.head())
    return all(sites[name]["fn"].support.is_discrete for name in fit.observed(data.batch()).columns)


def _shares(fit: Fit, data: Data) -> Figure:
    seen = data.numpy()[:, 0]
    seen = seen[~np.isnan(seen)]
    at = np.arange(seen.min(), seen.max() + 1)
    figure, (ax,) = style.panels(1, 1, (4.8, 3.2))
    ax.bar(at, [(seen == value).mean() for value in at], width=0.7, color=style.DATA, alpha=0.6)
    ax.plot(at, np.exp(np.asarray(fit.log_likelihood(data.with_rows(at[:, None])))), "o", color=style.MODEL)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.name_axes(ax, x=style.word(data.columns[0]), y="share of rows")
    return figure


def _density_line(fit: Fit, data: Data) -> Figure:
    seen = data.numpy()[:, 0]
    seen = seen[~np.isnan(seen)]
    figure, (ax,) = style.panels(1, 1, (4.8, 3.2))
    ax.hist(seen, bins="auto", density=True, color=style.DATA, alpha=0.6)
    at = np.linspace(*_range(seen), 400)
    ax.plot(at, np.exp(np.asarray(fit.log_likelihood(data.with_rows(at[:, None])))), color=style.MODEL, linewidth=1.8)
    name = style.word(data.columns[0])
    style.name_axes(ax, x=name, y=f"density (1 / unit of {name})")
    return figure


def _density_contours(fit: Fit, data: Data) -> Figure:
    seen = data.numpy()
    seen = seen[~np.isnan(seen).any(1)]
    across, up = (np.linspace(*_range(seen[:, d]), GRID) for d in range(2))
    cells = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    height = np.exp(np.asarray(fit.log_likelihood(data.with_rows(cells)), float)).reshape(GRID, GRID)
    figure, (ax,) = style.panels(1, 1, (4.6, 3.8))
    _points(ax, seen, style.DATA, "o", pixels=len(seen) > style.MANY_POINTS)
    levels = _levels(height)
    ax.contour(across, up, height, levels=levels, colors=style.MODEL, linewidths=(0.9, 1.3, 1.8)[-len(levels) :])
    style.name_axes(ax, x=style.word(data.columns[0]), y=style.word(data.columns[1]))
    style.legend(
        figure,
        [
            Line2D([], [], linestyle="", marker="o", markersize=4, color=style.DATA, label="a row"),
            Line2D([], [], color=style.MODEL, label=f"{', '.join(f'{s:.0%}' for s in SHARES)} of the fitted density"),
        ],
    )
    return figure


def _levels(height: np.ndarray) -> list[float]:
    """The heights whose contours enclose SHARES of the volume, lowest first; equal ones once."""
    falling = np.sort(height, axis=None)[::-1]
    inside = np.cumsum(falling) / falling.sum()
    return sorted({float(falling[np.searchsorted(inside, share)]) for share in SHARES})


def _scatter_matrix(data: Data, drawn: np.ndarray, chosen: list[int]) -> Figure:
    seen, n = data.numpy(), len(chosen)
    pixels = len(seen) * n * (n - 1) / 2 > style.MANY_POINTS
    figure, axes = style.panels(n * n, n, (1.75, 1.6))
    for cell, ax in enumerate(axes):
        row, column = divmod(cell, n)
        i, j = chosen[row], chosen[column]
        if column > row:
            ax.set_axis_off()
            continue
        span = _range(seen[:, j])
        ax.set_xlim(*span)
        if row == column:
            edges = np.linspace(*span, 24)
            ax.stairs(_histogram(seen[:, j], edges), edges, fill=True, color=style.DATA, alpha=0.6)
            ax.stairs(_histogram(drawn[:, j], edges), edges, color=style.MODEL, linewidth=1.3)
            ax.set_yticks([])
        else:
            ax.set_ylim(*_range(seen[:, i]))
            _points(ax, seen[:, [j, i]], style.DATA, "o", size=9, pixels=pixels)
            _points(ax, drawn[:, [j, i]], style.MODEL, "o", size=3, pixels=pixels)
        first = column == 0 and row > 0
        style.name_axes(ax, x=style.word(data.columns[j]) if row == n - 1 else "", y=style.word(data.columns[i]) if first else "")
        ax.tick_params(labelbottom=row == n - 1, labelleft=first)
    style.legend(
        figure,
        [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=style.DATA, label="a row"),
            Line2D([], [], linestyle="", marker="o", markersize=3, color=style.MODEL, label="a row drawn from the fitted model"),
        ],
    )
    return figure


def _hanging_together(data: Data, most: int) -> list[int]:
    """At most so many features, those with the largest squared correlations with the others, in the table's order."""
    if data.n_features <= most:
        return list(range(data.n_features))
    correlation = data.frame().corr(min_periods=3).fillna(0.0).to_numpy() ** 2
    return sorted(np.argsort(-correlation.sum(0), kind="stable")[:most].tolist())


def _points(ax: Axes, xy: np.ndarray, colour: str, marker: str, size: float = 14, pixels: bool = False) -> None:
    ax.scatter(xy[:, 0], xy[:, 1], s=size, c=colour, marker=marker, alpha=0.75, linewidths=0, rasterized=pixels)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The density of the observed values in each bin; values beyond the bins count as seen."""
    seen = values[~np.isnan(values)]
    return np.histogram(seen, edges)[0] / (len(seen) * np.diff(edges))


def _range(values: np.ndarray) -> tuple[float, float]:
    """From a little below the least to a little above the greatest of the observed values."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.12 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _classes(data: Data) -> tuple[Sequence[str], list[np.ndarray]]:
    """The names of the known classes and, for each, which rows are in it; one class where none are known."""
    if data.labels is None:
        return ["all rows"], [np.ones(data.n_rows, bool)]
    names = np.asarray(data.labels).astype(str)
    classes = np.unique(names).tolist()
    return classes, [names == c for c in classes]
