"""Predictive draws: a story run forwards, for new rows or for the same rows again.

    new rows    z ~ p(z),      x_rep ~ p(x | z)      prior predictive
    same rows   z ~ p(z | x),  x_rep ~ p(x | z)      posterior predictive

S draws of N rows are run as one batch of S N rows: whatever the story does with rows (networks, convolutions, plates inside the plate
over rows) it does to all draws at once, and it need not broadcast over anything else. Observed sites may have any names and columns
(`ppvae.program.observed`); a story that reads columns of the table that it tells of is run once for each step of their order.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import config_enumerate
from pyro.infer.discrete import infer_discrete
from torch import Tensor, nn

from ppvae.data import Batch
from ppvae.inference.method import seeded
from ppvae.messages import few
from ppvae.model import Model
from ppvae.options import seed_of
from ppvae.parameters import Parameters
from ppvae.program.derive import exact_forms
from ppvae.program.given import given
from ppvae.program.joint import Program, Site, is_row_site, latent_sites, random_sites, sites_of
from ppvae.program.observed import Draws, Observed, is_computed, observed

# Entries of x in one run of the story: 16 MiB in float64, and a network's hidden layers a few times that.
ENTRIES_PER_RUN = 2**21


def blank_batch(
    n_rows: int, n_features: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", context: Tensor | None = None
) -> Batch:
    """Rows of zeros, every entry observed: the shape of n_rows rows that are yet to be drawn, with their context (n_rows, C)."""
    x = torch.zeros(n_rows, n_features, dtype=dtype, device=device)
    return Batch(x, torch.ones_like(x, dtype=torch.bool), torch.arange(n_rows, device=device), n_rows, context=context)


def prior_predictive(
    model: Model,
    theta: Parameters,
    batch: Batch,
    draws: int = 1,
    seed: int = 0,
    guide: nn.Module | None = None,
    seen: Observed | None = None,
) -> Draws:
    """Every site of the story for new rows, S times: {"x": (S, B, D), "z": (S, B, L), ...}; `seen.table` makes a table of them.

    What all rows share comes from the guide, where one is given. Of `batch` only the shape and the context are used, and how much a row
    holds where a story takes that from the row itself (the throws of a multinomial). The global random state is left as it was. Raises
    ValueError where no rows can be drawn (`Observed.check_draws`).
    """
    return _joined(new_rows(model, theta, batch, draws, seed, guide, seen), 0)


def posterior_predictive(
    model: Model,
    theta: Parameters,
    batch: Batch,
    draws: int = 1,
    seed: int = 0,
    guide: nn.Module | None = None,
    seen: Observed | None = None,
) -> Draws:
    """Every site of the story for the same rows, S times: {"x": (S, B, D), "z": (S, B, L), ...}; `seen.table` makes a table of them.

    The latents come from the exact posterior where the model gives one, else from the guide; discrete sites that neither samples come from
    their exact conditional, by enumeration. All D entries of a row are drawn, also the missing ones. The global random state is left as
    it was. Raises ValueError for a continuous latent that neither samples, and where no rows can be drawn.
    """
    return _joined(same_rows(model, theta, batch, draws, seed, guide, seen), 0)


def expected_rows(model: Model, theta: Parameters, batch: Batch, z: Tensor, seen: Observed | None = None) -> Tensor:
    """(B, D): E[x | z] at given latents (B, L); of `batch` only the shape and the context are used.

    Raises ValueError for a story without a single continuous latent site, for latents of another size, and for a column that has no mean
    or whose distribution reads the row.
    """
    seen = seen or observed(model, theta, batch)
    seen.check_table()
    seen.check_unread("E[x | z] has no value without a row: draw rows instead, fit.sample(n)")
    sites = latent_sites(partial(model.model, theta), batch)
    sizes = {name: site["fn"].event_shape for name, site in sites.items() if not site["fn"].has_enumerate_support}
    if len(sites) != 1 or not sizes:
        raise ValueError(f"{model.name}: rows can be decoded where the story has one continuous latent, but it has {few(sites)}")
    ((name, shape),) = sizes.items()
    if z.shape[1] != shape.numel():
        raise ValueError(f"{model.name}: {name!r} has {shape.numel()} dimensions, the latents given have {z.shape[1]}")
    story = poutine.condition(partial(model.model, theta), data={name: z.reshape(-1, *shape)})
    with torch.no_grad():
        found = random_sites(poutine.trace(story).get_trace(batch))
        means = {site: mean_of(found[site]["fn"]) for site in seen.columns}
    without = [site for site, mean in means.items() if mean is None or mean.isnan().any()]
    if without:
        raise ValueError(
            f"{model.name}: {few(without)} has no mean, as classes have none, so rows cannot be decoded: draw them, fit.sample(n)"
        )
    return seen.table({site: mean for site, mean in means.items() if mean is not None})


def mean_of(fn: TorchDistribution) -> Tensor | None:
    """The distribution's mean, (*batch, *event); None where it has no formula."""
    try:
        return fn.mean
    except NotImplementedError:
        return None


