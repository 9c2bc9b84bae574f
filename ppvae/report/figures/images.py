"""Pictures, where a row is one: data beside the model's reconstructions, and new rows beside data."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppvae.criticism.predictive import blank_batch, prior_predictive
from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.data import Data
    from ppvae.inference.result import Fit

DRAWS = 50  # of the same row, averaged to its reconstruction
SIDE = 0.72  # inches of a picture's side


def reconstructions(fit: Fit, data: Data, n: int = 10, seed: int = 0) -> Figure:
    """`n` rows spread evenly through the data (top) and what the model makes of each (bottom): the mean over draws of x from p(x | z)
    with z from the row's own posterior. One grey scale, that of the data.
    Raises ValueError where the rows are not images.
    """
    shown = spread(data, n, "reconstructions")
    data, shown = fit.take(data), fit.take(shown)
    made = np.asarray(fit.replicate(shown, draws=DRAWS, seed=seed, rows="same")).mean(0)
    count = shown.n_rows
    figure, axes = style.panels(2, 1, (SIDE * count + 0.3, SIDE))
    for ax, pixels, name in zip(axes, (shown.numpy(), made), ("data", "model"), strict=True):
        mosaic(ax, pixels.reshape(-1, *_shape(data)), count, grey(data))
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
    across = min(n, 10)
    figure, (ax,) = style.panels(1, 1, (SIDE * across, SIDE * -(-n // across)))
    mosaic(ax, drawn.reshape(-1, height, width), across, limits)
    return figure


def generated(fit: Fit, data: Data, n: int = 36, columns: int = 3, seed: int = 0) -> Figure:
    """`n` rows spread evenly through the data, beside as many new ones: what the model expects for latents drawn from the prior,
    E[x | z], and the rows that it draws with them, noise and all. One grey scale, that of the data. A conditional fit draws each new row
    with the context of the real one in the same place. Without one continuous latent there is no E[x | z], and no panel for it.
    Raises ValueError where the rows are not images.
    """
    shown = spread(data, n, "generated")
    data, shown = fit.take(data), fit.take(shown)
    batch = blank_batch(shown.n_rows, shown.n_features, fit.dtype, fit.device, shown.context)
    seen = fit.observed(shown.batch())
    drawn = prior_predictive(fit.model, fit.theta, batch, seed=seed, seen=seen)
    blocks = {"data": shown.numpy(), "new rows": seen.table(drawn)[0].cpu().numpy()}
    if len(seen.latents) == 1 and decodes(fit, data):
        z = drawn[seen.latents[0]][0]
        blocks = {"data": blocks["data"], "expected, E[x | z]": fit.decode(z.flatten(1).cpu(), shown.context), "drawn": blocks["new rows"]}
    across = max(1, isqrt(shown.n_rows))
    down = -(-shown.n_rows // across)
    figure, axes = style.panels(len(blocks), columns, (0.45 * across, 0.45 * down + 0.25))
    figure.set_layout_engine("constrained", wspace=0.06)
    for ax, (name, pixels) in zip(axes, blocks.items(), strict=True):
        mosaic(ax, pixels.reshape(-1, *_shape(data)), across, grey(data))
        style.name_axes(ax, title=name)
    return figure


def spread(data: Data, n: int, figure: str) -> Data:
    """`n` rows (all of fewer) evenly through the data. Raises ValueError, in the name of a figure, where the rows are not images."""
    if data.image_shape is None:
        raise ValueError(f"{figure}: these rows are not images (data.image_shape is None); draw density(fit, data)")
    return data.take(np.linspace(0, data.n_rows - 1, min(n, data.n_rows)).astype(int))


def decodes(fit: Fit, data: Data) -> bool:
    """Whether rows have codes that can be decoded: one continuous latent a row, and a posterior that can be read."""
    first = data.take([0])
    try:
        fit.decode(fit.transform(first), first.context)
    except ValueError:  # how a fit says that it has no such latent, or a guide that cannot be read
        return False
    return True


def grey(data: Data) -> tuple[float, float]:
    """White and ink: the least and the greatest observed value."""
    seen = data.numpy()
    return float(np.nanmin(seen)), float(np.nanmax(seen))


def mosaic(ax: Axes, pictures: np.ndarray, across: int, limits: tuple[float, float]) -> None:
    """Pictures (n, height, width) in rows of `across`, a white line between them."""
    n, height, width = pictures.shape
    down = -(-n // across)
    cells = np.full((down * across, height + 1, width + 1), np.nan)
    cells[:n, :height, :width] = pictures
    sheet = cells.reshape(down, across, height + 1, width + 1).swapaxes(1, 2).reshape(down * (height + 1), across * (width + 1))
    ax.imshow(sheet[:-1, :-1], cmap=style.PAPER_TO_INK, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _shape(data: Data) -> tuple[int, int]:
    assert data.image_shape is not None
    return data.image_shape
