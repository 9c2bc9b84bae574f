"""Reading a guide: what it says of each row, as a Posterior."""

from dataclasses import replace

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import ReshapeTransform
from torch import nn

from ppvae.data import Batch
from ppvae.exact import Posterior
from ppvae.program.joint import Program, is_row_site, random_sites, sites_of


def read_guide(guide: nn.Module, batch: Batch) -> Posterior | None:
    """The guide's distribution of each row's latents, or None where it is not one Gaussian site, one categorical site, or nothing.

    A guide that samples nothing gives a Posterior with neither part; one that is certain of its latents, a Gaussian without spread.
    """
    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        sites = random_sites(poutine.trace(guide).get_trace(batch))
    if not sites:
        return Posterior.nothing(batch.x)
    if len(sites) > 1:
        return None
    ((name, site),) = sites.items()
    if not is_row_site(site):
        return None
    fn, shape = site["fn"], site["fn"].event_shape
    if isinstance(fn, pyro.distributions.TransformedDistribution) and all(isinstance(t, ReshapeTransform) for t in fn.transforms):
        fn = fn.base_dist
    if isinstance(fn, pyro.distributions.Categorical):
        return Posterior.categorical(fn.logits.log_softmax(-1).expand(batch.size, -1), name)
    if isinstance(fn, pyro.distributions.MultivariateNormal):
        return replace(Posterior.gaussian(fn.loc.expand(batch.size, -1), fn.scale_tril, name), shape=shape)
    if isinstance(fn, pyro.distributions.Delta) and fn.event_dim == 1:
        loc = fn.v.expand(batch.size, -1)
        return Posterior.gaussian(loc, loc.new_zeros(1, loc.shape[-1], loc.shape[-1]), name)
    base = getattr(fn, "base_dist", None)
    if isinstance(base, pyro.distributions.Normal) and fn.event_dim == 1:
        spread = torch.diag_embed(base.scale.expand(batch.size, -1))
        return replace(Posterior.gaussian(base.loc.expand(batch.size, -1), spread, name), shape=shape)
    return None


def without_prior(program: Program, batch: Batch) -> list[str]:
    """The latent sites whose density the story masks out: with no prior over them, the rows have no marginal density."""
    sites = sites_of(program, batch).items()
    return [name for name, site in sites if not site["is_observed"] and getattr(site["fn"], "_mask", None) is False]
