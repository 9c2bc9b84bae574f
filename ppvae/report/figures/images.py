"""Pictures, where a row is one: data beside the model's reconstruction, and new rows."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.data import Data
    from ppvae.inference.result import Fit

DRAWS = 50  # of the same row, averaged to its reconstruction


def reconstructions(fit: Fit, data: Data, n: int = 10, seed: int = 0) -> Figure:
    """`n` rows spread evenly through the data (top) and what the model makes of each (bottom): the mean over draws of x from p(x | z)
    with z from the row's own posterior. One grey scale, that of the data.
    Raises ValueError where the rows are not images.
    """
    if data.image_shape is None:
        raise ValueError("reconstructions: these rows are not images (data.image_shape is None); draw density(fit, data)")
    shown = data.take(np.linspace(0, data.n_rows - 1, min(n, data.n_rows)).astype(int))
    seen = shown.numpy()
    made = np.asarray(fit.replicate(shown, draws=DRAWS, seed=seed, rows="same")).mean(0)
    limits = float(np.nanmin(seen)), float(np.nanmax(seen))
    figure, axes = _grid(2 * len(seen), len(seen))
    for ax, pixels in zip(axes, [*seen, *made], strict=True):
        _picture(ax, pixels.reshape(data.image_shape), limits)
    for ax, name in ((axes[0], "data"), (axes[len(seen)], "model")):
        ax.set_ylabel(name, color=style.INK, fontsize=9)
    return figure


def samples(fit: Fit, n: int = 40, image_shape: tuple[int, int] | None = None, seed: int = 0) -> Figure:
    """`n` new rows drawn from the fitted model, as pictures of `image_shape` (height, width); a square where it is None.
    Raises ValueError where the features do not make such a picture.
    """
    drawn = np.asarray(fit.sample(n, seed=seed))
    side = isqrt(drawn.shape[1])
    height, width = image_shape or (side, side)
    if height * width != drawn.shape[1]:
        raise ValueError(f"samples: {drawn.shape[1]} features do not make a {height} x {width} picture; pass image_shape=(height, width)")
    limits = float(np.quantile(drawn, 0.005)), float(np.quantile(drawn, 0.995))
    figure, axes = _grid(n, 10)
    for ax, pixels in zip(axes, drawn, strict=True):
        _picture(ax, pixels.reshape(height, width), limits)
    return figure


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    figure, axes = style.panels(count, columns, (0.72, 0.72))
    return figure, axes


def _picture(ax: Axes, pixels: np.ndarray, limits: tuple[float, float]) -> None:
    ax.imshow(pixels, cmap=style.PAPER_TO_INK, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
