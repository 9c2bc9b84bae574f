"""What is under a log-likelihood: its lower bounds along a curve, and the divergence between two Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import norm

from ppvae.exact import Posterior, kl
from ppvae.report.figures import style

if TYPE_CHECKING:
    from ppvae.criticism.bounds import Bounds

CELLS = 4001  # of the quadrature


def bounds(found: Bounds, label: str = "t", below: float = 0.6) -> Figure:
    """The log-likelihood along a curve and lower bounds on it, from `ppvae.criticism.bounds.climb` or `under`.

    A disc is where a bound's guide was made, a triangle its highest point, with a dotted line up to the log-likelihood there. `label`
    names the curve's number. The frame reaches `below` times the log-likelihood's own range further down than it.
    """
    table, names = found.table, list(found.marks.index)
    colours = style.colours(names)
    figure, (ax,) = style.panels(1, 1, (6.0, 3.8))
    ax.plot(table.index, table["log_likelihood"], color=style.INK, linewidth=2.2)
    for name, mark in found.marks.iterrows():
        colour = colours[str(name)]
        ax.plot(table.index, table[name], color=colour, linewidth=1.3)
        ax.plot([mark["peak"]] * 2, [mark["height"], mark["log_likelihood"]], ":", color=colour, linewidth=1.2)
        ax.plot(mark["t"], mark["bound"], "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
        ax.plot(mark["peak"], mark["height"], "^", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
    low, high = table["log_likelihood"].min(), table["log_likelihood"].max()
    lowest = min(low, found.marks[["bound", "height"]].min(axis=None))
    ax.set_ylim(lowest - below * (high - low), high + 0.12 * (high - lowest))
    style.name_axes(ax, x=label, y="nats per row")
    lines = [Line2D([], [], color=style.INK, linewidth=2.2, label="log-likelihood")]
    style.legend(figure, [*lines, *(Line2D([], [], color=colours[name], label=name) for name in names)], columns=3)
    return figure


def divergence(scale: float = 2.0, apart: float = 4.0, columns: int = 2) -> Figure:
    """KL between q = N(d, 1) and p = N(0, scale^2) as their means part, in both directions (nats, against d from 0 to `apart`).

    Left: the two densities at d = `apart` / 2. Right: lines are the formula, discs the integral of q log(q / p) by quadrature.
    """
    table = _parting(scale, np.linspace(0.0, apart, 81))
    discs = _parting(scale, np.linspace(0.0, apart, 9))
    forward, backward = "KL(q || p)", "KL(p || q)"
    figure, (left, right) = style.panels(2, columns, (3.9, 3.0))
    x = np.linspace(-3 * scale, max(3 * scale, apart / 2 + 4), 400)
    for name, density, colour in (("q", norm.pdf(x, apart / 2), style.PALETTE[0]), ("p", norm.pdf(x, 0, scale), style.PALETTE[1])):
        left.plot(x, density, color=colour, linewidth=1.8)
        left.fill_between(x, density, color=colour, alpha=0.12, linewidth=0)
        left.annotate(
            name, (x[density.argmax()], density.max()), (0, 4), textcoords="offset points", color=colour, ha="center", fontsize=10
        )
    left.set_ylim(0, 0.48)
    style.name_axes(left, x="z", y="density")
    for name, colour in ((forward, style.PALETTE[0]), (backward, style.PALETTE[1])):
        right.plot(table["apart"], table[name], color=colour, linewidth=1.8)
        right.plot(
            discs["apart"], discs[f"{name} by quadrature"], "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.6
        )
        right.annotate(
            name, (apart, table[name][-1]), (-4, 0), textcoords="offset points", color=colour, ha="right", va="bottom", fontsize=9
        )
    right.set_ylim(bottom=0)
    style.name_axes(right, x="distance of the means, d", y="nats")
    return figure


def _parting(scale: float, apart: np.ndarray) -> dict[str, np.ndarray]:
    """Both divergences between N(d, 1) and N(0, scale^2) at each distance d, by formula and by quadrature."""
    d = torch.as_tensor(apart).unsqueeze(1)
    q = Posterior.gaussian(d, torch.ones(1, 1, 1, dtype=d.dtype))
    p = Posterior.gaussian(torch.zeros_like(d), torch.full((1, 1, 1), scale, dtype=d.dtype))
    table = {"apart": apart}
    for name, one, other in (("KL(q || p)", q, p), ("KL(p || q)", p, q)):
        formula = kl(one, other)
        assert formula is not None
        centre, width = one.loc[:, 0], one.scale_tril[0, 0]
        z = centre + 10 * width * torch.linspace(-1, 1, CELLS, dtype=d.dtype)  # ten standard deviations hold all but 1e-22
        log_one, log_other = (torch.distributions.Normal(of.loc[:, 0], of.scale_tril[0, 0]).log_prob(z) for of in (one, other))
        table[name] = formula.numpy()
        table[f"{name} by quadrature"] = torch.trapezoid(log_one.exp() * (log_one - log_other), z).numpy()
    return table
