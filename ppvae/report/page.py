"""The report of a comparison or of predictive checks: its table of contents, and the one HTML file it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ppvae.criticism.checks import check
from ppvae.report import about_checks, about_fit, about_origin, about_runs, words
from ppvae.report.blocks import Page, Section, Terms

if TYPE_CHECKING:
    from ppvae.compare import Comparison
    from ppvae.criticism.checks import Criticism


def write(comparison: Comparison, path: str | Path) -> Path:
    """Write the report of a comparison to `path`, one HTML file that needs nothing else; return the path.

    The pictures and the predictive checks are those of the fit with the highest log-likelihood, on the training rows.
    Raises ValueError where the folder of `path` does not exist.
    """
    best, data = comparison.best, comparison.data
    came_out, *how = about_runs.sections(comparison)
    fit, model = about_fit.sections(best, data)
    terms = Section("terms", "Terms", [Terms(words.TERMS)])
    checks = about_checks.sections(check(best, data))
    sections = [came_out, terms, *how, fit, *checks, about_origin.of_data(data), model, about_origin.of_comparison(comparison)]
    return _save(Page(words.headline(comparison), words.setting(comparison), sections, _colophon()), path)


def write_check(criticism: Criticism, path: str | Path) -> Path:
    """Write the report of predictive checks to `path`, as `write` does for a comparison."""
    fit, model = about_fit.sections(criticism.fit, criticism.data)
    sections = [*about_checks.sections(criticism), fit, about_origin.of_data(criticism.data), model, about_origin.of_versions()]
    return _save(Page(words.verdict(criticism), words.circumstances(criticism), sections, _colophon()), path)


def _colophon() -> str:
    return f"Made by ppvae {about_origin.version('ppvae')}. This file needs nothing else: no script, no network."


def _save(page: Page, path: str | Path) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write the report: there is no folder {str(path.parent)!r}; make it first")
    path.write_text(page.html(), encoding="utf-8")
    return path
