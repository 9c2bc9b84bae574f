"""Corrupted twins: each is a model class with one mistake, made from a sound one; `tests/test_laws.py` says which laws must find it."""

from collections.abc import Callable
from dataclasses import fields, replace
from math import log, pi

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae import guides
from ppvae.data import Batch
from ppvae.model import Model
from ppvae.parameters import Parameters

Kind = type[Model]


def _subclass(base: type, **changes: object) -> type:
    return type(base.__name__, (base,), changes)


class Misread:
    """Theta as a story with a mistake reads it: some parameters through a wrong function."""

    def __init__(self, theta: Parameters, wrong: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self._theta, self._wrong = theta, wrong

    def __getattr__(self, name: str):
        value = getattr(self._theta, name)
        return self._wrong[name](value) if name in self._wrong else value


def misread(base: Kind, **wrong: Callable[[Tensor], Tensor]) -> Kind:
    """The story reads these parameters wrongly; the closed forms read them as they are."""

    def model(self, theta, batch):
        return base.model(self, Misread(theta, wrong), batch)

    return _subclass(base, model=model)


def swapped(value: Tensor) -> Tensor:
    """The same numbers, rows taken for columns."""
    return value.mT.reshape(value.shape)


class Unscaled(Batch):
    """A batch whose plate forgets that it stands for all rows."""

    @property
    def rows(self) -> pyro.plate:
        return pyro.plate("rows", self.size, dim=-1)


def unscaled(base: Kind) -> Kind:
    """The story opens a plate of its own size, so a minibatch does not weigh N / B."""

    def model(self, theta, batch):
        return base.model(self, theta, Unscaled(**{f.name: getattr(batch, f.name) for f in fields(Batch)}))

    return _subclass(base, model=model)


def _all_seen(batch: Batch) -> Batch:
    return replace(batch, observed=torch.ones_like(batch.observed), complete=True)


def maskless_story(base: Kind) -> Kind:
    """The story scores a missing entry as the zero that stands in its place."""

    def model(self, theta, batch):
        return base.model(self, theta, _all_seen(batch))

    return _subclass(base, model=model)


def maskless(base: Kind) -> Kind:
    """Story and closed forms agree to take missing entries for zeros."""
    if base.exact is None:
        return maskless_story(base)

    def unmasked(name: str):
        def form(self, theta, batch):
            return getattr(base.exact, name)(self, theta, _all_seen(batch))

        return form

    forms = {name: unmasked(name) for name in ("posterior", "log_marginal", "statistics")}
    return _subclass(maskless_story(base), exact=_subclass(base.exact, **forms))


def closed_form(base: Kind, name: str, change: Callable) -> Kind:
    """One closed form answers `change(right answer, exact, theta, batch or statistics)`."""

    def form(self, theta, given):
        return change(getattr(base.exact, name)(self, theta, given), self, theta, given)

    return _subclass(base, exact=_subclass(base.exact, **{name: form}))


def lost_constant(base: Kind, factor: float = 1.0) -> Kind:
    """The marginal drops `factor` times log(2 pi) / 2 for each observed entry."""
    return closed_form(base, "log_marginal", lambda value, exact, theta, batch: value + factor * batch.observed.sum(-1) * 0.5 * log(2 * pi))


def wide_posterior(base: Kind) -> Kind:
    """The posterior's standard deviations are twice what they should be."""
    return closed_form(base, "posterior", lambda posterior, *_: replace(posterior, scale_tril=2 * posterior.scale_tril))


def priorless_posterior(base: Kind) -> Kind:
    """Responsibilities from the densities alone, the weights forgotten."""

    def forget(posterior, exact, theta, batch):
        return replace(posterior, log_weights=(posterior.log_weights - theta.weights.log()).log_softmax(-1))

    return closed_form(base, "posterior", forget)


def overconfident_statistics(base: Kind) -> Kind:
    """PPCA's E[u u^T] for complete rows without the posterior covariance of z."""

    def forget(statistics, exact, theta, batch):
        covariance = exact.posterior(theta, batch).covariance[0]
        return statistics | {"uu": statistics["uu"] - batch.size * nn.functional.pad(covariance, (0, 1, 0, 1))}

    return closed_form(base, "statistics", forget)


def mean_statistics(base: Kind) -> Kind:
    """Statistics averaged over the rows instead of summed; their ratios, all that the M-step reads, are the same."""

    def average(statistics, exact, theta, batch):
        return {name: value if name == "log_likelihood" else value / batch.size for name, value in statistics.items()}

    return closed_form(base, "statistics", average)


def unmoved_scatter(base: Kind) -> Kind:
    """Statistics that go to other means move their sums, and leave their squares about the old ones."""

    def recentred(self, theta, statistics, values):
        squares = {name: statistics[name] for name in ("scatter", "rr") if name in statistics}
        return base.exact.recentred(self, theta, statistics, values) | squares

    return _subclass(base, exact=_subclass(base.exact, recentred=recentred))


def m_step(base: Kind, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Kind:
    """The M-step answers `change(right answer)`."""
    return closed_form(base, "maximize", lambda values, *_: change(values))


def frozen_yet_moved(base: Kind, name: str) -> Kind:
    """A parameter is frozen, and the M-step returns it all the same."""

    def init(self, data, generator):
        return base.init(self, data, generator).freeze(name)

    return _subclass(base, init=init)


class Wide(dist.Normal):
    """Scores its draws as if it were a thousand times as wide as it is."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - log(1000.0)


class Misreported(nn.Module):
    """A guide q(z | x) that samples from one scale and reports another."""

    def __init__(self, n_features: int, n_latents: int) -> None:
        super().__init__()
        self.network = nn.Linear(n_features, n_latents)

    def forward(self, batch: Batch) -> None:
        with batch.rows:
            pyro.sample("z", Wide(self.network(0.01 * batch.x), 1.0).to_event(1))


def misreported_guide(base: Kind) -> Kind:
    """The model's own guide is `Misreported`."""
    return _subclass(base, guide=lambda self, data: Misreported(data.n_features, self.n_latents))


class Counting(nn.Module):
    """A guide that changes with the number of its calls, counted in Python, where a captured graph cannot see it."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide, self.calls = guide, 0

    def forward(self, batch: Batch) -> None:
        self.calls += 1
        self.guide(replace(batch, x=batch.x * (1 + 0.1 * self.calls)))


def counting_guide(base: Kind) -> Kind:
    """The model's own guide, in a `Counting` wrapper."""

    def guide(self, data):
        sound = base(**self.config())
        return Counting(guides.build(sound, sound.init(data, torch.Generator().manual_seed(0)), data))

    return _subclass(base, guide=guide)