def new_rows(
    model: Model,
    theta: Parameters,
    batch: Batch,
    draws: int,
    seed: int,
    guide: nn.Module | None = None,
    seen: Observed | None = None,
) -> Iterator[Draws]:
    """`prior_predictive` in blocks of draws."""

    def shared_draws(part: Batch, s: int) -> Draws:
        shared = [n for n, site in latent_sites(partial(model.model, theta), part).items() if not is_row_site(site)]
        drawn = _values(guide, part) if guide is not None and shared else {}
        return {name: drawn[name] for name in shared if name in drawn}

    return _blocks(model, theta, batch, draws, seed, shared_draws, seen)


def same_rows(
    model: Model,
    theta: Parameters,
    batch: Batch,
    draws: int,
    seed: int,
    guide: nn.Module | None,
    seen: Observed | None = None,
) -> Iterator[Draws]:
    """`posterior_predictive` in blocks of draws."""
    return _blocks(model, theta, batch, draws, seed, partial(posterior_draws, model, theta, guide), seen)


def _blocks(
    model: Model,
    theta: Parameters,
    batch: Batch,
    draws: int,
    seed: int,
    latents_of: Callable[[Batch, int], Draws],
    seen: Observed | None,
) -> Iterator[Draws]:
    """{site: (s, B, ...)} in blocks whose s add up to S: at most ENTRIES_PER_RUN entries of x, or one draw, at a time."""
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    sites = sites_of(partial(model.model, theta), batch)
    seen = seen or observed(model, theta, batch)
    shared = {name for name, site in sites.items() if not site["is_observed"] and not is_row_site(site)}
    # What no row has of its own: those, and what the story computes of theta and of them.
    of_all = {name for name, site in sites.items() if not _row_by_row(site, batch)} - shared
    # A latent that all rows share is drawn once a run, so one run is then one draw of all rows.
    at_once = 1 if shared else max(1, ENTRIES_PER_RUN // batch.x.numel())
    rows_at_once = batch.size if shared else max(1, ENTRIES_PER_RUN // batch.x.shape[1])
    for start in range(0, draws, at_once):
        s = min(at_once, draws - start)
        with seeded(_block_seed(seed, start), batch.x.device), torch.no_grad():
            parts = [_forwards(model, theta, seen, part, s, latents_of(part, s)) for part in _parts(batch, rows_at_once)]
        # A shared latent has no dim of rows; its block is one draw in one part.
        yield {name: parts[0][name].expand(s, *parts[0][name].shape) for name in shared | of_all if name in parts[0]} | _joined(
            ({name: _by_draw(value, s) for name, value in part.items() if name not in shared | of_all} for part in parts), 1
        )


def _row_by_row(site: Site, batch: Batch) -> bool:
    """Whether a site's value has the rows in front; of what is computed within their plate it may be a number of theta."""
    return is_row_site(site) and (not is_computed(site) or site["value"].shape[:1] == (batch.size,))


def _forwards(model: Model, theta: Parameters, seen: Observed, batch: Batch, s: int, latents: Draws) -> Draws:
    """The story once over s copies of the rows, with `latents` {site: (s B, ...)} held fixed."""
    whole = replace(batch, observed=torch.ones_like(batch.observed), complete=True)
    return seen.drawn(partial(model.model, theta), _repeated(whole, s), latents)


def posterior_draws(model: Model, theta: Parameters, guide: nn.Module | None, batch: Batch, s: int) -> Draws:
    """{site: (s B, ...)}: the story's latents given each row's observed entries."""
    exact, repeated = exact_forms(model, theta, batch), _repeated(batch, s)
    if exact is not None:
        drawn = {name: value.flatten(0, 1) for name, value in exact.posterior(theta, batch).sample(s).items()}
    else:
        drawn = {} if guide is None else _values(guide, repeated)
    sites = latent_sites(partial(model.model, theta), batch)
    left = {name: site for name, site in sites.items() if name not in drawn}
    if not left:
        return drawn
    unguided = [name for name, site in left.items() if not site["fn"].has_enumerate_support]
    held = {name: value for name, value in drawn.items() if name not in left and not is_row_site(sites[name])}
    if unguided and held and (rows := given(model, theta, batch, held)) is not None:
        return drawn | {name: value.flatten(0, 1) for name, value in rows.posterior(theta, batch).sample(s).items()}
    if unguided:
        raise ValueError(f"{model.name}: the story samples {few(unguided)} but no guide does: fit with SVI(), or add it to the guide")
    program = partial(model.model, theta)
    depth = max(-frame.dim for site in sites_of(program, batch).values() for frame in site["cond_indep_stack"])
    story = config_enumerate(poutine.condition(program, data=drawn))
    # What has one value alone Pyro does not count as enumerated, and leaves with the dim in which it was.
    chosen = partial(infer_discrete, first_available_dim=-1 - depth, temperature=1, strict_enumeration_warning=False)
    enumerated = _values(chosen(story), repeated)
    return drawn | {name: _without_front(enumerated[name], sites[name]["value"].ndim) for name in left}


def _without_front(value: Tensor, dims: int) -> Tensor:
    """The value with its last `dims` dims, those in front being of size 1."""
    return value.reshape(value.shape[value.ndim - dims :])


def _values(program: Program, batch: Batch) -> Draws:
    """What each sample site of one run drew."""
    return {name: site["value"] for name, site in random_sites(poutine.trace(program).get_trace(batch)).items()}


def _parts(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, batch.size, rows):
        part = slice(start, start + rows)
        context = None if batch.context is None else batch.context[part]
        yield replace(batch, x=batch.x[part], observed=batch.observed[part], index=batch.index[part], context=context)


def _repeated(batch: Batch, s: int) -> Batch:
    """The rows s times over, draw by draw, as one complete set of s B rows (so that no row carries a minibatch's scale)."""
    context = None if batch.context is None else batch.context.repeat(s, 1)
    x, observed, index = batch.x.repeat(s, 1), batch.observed.repeat(s, 1), batch.index.repeat(s)
    return replace(batch, x=x, observed=observed, index=index, context=context, n_total=len(x))


def _by_draw(value: Tensor, s: int) -> Tensor:
    return value.reshape(s, -1, *value.shape[1:])


def _block_seed(seed: int, start: int) -> int:
    """Blocks of neighbouring seeds must not share their draws, as they would with seed + start."""
    return int(np.random.SeedSequence((seed_of(seed), start)).generate_state(1)[0])


def _joined(parts: Iterator[Draws], dim: int) -> Draws:
    found = list(parts)
    return {name: torch.cat([part[name] for part in found], dim) for name in found[0]}
