"""Sections on the runs of a comparison: what came out, how they converged, what each lost."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from ppvae.report import words
from ppvae.report.blocks import Block, Picture, Points, Section, Table, Text, picture, responsive
from ppvae.report.figures import progress

HEADINGS = {
    "log_likelihood": "log-likelihood",
    "log_likelihood_se": "its s.e.",
    "heldout_log_likelihood": "held-out",
    "elbo": "ELBO",
    "gap_to_best": "gap to best",
    "kl": "KL",
}
SCORES: dict[str, Callable[[float], str]] = {
    "log_likelihood": words.nats,
    "log_likelihood_se": words.briefly,
    "heldout_log_likelihood": words.nats,
    "elbo": words.nats,
    "gap_to_best": words.briefly,
    "kl": words.briefly,
    "seconds": words.seconds,
}
PARTS = ("parameters", "approximation", "amortization", "total")


def sections(comparison) -> Iterator[Section]:
    """What came out; convergence; the split of the gaps, where there is one."""
    yield Section(
        "findings", "What came out", [Points(words.findings(comparison)), _every_run(comparison.table), *_over_seeds(comparison.table)]
    )
    yield Section("convergence", "Convergence", [_convergence(comparison)])
    if len(comparison.gaps):
        yield Section("gaps", "Where the loss comes from", list(_lost(comparison)))


def _every_run(table: pd.DataFrame) -> Table:
    scores = [name for name in SCORES if name in table]
    columns = ["method", "seed", *(HEADINGS.get(name, name) for name in scores), "steps", "status"]
    rows = [
        [str(run["method"]), str(run["seed"]), *(SCORES[name](run[name]) for name in scores), str(run["steps"]), str(run["status"])]
        for run in table.to_dict("records")
    ]
    return Table("Every run. Scores in nats per row: higher is better", columns, rows, text=(0, len(columns) - 1))


def _over_seeds(table: pd.DataFrame) -> Iterator[Table]:
    """Means and standard deviations, where there is more than one seed."""
    if table["seed"].nunique() < 2:
        return
    scores = [name for name in SCORES if name in table and name != "log_likelihood_se"]
    rows = [
        [str(method), *(f"{SCORES[name](runs[name].mean())} {words.PLUS_MINUS} {words.briefly(runs[name].std())}" for name in scores)]
        for method, runs in table.groupby("method", sort=False)
    ]
    yield Table(f"Mean {words.PLUS_MINUS} standard deviation over seeds", ["method", *(HEADINGS.get(name, name) for name in scores)], rows)


def _convergence(comparison) -> Picture:
    if progress.logged(comparison):
        how = (
            "Each line is a run, each marker its end; down is better. The vertical axis is the gap to the best final log-likelihood, "
            "ten times smaller at each mark. Thick lines are log-likelihoods; thin ones are ELBOs, above them by what the guide costs "
            "and by sampling noise."
        )
    else:
        how = (
            "Each line is a run's ELBO, each marker its end; up is better. Dashed lines are held-out rows. "
            "The first tenth of the steps may lie below the frame."
        )
    alt = "Lines of each run's score against steps and against seconds"
    return responsive(alt, how, lambda columns: progress.convergence(comparison, columns), wide=2, narrow=1)


def _lost(comparison) -> Iterator[Block]:
    yield Text(
        "The distance from the best log-likelihood to a method's ELBO has three parts: parameters (the fitted ones are not the best ones), "
        "approximation (no member of the guide's family is the exact posterior) and amortization (one network for all rows does worse than "
        "the family's best member for each row)."
    )
    caption = "The parts add up to the total; the line is two standard errors about it. Parts left of zero are within error, or gains."
    yield picture("Stacked bars of the three parts", caption, progress.gaps(comparison))
    rows = [
        [str(run["method"]), str(run["seed"]), *(_with_error(run, part) for part in PARTS)] for run in comparison.gaps.to_dict("records")
    ]
    yield Table(f"Lost, in nats per row ({words.PLUS_MINUS} standard error)", ["method", "seed", *PARTS], rows)


def _with_error(run: dict[str, float], part: str) -> str:
    error = run.get(f"{part}_se", np.nan)
    return words.briefly(run[part]) + (f" {words.PLUS_MINUS} {words.briefly(error)}" if np.isfinite(error) and error > 0 else "")
