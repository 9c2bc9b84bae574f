"""The log joint and the evidence lower bound of a Pyro program, row by row.

Dims, from the right: rows (-1), draws (-2, where there are any), then one for each enumerated site. Scales of the rows plate (N / B) are
divided out, so each value belongs to one row.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppvae.data import Batch

Program = Callable[[Batch], object]
Site = Any  # one node of a Pyro trace: a dictionary with fn, value, log_prob, infer, ...


def in_draws(program: Program, draws: int | None) -> Program:
    """The program inside a plate of independent draws (dim -2); itself when draws is None."""
    if draws is None:
        return program

    def repeated(batch: Batch) -> object:
        with pyro.plate("draws", draws, dim=-2):
            return program(batch)

    return repeated


def is_row_site(site: Site) -> bool:
    """Whether the site lies inside the plate over rows."""
    return any(frame.name == "rows" for frame in site["cond_indep_stack"])


def random_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a trace by name, plates left out."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample" and name != "draws"
    }


def per_row(site: Site, batch: Batch) -> Tensor:
    """This site's log probability, (..., B) for a site in the rows plate, its N / B scale divided out."""
    return site["log_prob"] / batch.scale if is_row_site(site) else site["log_prob"]


def log_joint(program: Program, batch: Batch, latents: dict[str, Tensor], draws: int | None = None) -> Tensor:
    """log p(x, latents) of each row: (B,), or (S, B) where latents have `draws` = S in front.

    An enumerated site that `latents` leaves out is summed out.
    """
    conditioned = in_draws(poutine.condition(program, data=latents), draws)
    keep = 1 if draws is None else 2
    trace = poutine.trace(poutine.enum(conditioned, first_available_dim=-1 - keep)).get_trace(batch)
    trace.compute_log_prob()
    return sum_out(total(trace, batch), keep)


def total(trace: poutine.Trace, batch: Batch) -> Tensor:
    """The sum of all sites' log probabilities, enumerated dims kept in front.

    A global site (outside the rows plate) is spread evenly over the N rows, so that the sum over all rows is the log joint.
    """
    terms = []
    for site in random_sites(trace).values():
        term = per_row(site, batch)
        terms.append(term if is_row_site(site) else term.unsqueeze(-1) / batch.n_total if term.ndim else term / batch.n_total)
    if not terms:
        return batch.x.new_zeros(batch.size)
    return torch.as_tensor(sum(terms)).expand(torch.broadcast_shapes(*(t.shape for t in terms), (batch.size,)))


def sum_out(terms: Tensor, keep: int) -> Tensor:
    """Log-sum-exp over every enumerated dim, those left of the last `keep`."""
    return terms.flatten(0, terms.ndim - keep - 1).logsumexp(0) if terms.ndim > keep else terms


def paired_traces(program: Program, guide: Program, batch: Batch, draws: int | None) -> tuple[poutine.Trace, poutine.Trace, int]:
    """The guide's trace, the story's trace replayed on it, and how many dims the guide enumerates; log probabilities computed."""
    keep = 1 if draws is None else 2
    q = poutine.trace(poutine.enum(in_draws(guide, draws), first_available_dim=-1 - keep)).get_trace(batch)
    q.compute_log_prob()
    guided = sum(1 for site in random_sites(q).values() if site["infer"].get("_enumerate_dim") is not None)
    replayed = poutine.replay(in_draws(program, draws), trace=q)
    p = poutine.trace(poutine.enum(replayed, first_available_dim=-1 - keep - guided)).get_trace(batch)
    p.compute_log_prob()
    return q, p, guided


def elbo_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None) -> Tensor:
    """The evidence lower bound of each row, one value a draw: (B,) or (S, B), in nats.

    What the story enumerates is summed out; what the guide enumerates is averaged exactly under it.
    """
    q, p, guided = paired_traces(program, guide, batch, draws)
    keep = 1 if draws is None else 2
    log_p, log_q = total(p, batch), total(q, batch)
    if not guided:  # a story without latents is the same in every draw
        return (sum_out(log_p, keep) - log_q).expand((batch.size,) if draws is None else (draws, batch.size))
    # Dims: (story-enumerated..., guide-enumerated..., [S], B). Sum the story's, then average over the guide's.
    log_p = sum_out(log_p, keep + guided)
    weights = sum(per_row(s, batch) for s in random_sites(q).values() if s["infer"].get("_enumerate_dim") is not None)
    terms = torch.as_tensor(weights).exp() * (log_p - log_q)
    return terms.flatten(0, guided - 1).sum(0)


def log_weights(program: Program, guide: Program, batch: Batch, draws: int) -> Tensor:
    """(S, B): log p(x, z) - log q(z | x) at S draws from the guide, the importance weights of each row.

    A site that the guide would enumerate is left to the story, which sums it out exactly.
    """
    return elbo_rows(program, unenumerated(guide), batch, draws)


def unenumerated(guide: Program) -> Program:
    """The guide with the sites that it would enumerate kept to itself."""
    return poutine.block(guide, hide_fn=lambda site: site["type"] == "sample" and (site["infer"] or {}).get("enumerate") == "parallel")


def sites_of(program: Program, batch: Batch) -> dict[str, Site]:
    """The program's sample sites, from one run in which nothing is recorded for gradients and no random state is spent."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return random_sites(poutine.trace(program).get_trace(batch))
