"""Model: what a model file must give (a story and a start), and what it may give."""

from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.failures import MISTAKES, failure, is_refusal
from ppvae.messages import check_object
from ppvae.options import Configuration
from ppvae.parameters import Parameters

if TYPE_CHECKING:
    from ppvae.guides import Guide


@dataclass(frozen=True)
class Model(Configuration):
    """A latent-variable model: a frozen dataclass whose fields are its configuration. It holds no tensors.

    A model file must give `init` and `model` (the story). It may give a `guide`, closed forms (`exact`), what may be compared between
    fits (`identifiable`) and what it asks of the data (`check`).
    """

    exact: ClassVar[type[Exact] | None] = None
    exchangeable: ClassVar[tuple[str, ...]] = ()  # identifiable quantities whose first axis is a set: components in any order
    no_density: ClassVar[str | None] = None  # why scores are no densities of rows, where they are none: said beside them, BIC is refused

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """A start for theta at the data's own scale, random through `generator` alone."""
        raise ValueError(f"{self.name}: a model file must define init(self, data, generator)")

    def model(self, theta: Parameters, batch: Batch) -> None:
        """The story: a Pyro model function."""
        raise ValueError(f"{self.name}: a model file must define the story, model(self, theta, batch)")

    def guide(self, data: Data) -> "Guide | None":
        """An amortized guide network, called with a batch; or a family of `ppvae.guides`, built from the story (None: the diagonal one)."""
        return None

    def shared_start(self, theta: Parameters, data: Data, generator: torch.Generator) -> dict[str, Tensor]:
        """Where guides and chains begin for the latents that all rows share, by site; one left out begins at its prior's median."""
        return {}

    def check(self, data: Data) -> None:
        """Raise ValueError, with a remedy, for data that this model cannot take."""

    def identifiable(self, theta: Parameters) -> dict[str, Tensor]:
        """What may be compared between two fits: functions of theta that do not depend on labels, rotations or signs."""
        return theta.values()

    def degrees_of_freedom(self, theta: Parameters) -> int:
        """Free parameters, for BIC and AIC."""
        return theta.degrees_of_freedom()

    @property
    def guided_component(self) -> bool:
        """Whether a guide samples the story's discrete site (False: the story sums it out)."""
        return False

    @cached_property
    def closed_forms(self) -> Exact | None:
        """This model's closed forms, or None."""
        return None if self.exact is None else self.exact(self)

    def describe(self) -> str:
        """The model with the fields that differ from its defaults, and those without one."""
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default or f.type in ("int", int)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def check_model(model: object) -> Model:
    """The model itself. Raises ValueError for what is none: a class, or a name."""
    check_object(model)
    if not isinstance(model, Model):
        given = repr(model) if isinstance(model, str) else type(model).__name__
        raise ValueError(f"a model is an object such as ppvae.models.GMM(), or of a name, ppvae.load_model('gmm'), not {given}")
    return model


def ask(model: Model, name: str, *given: object) -> Any:
    """What the model's own `init`, `guide` or `check` says of these. Raises ValueError, with the line, where it fails."""
    function = getattr(model, name)
    try:
        return function(*given)
    except MISTAKES as error:
        if is_refusal(function, error):
            raise
        raise failure(f"{model.name}: {name}", function, error) from error
