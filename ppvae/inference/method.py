"""What every method of fitting is: a small configuration object that runs on a task."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from pyro.poutine import runtime
from torch import nn

from ppvae.data import Data
from ppvae.guides import Guide
from ppvae.messages import either, few
from ppvae.model import Model
from ppvae.options import Configuration, seed_of
from ppvae.parameters import Parameters

Progress = Callable[[int, int, str], None]
PRODUCTS = 10  # multiply-adds of a matrix product in the time of one entry of another operation
SMALLER = {  # how to make a model smaller, by its options
    "n_components": "fewer components",
    "n_latents": "fewer latents",
    "covariance": "a covariance with fewer free parameters",
}
TURN = threading.RLock()  # torch's generator and Pyro's handlers belong to the whole process, so its threads take turns
HISTORY = ("step", "seconds", "elbo", "log_likelihood", "heldout_elbo")


@dataclass(frozen=True)
class Task:
    """One fit to be made: the start is in `theta`, which the method may change."""

    model: Model
    data: Data
    theta: Parameters
    guide: Guide | None
    seed: int
    progress: Progress = lambda done, total, note: None


@dataclass(frozen=True)
class Outcome:
    """What a method gives back. status: a sentence that says what to try next where something is left to try."""

    guide: nn.Module
    status: str
    converged: bool
    steps: int
    engine: str
    history: list[dict[str, float]] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """The history as a table, one row a logged step, NaN where a column does not apply."""
        columns = {name: np.array([entry.get(name, math.nan) for entry in self.history]) for name in HISTORY}
        return pd.DataFrame(columns | {"step": columns["step"].astype(int)})


@dataclass(frozen=True)
class Method(Configuration):
    """A way of fitting: its fields are its settings."""

    guided: ClassVar[bool] = False  # whether it uses a guide that is given

    def describe(self) -> str:
        """The method with the settings that differ from its defaults."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def refusal(self, model: Model, data: Data) -> str | None:
        """Why this method cannot fit this model to these data; None if it can. `fit` adds what can, unless other settings would help."""
        return None

    def rows_at_once(self, data: Data) -> int:
        """How many rows, or draws of rows, one step works on."""
        return data.n_rows

    def entries(self, data: Data, theta: Parameters) -> int:
        """How many numbers an operation of one step works on: the table's, or a network's where that is more work."""
        weights = sum(p.numel() for network in theta.children() for p in network.parameters())
        return self.rows_at_once(data) * max(data.n_features, weights // PRODUCTS)

    def run(self, task: Task) -> Outcome:
        raise TypeError(f"{type(self).__name__} must define run(task)")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gradients on within the block, whatever the caller has chosen; Pyro's handlers and plates as before on any way out, as of Ctrl-C."""
    kept: list[tuple[list, list]] = [(stack, list(stack)) for stack in (runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack)]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for stack, before in kept:
            stack[:] = before


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[torch.Generator]:
    """Torch's generators seeded within the block and put back after it, one thread at a time; yields a CPU generator of the same seed."""
    seed = seed_of(seed)
    devices = [device] if torch.device(device).type == "cuda" else []
    with TURN, torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed reaches for every kind of device that there could be
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def floor_warning(model: Model, theta: Parameters) -> str | None:
    """A sentence for parameters on their floor, below which the likelihood may rise on, or for components without rows, else None.

    The advice is what this model can be told. Other shares of 0 are no defect: a face that never came up.
    """
    names, empty = theta.at_floor(), [share for share in theta.emptied() if share.partition("[")[0] in model.exchangeable]
    if empty and not names:
        return f"{few(empty)} {'is' if len(empty) == 1 else 'are'} 0, without rows: try another seed or fewer components"
    if not names:
        return None
    stand = "stands on its floor" if len(names) == 1 else "stand on their floors"
    smaller = [words for option, words in SMALLER.items() if option in model.config()]
    advice = f"try {either(['more rows', 'another seed', *smaller])}"
    if not model.exchangeable:
        advice = f"some values are explained without remainder; try {either(['more rows', *smaller, 'leaving such a feature out'])}"
    return f"{few(names)} {stand}, below which the likelihood may rise on: {advice}"
