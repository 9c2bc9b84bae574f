"""The rows of a story given what they share: with that held, the rows are independent, and their own latents may have closed forms."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from pyro import poutine
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.derive import Derived, derive
from ppvae.program.joint import latent_sites, log_joint
from ppvae.scores import AT_ONCE, exact_log_marginal


@dataclass(frozen=True)
class Given(Model):
    """A model whose shared latents are held at `values` {site: (...)}."""

    base: Model
    values: dict[str, Tensor] = field(hash=False, compare=False)

    def model(self, theta: Parameters, batch: Batch) -> None:
        poutine.condition(self.base.model, data=self.values)(theta, batch)


def given(model: Model, theta: Parameters, batch: Batch, values: dict[str, Tensor]) -> Derived | None:
    """The closed forms of these rows given what they share, where the story gives them away."""
    return derive(Given(model, values), theta, batch)


def moved(exact: Derived, values: dict[str, Tensor]) -> Derived:
    """The same closed forms at other shared values."""
    assert isinstance(exact.model, Given)
    return replace(exact, model=Given(exact.model.base, values))


def continuous(model: Model, theta: Parameters, batch: Batch, shared: set[str]) -> list[str]:
    """The continuous latents that each row has of its own."""
    sites = latent_sites(partial(model.model, theta), batch)
    return [name for name, site in sites.items() if name not in shared and not site["fn"].has_enumerate_support]


def rows_log_likelihood(model: Model, theta: Parameters, data: Data, draws: dict[str, Tensor]) -> Tensor | None:
    """(S, N): log p(x_n | shared) at S draws {site: (S, ...)}, the rows' own latents summed or integrated out; None where neither works."""
    count = len(next(iter(draws.values())))
    if not continuous(model, theta, data.head(), set(draws)):  # all draws at once, beside one another
        held = {name: value.unsqueeze(1) for name, value in draws.items()}
        chunks = data.chunks(max(1, AT_ONCE // count))
        with torch.no_grad():
            rows = [log_joint(partial(model.model, theta), b, held, count, given_shared=True).expand(count, b.size) for b in chunks]
        return torch.cat(rows, -1)
    each = [{name: value[s] for name, value in draws.items()} for s in range(count)]
    exact = given(model, theta, data.batch(), each[0])
    return None if exact is None else torch.stack([exact_log_marginal(moved(exact, values), theta, data) for values in each])
