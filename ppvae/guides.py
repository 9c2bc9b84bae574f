"""Guides for any story: amortized networks, one set of parameters a row, and their families of distributions.

A guide is an `nn.Module` called with a batch; it samples the story's latent sites inside `batch.rows`. The families:

- "linear": Gaussian, its mean linear in the row, one covariance for all rows (exact for linear-Gaussian stories with complete rows);
- "diagonal": Gaussian, mean and scales from a network;
- "full": Gaussian, mean and Cholesky factor from a network.

A story's latents that all rows share (`ppvae.shared`) have no encoder: the same families, with free parameters.

Discrete sites that the story enumerates are summed out there, unless the model asks for a guided component: then q(component | x) is a
categorical whose logits come from a network, averaged exactly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import constraints

from ppvae.bijections import carried, free_shape, unit_tril
from ppvae.data import Batch, Data
from ppvae.failures import MISTAKES
from ppvae.messages import check_object, either, unknown
from ppvae.model import Model, ask
from ppvae.networks import ImageEncoder, Rescaled, check_images, perceptron
from ppvae.parameters import Parameters, check_network
from ppvae.program.check import misplaced
from ppvae.program.joint import Site, latent_sites, random_sites
from ppvae.program.trial import tried
from ppvae.program.values import Mixed, check_apart, moved, some_rows
from ppvae.shared import SharedGaussian, WithRows, places
from ppvae.threads import threads

FAMILIES = ("diagonal", "full", "linear")
NETWORKS = ("dense", "convolutional")


@dataclass(frozen=True)
class Family:
    """A guide to be built from the story: the family of distributions, and the encoder's network.

    network: "dense" with layers of the `hidden` widths, or "convolutional" (for images) with layers of `hidden` channels.
    """

    name: str = "diagonal"
    hidden: tuple[int, ...] = (64,)
    network: str = "dense"

    def __post_init__(self) -> None:
        if self.name not in FAMILIES:
            raise unknown("guide", self.name, FAMILIES)
        if self.network not in NETWORKS:
            raise unknown("network", self.network, NETWORKS)


class Standardize(nn.Module):
    """The encoder's view of a row: each column at mean 0 and sd 1, missing entries 0; beside it the mask where the training data had holes,
    and the context where they had one."""

    mean: Tensor
    scale: Tensor

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.register_buffer("mean", data.mean.clone())
        self.register_buffer("scale", data.scale.clone())
        self.masked = not data.complete
        self.context = None if data.context is None else Rescaled(data.context)
        self.n_context = 0 if data.context is None else data.context.shape[1]
        self.n_outputs = data.n_features * (1 + self.masked) + self.n_context

    def forward(self, batch: Batch) -> Tensor:
        x = torch.where(batch.observed, (batch.x - self.mean) / self.scale, 0.0)
        parts = [x, batch.observed.to(x.dtype)] if self.masked else [x]
        if self.context is not None:
            parts.append(self.context(batch.context))
        return torch.cat(parts, -1)


class GaussianHead(nn.Module):
    """From a row's features to a Gaussian over `size` numbers, in one of the families."""

    def __init__(self, n_inputs: int, size: int, family: str, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.family = size, family
        numbers = {"linear": size, "diagonal": 2 * size, "full": 2 * size + size * (size - 1) // 2}[family]
        self.network = perceptron(n_inputs, () if family == "linear" else hidden, numbers)
        if family == "linear":
            self.log_scale = nn.Parameter(torch.zeros(size))
            self.below = nn.Parameter(torch.zeros(size * (size - 1) // 2))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(loc (B, n), spread): scales (B, n) for "diagonal", else a Cholesky factor (B or 1, n, n)."""
        out = self.network(features)
        if self.family == "linear":
            return out, unit_tril(self.log_scale.exp().unsqueeze(0), self.below.unsqueeze(0))
        loc, log_scale, below = out.split([self.size, self.size, out.shape[-1] - 2 * self.size], -1)
        scale = nn.functional.softplus(log_scale + math.log(math.e - 1))  # 1 at a zero output
        return loc, unit_tril(scale, below) if self.family == "full" else scale


def gaussian(loc: Tensor, spread: Tensor, event_shape: torch.Size, support: constraints.Constraint) -> dist.TorchDistribution:
    """The distribution of a site from a flat Gaussian, carried to the site's support and shape."""
    base: dist.TorchDistribution = (
        dist.MultivariateNormal(loc, scale_tril=spread) if spread.ndim > loc.ndim else dist.Normal(loc, spread).to_event(1)
    )
    return carried(base, event_shape, support)


class Amortized(nn.Module):
    """One encoder for all rows: it reads a row and gives the distribution of each of the row's latent sites."""

    def __init__(self, sites: dict[str, dict], data: Data, family: Family, guided_component: bool) -> None:
        super().__init__()
        self.family = family
        self.features: nn.Module = Standardize(data)
        n_features, hidden = self.features.n_outputs, family.hidden
        if family.network == "convolutional":
            check_images(data.image_shape, hidden)
            images = ImageEncoder(data.image_shape or (0, 0), hidden, 1 + self.features.masked, self.features.n_context)
            self.features = nn.Sequential(self.features, images)
            n_features, hidden = images.n_outputs, ()
        self.heads = nn.ModuleDict()
        self.shapes: dict[str, tuple[torch.Size, constraints.Constraint]] = {}
        self.discrete: dict[str, constraints.Constraint] = {}
        for name, site in sites.items():
            fn, summed = site["fn"], site["infer"].get("enumerate") == "parallel"
            if fn.has_enumerate_support and not (summed and not guided_component):
                self.discrete[name] = fn.support
                self.heads[name] = perceptron(n_features, hidden, fn.enumerate_support(expand=False).shape[0])
            elif not fn.has_enumerate_support:
                self.shapes[name] = (fn.event_shape, fn.support)
                self.heads[name] = GaussianHead(n_features, math.prod(free_shape(fn.event_shape, fn.support)), family.name, hidden)

    def forward(self, batch: Batch) -> None:
        features = self.features(batch)
        with batch.rows:
            for name, head in self.heads.items():
                if name in self.discrete:
                    logits, coin = head(features), isinstance(self.discrete[name], type(constraints.boolean))
                    weights = dist.Bernoulli(logits=logits[:, 1] - logits[:, 0]) if coin else dist.Categorical(logits=logits)
                    pyro.sample(name, weights, infer={"enumerate": "parallel"})
                else:
                    loc, spread = head(features)
                    pyro.sample(name, gaussian(loc, spread, *self.shapes[name]))


class PerRow(nn.Module):
    """The same families with free parameters for every row: what the best encoder of the family could say about these rows."""

    def __init__(self, name: str, loc: Tensor, spread: Tensor, shape: torch.Size | None = None) -> None:
        """loc (N, L), spread (N, L) or (N, L, L); shape: of the site, (L,) by default."""
        super().__init__()
        self.site, self.shape = name, loc.shape[-1:] if shape is None else shape
        self.loc = nn.Parameter(loc.clone())
        self.full = spread.ndim > loc.ndim
        diagonal = spread.diagonal(dim1=-2, dim2=-1) if self.full else spread
        self.log_scale = nn.Parameter(diagonal.log().expand_as(loc).clone())
        size = loc.shape[-1]
        row, column = torch.tril_indices(size, size, -1, device=loc.device)
        self.below = nn.Parameter(spread[..., row, column].expand(len(loc), -1).clone()) if self.full else None

    def forward(self, batch: Batch) -> None:
        loc, scale = self.loc[batch.index], self.log_scale[batch.index].exp()
        spread = scale if self.below is None else unit_tril(scale, self.below[batch.index])
        with batch.rows:
            pyro.sample(self.site, gaussian(loc, spread, self.shape, constraints.independent(constraints.real, len(self.shape))))


Guide = Family | str | nn.Module | Callable[[Batch], object]


def build(model: Model, theta: Parameters, data: Data, guide: Guide | None = None) -> nn.Module:
    """The guide for a fit: a module or a function as it is, a family (or its name) built from the story, None for the model's own.

    Latents that all rows share get one Gaussian over their unconstrained values, "full" where the family is not "diagonal".
    Raises ValueError for an unknown family, for a guide that ties rows to one another, and as `check_sites` does.
    """
    own = ask(model, "guide", data) or Family()
    chosen = own if guide is None else guide
    story = latent_sites(partial(model.model, theta), data.head())
    if isinstance(chosen, str):  # another family through the same encoder
        chosen = replace(own, name=chosen) if isinstance(own, Family) else Family(chosen)
    if isinstance(chosen, Family):
        family, shared = chosen, places(model, theta, data)
        chosen = Amortized({n: s for n, s in story.items() if n not in shared}, data, family, model.guided_component)
        if shared:
            chosen = WithRows(SharedGaussian(shared, family.name, data.n_rows), chosen)
    check_object(chosen)
    if isinstance(chosen, AutoGuide):
        raise ValueError(f"{type(chosen).__name__} has no encoder and knows no minibatches: name a family, {either(FAMILIES)}")
    if not callable(chosen):
        raise ValueError(f"a guide is a module, a function of the batch, or one of {', '.join(FAMILIES)}, not {chosen!r}")
    chosen = chosen.to(dtype=data.dtype, device=data.device) if isinstance(chosen, nn.Module) else Plain(chosen)
    check_network(f"{model.name}: the guide", chosen)
    check_sites(model, story, chosen, data)
    return chosen


class Plain(nn.Module):
    """A guide given as a plain function of the batch."""

    def __init__(self, function: Callable[[Batch], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Batch) -> object:
        return self.function(batch)


UNTRAINED = "make the guide a torch.nn.Module, no PyroModule, that holds its parameters itself"


def check_sites(model: Model, story: dict[str, Site], guide: nn.Module, data: Data) -> None:
    """Raise ValueError for a guide that fails, changes the rows, has parameters that no method trains, or samples unlike the story."""
    batch, function = data.head(), guide.function if isinstance(guide, Plain) else guide.forward
    trace = tried(model.name, "the guide", guide, function, batch, lambda sites: unlike(sites, story, batch), UNTRAINED)
    if isinstance(guide, Plain) and any(site["log_prob"].requires_grad for site in random_sites(trace).values()):
        raise ValueError(f"{model.name}: the guide reads parameters beyond it, which no method trains: {UNTRAINED}, or detach them")
    _check_values(model, guide, data)


@threads(1)
def _check_values(model: Model, guide: nn.Module, data: Data) -> None:
    """Raise ValueError for a guide that mixes rows or draws; one that cannot score given draws (a flow without an inverse) passes."""
    try:
        check_apart(moved(guide), some_rows(data.batch()))
    except Mixed as mixed:
        raise ValueError(f"{model.name}: the guide {mixed}") from mixed.__cause__
    except (*MISTAKES, NotImplementedError):
        return


def unlike(guide: dict[str, Site], story: dict[str, Site], batch: Batch) -> str | None:
    """Where a guide does not sample exactly what the story leaves latent, as the story does (enumerated sites may be left out)."""
    for name, site in story.items():
        if name not in guide and site["infer"].get("enumerate") != "parallel":
            return f"the story samples {name!r} but the guide never does: add it to the guide, or marginalise it"
    for name in guide:
        if name not in story:
            return f"the guide samples {name!r} but the story never does: take it out of the guide, or name it as the story does"
    wrong = misplaced(guide, story, batch)
    if wrong is not None:
        return wrong
    for name, site in guide.items():
        own, due = (tuple(of["fn"].event_shape) for of in (site, story[name]))
        if own != due:
            return f"the guide gives a row's {name!r} the shape {own}, but the story {due}: sample it as the story does"
    return None
