"""One look for every figure: panels, ink, a palette that colour-blind readers can tell apart, and the way to a data URI."""

import base64
import io
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, RULE, PALE = "#1f2933", "#5f6b7a", "#dfe3e8", "#9aa5b1"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito (2008), without the yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DATA, MODEL = PALE, PALETTE[0]  # what was seen, and what the model says
PAPER_TO_INK = LinearSegmentedColormap.from_list("paper_to_ink", ("#ffffff", INK))
MANY_POINTS = 400  # a scatter of more points than this is drawn as pixels, so that a page stays small
DPI = 160
LETTER = 0.065  # inches, of a legend's


class Drawing(Figure):
    """A figure that shows itself in a notebook, also where pyplot, which would teach the notebook how, was never imported."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained", dpi=DPI, facecolor="white")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each distinct name, in order of first appearance."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def markers(names: Iterable[str]) -> dict[str, str]:
    """A marker for each distinct name: colour is never the only clue, and the eighth name shares a colour but not its marker."""
    shift = len(PALETTE)
    return {name: MARKERS[(i + i // shift) % len(MARKERS)] for i, name in enumerate(dict.fromkeys(names))}


def panels(count: int, columns: int, size: tuple[float, float] = (4.2, 3.0)) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` side by side, each `size` inches."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Drawing(columns * size[0], rows * size[1])
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        tidy(ax)
    return figure, axes


def tidy(ax: Axes) -> None:
    """Quiet rules and ticks; only the left and the bottom spine."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(PALE)
    ax.tick_params(which="both", colors=MUTED, labelsize=8, length=3)
    ax.tick_params(which="minor", length=1.5)
    ax.set_axisbelow(True)


def word(name: object, most: int = 20) -> str:
    """A name from outside (a column, a class, a method) as figures write it: its middle left out where it is long, and no mathematics.

    >>> word("measurement of temperature in 2019")
    'measuremen…e in 2019'
    """
    text = str(name)
    if len(text) > most:
        text = f"{text[: most // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1) // 2 :]}"
    return text.replace("$", r"\$")


def name_axes(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """The labels of the axes, with units, and a panel's title."""
    ax.set_xlabel(x, color=INK, fontsize=9)
    ax.set_ylabel(y, color=INK, fontsize=9)
    ax.set_title(title, color=INK, fontsize=9, loc="left")


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """One legend for the whole figure, above the panels, in at most so many columns and no more than its width has room for."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = min(columns, len(labels))
    while columns > 1 and sum(0.4 + LETTER * max(map(len, part)) for part in np.array_split(labels, columns)) > figure.get_figwidth():
        columns -= 1
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=1.6,
        columnspacing=1.4,
    )


def data_uri(figure: Figure, kind: str = "svg") -> str:
    """The figure as a `data:` address: `svg`, or `png` for figures that are all pixels. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the panels have their places now: savefig would find them twice more
    with matplotlib.rc_context({"svg.hashsalt": "ppvae", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return address(buffer.getvalue(), kind)


def address(content: bytes, kind: str) -> str:
    """The file's content, `svg` or `png`, as a `data:` address."""
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
