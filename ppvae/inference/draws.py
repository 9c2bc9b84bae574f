"""Draws of each row's latents, for the methods that need them: what there is to draw, and from where."""

import copy
from dataclasses import replace
from functools import partial

from pyro import poutine
from torch import nn

from ppvae.data import Batch
from ppvae.inference.method import Task
from ppvae.inference.svi import SVI
from ppvae.parameters import Parameters
from ppvae.program.joint import Site, is_row_site, latent_sites
from ppvae.program.read import without_prior

GUIDE_STEPS = 1000  # of SVI, for a guide to a theta that stands still


def row_latents(task: Task) -> dict[str, Site]:
    """The story's latent sites by name. Raises ValueError where it has none, shares some between rows, or has no prior over them."""
    program, batch, name = partial(task.model.model, task.theta), task.data.head(), task.model.name
    sites = latent_sites(program, batch)
    if not sites:
        raise ValueError(f"{name} has no latents to draw: use ClosedForm, EM or DirectML")
    shared = [site for site in sites if not is_row_site(sites[site])]
    if shared:
        raise ValueError(f"{name}: the rows share {shared[0]!r}, and this method draws only what each row has of its own: use SVI")
    if without_prior(program, batch):
        raise ValueError(f"{name} has no prior over {without_prior(program, batch)[0]!r}, so its rows have no likelihood: use SVI")
    return sites


class Prior(nn.Module):
    """The story's own prior as a guide: it reads theta, and no row. It has no parameters of its own."""

    theta: Parameters

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.story, self.latents = task.model.model, set(row_latents(task))
        self.__dict__["theta"] = task.theta  # not a submodule

    def forward(self, batch: Batch) -> None:
        story = poutine.uncondition(partial(self.story, self.theta))
        poutine.block(story, hide_fn=lambda site: site["type"] == "sample" and site["name"] not in self.latents)(batch)


def trained_guide(task: Task, steps: int = GUIDE_STEPS, compile: bool | str = "auto") -> nn.Module:
    """The model's guide, or the task's, fitted to the present theta, which stays as it is."""
    held = copy.deepcopy(task.theta).requires_grad_(False)
    return SVI(steps=steps, compile=compile).run(replace(task, theta=held, progress=lambda done, total, note: None)).guide
