"""A walk through latent space: what the model makes of codes along straight lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from ppvae.report.figures import images, style

if TYPE_CHECKING:
    from ppvae.data import Data
    from ppvae.inference.result import Fit

ENDS = (2.0, 98.0)  # percentiles of the rows' codes between which a line runs
PANELS, PICTURED = 4, 10  # contexts or latents as panels of profiles; contexts as lines of pictures
STEPS = 9  # codes along a line, and lines of a grid
NAMED = 30  # more features than this are numbered by the axis, not named
ALONG = LinearSegmentedColormap.from_list("along", (style.PALETTE[0], style.PALE, style.PALETTE[1]))


@dataclass(frozen=True)
class _Line:
    """Codes (STEPS, L) that differ in latent `along` only, the context that they are decoded with, and the latent in which lines differ."""

    name: str
    along: int
    codes: np.ndarray
    context: np.ndarray | None
    up: int | None


def latent_walk(fit: Fit, data: Data, columns: int = 2) -> Figure:
    """Rows decoded along lines through latent space, E[x | z], from the 2nd to the 98th percentile of the rows' codes, the other latents at
    their medians.

    Images: a line of pictures; for two latents or more, a grid over the two whose codes vary most. Other rows: each feature's profile along
    each of the (at most four) latents whose codes vary most, in standard deviations of the feature from its mean. A conditional fit walks
    along one latent, with the contexts of rows spread through the data.
    Raises ValueError for a story without one continuous latent a row.
    """
    data = fit.take(data)
    lines = list(_lines(fit, data))
    rows = np.stack([fit.decode(line.codes, line.context) for line in lines])
    return _profiles(data, lines, rows, columns) if data.image_shape is None else _pictures(data, lines, rows)


def _profiles(data: Data, lines: list[_Line], rows: np.ndarray, columns: int) -> Figure:
    """A panel for each walk, the features down its side."""
    named = data.n_features <= NAMED
    figure, axes = style.panels(len(lines), columns, (4.4, float(np.clip(0.9 + 0.21 * data.n_features, 1.8, 5.0))))
    scaled = (rows - data.mean.cpu().numpy()) / data.scale.cpu().numpy()
    places = np.arange(data.n_features)
    for ax, line, profiles in zip(axes, lines, scaled, strict=True):
        at = line.codes[:, line.along]
        norm = Normalize(at.min(), at.max())
        for t, profile in zip(at, profiles, strict=True):
            ax.plot(profile, places, color=ALONG(norm(t)), linewidth=1.2, marker="o", markersize=3 if named else 0)
        ax.set_xlim(*_margin(scaled))
        ax.invert_yaxis()
        if named:
            ax.set_yticks(places, [style.word(name) for name in data.columns])
        bar = figure.colorbar(ScalarMappable(norm, ALONG), ax=ax, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=style.MUTED, labelsize=8, length=2)
        style.name_axes(ax, x="sd from the mean", title=line.name)
    return figure


def _margin(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{v:.1f}" for v in values.round(1) + 0.0]  # no -0.0


def _pictures(data: Data, lines: list[_Line], rows: np.ndarray) -> Figure:
    """A line of pictures for each walk, under one another."""
    assert data.image_shape is not None
    height, width = data.image_shape
    across, down = 0.5 * STEPS, 0.5 * len(lines) * height / width
    figure, (ax,) = style.panels(1, 1, (across + 0.6, down + 0.5))
    images.mosaic(ax, rows.reshape(-1, height, width), STEPS, images.grey(data))
    first, few = lines[0], [0, STEPS // 2, STEPS - 1]
    ax.set_xticks([(i + 0.5) * (width + 1) - 1 for i in few], _numbers(first.codes[few, first.along]))
    if first.up is not None:
        ax.set_yticks([(i + 0.5) * (height + 1) - 1 for i in few], _numbers(np.array([lines[i].codes[0, first.up] for i in few])))
    ax.tick_params(length=0)
    second = "one context a line" if first.context is not None else "" if first.up is None else f"latent {first.up + 1}"
    style.name_axes(ax, x=f"latent {first.along + 1}", y=second)
    return figure


def _lines(fit: Fit, data: Data) -> Iterator[_Line]:
    codes = np.asarray(fit.transform(data))
    low, high = np.percentile(codes, ENDS, axis=0)
    middle = np.median(codes, 0)
    liveliest = np.argsort(-codes.var(0), kind="stable")

    def line(j: int, name: str, context: np.ndarray | None = None, up: int | None = None, height: float = 0.0) -> _Line:
        walked = np.tile(middle, (STEPS, 1))
        walked[:, j] = np.linspace(low[j], high[j], STEPS)
        if up is not None:
            walked[:, up] = height
        return _Line(name, j, walked, context, up)

    if data.context is not None:
        contexts = np.unique(data.context.cpu().numpy(), axis=0)[::-1]
        most = PANELS if data.image_shape is None else PICTURED
        for context in contexts[np.linspace(0, len(contexts) - 1, min(most, len(contexts))).astype(int)]:
            yield line(liveliest[0], f"context {', '.join(f'{c:g}' for c in context)}", context)
    elif data.image_shape is None or codes.shape[1] == 1:
        for j in sorted(liveliest[:PANELS]):
            yield line(j, f"latent {j + 1}")
    else:
        first, second = sorted(liveliest[:2])
        for height in np.linspace(high[second], low[second], STEPS):
            yield line(first, f"latent {first + 1}", up=second, height=height)
