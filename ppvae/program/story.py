"""What a story must be before anything is fitted: its sites where the sums can take them, its values those of each row alone."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine

from ppvae.data import Batch, Data
from ppvae.exact import CHUNK
from ppvae.failures import MISTAKES, failure
from ppvae.inference.method import seeded
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Parameters, in_words
from ppvae.program.check import unfit, weighed
from ppvae.program.joint import Site, is_row_site, marked, random_sites, sites_of, unwrapped
from ppvae.program.observed import check_holes_unread, check_observed
from ppvae.program.trial import tried
from ppvae.program.values import Mixed, check_apart, moved, some_rows
from ppvae.threads import threads


def check_story(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError for a story that `traced` refuses, that has other rows than the batch's, or that overlooks which entries are
    missing, or the context."""
    few_rows, trace = traced(model, theta, data)
    sites = random_sites(trace)
    seen = [name for name, site in sites.items() if site["is_observed"] and not site["infer"].get("_deterministic")]
    ours = "rows" in trace.nodes and trace.nodes["rows"]["value"] is few_rows.index  # another plate of that name does not scale a minibatch
    outside = [name for name in seen if not (ours and is_row_site(sites[name]))]
    if outside:
        raise ValueError(f"{model.name}: the story observes {few(outside)} outside the plate over rows: put it under `with batch.rows:`")
    wrong = weighed(sites, few_rows)
    if wrong is not None:
        raise ValueError(f"{model.name}: {wrong}")
    # A choice that all rows share, or one in a plate, is refused where a method looks for what they share, in a better sentence.
    if all(is_row_site(s) or not (s["cond_indep_stack"] or s["fn"].has_enumerate_support) for s in sites.values() if not s["is_observed"]):
        _check_values(model, theta, data)
    check_holes(model, theta, data)
    if data.context is not None:
        batch = data.head()
        if _alike(model, theta, batch, replace(batch, context=None)):
            raise ValueError(f"{model.name}: the story does not read the context of the data: leave it out, or use a conditional model")
    check_observed(model, theta, data)


@threads(1)
def _check_values(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError for a story that mixes rows, draws, or values of its latents: a step away from theta, if it runs there."""
    batch = some_rows(data.batch())
    for point in (moved(theta), theta):
        try:
            return check_apart(marked(partial(model.model, point)), batch)
        except Mixed as mixed:
            raise ValueError(f"{model.name}: the story {mixed}") from mixed.__cause__
        except MISTAKES as error:
            if point is theta:
                raise failure(f"{model.name}: the story", model.model, error) from error


@threads(1)
def traced(model: Model, theta: Parameters, data: Data) -> tuple[Batch, poutine.Trace]:
    """A few rows and the story's trace on them; raise ValueError, with the line, for one that fails, observes nothing, changes
    the rows or holds parameters of its own."""
    rows = 3 if data.n_features == 2 else 2  # not as many as features, or one could pass for the other
    few_rows = data.batch(torch.arange(min(rows, data.n_rows), device=data.device))

    def wrong(sites: dict[str, Site]) -> str | None:
        return _beyond_support(sites) or unfit(sites, few_rows)

    untrained = "give it in init, as Parameters({0}=...), and read theta.{0}"
    trace = tried(model.name, "the story", partial(model.model, theta), model.model, few_rows, wrong, untrained)
    if not any(site["is_observed"] and not site["infer"].get("_deterministic") for site in random_sites(trace).values()):
        raise ValueError(f"{model.name}: the story observes nothing: add pyro.sample('x', ..., obs=batch.x) inside batch.rows")
    return few_rows, trace


def _beyond_support(sites: dict[str, Any]) -> str | None:
    """A sentence for an observed site with a value that its distribution cannot take, None without any."""
    for name, site in sites.items():
        fn = unwrapped(site["fn"])
        if site["is_observed"] and fn._validate_args:
            taken = fn.support.check(site["value"])
            if not taken.all():
                first = site["value"][~taken][0].tolist()
                return f"{name} holds {first}, but {type(fn).__name__} takes {in_words(fn.support)}: use a distribution of such values"
    return None


def check_runs(model: Model, theta: Parameters, batch: Batch) -> None:
    """Raise ValueError, with the line, for a story that fails on rows of such a context: a group, say, that the fit never saw."""
    if batch.context is None:
        return
    try:
        sites_of(partial(model.model, theta), batch)
    except MISTAKES as error:
        raise failure(f"{model.name}: the story", model.model, error) from error


@threads(1)
def check_holes(model: Model, theta: Parameters, data: Data) -> None:
    """Raise ValueError for a story that scores rows with holes as if nothing were missing, in all columns or in some."""
    if data.complete:
        return
    batch = data.batch(next(b.index[~b.observed.all(-1)][:10] for b in data.chunks(CHUNK) if not b.observed.all()))
    seen = replace(batch, observed=torch.ones_like(batch.observed), complete=True)
    if _alike(model, theta, batch, seen):
        raise ValueError(f"{model.name}: the story reads entries that are missing: leave them out, as .mask(batch.observed) does")
    check_holes_unread(model, theta, data)


def _alike(model: Model, theta: Parameters, one: Batch, other: Batch) -> bool:
    """Whether the story gives both batches the same score, other than nothing, at the same draws; False where it cannot take the other."""
    said = []
    try:
        for batch in (one, other):
            with seeded(0, batch.x.device), torch.no_grad(), pyro.validation_enabled(False):
                said.append(float(poutine.trace(partial(model.model, theta)).get_trace(batch).log_prob_sum()))
    except MISTAKES:
        return False
    return said[0] == said[1] != 0 and math.isfinite(said[0])
