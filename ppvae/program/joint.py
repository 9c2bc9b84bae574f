"""The log joint and the evidence lower bound of a Pyro program, row by row.

Dims, from the right: rows (-1), draws (-2, where there are any), then one for each enumerated site. Scales of the rows plate (N / B) are
divided out, so each value belongs to one row.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.discrete import infer_discrete
from pyro.ops import packed
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from torch import Tensor

from ppvae.data import Batch
from ppvae.messages import why
from ppvae.program.elimination import eliminated

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


def is_finite(site: Site) -> bool:
    """Whether the site is a row's latent of finitely many values, marked for enumeration or not: those a story is summed over."""
    return not site["is_observed"] and is_row_site(site) and site["fn"].has_enumerate_support


def marked(program: Program) -> Program:
    """The program with every such site marked for enumeration: a draw of it in the place of the sum would make no log probability."""
    return poutine.infer_config(program, lambda site: {"enumerate": "parallel"} if site["type"] == "sample" and is_finite(site) else {})


class AsWide(Messenger):
    """Gives a flow what it observes as wide as its own distribution, draws in front: networks of conditional flows do not broadcast."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and isinstance(unwrapped(msg["fn"]), dist.TransformedDistribution):
            msg["value"] = msg["value"].expand(msg["fn"].shape())


def scored(program: Program, batch: Batch) -> poutine.Trace:
    """One run of the program, its log probabilities computed. Raises ValueError, in one sentence, where a distribution refuses a value."""
    try:
        trace = poutine.trace(AsWide()(program)).get_trace(batch)
        trace.compute_log_prob()
    except ValueError as error:
        raise ValueError(
            f"the story or the guide fails at these draws, {why(error)}: where a fit stopped, do as its status says"
        ) from error
    return trace


def unwrapped(fn: Any) -> Any:
    """The distribution within those that only mask it, repeat it or count its dims."""
    while isinstance(fn, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


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


def log_joint(program: Program, batch: Batch, latents: dict[str, Tensor], draws: int | None = None, given_shared: bool = False) -> Tensor:
    """log p(x, latents) of each row: (B,), or (S, B) where latents have `draws` = S in front.

    A finite site that `latents` leaves out is summed out. given_shared: log p(x_n, latents_n | what all rows share).
    """
    return log_sum(enumerated_trace(program, batch, latents, draws), batch, given_shared=given_shared)


def log_terms(program: Program, batch: Batch, latents: dict[str, Tensor], draws: int | None = None) -> Tensor:
    """log p(x_n, k | shared) for every value k of the story's one finite site: (K, B), or (K, S, B) as in `log_joint`."""
    keep = 1 if draws is None else 2
    terms = row_total(enumerated_trace(program, batch, latents, draws), batch)
    return terms.reshape(-1, *terms.shape[terms.ndim - keep :])


def enumerated_trace(program: Program, batch: Batch, latents: dict[str, Tensor], draws: int | None) -> poutine.Trace:
    """The program at these latents, its discrete sites enumerated to the left of rows and draws; log probabilities computed."""
    conditioned = in_draws(poutine.condition(program, data=latents), draws)
    return scored(poutine.enum(marked(conditioned), first_available_dim=-2 if draws is None else -3), batch)


def total(trace: poutine.Trace, batch: Batch) -> Tensor:
    """The sum of all sites' log probabilities, (..., B), enumerated dims kept in front.

    A site that all rows share is spread evenly over the N rows, so that the sum over all rows is the log joint.
    """
    return row_total(trace, batch) + shared_total(trace) / batch.n_total


def log_sum(trace: poutine.Trace, batch: Batch, guided: Collection[str] = (), given_shared: bool = False) -> Tensor:
    """`total`, every enumerated site summed out but those of a guide, whose names are `guided`: (B,), (S, B), or with a guide's in front.

    given_shared: what all rows share is left out.
    """
    own = [n for n, s in random_sites(trace).items() if s["infer"].get("_enumerate_dim") is not None and n not in guided]
    rows = _eliminated_rows(trace, batch, own) if own else row_total(trace, batch)
    return rows if given_shared else rows + shared_total(trace) / batch.n_total


def _eliminated_rows(trace: poutine.Trace, batch: Batch, sites: list[str]) -> Tensor:
    """`row_total` with these enumerated sites summed out."""
    trace.pack_tensors()
    found, factors = random_sites(trace), []
    for site in found.values():
        if is_row_site(site):
            factor = site["packed"]["log_prob"]
            dims, factor = factor._pyro_dims, factor / batch.scale
            factor._pyro_dims = dims
            factors.append(factor)
    rows = packed.unpack(eliminated(factors, [found[name]["infer"]["_enumerate_symbol"] for name in sites]), trace.symbol_to_dim)
    return rows.expand(torch.broadcast_shapes(rows.shape, (batch.size,)))


