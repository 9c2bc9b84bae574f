"""A guide with wider tails: its Gaussian sites at several times their standard deviations.

Importance sampling from a guide that is narrower than the posterior misses what lies outside it, and its standard error misses that too.
A mixture of the guide and of wider ones covers it, at the price of some draws (Owen & Zhou 2000, defensive mixtures; Veach & Guibas 1995,
the balance heuristic): the weight of a draw is p(x, z) over the density of the whole mixture.
"""

from math import log
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppvae.data import Batch
from ppvae.program.joint import Program, enumerated_trace, in_draws, is_row_site, log_sum, random_sites, row_total, scored, unenumerated

WIDTHS = (1.0, 2.0, 4.0)  # in equal parts


class Wide(Messenger):
    """The rows' Gaussian sites of a program at `width` times their standard deviations; width: (), or (S, 1) for each draw its own."""

    def __init__(self, width: Tensor) -> None:
        super().__init__()
        self.width = width

    def _pyro_sample(self, msg: Any) -> None:
        if is_row_site(msg):
            msg["fn"] = wide(msg["fn"], self.width)


def wide(fn: Any, width: Tensor) -> Any:
    """A distribution whose Gaussian noise is so many times as wide; as it is where it has none."""
    if isinstance(fn, torch.distributions.Independent):
        dims = fn.reinterpreted_batch_ndims
        return wide(fn.base_dist, within(width, dims)).to_event(dims)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        return dist.TransformedDistribution(wide(fn.base_dist, width), fn.transforms, validate_args=False)
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return dist.MultivariateNormal(fn.loc, scale_tril=fn.scale_tril * within(width, 2), validate_args=False)
    if isinstance(fn, torch.distributions.Normal):
        return dist.Normal(fn.loc, fn.scale * width, validate_args=False)
    return fn


def within(width: Tensor, dims: int) -> Tensor:
    """The same for tensors with so many more dims on the right."""
    return width.reshape(width.shape + (1,) * dims)


def parts_of(draws: int) -> Tensor:
    """(S,): from which part of the mixture each draw comes, in equal shares."""
    return torch.arange(draws) * len(WIDTHS) // draws


def weighted_draws(program: Program, guide: Program, batch: Batch, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """S draws of the latents from the mixture q of the guide at each of `WIDTHS`, {site: (S, B, ...)}, and (S, B) their
    log p(x_n, z | what all rows share) - log q(z | x), nats.

    What the guide enumerates is left to the story, which sums it out. A guide whose draws cannot be scored anew, a flow without an inverse,
    stays as wide as it is.
    """
    guide, part = unenumerated(guide), parts_of(draws).to(batch.x.device)
    q = scored(Wide(batch.x.new_tensor(WIDTHS)[part].unsqueeze(1))(in_draws(guide, draws)), batch)
    values = {name: site["value"] for name, site in random_sites(q).items()}
    held = in_draws(poutine.condition(guide, data=values), draws)
    shares = [count / draws for count in part.bincount(minlength=len(WIDTHS)).tolist()]
    try:
        parts = [
            row_total(scored(Wide(batch.x.new_tensor(width))(held), batch), batch) + log(share)
            for width, share in zip(WIDTHS, shares, strict=True)
            if share
        ]
    except (KeyError, NotImplementedError):  # how flows say that they have no inverse
        q = scored(in_draws(guide, draws), batch)
        values = {name: site["value"] for name, site in random_sites(q).items()}
        parts = [row_total(q, batch)]
    log_p = log_sum(enumerated_trace(program, batch, values, draws), batch, given_shared=True)
    return values, (log_p - torch.stack(parts).logsumexp(0)).expand(draws, batch.size)
