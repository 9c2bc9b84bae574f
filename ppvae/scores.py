"""How good a fit is, row by row: exact where the model is, estimated with a standard error elsewhere, and marked as which."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.parameters import Parameters
from ppvae.program.joint import Program, elbo_rows, log_weights
from ppvae.program.read import without_prior


class Scores(np.ndarray):
    """(N,) nats per row. A NumPy array that says how it was found.

    exact: True for a closed form.  standard_error: (N,) for an estimate, None where exact.  how: in words.
    """

    standard_error: np.ndarray | None
    how: str

    def __new__(cls, values: Tensor | np.ndarray, standard_error: Tensor | np.ndarray | None = None, how: str = "exact") -> "Scores":
        array = (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).view(cls)
        array.standard_error = standard_error.detach().cpu().numpy() if isinstance(standard_error, Tensor) else standard_error
        array.how = how
        return array

    def __array_finalize__(self, source: object) -> None:
        self.standard_error = None
        self.how = getattr(source, "how", "derived")

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """A mean or a sum is a plain number."""
        return array[()] if array.ndim == 0 else super().__array_wrap__(array, context, return_scalar)

    @property
    def exact(self) -> bool:
        return self.how == "exact"

    @property
    def mean_standard_error(self) -> float:
        """The standard error of the mean over rows: 0 where exact."""
        return 0.0 if self.standard_error is None else float(np.sqrt((np.asarray(self.standard_error) ** 2).sum()) / self.size)


SMALL = 500_000  # entries: below this, threads cost more in waiting for one another than they save


@contextmanager
def threads_for(entries: int) -> Iterator[None]:
    """One thread within the block where each operation works on few entries; on a busy machine two would spin for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if entries < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def by_chunks(score: Callable[[Batch], Tensor], data: Data, rows: int) -> Tensor:
    """`score` of every row, a chunk at a time, no gradients kept."""
    with torch.no_grad(), threads_for(data.x.numel()):
        return torch.cat([score(batch) for batch in data.chunks(rows)], -1)


def exact_log_marginal(exact: Exact, theta: Parameters, data: Data) -> Tensor:
    """(N,): log p(x_n | theta)."""
    return by_chunks(lambda batch: exact.log_marginal(theta, batch), data, exact.chunk_rows(data))


def sampled_elbo(program: Program, guide: nn.Module, data: Data, draws: int = 100) -> Scores:
    """The ELBO of each row by Monte Carlo over the guide, with its standard error. Uses torch's global generator."""
    draws_of = by_chunks(lambda batch: elbo_rows(program, guide, batch, draws), data, _rows_for(draws))
    spread = draws_of.std(0) / sqrt(draws)
    return Scores(draws_of.mean(0), spread, f"Monte Carlo, {draws} draws")


def sampled_evidence(program: Program, guide: nn.Module, data: Data, draws: int = 1000) -> Scores:
    """log p(x_n) by importance sampling from the guide (Burda et al. 2016, eq. 8), with the delta-method standard error of each row.

    A lower bound in expectation; the error is only as good as the guide's tails. A story without a prior over its latents has no evidence:
    what comes back is then log p(x_n | z) at the guide's draws, and says so.
    """
    weights = by_chunks(lambda batch: log_weights(program, guide, batch, draws), data, _rows_for(draws))
    peak = weights.logsumexp(0)
    share = (weights - peak).exp()  # self-normalised weights
    spread = (draws * share.square().sum(0) - 1).clamp(min=0).sqrt() / sqrt(draws)
    improper = without_prior(program, data.batch(torch.arange(1, device=data.device)))
    how = f"importance sampling, {draws} draws a row"
    if improper:
        how = f"log p(x | {improper[0]}) at the guide's {improper[0]}: no prior, no evidence"
    return Scores(peak - np.log(draws), spread, how)


def _rows_for(draws: int) -> int:
    return max(1, 100_000 // draws)
