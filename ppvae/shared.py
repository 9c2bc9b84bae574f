"""Guides for latents that all rows share: the story's sites outside `batch.rows`, whose posterior the whole table decides."""

from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import get_plates
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppvae.bijections import bijection, carried, free_shape, unit_tril
from ppvae.data import Batch, Data
from ppvae.messages import unknown
from ppvae.model import Model, ask
from ppvae.parameters import Parameters, in_words
from ppvae.program.joint import Site, is_row_site, latent_sites

PRIOR_DRAWS = 200  # of which the median and the spread of a prior are taken


@dataclass(frozen=True)
class Place:
    """Where the guide of a shared latent begins, in unconstrained numbers: start (P,), and the size of a natural step, unit (P,)."""

    shape: torch.Size
    support: constraints.Constraint
    start: Tensor
    unit: Tensor

    @property
    def free_shape(self) -> torch.Size:
        return free_shape(self.shape, self.support)

    @property
    def value(self) -> Tensor:
        """The start as the story has it."""
        return bijection(self.support)(self.start.reshape(self.free_shape))


def shared_sites(model: Model, theta: Parameters, data: Data) -> dict[str, Site]:
    """The story's latent sites that all rows share, by name.

    Raises ValueError for one in a plate of its own, and for a discrete one.
    """
    latents = latent_sites(partial(model.model, theta), data.head())
    found = {name: site for name, site in latents.items() if not is_row_site(site)}
    for name, site in found.items():
        if site["cond_indep_stack"]:
            plate = site["cond_indep_stack"][0].name
            raise ValueError(
                f"{model.name}: the shared site {name!r} lies in the plate {plate!r}: take the plate away and add .to_event(1)"
            )
        if site["fn"].has_enumerate_support:
            raise ValueError(f"{model.name}: the shared site {name!r} is discrete: sum it out in the story, or put it under batch.rows")
    return found


def places(model: Model, theta: Parameters, data: Data) -> dict[str, Place]:
    """Where each shared latent begins: at the model's own `shared_start`, else at its prior's median. Uses torch's seed.

    Raises ValueError for a `shared_start` that names what no rows share, or whose values a site could not have.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    given = ask(model, "shared_start", theta, data, generator)
    sites, found = shared_sites(model, theta, data), {}
    for name, value in given.items():
        if name not in sites:
            raise unknown("shared latent in shared_start", name, sites)
        if value.shape != sites[name]["fn"].event_shape:
            due, got = (tuple(of) for of in (sites[name]["fn"].event_shape, value.shape))
            raise ValueError(f"{model.name}: shared_start gives {name!r} the shape {got}, but the story {due}: give it as the story does")
    for name, site in sites.items():
        to_support = bijection(site["fn"].support)
        drawn = to_support.inv(site["fn"].sample(torch.Size([PRIOR_DRAWS]))).reshape(PRIOR_DRAWS, -1)
        spread = drawn.std(0) if drawn.numel() else drawn[0]  # a simplex of one share has no free number
        start = drawn.median(0).values if name not in given else _free(model, name, given[name].to(drawn), to_support)
        # A prior so wide that its draws leave the floating range says nothing of the scale.
        unit = torch.where(torch.isfinite(spread) & (spread > 0), spread, 1.0)
        found[name] = Place(site["fn"].event_shape, site["fn"].support, torch.nan_to_num(start), unit)
    return found


def _free(model: Model, name: str, value: Tensor, to_support: Transform) -> Tensor:
    """(P,): the unconstrained numbers behind a start. Raises ValueError for one outside its support."""
    try:
        start = to_support.inv(value).reshape(-1)
    except torch.linalg.LinAlgError:
        start = value.new_full((1,), torch.nan)
    if start.isnan().any():
        raise ValueError(f"{model.name}: shared_start gives {name!r} a value that it cannot have: give {in_words(to_support.codomain)}")
    return start


class SharedGaussian(nn.Module):
    """One Gaussian over the unconstrained values of all shared latents: of independent numbers ("diagonal"), or any ("full").

    The full one is sampled site by site, each given those before it, so that every site has a density of its own.
    """

    unit: Tensor

    def __init__(self, sites: dict[str, Place], family: str, n_rows: int) -> None:
        super().__init__()
        self.sites = sites
        unit = torch.cat([place.unit for place in sites.values()])
        # A posterior of N rows is some N^-1/2 of its prior in width; steps go by the middle of the two, as the start may be far off.
        self.register_buffer("unit", unit * n_rows**-0.25)
        self.loc = nn.Parameter(torch.cat([place.start for place in sites.values()]) / self.unit)
        self.log_scale = nn.Parameter(torch.full_like(unit, n_rows**-0.25).log())
        self.below = nn.Parameter(unit.new_zeros(len(unit) * (len(unit) - 1) // 2)) if family != "diagonal" else None

    def forward(self, batch: Batch) -> None:
        loc, scale = self.unit * self.loc, self.unit * self.log_scale.exp()
        tril = None if self.below is None else self.unit.unsqueeze(-1) * unit_tril(self.log_scale.exp(), self.below)
        before: list[Tensor] = []  # the standard normal numbers behind the sites so far
        at = 0
        for name, place in self.sites.items():
            part = slice(at, at + len(place.start))
            if tril is None:
                pyro.sample(name, carried(dist.Normal(loc[part], scale[part]).to_event(1), place.shape, place.support))
            else:
                here = loc[part] + torch.cat(before, -1) @ tril[part, :at].mT if before else loc[part]
                within = dist.MultivariateNormal(here, scale_tril=tril[part, part])
                value = pyro.sample(name, carried(within, place.shape, place.support))
                free = bijection(place.support).inv(value).reshape(*value.shape[: value.ndim - len(place.shape)], -1)
                noise = torch.linalg.solve_triangular(tril[part, part], (free - here).unsqueeze(-1), upper=False)
                before.append(noise.squeeze(-1))
            at = part.stop


class Draws(nn.Module):
    """Equally weighted draws of the shared latents, {site: (chains, S, ...)}: what a sampler gives. They have no density."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(values)
        for name, value in values.items():
            self.register_buffer(f"draws_{name}", value)

    @property
    def values(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"draws_{name}") for name in self.names}

    @property
    def count(self) -> int:
        """How many draws there are, of all chains."""
        chains, draws = next(iter(self.values.values())).shape[:2]
        return chains * draws

    def chosen(self, draws: int | None = None, seed: int = 0) -> dict[str, Tensor]:
        """{site: (draws, ...)}: some of the draws at random, none twice; all (None) in their own order. Raises ValueError for more."""
        if draws is not None and draws > self.count:
            raise ValueError(f"the sampler drew {self.count} times, not {draws}: ask for fewer draws, or fit with more of them")
        index = torch.arange(self.count) if draws is None else torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        return {name: value.flatten(0, 1)[index[:draws]] for name, value in self.values.items()}

    def forward(self, batch: Batch) -> None:
        plates = {frame.dim: frame.size for frame in get_plates() if frame.dim is not None}
        shape = [plates.get(dim, 1) for dim in range(min(plates, default=0), 0)]
        index = torch.randint(self.count, shape, device=batch.x.device)
        for name, value in self.chosen().items():
            pyro.sample(name, dist.Delta(value[index], event_dim=value.ndim - 1))


class WithRows(nn.Module):
    """A guide in two parts: what all rows share, then each row's own latents."""

    def __init__(self, shared: nn.Module, rows: nn.Module) -> None:
        super().__init__()
        self.shared, self.rows = shared, rows

    def forward(self, batch: Batch) -> None:
        self.shared(batch)
        self.rows(batch)
