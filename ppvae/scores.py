"""How good a fit is, row by row: exact where the model is, estimated with a standard error elsewhere, and marked as which."""

import warnings
from collections.abc import Callable
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.parameters import Parameters
from ppvae.program.joint import Program, elbo_rows, log_weights
from ppvae.program.read import without_prior
from ppvae.threads import threads_for


class Scores(np.ndarray):
    """(N,) nats per row. A NumPy array that says how it was found.

    exact: True for a closed form.  standard_error: (N,) for an estimate, None where exact.  how: in words.
    mean_standard_error: of the mean over rows; 0 where exact.
    """

    standard_error: np.ndarray | None
    how: str
    _together: float | None

    def __new__(
        cls,
        values: Tensor | np.ndarray,
        standard_error: Tensor | np.ndarray | None = None,
        how: str = "exact",
        mean_standard_error: float | None = None,
    ) -> "Scores":
        """mean_standard_error: where the rows' errors depend on one another; by default they are taken as independent."""
        array = (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).view(cls)
        array.standard_error = standard_error.detach().cpu().numpy() if isinstance(standard_error, Tensor) else standard_error
        array.how, array._together = how, mean_standard_error
        return array

    def __array_finalize__(self, source: object) -> None:
        self.standard_error, self._together = None, None
        self.how = getattr(source, "how", "derived")

    def __array_wrap__(self, array, context=None, return_scalar=False):
        """A mean or a sum is a plain number."""
        return array[()] if array.ndim == 0 else super().__array_wrap__(array, context, return_scalar)

    @property
    def exact(self) -> bool:
        return self.how == "exact"

    @property
    def mean_standard_error(self) -> float:
        if self._together is not None:
            return self._together
        return 0.0 if self.standard_error is None else float(np.sqrt((np.asarray(self.standard_error) ** 2).sum()) / self.size)


ENOUGH = 20  # effective draws, below which importance weights say nothing
AT_ONCE = 100_000  # rows times draws in one run of a story


def by_chunks(score: Callable[[Batch], Tensor], data: Data, rows: int) -> Tensor:
    """`score` of every row, a chunk at a time, no gradients kept."""
    out: Tensor | None = None
    with torch.no_grad(), threads_for(data.x.numel()):
        for start, batch in zip(range(0, data.n_rows, rows), data.chunks(rows), strict=True):
            found = score(batch)
            if out is None:  # one tensor for all: many small ones between large temporary ones would break memory into pieces
                out = found.new_empty(*found.shape[:-1], data.n_rows)
            out[..., start : start + batch.size] = found
    assert out is not None
    return out


def exact_log_marginal(exact: Exact, theta: Parameters, data: Data) -> Tensor:
    """(N,): log p(x_n | theta)."""
    return of_something(by_chunks(lambda batch: exact.log_marginal(theta, batch), data, exact.chunk_rows(data)), data)


def of_something(scores: Tensor, data: Data) -> Tensor:
    """Scores (N,), or their errors, with 0 for each row in which nothing is observed: log 1, whatever sampling or rounding made of it."""
    return torch.where(data.observed.any(1), scores, 0.0)


def warn_of_few(sizes: Tensor, draws: int, data: Data, remedy: str) -> None:
    """Warn, once, where rows with missing entries have fewer than `ENOUGH` effective draws (N,) among their importance-weighted `draws`."""
    sizes = sizes[~data.observed.all(1)]
    few = int((sizes < ENOUGH).sum())
    if few:
        warnings.warn(
            f"in {few} of {len(sizes)} rows with missing entries fewer than {ENOUGH} of {draws} importance-weighted draws count "
            f"({sizes.min():.1f} at the least): {remedy}",
            stacklevel=4,
        )


