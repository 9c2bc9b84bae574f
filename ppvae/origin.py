"""How a table was made: what a fit must know of its own, to read later tables as it read that one and to give back what the user wrote."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from torch import Tensor

from ppvae.messages import few
from ppvae.tables import Names, as_array, as_frame, is_numeric, names_of


@dataclass(frozen=True)
class Covariate:
    """A column that a context was made of: numbers, or (`words`) one of these words in each row, a column of 0 and 1 for each."""

    name: str
    words: tuple[str, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns in the context."""
        return (self.name,) if self.words is None else tuple(f"{self.name}_{word}" for word in self.words)


@dataclass(frozen=True)
class Origin:
    """How the numbers of a table came from what the user gave.

    names: whose the names of its columns are (`tables.Names`).  range: (low, high), the entries that became 0 and 1 where the table was
    rescaled, else None.  context: what its context was made of, empty where that has no names.
    """

    names: Names = "own"
    range: tuple[float, float] | None = None
    context: tuple[Covariate, ...] = ()

    def rescaled(self, x: Any) -> Any:
        """Entries in the user's units, an array or a tensor, as this table has them."""
        if self.range is None:
            return x
        low, high = self.range
        return (x - low) / (high - low)

    def restored(self, x: Any) -> Any:
        """Entries as this table has them, in the user's units."""
        if self.range is None:
            return x
        low, high = self.range
        return x * (high - low) + low


# --- reading a context --------------------------------------------------------------------------------------------------------------


def read_context(source: Any) -> tuple[Tensor, tuple[Covariate, ...]]:
    """What is known of every row, (N, C), from an array, a vector or a frame; and what its columns are made of, () where without names.

    Words, which only a frame with names may hold, become a column of 0 and 1 each. Raises ValueError for what is not numbers or words,
    and for what is not known.
    """
    frame = as_frame(source)
    if frame is None or _unnamed(frame):
        return _numbers(source if frame is None else frame.to_numpy()), ()
    names = [str(name) for name in frame.columns]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"the context has more than one column called {few(twice)}: give each its own name")
    coded = [_coded(name, frame.iloc[:, place]) for place, name in enumerate(names)]
    return torch.from_numpy(np.column_stack([values for values, _ in coded])), tuple(covariate for _, covariate in coded)


def _unnamed(frame: pd.DataFrame) -> bool:
    """Whether a frame has pandas' own count for names: a RangeIndex, where classes 0, 1, 2, ... as names are other whole numbers."""
    return isinstance(frame.columns, pd.RangeIndex) and names_of(frame) == "counted"


