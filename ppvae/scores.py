"""How good a fit is, row by row: exact where the model is, estimated with a standard error elsewhere, and marked as which."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import torch
from numpy.lib.mixins import NDArrayOperatorsMixin
from torch import Tensor, nn

from ppvae.data import Batch, Data
from ppvae.exact import Exact
from ppvae.parameters import Parameters
from ppvae.program.joint import Program, elbo_rows, log_weights
from ppvae.program.read import without_prior
from ppvae.program.widened import parts_of, weighted_draws
from ppvae.threads import threads_for

IN_PLACE = ("byteswap", "fill", "itemset", "partition", "put", "resize", "setfield", "setflags", "sort")  # what changes an array


@dataclass(frozen=True, eq=False, repr=False)
class Scores(NDArrayOperatorsMixin):
    """Nats for each of N rows, and how they were found.

    values: (N,).  standard_error: (N,) for an estimate, NaN where it is unknown; None where exact.  how: in words.
    together: the standard error of the mean over all rows where their errors depend on one another, as those of draws that the rows share
        do; None: they are independent.
    rows: (N,), which of the rows that were scored each one is; None: all of them in their order.

    A part, `scores[:10]` or one by a mask or by places, keeps its errors. Elsewhere scores stand for their values: arithmetic,
    comparisons and NumPy's functions give plain arrays, and `scores.std()`, `scores.shape` and the like are those of the values.

    >>> scores = Scores(np.array([-1.0, -2.0, -3.0]), np.array([0.3, 0.0, 0.4]), "Monte Carlo")
    >>> float(scores.mean()), round(scores.mean_standard_error, 6), scores[:2].standard_error.tolist()
    (-2.0, 0.166667, [0.3, 0.0])
    """

    values: Any
    standard_error: Any = None
    how: str = "exact"
    together: float | None = None
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        values, error = (x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in (self.values, self.standard_error))
        if error is None and not self.exact:
            error = np.nan
        object.__setattr__(self, "values", np.asarray(values))
        object.__setattr__(self, "standard_error", None if error is None else np.broadcast_to(error, np.shape(values)).copy())

    @property
    def exact(self) -> bool:
        """Whether these are no estimates."""
        return self.how == "exact"

    @property
    def mean_standard_error(self) -> float:
        """The standard error of the mean over these rows; 0 where exact.

        Of a part of the rows whose errors depend on one another it is the mean of theirs, which is the most that it can be.
        """
        if self.standard_error is None:
            return 0.0
        if self.together is None:
            rows = np.arange(len(self)) if self.rows is None else self.rows
            each = np.bincount(rows, weights=self.standard_error) if len(rows) else np.zeros(0)  # one row twice errs twice alike
            return float(np.sqrt(np.square(each).sum()) / len(self)) if len(self) else nan
        whole = self.rows is None
        return self.together if whole else float(self.standard_error.mean())

    def mean(self, axis: object = None, dtype: object = None, out: object = None) -> np.float64:
        """The mean over rows; what NumPy's `mean` hands on is taken and ignored."""
        return np.float64(self.values.mean(dtype=np.float64))

    def sum(self, axis: object = None, dtype: object = None, out: object = None) -> np.float64:
        """The sum over rows, total nats; what NumPy's `sum` hands on is taken and ignored."""
        return np.float64(self.values.sum(dtype=np.float64))

    def copy(self) -> "Scores":
        """The same scores in memory of their own."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, index: Any) -> Any:
        """Some of the rows as Scores; a plain number for a single one."""
        index = index.cpu().numpy() if isinstance(index, Tensor) else index
        values = self.values[index]
        if np.ndim(values) != 1:
            return values
        rows = (np.arange(len(self)) if self.rows is None else self.rows)[index]
        everything = self.rows is None and len(rows) == len(self) and len(np.unique(rows)) == len(self)
        error = None if self.standard_error is None else self.standard_error[index]
        return Scores(values, error, self.how, self.together, None if everything else rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values: a copy, unless asked for none."""
        return np.asarray(self.values, dtype=dtype) if copy is False else np.array(self.values, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Arithmetic on the values alone: what comes of it is a plain array."""
        if any(isinstance(one, Scores) for one in kwargs.get("out", ())):  # scores -= 1
            del kwargs["out"]
        return getattr(ufunc, method)(*(one.values if isinstance(one, Scores) else one for one in inputs), **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What else an array has, of the values; not what would change them without their errors."""
        if name.startswith("_") or name in IN_PLACE:
            raise AttributeError(f"Scores have no {name!r}: take np.asarray(scores), or scores.values")
        return getattr(self.values, name)

    def __repr__(self) -> str:
        return f"Scores({np.array2string(self.values, threshold=10, separator=', ')}, how={self.how!r})"


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


def sampled_elbo(
    program: Program, guide: nn.Module, data: Data, draws: int = 100, shared: bool = False, learnt_from: int | None = None
) -> Scores:
    """The ELBO of each row by Monte Carlo over the guide, with its standard error. Uses torch's global generator.

    shared: whether the rows share some latents, and so the guide's draws of them.  learnt_from: how many rows the guide of those was fitted
    to, over which their KL is spread (None: these rows).
    """

    def bound(batch: Batch, s: int) -> Tensor:
        return elbo_rows(program, guide, batch if learnt_from is None else replace(batch, n_total=learnt_from), s)

    draws_of = by_draws(bound, data, draws, shared)
    together = float(error_of_mean(draws_of.mean(1))) if shared else None
    return Scores(draws_of.mean(0), error_of_mean(draws_of), f"Monte Carlo, {draws} draws", together)


def sampled_evidence(program: Program, guide: nn.Module, data: Data, draws: int = 1000, shared: bool = False) -> Scores:
    """log p(x_n) by importance sampling (Burda et al. 2016, eq. 8) from the guide and wider ones (`ppvae.program.widened`), with the
    delta-method standard error of each row.

    A lower bound in expectation. A story without a prior over its latents has no evidence: what comes back is then log p(x_n | z) at the
    guide's own draws, and says so. Where the rows share latents, it is each row's posterior predictive density, log E_q p(x_n | shared).
    """
    improper = without_prior(program, data.head(1))

    def weigh(batch: Batch, s: int) -> Tensor:
        if improper:
            return log_weights(program, guide, batch, s, given_shared=True)
        return weighted_draws(program, guide, batch, s)[1]

    weights = by_draws(weigh, data, draws, shared)
    if shared:
        return predictive_density(weights, data)
    value, share = mean_weight(weights)
    warn_of_few(1 / share.square().sum(0), draws, data, "raise draws, or train the guide for longer")
    spread = error_of(share, None if improper else parts_of(draws))
    how = f"importance sampling, {draws} draws a row"
    if improper:
        how = f"log p(x | {improper[0]}) at the guide's {improper[0]}: no prior, no evidence"
    return Scores(of_something(value, data), of_something(spread, data), how)


def predictive_density(rows: Tensor, data: Data) -> Scores:
    """(N,): the log of the mean over draws of p(x_n | shared), from its logarithms at draws of what all rows share (S, N)."""
    draws = len(rows)
    value, share = mean_weight(rows)
    spread = error_of(share)
    # To first order the mean over rows moves with each draw by the rows' mean share in it.
    together = float(error_of_mean(draws * share.mean(1)))
    how = f"posterior predictive, {draws} draws of what all rows share"
    return Scores(of_something(value, data), of_something(spread, data), how, together)


def shared_divergence(program: Program, guide: nn.Module, data: Data, draws: int = 1000, bound: float | None = None) -> Scores:
    """KL(q || p) / N of the latents that all rows share, for every row alike: log-evidence by importance sampling, less the ELBO.

    bound: the ELBO in nats per row where there is a formula; else both come from the same draws, so most of their error cancels. A guide
    that stays in one labelling of K exchangeable components is held against that labelling's share of the posterior. NaN where a handful
    of draws carry all the weight: the guide is then too far from the posterior for its draws to say how far.
    """
    weights = by_draws(lambda batch, s: log_weights(program, guide, batch, s), data, draws, shared=True).sum(1)
    evidence, share = mean_weight(weights)
    size = float(1 / share.square().sum())
    how = f"importance sampling, effective sample size {size:.0f} of {draws}"
    if size < ENOUGH:
        return Scores(np.full(data.n_rows, np.nan), how=f"unknown: {how} is too small")
    error = float(error_of_mean(draws * share - (weights if bound is None else 0.0)) / data.n_rows)
    value = evidence / data.n_rows - (weights.mean() / data.n_rows if bound is None else bound)
    return Scores(value.expand(data.n_rows), torch.full_like(data.x[:, 0], error), how, error)


def error_of_mean(draws: Tensor) -> Tensor:
    """The standard error of the mean over draws (S, ...); NaN of a single draw."""
    return ((draws - draws.mean(0)).square().sum(0) / (len(draws) - 1) / len(draws)).sqrt()


def error_of(share: Tensor, parts: Tensor | None = None) -> Tensor:
    """(N,): the delta-method standard error of the log of a mean weight, from each draw's share of it (S, N); NaN from a single draw.

    parts: (S,), in order, from which part of a mixture each draw comes, whose parts draw as often as they are to: no chance is in that.
    """
    sizes = [len(share)] if parts is None else parts.bincount().tolist()
    if len(share) == 1:
        return torch.full_like(share[0], nan)
    if min(sizes) == 1:
        sizes = [len(share)]
    return torch.stack([len(part) * part.var(0) for part in share.split(sizes)]).sum(0).sqrt()


def mean_weight(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean over draws (S, ...) of exp(log_weights), and each draw's share of it."""
    total = log_weights.logsumexp(0)
    return total - np.log(len(log_weights)), (log_weights - total).exp()
