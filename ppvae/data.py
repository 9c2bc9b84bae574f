"""Data and Batch: rows of features, validated once; NaN means missing from here on."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from ppvae.messages import few
from ppvae.options import seed_of
from ppvae.origin import Covariate, Origin, as_known, read_context
from ppvae.patterns import Patterns
from ppvae.tables import Names, as_array, as_frame, column_names, names_of, numbered, read_frame, read_table
from ppvae.threads import threads

WHOLE = 2.0**31  # above it a whole number is a coincidence, not a group's
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

    x: an array, tensor, pandas, polars, Arrow or xarray table, (N, D) or (N,), or pictures (N, H, W); or a file's path.
    context: (N,) or (N, C), known for every row (labels, covariates): numbers; in a frame with names also words, which become a column of
    0 and 1 each.  columns: D names (of a frame, those to take).  labels: (N,), known classes.  image_shape: (H, W) of pictures.

    Attributes: `x` (N, D) float64 with missing entries zeroed, `observed` (N, D) bool, `context`, `columns`, `name`, `labels` (known
    classes, used for colours only), `image_shape` (height, width), `origin` (what a fit must know of how the table was made). Raises
    ValueError for what is not such a table, and where the row labels of a pandas context or labels are not x's.

    >>> data = Data([[1.0, 2.0], [3.0, float("nan")]], columns=["a", "b"])
    >>> data.n_rows, data.n_features, data.complete, data.observed[1].tolist()
    (2, 2, False, [True, False])
    """

    def __init__(self, x, context=None, columns=None, name: str = "data", labels=None, image_shape=None) -> None:
        if isinstance(x, Data):
            raise ValueError("this is a ppvae.Data already: pass it as it is")
        table = read_table(x, columns=columns, image_shape=tuple(image_shape) if isinstance(image_shape, Sequence) else image_shape)
        self.x: Tensor = torch.from_numpy(table.values)
        if table.complete:  # one row stands for all
            self.observed: Tensor = torch.ones(1, self.n_features, dtype=torch.bool).expand(self.n_rows, -1)
        else:
            self.observed = ~torch.isnan(self.x)
            self.x.nan_to_num_(nan=0.0)
        self.columns: tuple[str, ...] = tuple(table.columns)
        self.name = name
        self.index = table.index
        rows = table.index if isinstance(x, pd.DataFrame | pd.Series | str | os.PathLike) else None
        self.labels = None if labels is None else _as_labels(labels, self.n_rows, rows)
        self.image_shape = None if image_shape is None else _as_image_shape(image_shape, self.n_features)
        self.context: Tensor | None = None
        self.origin = Origin(table.names)
        if context is not None:
            self.context, covariates = _as_context(context, self.n_rows, rows)
            self.origin = replace(self.origin, context=covariates)
        self.recipe = (
            None if context is not None or labels is not None else recipe("Data", x, columns=columns, image_shape=self.image_shape)
        )

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
        other.columns, other.name, other.image_shape, other.origin = self.columns, self.name, self.image_shape, self.origin
        other.recipe = None
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

    def with_rows(self, x) -> "Data":
        """Other rows (n, D) of these columns, in these units (of rescaled data, mapped already), NaN where missing; without a context."""
        other = Data(x, columns=self.columns, name=self.name, image_shape=self.image_shape)
        other.origin = replace(self.origin, context=())
        return other

    def matched(self, known: "Summary") -> "Data":
        """The same rows, columns as a fit to `known` has them: found by name, or by position where either table's columns have no names.

        Raises ValueError for columns of other names, for another number of them, and for names that may be places.
        """
        order = self._order(known)
        if order is None:
            return self
        other = self._like(self.x[:, order], self.observed[:, order], self.context, self.labels, self.index)
        other.columns = known.columns
        return other

    def _order(self, known: "Summary") -> list[int] | None:
        """Where the columns of `known` are; None where they are in their order."""
        named, theirs = self.origin.names == "own", known.names == "own"
        if named and theirs:
            if set(self.columns) != set(known.columns):
                raise other_columns(self.columns, known.columns)
            return None if self.columns == known.columns else [self.columns.index(c) for c in known.columns]
        if self.n_features != len(known.columns):
            raise ValueError(f"{_sizes(self.columns, known.columns)}: give as many columns, in that order")
        count = [str(i) for i in range(self.n_features)]
        if named and known.names == "counted" and _turned(self.columns, count):  # pandas' own labels
            return [self.columns.index(label) for label in count]
        unsure = named and (_turned(self.columns, count) or _turned(self.columns, numbered(self.n_features)))
        if unsure or (theirs and self.origin.names == "counted" and _turned(known.columns, count)):
            turned = self.columns if named else known.columns
            raise ValueError(f"{few(turned)} may be names or places, as the columns of the fit or the data have no names: name both")
        return None

    def given_back(self, values: Tensor, known: "Summary") -> Tensor:
        """Values (..., N, D) of these rows, as a fit to `known` has them, in this table's order and units; what is observed here stays
        exactly as it is."""
        order, back = self._order(known), values.to(self.x)
        if order is not None:
            back = back[..., np.argsort(order)]
        if known.origin is not None and known.origin.range != self.origin.range:
            back = self.origin.rescaled(known.origin.restored(back))
        return torch.where(self.observed, self.x, back)

    def hiding(self, hidden: Tensor) -> "Data":
        """The same rows with the entries marked in `hidden` (N, D) bool missing too."""
        observed = self.observed & ~hidden
        return self._like(torch.where(observed, self.x, 0.0), observed, self.context, self.labels, self.index)

    def with_holes(self, share: float, seed: int = 0) -> "Data":
        """The same rows with a random `share` of the observed entries missing, no column wholly. Raises ValueError for a useless share."""
        check_share("what to hide is a share of the entries", share)
        seed = seed_of(seed)
        drawn = torch.rand(self.observed.shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        hidden = (drawn < share) & self.observed
        if not hidden.any() or not (self.observed & ~hidden).any(0).all():
            raise ValueError(f"hiding {share:g} of the entries hides nothing, or all of a column: choose another share")
        return self.hiding(hidden)

    def split(self, share: float, seed: int = 0) -> tuple["Data", "Data"]:
        """(training rows, held-out rows), a random `share` of the rows held out."""
        check_share("holdout is a share of the rows", share)
        seed = seed_of(seed)
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
        other = self._like(self.x.to(device=device, dtype=dtype), self.observed.to(device=device), context, self.labels, self.index)
        other.recipe = self.recipe
        return other

    def rescaled(self, within: tuple[float, float] | None = None) -> "Data":
        """The table mapped onto [0, 1]: one scale for all features, so that a picture stays a picture.

        within: the entries that become 0 and 1; by default the smallest and the largest. A fit to such data keeps them: it maps tables
        that come later by them too. Raises ValueError where the two are the same.
        """
        x = self.origin.restored(self.x.double())
        if within is None:
            low, high = torch.where(self.observed, x, torch.inf).min().item(), torch.where(self.observed, x, -torch.inf).max().item()
        else:
            low, high = map(float, within)
        if not low < high:
            raise ValueError("every entry has the same value: there is no range to rescale" if within is None else f"no range: {within}")
        other = self._in_units(replace(self.origin, range=None if (low, high) == (0.0, 1.0) else (low, high)))
        other.recipe = None if self.recipe is None else f"{self.recipe}.rescaled({'' if within is None else (low, high)})"
        return other

    def _in_units(self, origin: Origin) -> "Data":
        """The same rows in the units of another origin."""
        if self.origin.range == origin.range:
            x = self.x
        else:
            x = torch.where(self.observed, origin.rescaled(self.origin.restored(self.x.double())), 0.0).to(self.x)
        other = self._like(x, self.observed, self.context, self.labels, self.index)
        other.origin = replace(self.origin, range=origin.range)
        return other

    def standardized(self) -> Tensor:
        """(N, D): each column at mean 0 and sd 1, missing entries 0."""
        return torch.where(self.observed, (self.x - self.mean) / self.scale, 0.0)

    def numpy(self) -> np.ndarray:
        """(N, D) with NaN where missing."""
        return torch.where(self.observed, self.x, torch.nan).cpu().numpy()

    def frame(self) -> pd.DataFrame:
        """The table with its column names, NaN where missing."""
        return pd.DataFrame(self.numpy(), columns=list(self.columns), index=self.index)

    @property
    def digest(self) -> str:
        """A fingerprint of the rows as they are, in their order, and of their context."""
        tensors = (self.x, self.observed, self.context)
        return hashlib.sha256(b"".join(t.contiguous().cpu().numpy().tobytes() for t in tensors if t is not None)).hexdigest()

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
            self.origin,
            spans=None if self.context is None else tuple(_span(column) for column in self.context.mT),
        )

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        missing = int((~self.observed).sum())
        return f"Data({self.name}: {self.n_rows} rows x {self.n_features} features" + (f", {missing} missing)" if missing else ")")