def _numbers(source: Any) -> Tensor:
    """(N, C) from what has no names."""
    array, refusal = as_array(source, "the context"), "context must be numbers: give classes as one column each, pandas.get_dummies(labels)"
    if array.ndim > 2:
        raise ValueError(f"the context has shape {array.shape}: give (N, C), or (N,)")
    if array.dtype.kind not in "biufOSU":  # dates would become numbers
        raise ValueError(refusal)
    try:
        values = torch.tensor(array.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(refusal) from error
    if not torch.isfinite(values).all():
        raise _gap("it holds NaN or inf")
    return values.reshape(len(values), -1)


def _coded(name: str, column: pd.Series) -> tuple[np.ndarray, Covariate]:
    """The columns of a context that one column of a frame becomes."""
    column = column.infer_objects()
    if is_numeric(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(values).all():
            raise _gap(f"{name} holds NaN or inf")
        return values[:, np.newaxis], Covariate(name)
    if not _are_words(column):
        example = next(iter(column.dropna()), None)
        raise ValueError(f"the context has neither numbers nor words in {name} (such as {str(example)!r}): make it one of them")
    if column.isna().any():
        raise _gap(f"{name} has missing entries")
    entries = column.astype(str).to_numpy(dtype=object)
    present = set(entries)
    known = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else sorted(present)
    words = [word for word in map(str, known) if word in present]
    return (entries[:, np.newaxis] == np.array(words, dtype=object)).astype(np.float64), Covariate(name, tuple(words))


def _are_words(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        kinds = column.cat.categories
        return is_numeric(kinds.to_series()) or isinstance(kinds.dtype, pd.IntervalDtype) or _are_words(kinds.to_series())
    if types.is_object_dtype(column.dtype):
        return all(isinstance(value, str | int | float) for value in column.dropna())
    return types.is_string_dtype(column.dtype)


def _gap(where: str) -> ValueError:
    return ValueError(f"context must be known for every row, and {where}: fill it in, or leave such rows out")


# --- which of its columns are which -------------------------------------------------------------------------------------------------


def as_known(values: Tensor, own: Sequence[Covariate], known: Sequence[Covariate]) -> Tensor:
    """A context (N, C) in the columns of `known`, found by their names; as it is where either has no names.

    The column of a word, `kind_a`, may be called by the word alone, `a`. Raises ValueError for words that are not known, and for other
    columns.
    """
    if own and not known and _turned([c.name for c in own]):
        raise ValueError(f"{few(c.name for c in own)} may be names or places, as the context of the fit has no names: give it as an array")
    if not own or not known or tuple(own) == tuple(known):
        return values
    places, used = _places(own), set[int | None]()
    lacking: list[str] = []
    columns: list[Tensor] = []
    for covariate, names in zip(known, _names(known), strict=True):
        same = next((other for other in own if other.name == covariate.name), None)
        if same is not None and (same.words is None) != (covariate.words is None):
            used.update(places[name] for name in same.columns)
            columns += _in_words(values[:, places[same.name]], covariate) if same.words is None else _refuse_words(same)
            continue
        if same is not None and same.words is not None:
            _check_words(covariate, [word for word in same.words if word not in (covariate.words or ())])
        for called in names:
            place = next((places[name] for name in called if name in places), None)
            if place is None and same is None:
                lacking.append(called[0])
            used.add(place)
            columns.append(torch.zeros_like(values[:, 0]) if place is None else values[:, place])
    besides = [name for c in own for name in c.columns if places[name] not in used]
    if lacking or besides:
        apart = [f"are without {few(lacking)}"] * bool(lacking) + [f"have {few(besides)} besides"] * bool(besides)
        names = few(name for c in known for name in c.columns)
        raise ValueError(f"the fit's context is {names}, and the data {' and '.join(apart)}: rename or choose columns of the context")
    return torch.stack(columns, -1)


def _turned(names: list[str]) -> bool:
    """Whether these are 0, 1, 2, ... in another order."""
    count = [str(i) for i in range(len(names))]
    return names != count and sorted(names) == sorted(count)


def _names(covariates: Sequence[Covariate]) -> list[list[tuple[str, ...]]]:
    """What each column of each covariate may be called: its name, and its word alone where no other column goes by that."""
    times = Counter(name for c in covariates for name in (*c.columns, *(c.words or ())))
    return [
        [(name, word) if times[word] == 1 else (name,) for name, word in zip(c.columns, c.words or c.columns, strict=True)]
        for c in covariates
    ]


def _places(covariates: Sequence[Covariate]) -> dict[str, int]:
    """Where each column of a context is, by all that it may be called."""
    called = [names for column in _names(covariates) for names in column]
    return {name: place for place, names in enumerate(called) for name in names}


def _in_words(numbers: Tensor, covariate: Covariate) -> list[Tensor]:
    """Columns of 0 and 1 for words that are numbers, as "3", from numbers."""
    words = covariate.words or ()
    equal = [numbers == value for value in pd.to_numeric(pd.Series(words, dtype=object), errors="coerce")]
    _check_words(covariate, [f"{value:g}" for value in numbers[~torch.stack(equal).any(0)].unique().tolist()])
    return [column.to(numbers) for column in equal]


def _refuse_words(own: Covariate) -> list[Tensor]:
    raise ValueError(f"the context holds words in {own.name} ({few(own.words or ())}), where the fit knows numbers: give numbers")


def _check_words(covariate: Covariate, unseen: Sequence[str]) -> None:
    if unseen:
        known = few(covariate.words or (), 10)
        raise ValueError(
            f"the context holds {few(unseen)} in {covariate.name}, which the fit never saw: it knows {known}, so leave such rows out, "
            "or fit to them too"
        )


def from_names(context: Any, known: Sequence[Covariate]) -> Tensor | None:
    """A context that is given by names or in words, (n, C) in the columns of `known`; None for numbers alone, told apart by their places.

    Raises ValueError as `read_context` and `as_known` do.
    """
    frame = _named(context, known) if known else None
    return None if frame is None else as_known(*read_context(frame), known)


def _named(context: Any, known: Sequence[Covariate]) -> pd.DataFrame | None:
    """A frame with the names that a context gives, or, where it holds words, with those of the columns that it was made of."""
    if isinstance(context, Mapping):
        lengths = [len(value) for value in context.values() if types.is_list_like(value)]
        n = max(lengths, default=1)
        if any(length != n for length in lengths):
            raise ValueError("the columns of the context differ in length: give each as many values, or one")
        return pd.DataFrame({name: list(value) if types.is_list_like(value) else [value] * n for name, value in context.items()})
    if isinstance(context, pd.Series):
        names = {name for column in _names(known) for called in column for name in called} | {c.name for c in known}
        if set(map(str, context.index)) & names:
            return pd.DataFrame([context.tolist()], columns=context.index.map(str))
        return context.to_frame() if str(context.name) in names else None
    frame = as_frame(context)
    if frame is not None:
        return None if _unnamed(frame) else frame
    if isinstance(context, Tensor) or not any(c.words for c in known):
        return None
    array = np.asarray(context, dtype=object)
    if not any(isinstance(value, str) for value in array.flat):
        return None
    rows = array.reshape(-1, 1) if len(known) == 1 else np.atleast_2d(array)
    if rows.ndim != 2 or rows.shape[1] != len(known):
        raise ValueError(f"give a context of {len(known)} entries a row, {few(c.name for c in known)}, not an array of shape {array.shape}")
    return pd.DataFrame(rows, columns=[c.name for c in known]).infer_objects()
