"""Starting points that several models share."""

import warnings

import torch
from torch import Tensor

from ppvae.data import Data

MOST_ROWS = 20_000  # enough to place the centres; a start must not take longer than the fit


def check_varies(data: Data) -> None:
    """Raise ValueError for a table without variance, which gives a start no scale."""
    if len(data.constant) == data.n_features:
        raise ValueError("every column is constant, so there is no variance to explain: give rows that differ")


def kmeans_partition(data: Data, n_components: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """weights (K,), means (K, D) and covariances (K, D, D) of a k-means partition of standardised rows, started by k-means++.

    Missing entries count as their column's mean, for this start only. Each covariance is shrunk towards the pooled within-cluster one
    with the weight of D + 1 rows, so that a cluster of a single row has a usable covariance too.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    some = data
    if data.n_rows > MOST_ROWS:
        some = data.take(torch.randperm(data.n_rows, generator=generator)[:MOST_ROWS].to(data.device))
    rows = torch.where(some.observed, (some.x - data.mean) / data.scale, 0.0)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters leave some empty, which a start may
        found = KMeans(n_components, n_init=1, random_state=seed).fit(rows.cpu().numpy())
    member = torch.nn.functional.one_hot(torch.as_tensor(found.labels_, device=rows.device).long(), n_components).to(rows)
    count = member.sum(0).clamp(min=1.0)
    centres = member.mT @ rows / count[:, None]
    residual = rows - member @ centres
    own = [residual[found.labels_ == k] for k in range(n_components)]
    scatter = torch.stack([part.mT @ part for part in own])
    features = rows.shape[1]
    pooled = scatter.sum(0) / len(rows) + 1e-3 * torch.eye(features, dtype=rows.dtype, device=rows.device)
    prior = features + 1
    covariances = (scatter + prior * pooled) / (count[:, None, None] + prior)
    return (
        count / count.sum(),
        data.mean + centres * data.scale,
        covariances * data.scale.unsqueeze(-1) * data.scale,
    )