def _span(column: Tensor) -> tuple[float, float, bool]:
    """The lowest and the highest number of a column, and whether all are whole ones that an index can hold."""
    low, high = float(column.min()), float(column.max())
    return low, high, max(abs(low), abs(high)) < WHOLE and bool((column == column.round()).all())


@dataclass(frozen=True)
class Summary:
    """The shape of a data set: enough to build a model's parameters and guide anew, and to read data that come later as these were.

    origin: how the table was made; None in a fit that was saved before that was kept, whose tables are taken as they are.
    spans: of each column of the context the lowest and the highest number, and whether all are whole, as those of groups are.
    """

    name: str
    columns: tuple[str, ...]
    n_rows: int
    complete: bool
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    image_shape: tuple[int, int] | None = None
    n_context: int | None = None
    origin: Origin | None = None
    digest: str | None = None  # of the rows, where the story or the guide reads their numbers
    spans: tuple[tuple[float, float, bool], ...] | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Summary":
        """The summary that `dataclasses.asdict` and JSON made of one."""
        about = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
        origin = about.get("origin")
        if origin is not None:
            made = [Covariate(c["name"], None if c["words"] is None else tuple(c["words"])) for c in origin["context"]]
            about["origin"] = Origin(origin["names"], None if origin["range"] is None else tuple(origin["range"]), tuple(made))
        if about.get("spans") is not None:
            about["spans"] = tuple(tuple(span) for span in about["spans"])
        return cls(**about)

    @property
    def names(self) -> Names:
        """Whose the names of the columns are."""
        if self.origin is None:
            return "none" if list(self.columns) == numbered(len(self.columns)) else "own"
        return self.origin.names

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """What the context was made of; empty where that had no names."""
        return () if self.origin is None else self.origin.context

    def restored(self, x: Any) -> Any:
        """Entries in the units of the fit, an array or a tensor, in the user's: other ones where the data were rescaled."""
        return x if self.origin is None else self.origin.restored(x)

    def sketch(self) -> Data:
        """Made-up rows of this shape, centre and spread, from which `init` and `guide` build tensors of the right shapes."""
        random = np.random.default_rng(0)
        x = np.array(self.mean) + np.array(self.scale) * random.standard_normal((min(self.n_rows, 4096), len(self.columns)))
        context: Any = None if self.n_context is None else random.standard_normal((len(x), self.n_context))
        for column, (low, high, whole) in enumerate(self.spans or ()):  # a group that is none of the fit's would index nothing
            context[:, column] = random.integers(int(low), int(high) + 1, len(x)) if whole else random.uniform(low, high, len(x))
        if not self.complete:
            x[0, 0] = np.nan
        return Data(x, context, self.columns, self.name, image_shape=self.image_shape)

    def table(self, source: object, columns: Sequence[str] | None = None, *, besides: bool = False) -> Data:
        """A table as it came, to be read by a fit: of a frame with names, the columns of the fit's context are its context.

        columns: the features to take.  besides: of a frame with names, leave what the fit does not know.
        """
        if isinstance(source, Data):
            return source
        frame = read_frame(Path(source), columns) if _is_path(source) and self.covariates else as_frame(source)
        if frame is None or names_of(frame) != "own":
            axes = getattr(source, "ndim", 2) if frame is None else 2
            return Data(source if frame is None else frame, columns=columns, image_shape=self.image_shape if axes == 3 else None)
        names, given = column_names(frame), [covariate.name for covariate in self.covariates]
        given = given if set(given) <= set(names) else []
        features = [name for name in names if name not in given or name in self.columns]
        if columns is not None:
            features = list(columns)
        elif besides:
            known = [name for name in names if name in self.columns]
            lacks = len(known) < len(self.columns)
            if lacks and known and self.names == "own":
                raise other_columns(features, self.columns)
            features = features if lacks else known
        context = frame.iloc[:, [names.index(name) for name in given]] if given else None
        return Data(frame, context, features)

    def read(self, source: object) -> Data:
        """Data, or what `table` takes, as a fit to such data reads it: columns and context by their names, entries in its units, words by
        its own.

        Raises ValueError for other columns, for another context or words in it that are not known, and for data that were rescaled where
        these were not. Warns where entries are mapped that were not.
        """
        data = self.table(source).matched(self)
        if self.origin is not None and data.origin.range != self.origin.range:
            data = self._in_units(data)
        if self.n_context is None:
            return data
        if data.context is None:
            raise self._other_context("none")
        context = as_known(data.context, data.origin.context, self.covariates)
        if context.shape[1] != self.n_context:
            raise self._other_context(f"one of {context.shape[1]}")
        if context is data.context:
            return data
        other = data._like(data.x, data.observed, context, data.labels, data.index)
        other.origin = replace(data.origin, context=self.covariates)
        return other

    def _in_units(self, data: Data) -> Data:
        assert self.origin is not None
        if self.origin.range is None:
            raise ValueError(
                "the data are mapped onto [0, 1] and those of the fit were not: give them as they came, without rescale=True (--rescale); "
                "or, if the fit's were mapped by hand, as an array, data.numpy()"
            )
        if data.origin.range is None:
            low, high = self.origin.range
            warnings.warn(
                f"{data.name}: its entries are mapped onto [0, 1] as those of the fit were, {low:.6g} to 0 and {high:.6g} to 1; "
                "data.rescaled() (--rescale) says that they may be, and data.with_rows(x), of the fitted data, that they are already",
                stacklevel=5,
            )
        return data._in_units(self.origin)

    def _other_context(self, found: str) -> ValueError:
        made_of = few(covariate.name for covariate in self.covariates) if self.covariates else ""
        wanted = f"a context of {self.n_context} columns" + (f" (of {made_of})" if made_of else "")
        return ValueError(f"the fit was made with {wanted}, the data have {found}: give Data(x, context=...) the same")


