"""The section on predictive checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ppvae.report import words
from ppvae.report.blocks import Block, Section, Table, Text, responsive
from ppvae.report.figures import predictive

if TYPE_CHECKING:
    from ppvae.criticism.checks import Criticism

PANELS = 16  # histograms
LINES = 60  # of the table


def sections(criticism: Criticism) -> Iterator[Section]:
    """Whether the fitted model makes data like the data."""
    yield Section("checks", "Predictive checks", list(_blocks(criticism)))


def _blocks(criticism: Criticism) -> Iterator[Block]:
    table = criticism.table
    yield Text(
        f"{criticism.n_draws} data sets were drawn from the fitted model for the same rows (with the latents that their data suggest, if "
        f"the model has any) and as many for new rows, and each statistic of the data was set beside its replicates. {criticism.summary}. "
        "Where the model is right, at most about one in twenty does."
    )
    if predictive.panels_of(table):
        caption = (
            "The black line is the data's own value, the outlines what the model makes of it; the furthest out come first. "
            "p is the share of replicates at or above the line."
        )
        yield responsive(
            "Histograms of replicated statistics with the observed value as a line",
            caption,
            lambda columns: predictive.checks(criticism, PANELS, columns),
            wide=4,
            narrow=2,
        )
    if predictive.pairs_of(table):
        yield responsive(
            "Matrices of correlations, observed and replicated",
            "Correlations of each pair of features. Where the first is not symmetric, and the other coloured, the model misses one.",
            lambda columns: predictive.correlations(criticism, columns),
            wide=2,
            narrow=1,
        )
    distance = (table["observed"] - table["replicated_mean"]).abs() / table["replicated_sd"]
    listed = table.loc[distance.sort_values(ascending=False, kind="stable").index[:LINES]]
    which = "All checks" if len(listed) == len(table) else f"The {LINES} of {len(table)} checks that lie furthest out"
    numbers = {"observed": "observed", "replicated_mean": "replicates' mean", "replicated_sd": "their sd", "p_value": "p"}
    rows = [
        [check["statistic"], check["feature"], check["rows_kind"], *(words.plain(check[name]) for name in numbers)]
        for check in listed.to_dict("records")
    ]
    yield Table(f"{which}, the furthest out first", ["statistic", "feature", "rows", *numbers.values()], rows, text=(0, 1, 2))
