"""The report of a comparison or of predictive checks: its table of contents, and the one HTML file it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppvae.criticism.checks import check
from ppvae.places import check_page
from ppvae.report import about_checks, about_fit, about_origin, about_runs, words
from ppvae.report.blocks import Page, Section, Terms

if TYPE_CHECKING:
    from ppvae.comparison import Comparison
    from ppvae.criticism.checks import Criticism


def write(comparison: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison to `path`, one HTML file that needs nothing else; return the path.

    The pictures and the predictive checks are those of the fit with the highest log-likelihood, on the training rows.
    Raises ValueError where no such file can be written.
    """
    path = Path(path)
    check_page(path)
    best, data = comparison.best, comparison.data
    came_out, *how = about_runs.sections(comparison)
    fit, model = about_fit.sections(best, data)
    terms = Section("terms", "Terms", [Terms(words.terms(comparison))])
    table = about_origin.of_data(data if comparison.hidden is None else comparison.hidden, words.hidden(comparison))
    checks = about_checks.sections(check(best, data))
    sections = [came_out, terms, *how, fit, *checks, table, model, about_origin.of_comparison(comparison)]
    path.write_text(Page(words.headline(comparison), words.setting(comparison), sections).html(), encoding="utf-8")
    return path


def write_check(criticism: Criticism, path: str | Path) -> Path:
    """Write the report of predictive checks to `path`, as `write` does for a comparison."""
    path = Path(path)
    check_page(path)
    fit, model = about_fit.sections(criticism.fit, criticism.data)
    sections = [*about_checks.sections(criticism), fit, about_origin.of_data(criticism.data), model, about_origin.of_versions()]
    path.write_text(Page(words.verdict(criticism), words.circumstances(criticism), sections).html(), encoding="utf-8")
    return path
