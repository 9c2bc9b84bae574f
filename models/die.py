"""A die: maximum likelihood at its plainest (MacKay 2003, "Information theory, inference, and learning algorithms", section 23.5).

    x_n ~ Categorical(p)             one column: the face of one throw, 1 to K
    x_n ~ Multinomial(T_n, p)        K columns: how often each face came up in the T_n throws of a row

There are no latents, and p_k is the share of all throws that showed face k. Where some counts of a row are missing, T_n counts the throws
that fell on the others; the throws that were not counted are the missing data of EM (Dempster, Laird & Rubin 1977, section 4.2).
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppvae.data import Batch, Data
from ppvae.distributions import MaskedMultinomial
from ppvae.exact import Exact, Posterior, Statistics
from ppvae.messages import few
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters

NEVER = 1e-10  # throws credited to a face that never came up, so that its logarithm is finite


class DieExact(Exact):
    """Closed forms of the die: marginal, maximum likelihood, and EM where counts are missing."""

    model: "Die"

    def posterior(self, theta: Parameters, batch: Batch) -> Posterior:
        return Posterior.nothing(batch.x)

    def log_marginal(self, theta: Parameters, batch: Batch) -> Tensor:
        return self.model.throws(theta, batch).log_prob(batch.x)

    def statistics(self, theta: Parameters, batch: Batch) -> Statistics:
        """Throws of each face, "counts" (K,), those among the missing counts as expected from the counted ones."""
        p, log_likelihood = theta.probabilities, self.log_marginal(theta, batch).sum()
        if batch.x.shape[1] == 1:
            faces = batch.x[batch.observed].long() - 1
            return {"log_likelihood": log_likelihood, "counts": torch.bincount(faces, minlength=len(p)).to(p)}
        observed = batch.observed.to(p)
        rate = batch.x.sum(-1, keepdim=True) / (observed @ p).clamp(min=NEVER).unsqueeze(-1)  # throws, per unit of probability
        return {"log_likelihood": log_likelihood, "counts": torch.where(batch.observed, batch.x, rate * p).sum(0)}

    def maximize(self, theta: Parameters, statistics: Statistics) -> dict[str, Tensor]:
        counts = statistics["counts"].clamp(min=NEVER)
        return {"probabilities": counts / counts.sum()}

    def recentred(self, theta: Parameters, statistics: Statistics, values: dict[str, Tensor]) -> Statistics:
        """Counts are about nothing."""
        return statistics

    def cannot_solve(self, data: Data) -> str | None:
        if data.complete or data.n_features == 1:
            return None
        return "die has a closed form where every count of a row is known: use EM where counts are missing"

    def solve(self, data: Data) -> dict[str, Tensor]:
        """The shares of the faces."""
        start = self.model.init(data, torch.Generator()).to(data.x)
        return self.maximize(start, self.statistics(start, data.batch()))


@dataclass(frozen=True)
class Die(Model):
    """A die with `n_faces` = K faces, thrown independently.

    The data are one column of faces, whole numbers from 1 to K, one throw a row; or K columns of counts, how often each face came up in the
    throws of a row. A sample of counts has one throw in each row.
    Parameters of a fit: `probabilities` (K,).

    >>> import ppvae
    >>> fit = ppvae.fit(Die(n_faces=3), [[1], [3], [3], [2]])
    >>> fit.params["probabilities"]
    array([0.25, 0.25, 0.5 ])
    >>> ppvae.fit(Die(n_faces=3), [[1, 1, 0], [0, 0, 2]]).params["probabilities"]
    array([0.25, 0.25, 0.5 ])
    """

    n_faces: int = 6

    exact = DieExact

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_faces < 2:
            raise ValueError(f"n_faces must be at least 2, not {self.n_faces}")

    def check(self, data: Data) -> None:
        if data.n_features not in (1, self.n_faces):
            raise ValueError(
                f"a die with {self.n_faces} faces takes one column of faces or {self.n_faces} columns of counts, but there are "
                f"{data.n_features} columns: choose n_faces, or columns"
            )
        faces = data.n_features == 1
        low, high = (1, self.n_faces) if faces else (0, torch.inf)
        fine = (data.x == data.x.round()) & (data.x >= low) & (data.x <= high) | ~data.observed
        if not bool(fine.all()):
            wrong = few(f"{value:g}" for value in data.x[~fine].unique().tolist())
            wanted = f"faces are whole numbers from 1 to {self.n_faces}" if faces else "counts are whole numbers from 0 up"
            raise ValueError(f"{wanted}, but the data hold {wrong}: correct them, or leave them out as NaN")
        if not data.x.any():
            raise ValueError("every count is 0, so the die was never thrown: give counts of some throws")

    def init(self, data: Data, generator: torch.Generator) -> Parameters:
        """A fair die."""
        return Parameters(probabilities=Constrained(data.x.new_full((self.n_faces,), 1 / self.n_faces), constraints.simplex))

    def throws(self, theta: Parameters, batch: Batch) -> dist.TorchDistribution:
        """The distribution of a row, in the data's own terms."""
        p = theta.probabilities
        if batch.x.shape[1] == 1:  # a face 0, which never comes up, makes the outcomes of Categorical the faces themselves
            return dist.Categorical(torch.nn.functional.pad(p, (1, 0)), validate_args=False).mask(batch.observed).to_event(1)
        return MaskedMultinomial(p, batch.x.sum(-1).clamp(min=1), None if batch.complete else batch.observed)

    def model(self, theta: Parameters, batch: Batch) -> None:
        with batch.rows:
            pyro.sample("x", self.throws(theta, batch), obs=batch.x)
