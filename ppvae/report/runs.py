"""The runs of a comparison by the names that a report gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from ppvae.comparison import Comparison
    from ppvae.inference.result import Fit


def labels(comparison: Comparison) -> list[str]:
    """A name for the method of each fit: "EM"; "SVI(steps=500)" where the comparison holds SVI with other settings too."""
    kinds = [type(fit.method).__name__ for fit in comparison.fits]
    settings = {kind: {fit.method for fit in comparison.fits if type(fit.method).__name__ == kind} for kind in kinds}
    return [kind if len(settings[kind]) == 1 else described(fit) for kind, fit in zip(kinds, comparison.fits, strict=True)]


def described(fit: Fit) -> str:
    """A fit's method with the settings that differ from its defaults: "EM", "SVI(steps=500)"."""
    return fit.method.describe().removesuffix("()")


def scores(comparison: Comparison) -> pd.DataFrame:
    """`comparison.table`, a row a fit, with these names as its methods."""
    return comparison.table.assign(method=labels(comparison))


def gaps(comparison: Comparison) -> pd.DataFrame:
    """`comparison.gaps`, a row a fit, with these names as its methods."""
    return comparison.gaps.assign(method=labels(comparison))


def absent(comparison: Comparison) -> pd.DataFrame:
    """`comparison.absent`, the scores that are no numbers, with these names as its methods."""
    names, found = labels(comparison), comparison.absent
    return found.assign(method=[names[place] for place in found.index])