def by_draws(score: Callable[[Batch, int], Tensor], data: Data, draws: int, shared: bool) -> Tensor:
    """(S, N): `score(batch, s)` (s, B) of every row; where draws are `shared` by all rows, all rows at a time and a few draws."""
    if not shared:
        return by_chunks(lambda batch: score(batch, draws), data, max(1, AT_ONCE // draws))
    at_once = max(1, AT_ONCE // data.n_rows)
    with torch.no_grad(), threads_for(AT_ONCE):
        return torch.cat([score(data.batch(), min(at_once, draws - done)) for done in range(0, draws, at_once)])


def sampled_elbo(program: Program, guide: nn.Module, data: Data, draws: int = 100, shared: bool = False) -> Scores:
    """The ELBO of each row by Monte Carlo over the guide, with its standard error. Uses torch's global generator.

    shared: whether the rows share some latents, and so the guide's draws of them.
    """
    draws_of = by_draws(lambda batch, s: elbo_rows(program, guide, batch, s), data, draws, shared)
    spread = draws_of.std(0) / sqrt(draws)
    together = float(draws_of.mean(1).std() / sqrt(draws)) if shared else None
    return Scores(draws_of.mean(0), spread, f"Monte Carlo, {draws} draws", together)


def sampled_evidence(program: Program, guide: nn.Module, data: Data, draws: int = 1000, shared: bool = False) -> Scores:
    """log p(x_n) by importance sampling from the guide (Burda et al. 2016, eq. 8), with the delta-method standard error of each row.

    A lower bound in expectation; the error is only as good as the guide's tails. A story without a prior over its latents has no evidence:
    what comes back is then log p(x_n | z) at the guide's draws, and says so. Where the rows share latents, it is each row's posterior
    predictive density, log E_q p(x_n | shared).
    """
    weights = by_draws(lambda batch, s: log_weights(program, guide, batch, s, given_shared=True), data, draws, shared)
    if shared:
        return predictive_density(weights, data)
    value, share = mean_weight(weights)
    warn_of_few(1 / share.square().sum(0), draws, data, "raise draws, or train the guide for longer")
    spread = (draws * share.square().sum(0) - 1).clamp(min=0).sqrt() / sqrt(draws)
    improper = without_prior(program, data.head(1))
    how = f"importance sampling, {draws} draws a row"
    if improper:
        how = f"log p(x | {improper[0]}) at the guide's {improper[0]}: no prior, no evidence"
    return Scores(of_something(value, data), of_something(spread, data), how)


def predictive_density(rows: Tensor, data: Data) -> Scores:
    """(N,): the log of the mean over draws of p(x_n | shared), from its logarithms at draws of what all rows share (S, N)."""
    draws = len(rows)
    value, share = mean_weight(rows)
    spread = (draws * share.square().sum(0) - 1).clamp(min=0).sqrt() / sqrt(draws)
    # To first order the mean over rows moves with each draw by the rows' mean share in it.
    together = float((draws * share.mean(1)).std() / sqrt(draws))
    how = f"posterior predictive, {draws} draws of what all rows share"
    return Scores(of_something(value, data), of_something(spread, data), how, together)


def shared_divergence(program: Program, guide: nn.Module, data: Data, draws: int = 1000) -> Scores:
    """KL(q || p) / N of the latents that all rows share, for every row alike: log-evidence by importance sampling, less the ELBO.

    Both come from the same draws, so most of their error cancels. A guide that stays in one labelling of K exchangeable components is
    held against that labelling's share of the posterior. NaN where a handful of draws carry all the weight: the guide is then too far
    from the posterior for its draws to say how far.
    """
    weights = by_draws(lambda batch, s: log_weights(program, guide, batch, s), data, draws, shared=True).sum(1)
    evidence, share = mean_weight(weights)
    size = float(1 / share.square().sum())
    how = f"importance sampling, effective sample size {size:.0f} of {draws}"
    if size < ENOUGH:
        return Scores(np.full(data.n_rows, np.nan), how=f"unknown: {how} is too small")
    error = float((draws * share - weights).std() / sqrt(draws) / data.n_rows)
    value = (evidence - weights.mean()) / data.n_rows
    return Scores(value.expand(data.n_rows), torch.full_like(data.x[:, 0], error), how, error)


def mean_weight(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean over draws (S, ...) of exp(log_weights), and each draw's share of it."""
    total = log_weights.logsumexp(0)
    return total - np.log(len(log_weights)), (log_weights - total).exp()
