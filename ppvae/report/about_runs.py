"""Sections on the runs of a comparison: what came out, how they converged, what each lost."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppvae.report import runs, words
from ppvae.report.blocks import Block, Picture, Points, Section, Table, Text, picture, responsive
from ppvae.report.figures import progress

if TYPE_CHECKING:
    from ppvae.comparison import Comparison

HEADINGS = {
    "log_likelihood": "log-likelihood",
    "log_likelihood_se": "its s.e.",
    "heldout_log_likelihood": "held-out",
    "hidden_log_likelihood": "hidden (nats)",
    "hidden_rmse": "hidden (sd off)",
    "elbo": "ELBO",
    "gap_to_best": "gap to best",
    "kl": "KL",
}
SCORES: dict[str, Callable[[float], str]] = {
    "log_likelihood": words.nats,
    "log_likelihood_se": words.briefly,
    "heldout_log_likelihood": words.nats,
    "hidden_log_likelihood": words.nats,
    "hidden_rmse": words.plain,
    "elbo": words.nats,
    "gap_to_best": words.briefly,
    "kl": words.briefly,
    "seconds": words.seconds,
}
PARTS = ("parameters", "approximation", "amortization", "total")
APPROXIMATION = "approximation (no member of the guide's family is the exact posterior)"
AMORTIZATION = "amortization (one network for all rows does worse than the family's best member for each row)"
LOST = {
    "the best log-likelihood": f" by three parts: parameters (the fitted ones are not the best ones), {APPROXIMATION} and {AMORTIZATION}.",
    "its own log-likelihood": f" by two parts: {APPROXIMATION} and {AMORTIZATION}. How far the parameters are from the best ones is "
    "unknown, since no log-likelihood here is exact.",
    "the log-evidence": ", log p(all rows) / N with the parameters integrated out, by KL(q || posterior) of what all rows share. It is all "
    "approximation where rows have no encoder; parameters that have a posterior are no point that could miss the best one.",
}


def sections(comparison: Comparison) -> Iterator[Section]:
    """What came out, convergence, and the split of what was lost."""
    table = runs.scores(comparison)
    yield Section(
        "findings", "What came out", [Points(words.findings(comparison)), _every_run(table), _statuses(table), *_over_seeds(table)]
    )
    yield Section("convergence", "Convergence", [_convergence(comparison)])
    yield Section("gaps", "Where the loss comes from", list(_lost(comparison)))


def _every_run(table: pd.DataFrame) -> Table:
    scores = [name for name in SCORES if name in table]
    columns = ["method", "seed", *(HEADINGS.get(name, name) for name in scores), "steps"]
    rows = [
        [str(run["method"]), str(run["seed"]), *(SCORES[name](run[name]) for name in scores), str(run["steps"])]
        for run in table.to_dict("records")
    ]
    other = "; hidden entries have units of their own" if "hidden_rmse" in table else ""
    return Table(f"Every run. Scores in nats per row: higher is better{other}", columns, rows)


def _statuses(table: pd.DataFrame) -> Points:
    """How each run ended, runs that ended alike together."""
    found = []
    for (method, status), own in table.groupby(["method", "status"], sort=False):
        seeds = ", ".join(map(str, own["seed"]))
        found.append(f"{method}, {'seed' if len(own) == 1 else 'seeds'} {seeds}: {status}")
    return Points(found)


def _over_seeds(table: pd.DataFrame) -> Iterator[Table]:
    """Means and standard deviations, where there is more than one seed."""
    if table["seed"].nunique() < 2:
        return
    scores = [name for name in SCORES if name in table and name != "log_likelihood_se"]
    rows = [
        [str(method), *(f"{SCORES[name](own[name].mean())} {words.PLUS_MINUS} {SCORES[name](own[name].std())}" for name in scores)]
        for method, own in table.groupby("method", sort=False)
    ]
    yield Table(f"Mean {words.PLUS_MINUS} standard deviation over seeds", ["method", *(HEADINGS.get(name, name) for name in scores)], rows)


def _convergence(comparison: Comparison) -> Picture:
    if progress.logged(comparison):
        how = (
            "Each line is a run, each marker its end; down is better. The vertical axis is the gap to the best final log-likelihood, "
            "ten times smaller at each mark. Thick lines are log-likelihoods; thin ones are ELBOs, above them by what the guide costs "
            "and by sampling noise."
        )
    else:
        held = any(fit.history["heldout_elbo"].notna().any() for fit in comparison.fits)
        how = "Each line is a run's ELBO, each marker its end; up is better. The first tenth of the steps may lie below the frame."
        how += " Dashed: held-out rows." if held else ""
        if "elbo" in comparison.absent["score"].to_list():
            how += " Of a run without an ELBO it is the objective that the run climbs, which is no bound."
    alt = "Lines of each run's score against steps and against seconds"
    return responsive(alt, how, lambda columns: progress.convergence(comparison, columns), wide=2, narrow=1)


def _lost(comparison: Comparison) -> Iterator[Block]:
    against, table = words.lost_against(comparison), runs.gaps(comparison)
    yield Text(f"A run's ELBO lies below {against}{LOST[against]}")
    if table["total"].isna().all():
        yield Text("Here none of the parts is known.")
    elif table["total"].abs().max() < words.EQUAL:
        yield Text("Here no run lost as much as a millionth of a nat per row.")
    else:
        caption = "The parts add up to the total; lines at the end of a part are two standard errors of it. Left of zero: gains, or error."
        yield picture("Stacked bars of the parts", caption, progress.gaps(comparison))
    rows = [[str(run["method"]), str(run["seed"]), *(_with_error(run, part) for part in PARTS)] for run in table.to_dict("records")]
    yield Table(f"Lost against {against}, in nats per row ({words.PLUS_MINUS} standard error)", ["method", "seed", *PARTS], rows)


def _with_error(run: Mapping[Hashable, float], part: str) -> str:
    if not np.isfinite(run[part]):
        return "unknown"
    error = run.get(f"{part}_se", 0.0)
    return words.briefly(run[part]) + (f" {words.PLUS_MINUS} {words.briefly(error)}" if error > 0 else "")
