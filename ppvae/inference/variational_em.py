"""Variational EM: the ELBO climbed in turns, by the guide and by theta (Neal & Hinton 1998; Jordan et al. 1999).

    E-steps:  phi   <- phi   + gradient of E_q [log p(x, z | theta) - log q(z | x; phi)]        theta held
    M-steps:  theta <- theta + gradient of the same                                            phi held

SVI takes both gradients at once. In turns one sees what each does: an E-step closes the gap between the ELBO and a log-likelihood that
stands still, an M-step raises both and opens the gap again. With enough E-steps and a family that holds the posterior this is EM.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ppvae import guides
from ppvae.data import Data
from ppvae.inference.draws import nothing_free
from ppvae.inference.method import Method, Outcome, Task, floor_warning, seeded
from ppvae.inference.svi import SVI, Adam, Training
from ppvae.model import Model
from ppvae.scores import sampled_elbo

ROUNDS_LOGGED = 50  # at most, each with a point after its E-steps and one after its M-steps
DRAWS = 50  # for the ELBO of a point; the same ones at each


@dataclass(frozen=True)
class VariationalEM(Method):
    """Gradient E-steps for the guide and gradient M-steps for theta, in turns.

    rounds: of `e_steps` and then `m_steps` gradient steps each.  batch_size, particles, learning_rate, compile: as in SVI.
    The history has a point after the E-steps and one after the M-steps of a round, with the ELBO of all rows at the same draws.

    >>> import ppvae
    >>> iris = ppvae.load_data("iris")
    >>> fit = ppvae.fit(ppvae.models.PPCA(2), iris, VariationalEM(rounds=3, e_steps=5, m_steps=5, compile=False))
    >>> fit.history.step.tolist()
    [0, 5, 10, 15, 20, 25, 30]
    """

    guided: ClassVar[bool] = True

    rounds: int = 50
    e_steps: int = 30
    m_steps: int = 30
    batch_size: int | None = None
    particles: int = 1
    learning_rate: float | None = None
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rounds=1, e_steps=1, m_steps=1)
        self.steps_of(self.e_steps)  # which refuses what is wrong with the rest

    def steps_of(self, e_steps: int) -> SVI:
        """The gradient steps of all rounds, as SVI takes them."""
        return SVI(
            steps=self.rounds * (e_steps + self.m_steps),
            batch_size=self.batch_size,
            particles=self.particles,
            learning_rate=self.learning_rate,
            compile=self.compile,
        )

    def rows_at_once(self, data: Data) -> int:
        return self.steps_of(self.e_steps).rows_at_once(data)

    def refusal(self, model: Model, data: Data) -> str | None:
        return nothing_free(model, data) or self.steps_of(self.e_steps).refusal(model, data)

    def run(self, task: Task) -> Outcome:
        guide = guides.build(task.model, task.theta, task.data, task.guide)
        turns = Turns(self, task, guide)
        turns.loop()
        summed = None if turns.e_steps else "the guide has nothing to learn, since the story sums its latents out: every step was an M-step"
        warning = floor_warning(task.model, task.theta)
        status = "; ".join(said for said in (turns.status, summed, warning) if said)
        return Outcome(guide, status, turns.converged and warning is None, turns.done, turns.step.engine, turns.history)


class Turns(Training):
    """SVI's loop in which the guide and theta take turns."""

    more = "rounds"

    def __init__(self, method: VariationalEM, task: Task, guide: nn.Module) -> None:
        free = [[p for p in module.parameters() if p.requires_grad] for module in (guide, task.theta)]
        self.guide, self.e_steps = guide, method.e_steps if free[0] else 0
        self.round, self.every = self.e_steps + method.m_steps, math.ceil(method.rounds / ROUNDS_LOGGED)
        super().__init__(method.steps_of(self.e_steps), task, task.data, None, guide)
        self.e_optimizer, self.m_optimizer = map(Adam, free)

    def turn(self, step: int) -> Adam:
        """The guide in the first steps of a round, then theta."""
        return self.e_optimizer if step % self.round < self.e_steps else self.m_optimizer

    def due(self) -> bool:
        """After the E-steps and the M-steps of a round."""
        last, within = divmod(self.done, self.round)
        ended = last if within == 0 else last + 1
        return within in (0, self.e_steps) and (ended % self.every == 0 or self.done == self.method.steps)

    def value(self, losses: list[Tensor]) -> float:
        """The ELBO of all rows, at the same draws in each point."""
        with seeded(self.task.seed, self.data.device):
            return float(sampled_elbo(partial(self.task.model.model, self.task.theta), self.guide, self.data, DRAWS).mean())