def recipe(function: str, source: object, **options: object) -> str | None:
    """The Python by which ppvae makes data of a name or file, with the options that are given; None for what is in memory alone."""
    if not _is_path(source):
        return None
    given = {name: list(value) if isinstance(value, pd.Index) else value for name, value in options.items() if value is not None}
    said = [repr(str(source)), *(f"{name}={value!r}" for name, value in given.items() if value)]
    return f"ppvae.{function}({', '.join(said)})"


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, str | os.PathLike)


def _turned(names: Sequence[str], count: Sequence[str]) -> bool:
    """Whether these are the names of a count in another order."""
    return set(names) == set(count) and list(names) != list(count)


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


def _as_labels(labels, n_rows: int, rows: pd.Index | None) -> np.ndarray:
    """(N,): a copy. Raises ValueError unless there is one for each row."""
    values = np.array(as_array(labels, "the labels"))
    if values.shape != (n_rows,):
        raise ValueError(f"labels have shape {values.shape} and x has {n_rows} rows: give one label for each row")
    _check_rows("the labels", labels, rows)
    return values


def _as_context(context, n_rows: int, rows: pd.Index | None) -> tuple[Tensor, tuple[Covariate, ...]]:
    values, covariates = read_context(context)
    if len(values) != n_rows:
        raise ValueError(f"context has {len(values)} rows and x has {n_rows}: they must be the same rows")
    _check_rows("the context", context, rows)
    return values, covariates


def _check_rows(what: str, given: object, rows: pd.Index | None) -> None:
    """Raise ValueError where the row labels of a pandas object are not those of the rows."""
    if rows is not None and isinstance(given, pd.DataFrame | pd.Series) and not given.index.equals(rows):
        raise ValueError(f"{what} and x have different row labels: give both in one order, as .loc[x.index], or {what} as .to_numpy()")
