"""Data and Batch: rows of features, validated once; NaN means missing from here on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from ppvae.messages import few
from ppvae.patterns import Patterns
from ppvae.tables import as_array, column_names, numbered, read_table
from ppvae.threads import threads

STRIP = 2**18  # entries: a pass over the table works near the processor, and keeps no copy of it


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set, as a story sees them.

    x: (B, D), missing entries zeroed.  observed: (B, D) bool.  context: (B, C) or None.  index: (B,) row numbers in the full data.
    n_total: N, the number of rows that the batch stands for.  complete: no entry of the data set is missing.
    """

    x: Tensor
    observed: Tensor
    index: Tensor
    n_total: int
    complete: bool = True
    context: Tensor | None = None

    @property
    def rows(self) -> pyro.plate:
        """The plate over rows (dim -1), scaled by N / B so that a minibatch estimates the full log joint."""
        return pyro.plate("rows", self.n_total, subsample=self.index, dim=-1)

    def take(self, chosen: Tensor) -> "Batch":
        """The rows `chosen`, by their place in this batch, standing for the same N rows."""
        context = None if self.context is None else self.context[chosen]
        observed = self.observed[:1].expand(len(chosen), -1) if self.complete else self.observed[chosen]
        return replace(self, x=self.x[chosen], observed=observed, index=self.index[chosen], context=context)

    @cached_property
    def patterns(self) -> Patterns:
        """The rows grouped by their missing entries; worked out once for a batch."""
        return Patterns.of(self.observed)

    def chunks(self, rows: int) -> Iterator["Batch"]:
        """Consecutive parts of at most `rows` rows; itself where it is no larger."""
        if self.size <= rows:
            yield self
            return
        for start in range(0, self.size, rows):
            part = slice(start, start + rows)
            context = None if self.context is None else self.context[part]
            yield replace(self, x=self.x[part], observed=self.observed[part], index=self.index[part], context=context)

    @cached_property
    def mask(self) -> Tensor | None:
        """(B, D) in x's own type: 1 where observed, 0 elsewhere; None where no entry is missing."""
        return None if self.complete else self.observed.to(self.x.dtype)

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance of complete rows, (D, D), divisor B."""
        _, root = self.condensed
        return root.mT @ root / self.size

    @cached_property
    @threads(1)
    def condensed(self) -> tuple[Tensor, Tensor]:
        """The mean of complete rows, (D,), and as few rows as there are features, (D, D), whose products r^T r sum to those around it."""
        mean = self.x.sum(0, dtype=torch.float64) / self.size
        products = torch.zeros_like(mean.outer(mean))
        for part, _, centred in strips(self.x, self.observed):
            products += _products(torch.sub(part, mean, out=centred))
        scale = products.diagonal().sqrt()
        scale = torch.where(scale > 0, scale, 1.0)  # columns count alike, so that small ones keep their digits
        correlation = products / scale.outer(scale)
        root, singular = torch.linalg.cholesky_ex(correlation, upper=True)
        if singular:  # columns that say the same; elsewhere ten times as slow
            values, vectors = torch.linalg.eigh(correlation)
            root = values.clamp(min=0.0).sqrt().unsqueeze(-1) * vectors.mT
        return mean.to(self.x), (root * scale).to(self.x)

    @property
    def size(self) -> int:
        return self.x.shape[0]

    @property
    def scale(self) -> float:
        """N / B, the weight of each row of this batch."""
        return self.n_total / self.size


def strips(x: Tensor, observed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Consecutive rows of both, and room of their shape to work in, float64 and the same for all."""
    rows = max(1, STRIP // x.shape[1])
    room = torch.empty(min(rows, len(x)), x.shape[1], dtype=torch.float64, device=x.device)
    for part, seen in zip(x.split(rows), observed.split(rows), strict=True):
        yield part, seen, room[: len(part)]


def _products(rows: Tensor) -> Tensor:
    """rows^T rows, (D, D). NumPy's works out one half of what is symmetric, torch's both; its threads must not meet torch's."""
    return torch.from_numpy(rows.numpy().T @ rows.numpy()) if rows.device.type == "cpu" else rows.mT @ rows


class Data:
    """A table of N rows and D features in which NaN means missing.

    x: an array, tensor, pandas or polars frame, (N, D), (N,) or images (N, H, W).
    context: (N,) or (N, C), known for every row (labels, covariates).  columns: D names.  labels: (N,), known classes.

    Attributes: `x` (N, D) float64 with missing entries zeroed, `observed` (N, D) bool, `context`, `columns`, `name`, `labels` (known
    classes, used for colours only), `image_shape` (height, width). Raises ValueError for what is not such a table.

    >>> data = Data([[1.0, 2.0], [3.0, float("nan")]], columns=["a", "b"])
    >>> data.n_rows, data.n_features, data.complete, data.observed[1].tolist()
    (2, 2, False, [True, False])
    """

    def __init__(self, x, context=None, columns=None, name: str = "data", labels=None, image_shape=None) -> None:
        if isinstance(x, Data):
            raise ValueError("this is a ppvae.Data already: pass it as it is")
        table = read_table(x, columns=columns)
        self.x: Tensor = torch.from_numpy(table.values)
        if table.complete:  # one row stands for all
            self.observed: Tensor = torch.ones(1, self.n_features, dtype=torch.bool).expand(self.n_rows, -1)
        else:
            self.observed = ~torch.isnan(self.x)
            self.x.nan_to_num_(nan=0.0)
        self.columns: tuple[str, ...] = tuple(table.columns)
        self.name = name
        self.labels = None if labels is None else _as_labels(labels, self.n_rows)
        self.image_shape = table.image_shape if image_shape is None else _as_image_shape(image_shape, self.n_features)
        self.index = table.index
        self.context = None if context is None else _as_context(context, self.n_rows)

    @property
    def n_rows(self) -> int:
        return self.x.shape[0]

    @property
    def n_features(self) -> int:
        return self.x.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    @cached_property
    def complete(self) -> bool:
        return self.observed.stride(0) == 0 or bool(self.observed.all())

    @cached_property
    def n_observed(self) -> Tensor:
        """(D,): how many entries of each column are observed."""
        if self.complete:
            return torch.full((self.n_features,), self.n_rows, device=self.device)
        count = torch.zeros(self.n_features, dtype=torch.long, device=self.device)
        for _, observed, _ in strips(self.x, self.observed):
            count += observed.sum(0)
        return count

    @cached_property
    @threads(1)
    def mean(self) -> Tensor:
        """(D,): the mean of each column's observed entries."""
        return (self.x.sum(0, dtype=torch.float64) / self.n_observed.clamp(min=1)).to(self.x)

    @cached_property
    @threads(1)
    def variance(self) -> Tensor:
        """(D,): the variance of each column's observed entries, divisor n."""
        squares = torch.zeros_like(self.mean, dtype=torch.float64)
        for part, observed, centred in strips(self.x, self.observed):
            torch.sub(part, self.mean, out=centred)
            if not self.complete:
                centred *= observed
            squares += centred.square_().sum(0)
        return (squares / self.n_observed.clamp(min=1)).to(self.x)

    @cached_property
    @threads(1)
    def scale(self) -> Tensor:
        """(D,): the standard deviation of each column, 1 where a column is constant."""
        spread = self.variance.sqrt()
        # A constant column's mean is rounded, so its spread is not exactly zero.
        constant = spread <= 8 * torch.finfo(self.dtype).eps * self.mean.abs()
        return torch.where(constant, torch.ones_like(spread), spread)

    @cached_property
    def unobserved(self) -> tuple[str, ...]:
        """The names of columns of which nothing is observed: nothing can be learnt of them, though a fit may say what they could be."""
        return tuple(c for c, seen in zip(self.columns, self.n_observed.tolist(), strict=True) if not seen)

    @cached_property
    def constant(self) -> tuple[str, ...]:
        """The names of columns whose observed entries are all the same."""
        # Rounding leaves far less than this of a constant column's spread; which are constant is then seen from the entries.
        even = self.variance.sqrt() <= 1e3 * torch.finfo(self.dtype).eps * self.mean.abs()
        return tuple(self.columns[place] for place, likely in enumerate(even.tolist()) if likely and self._is_constant(place))

    def _is_constant(self, place: int) -> bool:
        entries = self.x[:, place][self.observed[:, place]]
        return len(entries) > 0 and bool((entries == entries[0]).all())

    def batch(self, index: Tensor | None = None) -> Batch:
        """The rows `index` (all of them when None) as a Batch that stands for all N rows."""
        return self._whole if index is None else self._whole.take(index)

    @cached_property
    def _whole(self) -> Batch:
        """All rows: one object, so that what is worked out for it once is there again."""
        return self._slice(0, self.n_rows)

    def _slice(self, start: int, stop: int) -> Batch:
        context = None if self.context is None else self.context[start:stop]
        index = torch.arange(start, min(stop, self.n_rows), device=self.device)
        return Batch(self.x[start:stop], self.observed[start:stop], index, self.n_rows, self.complete, context)

    def head(self, rows: int = 2) -> Batch:
        """The first rows, at most all of them, as a Batch that stands for all N: enough to see what a story samples."""
        return self.batch(torch.arange(min(rows, self.n_rows), device=self.device))

    def chunks(self, rows: int) -> Iterator[Batch]:
        """Consecutive batches of at most `rows` rows: views, nothing is copied."""
        for start in range(0, self.n_rows, rows):
            yield self._slice(start, start + rows)

    def _like(self, x: Tensor, observed: Tensor, context: Tensor | None, labels, index) -> "Data":
        other = object.__new__(Data)
        other.x, other.observed, other.context, other.labels, other.index = x, observed, context, labels, index
        other.columns, other.name, other.image_shape = self.columns, self.name, self.image_shape
        return other

    def take(self, index) -> "Data":
        """The rows `index`, as a data set of their own."""
        index = torch.as_tensor(index, device=self.device)
        chosen = index.cpu().numpy()
        return self._like(
            self.x[index],
            self.observed[index],
            None if self.context is None else self.context[index],
            None if self.labels is None else self.labels[chosen],
            None if self.index is None else self.index[chosen],
        )

    def matched(self, columns: tuple[str, ...]) -> "Data":
        """The same rows as a fit to these columns reads them: found by name, or by position where either table's columns have no names.

        Raises ValueError for columns of other names, and for another number of them.
        """
        if set(self.columns) != set(columns):
            self._check_places(columns)
            return self
        if self.columns == columns:
            return self
        order = [self.columns.index(c) for c in columns]
        other = self._like(self.x[:, order], self.observed[:, order], self.context, self.labels, self.index)
        other.columns = columns
        return other

    def _check_places(self, columns: tuple[str, ...]) -> None:
        """Raise ValueError unless columns without names of their own, here or there, can stand for one another by position."""
        unnamed = any(list(names) == numbered(len(names)) for names in (self.columns, columns))
        if unnamed and self.n_features == len(columns):
            return
        if unnamed:
            raise ValueError(f"{_sizes(self.columns, columns)}: give as many columns, in that order")
        raise other_columns(self.columns, columns)

    def like(self, values: Tensor, columns: tuple[str, ...]) -> Tensor:
        """Values (..., D) of these columns in the order of this table; as they are where the names are not the same."""
        if self.columns == columns or set(self.columns) != set(columns):
            return values
        return values[..., [columns.index(c) for c in self.columns]]

    def hiding(self, hidden: Tensor) -> "Data":
        """The same rows with the entries marked in `hidden` (N, D) bool missing too."""
        observed = self.observed & ~hidden
        return self._like(torch.where(observed, self.x, 0.0), observed, self.context, self.labels, self.index)

    def with_holes(self, share: float, seed: int = 0) -> "Data":
        """The same rows with a random `share` of the observed entries missing, no column wholly. Raises ValueError for a useless share."""
        check_share("what to hide is a share of the entries", share)
        drawn = torch.rand(self.observed.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        hidden = (drawn < share) & self.observed
        if not hidden.any() or not (self.observed & ~hidden).any(0).all():
            raise ValueError(f"hiding {share:g} of the entries hides nothing, or all of a column: choose another share")
        return self.hiding(hidden)

    def split(self, share: float, seed: int = 0) -> tuple["Data", "Data"]:
        """(training rows, held-out rows), a random `share` of the rows held out."""
        check_share("holdout is a share of the rows", share)
        held = round(share * self.n_rows)
        if not 0 < held < self.n_rows:
            raise ValueError(f"holding out {share:g} of {self.n_rows} rows leaves an empty part: choose another share")
        order = torch.randperm(self.n_rows, generator=torch.Generator().manual_seed(seed))
        return self.take(order[held:].sort().values), self.take(order[:held].sort().values)

    def to(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> "Data":
        """The same rows in another dtype or on another device; self where nothing changes."""
        if (dtype or self.dtype) == self.dtype and torch.device(device or self.device) == self.device:
            return self
        context = self.context
        if context is not None:
            context = context.to(device=device, dtype=dtype if context.is_floating_point() else None)
        return self._like(self.x.to(device=device, dtype=dtype), self.observed.to(device=device), context, self.labels, self.index)

    def rescaled(self) -> "Data":
        """The table mapped onto [0, 1] by its smallest and largest entry: one scale for all features, so that a picture stays a picture."""
        low = torch.where(self.observed, self.x, torch.inf).min()
        high = torch.where(self.observed, self.x, -torch.inf).max()
        if low == high:
            raise ValueError("every entry has the same value: there is no range to rescale")
        x = torch.where(self.observed, (self.x - low) / (high - low), 0.0)
        return self._like(x, self.observed, self.context, self.labels, self.index)

    def standardized(self) -> Tensor:
        """(N, D): each column at mean 0 and sd 1, missing entries 0."""
        return torch.where(self.observed, (self.x - self.mean) / self.scale, 0.0)

    def numpy(self) -> np.ndarray:
        """(N, D) with NaN where missing."""
        return torch.where(self.observed, self.x, torch.nan).cpu().numpy()

    def frame(self) -> pd.DataFrame:
        """The table with its column names, NaN where missing."""
        return pd.DataFrame(self.numpy(), columns=list(self.columns), index=self.index)

    def summary(self) -> "Summary":
        """What a saved fit must know of its data; no row of them."""
        return Summary(
            self.name,
            self.columns,
            self.n_rows,
            self.complete,
            tuple(self.mean.tolist()),
            tuple(self.scale.tolist()),
            self.image_shape,
            None if self.context is None else self.context.shape[1],
        )

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        missing = int((~self.observed).sum())
        return f"Data({self.name}: {self.n_rows} rows x {self.n_features} features" + (f", {missing} missing)" if missing else ")")


@dataclass(frozen=True)
class Summary:
    """The shape of a data set: enough to build a model's parameters and guide anew, and to check data that come later."""

    name: str
    columns: tuple[str, ...]
    n_rows: int
    complete: bool
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    image_shape: tuple[int, int] | None = None
    n_context: int | None = None

    def sketch(self) -> Data:
        """Made-up rows of this shape, centre and spread, from which `init` and `guide` build tensors of the right shapes."""
        random = np.random.default_rng(0)
        x = np.array(self.mean) + np.array(self.scale) * random.standard_normal((min(self.n_rows, 4096), len(self.columns)))
        context = None if self.n_context is None else random.standard_normal((len(x), self.n_context))
        if not self.complete:
            x[0, 0] = np.nan
        return Data(x, context, self.columns, self.name, image_shape=self.image_shape)


def other_columns(columns: Sequence[str], known: Sequence[str]) -> ValueError:
    """The error for columns that are not those that a fit knows.

    >>> str(other_columns(["age", "SBP"], ["age", "sbp"]))
    'the fit knows 2 features (age and sbp), the data have 2, and are without sbp and have SBP besides: rename SBP to sbp'
    """
    lacking, besides = [c for c in known if c not in columns], [c for c in columns if c not in known]
    apart = [f"are without {few(lacking)}"] * bool(lacking) + [f"have {few(besides)} besides"] * bool(besides)
    near = [f"{other} to {name}" for name in lacking for other in besides if other.strip().casefold() == name.strip().casefold()]
    remedy = f"rename {few(near)}" if near else "rename or choose columns (columns=, --columns)"
    return ValueError(f"{_sizes(columns, known)}, and {' and '.join(apart)}: {remedy}")


def _sizes(columns: Sequence[str], known: Sequence[str]) -> str:
    return f"the fit knows {len(known)} features ({few(known)}), the data have {len(columns)}"


def check_share(what: str, value: object) -> None:
    """Raise ValueError for what is not a number between 0 and 1."""
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ValueError(f"{what} between 0 and 1, not {value!r}")


def as_data(source) -> Data:
    """`source` itself if it is a Data, else Data(source)."""
    return source if isinstance(source, Data) else Data(source)


def _as_image_shape(shape, n_features: int) -> tuple[int, int]:
    """(height, width) of rows that are pictures. Raises ValueError for what is not the shape of `n_features` pixels."""
    whole = isinstance(shape, Sequence) and all(isinstance(side, Integral) and int(side) > 0 for side in shape)
    if not whole or len(shape) != 2 or shape[0] * shape[1] != n_features:
        raise ValueError(f"image_shape is (height, width), whole numbers whose product is the {n_features} features, not {shape!r}")
    return int(shape[0]), int(shape[1])


def _as_labels(labels, n_rows: int) -> np.ndarray:
    """(N,): a copy. Raises ValueError unless there is one for each row."""
    values = np.array(as_array(labels, "the labels"))
    if values.shape != (n_rows,):
        raise ValueError(f"labels have shape {values.shape} and x has {n_rows} rows: give one label for each row")
    return values


def _as_context(context, n_rows: int) -> Tensor:
    array = as_array(context, "the context")
    try:
        values = torch.tensor(array.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError("context must be numbers: give classes as one column each, pandas.get_dummies(labels)") from error
    if len(values) != n_rows:
        raise ValueError(f"context has {len(values)} rows and x has {n_rows}: they must be the same rows")
    known = torch.isfinite(values)
    if not known.all():
        names = column_names(context)
        where = few(name for name, whole in zip(names, known.reshape(n_rows, -1).all(0), strict=True) if not whole) if names else "it"
        raise ValueError(f"context must be known for every row, and {where} holds NaN or inf: fill it in, or leave such rows out")
    return values[:, None] if values.ndim == 1 else values
