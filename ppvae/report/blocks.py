"""What a page is made of: sections of text, terms, tables, code and pictures; and the one template that sets them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

import ppvae
from ppvae.report.figures import style

NARROW = 620  # CSS pixels: below this width a page shows a figure's narrow drawing


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    sentences: str
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Points:
    """Sentences, one a point."""

    sentences: Sequence[str]
    kind: str = field(default="points", init=False)


@dataclass(frozen=True)
class Terms:
    """Words and what they mean."""

    pairs: dict[str, str]
    kind: str = field(default="terms", init=False)


@dataclass(frozen=True)
class Table:
    """Cells as they are to be read. `text`: the places of the columns that are words (set left); the others are numbers (set right)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = (0,)
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Code:
    """Lines as they stand, in a typewriter's letters."""

    lines: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Picture:
    """A figure as data addresses: `wide`, and `narrow` for a phone where the figure has such a drawing."""

    alt: str
    caption: str
    wide: str
    width: int
    narrow: str | None = None
    kind: str = field(default="picture", init=False)


Block = Text | Points | Terms | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """A heading (`key` is its address in the page) and what stands under it."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole report: a sentence for a title, the setting, and sections."""

    title: str
    lead: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The page as one string."""
        loader = PackageLoader("ppvae.report", ".")
        environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("page.html").render(page=self, narrow=NARROW, version=ppvae.__version__)


def drawing(alt: str, caption: str, svg: str) -> Picture:
    """A drawing by another program, its width in points as the drawing gives it."""
    (width,) = re.findall(r'<svg width="([0-9.]+)pt"', svg)
    return Picture(alt, caption, style.address(svg.encode(), "svg"), round(float(width) * 96 / 72))


def picture(alt: str, caption: str, figure: Figure, narrow: Figure | None = None, kind: str = "svg") -> Picture:
    """A figure (and its narrow drawing) ready for a page; `kind` "png" for figures that are all pixels."""
    wide = style.data_uri(figure, kind)
    small = None if narrow is None else style.data_uri(narrow, kind)
    return Picture(alt, caption, wide, round(96 * figure.get_figwidth()), None if small == wide else small)


def responsive(alt: str, caption: str, draw: Callable[[int], Figure], wide: int, narrow: int, kind: str = "svg") -> Picture:
    """A figure whose panels can stand in fewer columns, `draw(columns)`: `wide` ones on a desk and `narrow` ones on a phone."""
    return picture(alt, caption, draw(wide), draw(narrow), kind)
