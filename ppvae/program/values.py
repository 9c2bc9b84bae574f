"""A story or a guide tried by value: each row scores by itself, however its latents are handed over.

Scores and training hand a program several draws of its latents at once (draws in front of rows), the finite ones at all their values at
once (in front of those), and the rows in minibatches. Code that counts dims from the left, or works across what must stay apart, keeps all
shapes and gives other numbers. So the program runs on a few rows one draw at a time, each row at one value of its finite latents: that is
what it means. Then it runs as it is used, and every site must score the same.

The parameters lie a step away from where they start, since nothing shows through a coefficient that is 0.
"""

import copy
from dataclasses import dataclass, replace
from typing import TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.data import Batch
from ppvae.failures import MISTAKES
from ppvae.messages import few
from ppvae.program.joint import Program, Site, in_draws, is_row_site, per_row, random_sites, scored, unwrapped

DRAWS = 3
STEP = 0.3  # of every trainable number, in its own unit
NEAR = {torch.float64: 1e-7, torch.float32: 2e-3}  # relative: rounding, which a small noise scale makes larger
FROM_THE_RIGHT = (
    "count dims from the right, as dim=-1 does, and wrap layers that take one leading dim (nn.Conv2d, nn.GroupNorm) in ppvae.networks.Flat"
)
M = TypeVar("M", bound=nn.Module)


class Mixed(Exception):
    """A program mixes what must stay apart; the message is the end of a sentence about it."""


def moved(module: M) -> M:
    """A copy whose trainable parameters lie a step away, and which does nothing at random (dropout)."""
    other = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(STEP * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device))
    return other


def some_rows(batch: Batch) -> Batch:
    """A few rows from all over the batch, one with holes among them where there are any; not as many as it has columns."""
    count = 5 if batch.x.shape[1] == 4 else 4
    places = torch.linspace(0, batch.size - 1, min(count, batch.size), device=batch.x.device).long().unique()
    if not batch.complete and bool(batch.observed[places].all()) and not bool(batch.observed.all()):
        places[0] = (~batch.observed).any(1).nonzero()[0, 0]
    return batch.take(places)


@dataclass(frozen=True)
class Alone:
    """One run on some rows: values of the latents, which value each finite one takes (B,), and each site's score of each row, (B,)."""

    values: dict[str, Tensor]
    finite: dict[str, Tensor]
    scores: dict[str, Tensor]


@torch.no_grad()
def check_apart(program: Program, batch: Batch) -> None:
    """Raise Mixed for a program, its finite latents marked for enumeration, that mixes rows, draws, or values of its latents."""
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), pyro.get_param_store().scope():
        torch.manual_seed(0)
        sites = random_sites(poutine.trace(program).get_trace(batch))
        latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        if not latents and batch.size == 1:
            return
        alone = [_alone(program, batch, latents) for _ in range(DRAWS)]
        try:
            _check_rows(program, batch, alone[0])
            if any(run.finite for run in alone):
                for run in (alone[0], *(_alone(program, batch, latents, value) for value in (0, 1))):
                    _check_values(program, batch, run)
            if latents:
                _check_draws(program, batch, alone, [n for n, site in latents.items() if not is_row_site(site)])
        except Mixed:
            if _repeats(program, batch, alone[0]):  # what changes from run to run (a counter) is found where it matters
                raise


@torch.no_grad()
def reads_numbers(program: Program, batch: Batch) -> bool:
    """Whether a program reads the rows' numbers, `batch.index`, so that its rows are those of one table and no other."""
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False), pyro.get_param_store().scope():

        def said(rows: Batch) -> list[Tensor]:
            torch.manual_seed(0)  # the same noise: what differs then differs by the numbers
            sites = _run(program, rows, {}).values()
            return [told.double() for site in sites for told in (site["value"], site["log_prob"])]

        own = said(batch)
        try:
            flipped = said(replace(batch, index=batch.index.flip(0)))
        except MISTAKES:
            return True
        return not all(_near(one, other) for one, other in zip(own, flipped, strict=True))


def _run(program: Program, batch: Batch, values: dict[str, Tensor]) -> dict[str, Site]:
    return compared(scored(poutine.condition(program, data=values), batch))


def compared(trace: poutine.Trace) -> dict[str, Site]:
    """The sites of a scored trace, a point mass scored by how far its value lies from it: beside it by rounding is not off it."""
    sites = random_sites(trace)
    for site in sites.values():
        point = unwrapped(site["fn"])
        if isinstance(point, dist.Delta):
            off = (point.v - site["value"]).abs()
            site["log_prob"] = -off.flatten(off.ndim - site["fn"].event_dim).sum(-1) if site["fn"].event_dim else -off
    return sites


def _alone(program: Program, batch: Batch, latents: dict[str, Site], value: int | None = None) -> Alone:
    """value: the one that all rows take of their finite latents, by its place; None: each row one of its own."""
    finite, held = {}, {}
    for name, site in latents.items():
        if is_row_site(site) and site["infer"].get("enumerate") == "parallel":
            support = site["fn"].enumerate_support(expand=False)
            support = support.reshape(len(support), *site["fn"].event_shape)
            finite[name] = torch.randint(len(support), (batch.size,), device=batch.x.device)
            if value is not None:
                finite[name].fill_(value % len(support))
            held[name] = support[finite[name]]
    sites = _run(program, batch, held)
    scores = {name: per_row(site, batch).expand(batch.size) for name, site in sites.items()}
    return Alone({name: sites[name]["value"] for name in latents}, finite, scores)