def shared_total(trace: poutine.Trace) -> Tensor:
    """The sum of the log probabilities of the sites that all rows share."""
    return torch.as_tensor(sum(site["log_prob"] for site in random_sites(trace).values() if not is_row_site(site)))


def row_total(trace: poutine.Trace, batch: Batch) -> Tensor:
    """The sum of the log probabilities of the rows' own sites, (..., B)."""
    terms = [per_row(site, batch) for site in random_sites(trace).values() if is_row_site(site)]
    if not terms:
        return batch.x.new_zeros(batch.size)
    return torch.as_tensor(sum(terms)).expand(torch.broadcast_shapes(*(t.shape for t in terms), (batch.size,)))


def paired_traces(program: Program, guide: Program, batch: Batch, draws: int | None) -> tuple[poutine.Trace, poutine.Trace, list[str]]:
    """The guide's trace, the story's trace replayed on it, and the sites that the guide enumerates; log probabilities computed."""
    keep = 1 if draws is None else 2
    q = scored(poutine.enum(in_draws(guide, draws), first_available_dim=-1 - keep), batch)
    guided = [name for name, site in random_sites(q).items() if site["infer"].get("_enumerate_dim") is not None]
    replayed = poutine.replay(in_draws(marked(program), draws), trace=q)
    return q, scored(Beside(-1 - keep, len(guided))(replayed), batch), guided


@contextmanager
def own_enumeration() -> Iterator[None]:
    """Enumeration within the block takes no dim from a run that goes on around it."""
    kept = dict(vars(_ENUM_ALLOCATOR))
    try:
        yield
    finally:
        vars(_ENUM_ALLOCATOR).update(kept)


class Beside(EnumMessenger):
    """Enumeration to the left of so many sites that a guide has enumerated, which keep their dims and their symbols."""

    def __init__(self, first_available_dim: int, guided: int) -> None:
        super().__init__(first_available_dim)
        self.guided = guided

    def __enter__(self) -> "Beside":
        entered = super().__enter__()
        for _ in range(self.guided):
            _ENUM_ALLOCATOR.allocate()
        return entered


def elbo_rows(program: Program, guide: Program, batch: Batch, draws: int | None = None, given_shared: bool = False) -> Tensor:
    """The evidence lower bound of each row, one value a draw: (B,) or (S, B), in nats.

    What the story enumerates is summed out; what the guide enumerates is averaged exactly under it. given_shared: the bound on
    log p(x_n | what all rows share), at the guide's draws of that.
    """
    q, p, guided = paired_traces(program, guide, batch, draws)
    log_p, log_q = log_sum(p, batch, guided, given_shared), (row_total if given_shared else total)(q, batch)
    if not guided:  # what has no latents is the same in every draw
        return (log_p - log_q).expand((batch.size,) if draws is None else (draws, batch.size))
    weights = torch.as_tensor(sum(per_row(q.nodes[name], batch) for name in guided)).exp()
    return (weights * (log_p - log_q)).flatten(0, len(guided) - 1).sum(0)  # (guide-enumerated..., [S], B)


def log_weights(program: Program, guide: Program, batch: Batch, draws: int, given_shared: bool = False) -> Tensor:
    """(S, B): log p(x, z) - log q(z | x) at S draws from the guide, the importance weights of each row.

    A site that the guide would enumerate is left to the story, which sums it out exactly. given_shared: as in `elbo_rows`.
    """
    return elbo_rows(program, unenumerated(guide), batch, draws, given_shared)


def finite_draws(program: Program, batch: Batch, values: dict[str, Tensor], sites: Collection[str], draws: int) -> dict[str, Tensor]:
    """{site: (S, B, ...)}: one draw of each row's finite `sites` given the row and each of S draws of its other latents, `values`."""
    if not sites:
        return {}
    alone = replace(batch, n_total=batch.size)  # rows of a scale would count N / B times against the prior
    held = in_draws(poutine.condition(marked(program), data=values), draws)
    found = random_sites(poutine.trace(infer_discrete(held, first_available_dim=-3, temperature=1)).get_trace(alone))
    return {name: found[name]["value"].expand(draws, batch.size, *found[name]["fn"].event_shape) for name in sites}


def unenumerated(guide: Program) -> Program:
    """The guide with the sites that it would enumerate kept to itself."""
    return poutine.block(guide, hide_fn=lambda site: site["type"] == "sample" and (site["infer"] or {}).get("enumerate") == "parallel")


def sites_of(program: Program, batch: Batch) -> dict[str, Site]:
    """The program's sample sites, from one run in which nothing is recorded for gradients and no random state is spent."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        return random_sites(poutine.trace(program).get_trace(batch))


def latent_sites(program: Program, batch: Batch) -> dict[str, Site]:
    """The program's sample sites that it does not observe."""
    return {name: site for name, site in sites_of(program, batch).items() if not site["is_observed"]}
