"""Starting points that several models share."""

import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ppvae.data import Data

MOST_ROWS = 20_000  # enough to place the centres; a start must not take longer than the fit
ENTRIES = 2**20  # enough for quartiles, which sort the rows
WILD = 10  # times the distance between the quartiles from the median, or the sd of the rows within that: beyond is a wild row
FAR = 0.01  # of the variance within clusters: they lie far apart in units of their own spread
LITTLE = 1e-3  # of a variance: it keeps a start's covariance from being singular
SWEEPS = 10  # over rows with holes, which nearly all have found their cluster by then


def check_varies(data: Data) -> None:
    """Raise ValueError for a table without variance, which gives a start no scale."""
    if len(data.constant) == data.n_features:
        raise ValueError("every column is constant, so there is no variance to explain: give rows that differ")


def spread(data: Data) -> Tensor:
    """(D,): the sd of each column; of a constant one, which has none, its size, or the geometric mean of the others' sds if less.

    So in other units all spreads are others by as much, also where a column holds a single entry.
    """
    constant = torch.tensor([c in data.constant for c in data.columns], device=data.device)
    others = data.scale[~constant].log().mean().exp() if not constant.all() else torch.inf
    size = data.mean.abs().clamp(max=others)
    size = torch.where(size > 0, size, 1.0 if constant.all() else others)
    return torch.where(constant, size, data.scale)


@dataclass(frozen=True)
class Partition:
    """Rows in K clusters, in the data's own units.

    weights: (K,).  means: (K, D).  covariances: (K, D, D), each shrunk towards that within all clusters with the weight of D + 1 rows, so
    that a cluster of a single row has a usable one too.  within: (D,), the variance of each column within the clusters, above 0.
    own: (K, D, D), the covariances of the clusters themselves.  sound: (K,), which have rows enough for one, more than D + 1.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    within: Tensor
    own: Tensor
    sound: Tensor

    def least(self, own: Tensor, within: Tensor) -> Tensor:
        """The least (...) of the sound clusters' variances `own` (K, ...) that are not 0, at most `within` (...).

        The floor of a component is a share of this. A share of a whole column's variance would grow with how far apart the clusters lie,
        and with one wild row, until it swallowed them.
        """
        sound = self.sound.reshape(-1, *[1] * within.ndim) & (own > 0)
        return torch.where(sound, own, within).amin(0).minimum(within)


def kmeans_partition(data: Data, n_components: int, generator: torch.Generator) -> Partition:
    """A k-means partition of the rows, in units of their columns' spread, started by k-means++; for a start only.

    A row with holes belongs to the cluster that is nearest in what it holds.
    """
    some = data
    if data.n_rows > MOST_ROWS:
        some = data.take(torch.randperm(data.n_rows, generator=generator)[:MOST_ROWS].to(data.device))
    centre, scale = _middle(data, some)
    rows, observed = torch.where(some.observed, (some.x - centre) / scale, 0.0), some.observed.to(some.x)
    labels = _nearest(rows, n_components, seed=int(torch.randint(2**31 - 1, (), generator=generator)))
    for _ in range(0 if some.complete else SWEEPS):
        means = _centres(rows, observed, labels, n_components)[0]
        before, labels = labels, (observed @ means.square().mT - 2 * rows @ means.mT).argmin(1)  # + |x|^2, whichever the cluster
        if torch.equal(before, labels):
            break
    means, count = _centres(rows, observed, labels, n_components)
    residual = (rows - means[labels]) * observed
    # What a column varies by where it is constant: its mean is rounded.
    rounding = (64 * torch.finfo(rows.dtype).eps * rows.abs().amax(0)).square()
    parts = [residual[labels == k] for k in range(n_components)]
    size = torch.bincount(labels, minlength=n_components).to(rows).clamp(min=1.0)
    fuller = (size.unsqueeze(1) / count).sqrt()  # a hole adds nothing to the scatter
    scatter = torch.stack([part.mT @ part for part in parts]) * fuller.unsqueeze(2) * fuller.unsqueeze(1)
    pooled = scatter.sum(0) / len(rows)
    varies = pooled.diagonal() > rounding
    within = torch.where(varies, pooled.diagonal(), LITTLE)
    pooled = torch.where(varies & varies.unsqueeze(1), pooled, 0.0) + (LITTLE * torch.where(varies, within, 1.0)).diag()
    own = scatter / size[:, None, None]
    own = torch.where((own.diagonal(dim1=1, dim2=2) > rounding).unsqueeze(2), own, 0.0)
    prior = rows.shape[1] + 1
    covariances = (scatter + prior * pooled) / (size[:, None, None] + prior)
    squares = scale.outer(scale)
    return Partition(size / size.sum(), centre + means * scale, covariances * squares, within * scale.square(), own * squares, size > prior)


def _middle(data: Data, some: Data) -> tuple[Tensor, Tensor]:
    """The mean and sd of each column, (D,); where a few wild rows make the sd, those of the others, which lie together beside them."""
    few = slice(None, None, max(1, some.x.numel() // ENTRIES))
    low, median, high = torch.where(some.observed[few], some.x[few], torch.nan).nanquantile(some.x.new_tensor([0.25, 0.5, 0.75]), 0)
    near = some.observed & ((some.x - median).abs() <= WILD * (high - low))
    count = near.sum(0).clamp(min=1)
    mean = torch.where(near, some.x, 0.0).sum(0) / count
    sd, whole = (torch.where(near, some.x - mean, 0.0).square().sum(0) / count).sqrt(), spread(data)
    wild = (low < high) & (whole > WILD * sd)
    return torch.where(wild, mean, data.mean), torch.where(wild, sd, whole)


def _nearest(rows: Tensor, n_components: int, seed: int) -> Tensor:
    """The cluster of each row, (B,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    table, kmeans = rows.cpu().numpy(), partial(KMeans, n_components, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters leave some empty, which a start may
        found = kmeans().fit(table)
        share = float(found.inertia_ / max(table.var(0).sum() * len(table), torch.finfo(rows.dtype).tiny))
        if share < FAR:  # scikit-learn's tolerance is a share of the whole variance: it stopped at once
            found = kmeans(init=found.cluster_centers_, tol=1e-4 * share).fit(table)
    return torch.as_tensor(found.labels_, device=rows.device).long()


def _centres(rows: Tensor, observed: Tensor, labels: Tensor, n_components: int) -> tuple[Tensor, Tensor]:
    """The mean of each cluster's observed entries (K, D), 0 where there are none; and their number (K, D), at least 1."""
    member = torch.nn.functional.one_hot(labels, n_components).to(rows)
    count = (member.mT @ observed).clamp(min=1.0)
    return member.mT @ rows / count, count