def _repeats(program: Program, batch: Batch, run: Alone) -> bool:
    """Whether the same run again says the same."""
    again = _run(program, batch, run.values)
    return all(_near(per_row(again[name], batch).expand(batch.size), score) for name, score in run.scores.items())


def _check_rows(program: Program, batch: Batch, run: Alone) -> None:
    """The last row and the first, without those between, score as they did."""
    if batch.size < 2:
        return
    rows = torch.tensor([batch.size - 1, 0], device=batch.x.device)
    row_sites = {name for name, site in random_sites(poutine.trace(program).get_trace(batch)).items() if is_row_site(site)}
    values = {name: value[rows] if name in row_sites else value for name, value in run.values.items()}
    part = batch.take(rows)
    for name, site in _run(program, part, values).items():
        if name in row_sites and not _near(per_row(site, part), run.scores[name][rows]):
            raise Mixed(
                f"scores a row's {name!r} otherwise among other rows: what is worked out over dim 0 (mean(0), softmax(0)) ties the rows "
                "together, so work over a row's own entries (dim=-1)"
            )


def _check_values(program: Program, batch: Batch, run: Alone) -> None:
    """Each value of a finite latent, among all of them, scores as it does alone."""
    held = {name: value for name, value in run.values.items() if name not in run.finite}
    names = few(run.finite)
    for name, score in _at(program, batch, held, run.finite, None, f"all values of {names} at once, (values, 1, ...)", FROM_THE_RIGHT):
        if not _near(score, run.scores[name]):
            raise Mixed(_otherwise(name, f"all values of {names} come at once, (values, 1, ...)", FROM_THE_RIGHT))


def _check_draws(program: Program, batch: Batch, runs: list[Alone], shared: list[str]) -> None:
    """Different draws of the latents, side by side, score as they do one at a time."""
    how, remedy = "several draws of its latents come at once, (draws, rows, ...)", FROM_THE_RIGHT
    if shared:
        how = f"several draws of {few(shared)} come at once, (draws, 1, ...)"
        remedy = (
            "index from the right, c[..., 0], by each row's group with Vindex(u)[..., g], and instead of z @ w write "
            "(z.unsqueeze(-2) @ w).squeeze(-2)"
        )
    drawn = {name: torch.stack([run.values[name] for run in runs]) for name in runs[0].values}
    drawn = {name: value.unsqueeze(1) if name in shared else value for name, value in drawn.items()}
    finite = {name: torch.stack([run.finite[name] for run in runs]) for name in runs[0].finite}
    held = {name: value for name, value in drawn.items() if name not in finite}
    for given, summed in ((held, finite), (drawn, {})) if finite else ((held, {}),):  # finite ones are summed out, and drawn
        for name, score in _at(program, batch, given, summed, len(runs), how, remedy):
            if not _near(score, torch.stack([run.scores[name] for run in runs])):
                raise Mixed(_otherwise(name, how, remedy))


def _at(
    program: Program, batch: Batch, held: dict[str, Tensor], finite: dict[str, Tensor], draws: int | None, how: str, remedy: str
) -> list[tuple[str, Tensor]]:
    """The scores of every site, (B,) or (S, B), from one run in which `finite` are enumerated, each row at the value that it is to take."""
    shape = (batch.size,) if draws is None else (draws, batch.size)
    repeated = in_draws(poutine.condition(program, data=held), draws)
    try:
        trace = scored(poutine.enum(repeated, first_available_dim=-1 - len(shape)), batch)
        trace.symbolize_dims()
        sites = compared(trace)
        of = {sites[name]["infer"]["_enumerate_symbol"]: place for name, place in finite.items()}
        return [(name, _chosen(site, batch, of, shape)) for name, site in sites.items()]
    except MISTAKES as error:
        raise Mixed(f"fails when {how}: {remedy}") from error


def _chosen(site: Site, batch: Batch, of: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """A site's scores at the chosen value of each enumerated dim."""
    scores = per_row(site, batch)
    front = max(0, scores.ndim - len(shape))
    scores = scores.expand(*scores.shape[:front], *shape)
    symbols = site["infer"]["_dim_to_symbol"]
    grid = torch.meshgrid(*(torch.arange(n, device=scores.device) for n in shape), indexing="ij")
    nought = torch.zeros_like(grid[0])
    values = [nought if scores.shape[j] == 1 else of[symbols[j - scores.ndim]] for j in range(front)]
    return scores[(*values, *grid)]


def _otherwise(name: str, how: str, remedy: str) -> str:
    return f"scores {name!r} otherwise when {how}: {remedy}"


def _near(found: Tensor, expected: Tensor) -> bool:
    """Whether two scores are the same up to rounding, whatever is not finite in both included."""
    if found.shape != expected.shape:
        found = found.expand(torch.broadcast_shapes(found.shape, expected.shape))
    near = NEAR.get(found.dtype, NEAR[torch.float32])
    off = (found - expected).abs() > near * (1 + torch.maximum(found.abs(), expected.abs()))
    return not bool((off | (found.isnan() != expected.isnan()) | (found.isinf() != expected.isinf())).any())
