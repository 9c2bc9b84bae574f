"""Draws of each row's latents, for the methods that need them: what there is to draw, and from where."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from math import log

import torch
from pyro import poutine
from torch import Tensor, nn

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.inference.fit import start
from ppvae.inference.method import Task
from ppvae.inference.svi import SVI
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import is_row_site, latent_sites, log_sum, paired_traces, random_sites, total, unenumerated
from ppvae.program.read import without_prior
from ppvae.scores import AT_ONCE

GUIDE_STEPS = 1000  # of SVI, for a guide to a theta that stands still


def sketched(model: Model, data: Data) -> tuple[Parameters, Batch]:
    """Theta and a few rows of such data, to ask what a story has before anything is fitted."""
    sketch = data.summary().sketch().to(data.dtype, data.device)
    return start(model, sketch, 0), sketch.head()


def nothing_free(model: Model, data: Data) -> str | None:
    """Why there is no theta to move, in a sentence; None if there is."""
    theta, _ = sketched(model, data)
    return None if any(p.requires_grad for p in theta.parameters()) else f"{model.name} has no free parameters for this method to move"


def undrawable(model: Model, data: Data) -> str | None:
    """Why each row's latents cannot be drawn from a posterior, in a sentence; None if they can."""
    theta, batch = sketched(model, data)
    program = partial(model.model, theta)
    sites = latent_sites(program, batch)
    shared = [name for name in sites if not is_row_site(sites[name])]
    if not sites:
        return f"{model.name} has no latents to draw"
    if shared:
        return f"the rows of {model.name} share {shared[0]!r}, and this method draws only what each row has of its own"
    if without_prior(program, batch):
        return f"{model.name} has no prior over {few(without_prior(program, batch))}, so its rows have no likelihood"
    return None


class Prior(nn.Module):
    """The story's own prior as a guide: it reads theta, and no row. It has no parameters of its own."""

    theta: Parameters

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.story, self.latents = task.model.model, set(latent_sites(partial(task.model.model, task.theta), task.data.head()))
        self.__dict__["theta"] = task.theta  # not a submodule

    def forward(self, batch: Batch) -> None:
        story = partial(self.story, self.theta)
        poutine.block(story, hide_fn=lambda site: site["type"] == "sample" and site["name"] not in self.latents)(batch)


def trained_guide(task: Task, steps: int = GUIDE_STEPS, compile: bool | str = "auto") -> nn.Module:
    """The model's guide, or the task's, fitted to the present theta, which stays as it is."""
    held = copy.deepcopy(task.theta).requires_grad_(False)
    return SVI(steps=steps, compile=compile).run(replace(task, theta=held, progress=lambda done, total, note: None)).guide


@dataclass(frozen=True)
class Drawn:
    """Weighted draws from p(latents | x) of some rows.

    latents: (S, B, ...) by site.  weights: (S, B), of sum 1 over the draws.  evidence: (B,) nats, log p(x), or its estimate from them.
    """

    batch: Batch
    latents: dict[str, Tensor]
    weights: Tensor
    evidence: Tensor


def exact_posterior(task: Task, exact: Exact | None) -> Exact | None:
    """`exact` where its posterior draws all of the story's latents as the story does, else None."""
    if exact is None:
        return None
    batch = task.data.head()
    posterior, sites = exact.posterior(task.theta, batch), latent_sites(partial(task.model.model, task.theta), batch)
    drawn = {posterior.component, posterior.latent} - {None}
    return exact if drawn == set(sites) and (posterior.latent is None or sites[posterior.latent]["fn"].event_dim == 1) else None


@torch.no_grad()
def posterior_draws(task: Task, source: Exact | nn.Module, draws: int) -> list[Drawn]:
    """S = `draws` of every row's latents at the present theta, some rows at a time.

    From an exact posterior all weigh 1/S; from a guide they weigh in proportion to p(x, z) / q(z | x). What the story sums out and the
    exact posterior is not asked for is left to the story.
    """
    rows = max(1, AT_ONCE // draws)
    if isinstance(source, Exact):
        return [_exact_draws(task.theta, source, batch, draws) for batch in task.data.chunks(min(rows, source.chunk_rows(task.data)))]
    return [_weighted_draws(task, source, batch, draws) for batch in task.data.chunks(rows)]


def _exact_draws(theta: Parameters, exact: Exact, batch: Batch, draws: int) -> Drawn:
    weights = batch.x.new_full((draws, batch.size), 1 / draws)
    return Drawn(batch, exact.posterior(theta, batch).sample(draws), weights, exact.log_marginal(theta, batch))


def _weighted_draws(task: Task, guide: nn.Module, batch: Batch, draws: int) -> Drawn:
    q, p, _ = paired_traces(partial(task.model.model, task.theta), unenumerated(guide), batch, draws)
    weights = log_sum(p, batch) - total(q, batch)
    latents = {name: site["value"] for name, site in random_sites(q).items()}
    return Drawn(batch, latents, weights.softmax(0), weights.logsumexp(0) - log(draws))
