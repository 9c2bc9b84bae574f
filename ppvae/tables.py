"""Reading a table: arrays, tensors, frames and files become float64 values in which NaN means missing; and writing one.

What is not a table of numbers is refused in one sentence that names the place and the remedy; nothing is guessed or dropped silently.
"""

import csv
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TextIO

import numpy as np
import pandas as pd
from pandas.api import types

from ppvae.messages import few, unknown
from ppvae.places import check_new

# Older pandas rounds the last digit of numbers in a .csv unless told not to; newer ones need no telling, and warn.
EXACT_DIGITS = {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}

MISSING = {
    "",
    "NA",
    "N/A",
    "#N/A",
    "<NA>",
    "n/a",
    "NaN",
    "nan",
    "NULL",
    "null",
    "None",
}  # of what pandas takes for a missing entry in a .csv

# Whose the names of a table's columns are: its "own"; "counted", where a frame has pandas' 0, 1, 2, ... alone; or "none" (an array's).
Names = Literal["own", "counted", "none"]


@dataclass(frozen=True)
class Table:
    """Numbers in rows and columns.

    values: (N, D) float64, C order, NaN where missing.  complete: none is.  columns: D names, all different.  names: whose they are.
    index: the row labels that a frame or file gave, or None.
    """

    values: np.ndarray
    complete: bool
    columns: tuple[str, ...]
    names: Names = "own"
    index: pd.Index | None = None


def read_table(source, columns: Sequence[str] | None = None, image_shape: tuple[int, int] | None = None) -> Table:
    """The table in `source`: an array, nested list or tensor of shape (N, D) or (N,), a pandas, polars, Arrow or xarray table, or the path
    of a .csv, .npy or .parquet file.

    columns: where the source has names, those to take, in this order; where it has none, the names to give.
    image_shape: (H, W), where rows are pictures: an array may then have three axes, (N, H, W).

    None, NA, null, NaN and empty fields mean missing, and so does a blank line below the header of a .csv with one column. Booleans count
    as 0 and 1. A .csv whose first row holds only numbers has no header: its columns are called x0, x1, ..., which a warning says unless
    `columns` names them; where they are the count 0, 1, 2, ... (from three columns, or beside row labels), they are the names that pandas
    writes for columns without any, and a warning says that. A first column without a name holds row labels.

    Raises ValueError for a file that is missing, empty or not a table, for rows that are shorter or longer than the first, for columns
    that are not real numbers, for inf, and for a table without rows or columns, with columns of the same name or without one, or of
    another number of dimensions.

    >>> table = read_table([[1, None], [3, 4.5]], columns=["a", "b"])
    >>> table.columns, table.values.tolist()
    (('a', 'b'), [[1.0, nan], [3.0, 4.5]])
    """
    where = "the table"
    if isinstance(columns, str):
        raise ValueError(f"columns are a list of names, such as [{columns!r}]")
    columns = None if columns is None else [str(column) for column in columns]
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        where, source = path.name, _read_file(path)
        _warn_of_numbers(path, columns)
    frame = as_frame(source)
    if frame is None:
        return _from_array(as_array(source, where), columns, where, image_shape)
    return _from_frame(frame, columns, where)


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Everything that a .csv, .npy or .parquet file holds, text columns too; columns without names are counted, 0, 1, 2, ...

    columns: those that are asked for by name, or the names that are given (see `read_table`), which spares a warning.
    Raises ValueError for a file that is missing, empty or not a table.
    """
    content = _read_file(path)
    _warn_of_numbers(path, columns)
    frame = as_frame(content)
    if frame is None:
        array = np.asarray(content)
        if array.ndim > 2:
            raise _many_axes(array.shape, path.name)
        frame = pd.DataFrame(array)
    return named(frame, columns)


def named(frame: pd.DataFrame, columns: Sequence[str] | None) -> pd.DataFrame:
    """A frame whose columns were counted alone with these names, if they are names for all of them; else the frame itself."""
    own = names_of(frame) == "own"
    if columns is None or own or len(columns) != len(frame.columns) or set(columns) & set(column_names(frame)):
        return frame
    return frame.set_axis(list(columns), axis=1)


def as_written(frame: pd.DataFrame, path: Path, columns: Sequence[str], *, numbers: bool) -> pd.DataFrame:
    """`frame`, as `read_frame` took it from `path`, but each entry and name of a .csv as text, to the letter; of another file, `frame`.

    columns: those that are known to hold numbers. They keep their names, their missing entries are missing, and with `numbers` they stay
    numbers.
    """
    if path.suffix.lower() != ".csv":
        return frame
    written, names = _read_csv(path, to_the_letter=True), column_names(frame)
    for place, name in enumerate(names):
        if name in columns:
            column, text = frame.iloc[:, place], written.iloc[:, place]
            known = text.where(column.notna().to_numpy())
            written.isetitem(place, _exact(column, known).array if numbers else known.array)
    return written.set_axis([name if name in columns else own for name, own in zip(names, column_names(written), strict=True)], axis=1)


def _exact(column: pd.Series, text: pd.Series) -> pd.Series:
    """A column of numbers as it was read, or, where it holds whole numbers that float64 would round, from their text."""
    if not types.is_float_dtype(column.dtype) or not (column.abs() >= 2**53).any():
        return column
    known = text.dropna()
    whole = known.str.fullmatch(r"\s*[+-]?\d+\s*").all() and known.map(int).between(-(2**63), 2**63 - 1).all()
    return pd.Series([pd.NA if pd.isna(t) else int(t) for t in text], column.index, dtype="Int64") if whole else column


def completed(frame: pd.DataFrame, columns: Sequence[str], values: np.ndarray) -> pd.DataFrame:
    """`frame` with the missing entries of `columns` taken from `values` (N, D); rows, other columns and their dtypes as they were.

    A column of whole numbers or booleans whose missing entries are filled in becomes one of real numbers, of its kind (Int64: Float64),
    or stays one of whole numbers, what is filled in rounded to them, where it has some that float64 does not hold (beyond 2^53); one of
    text (`as_written`) stays text, with all digits of what is filled in.

    >>> completed(pd.DataFrame({"a": [1, 2], "b": [0.5, None]}), ["a", "b"], np.array([[1.0, 0.5], [2.0, 0.7]])).to_dict("list")
    {'a': [1, 2], 'b': [0.5, 0.7]}
    """
    frame, names = frame.copy(), column_names(frame)
    for name, filled in zip(columns, values.T, strict=True):
        place = names.index(name)
        column = frame.iloc[:, place]
        missing = column.isna().to_numpy()
        if isinstance(column.dtype, pd.StringDtype):
            frame.isetitem(place, column.where(~missing, [repr(value) for value in filled.tolist()]).array)
        elif missing.any():
            frame.isetitem(place, _filled(column, missing, filled).array)
    return frame


def _filled(column: pd.Series, missing: np.ndarray, filled: np.ndarray) -> pd.Series:
    if not rounded_by_float64(column):
        return pd.Series(np.where(missing, filled, _numbers(column)), column.index, dtype=_float_like(column.dtype))
    entries, values = column.astype(object).tolist(), filled.tolist()
    whole = all(isinstance(entry, Integral) for entry in column.dropna())
    made = [entry if not m else round(v) if whole else Decimal(repr(v)) for entry, m, v in zip(entries, missing, values, strict=True)]
    limits = np.iinfo(getattr(column.dtype, "numpy_dtype", np.int64))
    within = not whole or all(limits.min <= entry <= limits.max for entry in made)
    return pd.Series(made, column.index, dtype=column.dtype if within else object)


def rounded_by_float64(column: pd.Series) -> bool:
    """Whether a column has whole numbers, or decimals, that float64 does not hold."""
    if types.is_integer_dtype(column.dtype):
        entries = column.dropna()
        return bool(((entries > 2**53) | (entries < -(2**53))).any()) and any(int(float(entry)) != entry for entry in entries)
    return types.is_object_dtype(column.dtype) and any(float(entry) != entry for entry in column.dropna())


def completed_like(source: Any, columns: Sequence[str], values: np.ndarray) -> Any:
    """`completed` for a pandas, polars or Arrow table, in that form; for any other source, `values`."""
    if isinstance(source, pd.DataFrame):
        return completed(source, columns, values)
    polars, arrow = sys.modules.get("polars"), sys.modules.get("pyarrow")
    if polars and isinstance(source, polars.DataFrame):
        return source.with_columns(_filled_polars(source[name], filled) for name, filled in zip(columns, values.T, strict=True))
    if arrow and isinstance(source, arrow.Table):
        frame = completed(source.to_pandas(types_mapper=pd.ArrowDtype), columns, values)
        return arrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(source.schema.metadata)
    return values


def _filled_polars(column: Any, filled: np.ndarray) -> Any:
    """A polars column with its missing entries filled in; its dtype as in `completed`."""
    import polars

    missing = column.is_null() | (column.is_nan() if column.dtype.is_float() else False)
    if not missing.any():
        return column
    exact = column.dtype.is_integer() and rounded_by_float64(pd.Series(column.drop_nulls().to_numpy()))
    dtype = column.dtype if column.dtype.is_float() or exact else polars.Float64
    made = polars.Series(column.name, np.rint(filled) if exact else filled).cast(dtype)
    return column.cast(dtype).zip_with(~missing, made)


def _float_like(dtype) -> Any:
    """The dtype of real numbers nearest to a column's: its own if it is one, else float64 of its kind (nullable, pyarrow's, NumPy's)."""
    if types.is_float_dtype(dtype):
        return dtype
    if isinstance(dtype, pd.ArrowDtype):
        return "double[pyarrow]"
    return "Float64" if types.is_extension_array_dtype(dtype) else np.float64


def check_destination(path: Path, frame: pd.DataFrame | None = None) -> None:
    """Raise ValueError for a place where `write_table` could not write a new file, or not this frame."""
    if path.suffix.lower() not in (".csv", ".npy", ".parquet"):
        raise ValueError(f"cannot write {path.name}: name a .csv, .npy or .parquet file")
    check_new(path)
    if frame is not None and path.suffix.lower() == ".npy":
        words = [name for place, name in enumerate(column_names(frame)) if not is_numeric(frame.iloc[:, place])]
        if words:
            raise ValueError(f"an .npy file holds numbers only, and the table has others in {few(words)}: write a .csv or .parquet file")
        rounded = [name for place, name in enumerate(column_names(frame)) if rounded_by_float64(frame.iloc[:, place])]
        if rounded:
            raise ValueError(f"an .npy file holds float64, which rounds whole numbers in {few(rounded)}: write a .csv or .parquet file")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame to a new .csv, .npy or .parquet file: whole, or not at all. Row labels are kept where there are any.

    Raises ValueError where `check_destination` does.
    """
    check_destination(path, frame)
    with TemporaryDirectory(dir=path.absolute().parent) as scratch:
        made = Path(scratch) / path.name
        if path.suffix.lower() == ".csv":
            made.write_text(to_csv(frame), encoding="utf-8")
        elif path.suffix.lower() == ".npy":
            np.save(made, read_table(frame).values)
        else:
            frame.to_parquet(made, index=labelled(frame))
        made.rename(path)


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as the text of a .csv file, its row labels first where it has any."""
    return frame.to_csv(index=labelled(frame), lineterminator="\n")


def labelled(frame: pd.DataFrame) -> bool:
    """Whether a frame's rows have labels other than their numbers."""
    return not frame.index.equals(pd.RangeIndex(len(frame)))


def _from_frame(frame: pd.DataFrame, columns: Sequence[str] | None, where: str) -> Table:
    frame = named(frame, columns)
    names, whose = column_names(frame), names_of(frame)
    _check_names(names, where)
    if columns is not None:
        for column in columns:
            if column not in names:
                raise unknown("column", column, names)
        frame, names = frame.iloc[:, [names.index(c) for c in columns]], list(columns)
        whose = "own" if names != numbered(len(names)) else whose
        _check_names(names, where)
    if "" in names:
        remedy = "give it one (a comma at the end of each line makes such a column), or name the columns to take (columns=, --columns)"
        raise ValueError(f"{where} has a column without a name: {remedy}")
    _check_size(frame.shape, where)
    values = _all_numbers(frame, names, where, "name the columns to take (columns=, --columns)")
    return _table(values, names, where, whose=whose, index=frame.index)


def column_names(source) -> list[str]:
    """The names of a frame's columns; x0, x1, ... where it has none; no names for what is not a frame."""
    frame = as_frame(source)
    if frame is None:
        return []
    return numbered(len(frame.columns)) if names_of(frame) == "counted" else [str(name) for name in frame.columns]


def names_of(frame: pd.DataFrame) -> Names:
    """Whose the names of a pandas frame's columns are."""
    return "counted" if frame.columns.equals(pd.RangeIndex(len(frame.columns))) else "own"


def numbered(n: int) -> list[str]:
    """The names of n columns that came without: x0, x1, ..."""
    return [f"x{i}" for i in range(n)]


def _from_array(array: np.ndarray, columns: Sequence[str] | None, where: str, image_shape: tuple[int, int] | None = None) -> Table:
    if array.ndim not in (1, 2) and (array.ndim != 3 or array.shape[1:] != image_shape):
        raise _many_axes(array.shape, where)
    _check_size(array.shape, where)
    values = array.reshape(len(array), -1)
    if columns is not None:
        names = list(columns)
    elif array.ndim == 3:
        names = [f"pixel_{row}_{column}" for row in range(array.shape[1]) for column in range(array.shape[2])]
    else:
        names = numbered(values.shape[1])
    if len(names) != values.shape[1]:
        raise ValueError(f"{where} has {values.shape[1]} columns without names and {len(names)} names were given: give one name to each")
    _check_names(names, where)
    if values.dtype.kind not in "biuf":
        values = _all_numbers(pd.DataFrame(values), names, where, "leave it out")
    return _table(values.astype(np.float64, order="C"), names, where, whose="none" if columns is None else "own")


def _many_axes(shape: tuple[int, ...], where: str) -> ValueError:
    pictures = f"; if they are grey pictures, say so: Data(..., image_shape={shape[1:]})" if len(shape) == 3 else ""
    return ValueError(f"{where} has shape {shape}: give rows x features (N, D), or one feature (N,){pictures}")


# --- what a source is ---------------------------------------------------------------------------------------------------------------


def as_frame(source) -> pd.DataFrame | None:
    """The pandas frame that `source` is or amounts to, columns counted 0, 1, 2, ... where it has no names; None for what is not a frame.

    Raises ValueError for rows with other labels than the first, and for what has names but is no table.
    """
    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, pd.Series):
        return pd.DataFrame({0 if source.name is None else source.name: source})
    if isinstance(source, np.ndarray) and source.dtype.names:
        return _from_fields(source)
    if isinstance(source, list | tuple) and len(source) and all(isinstance(row, pd.Series) for row in source):
        return _from_rows(source)
    polars = sys.modules.get("polars")  # whoever holds a polars frame has imported polars
    if polars and isinstance(source, list | tuple) and any(isinstance(part, polars.Series) for part in source):
        raise ValueError("a list of polars series may hold rows or columns: give polars.DataFrame(...) of it")
    if polars and isinstance(source, polars.LazyFrame):
        source = source.collect()
    if polars and isinstance(source, polars.Series):
        return pd.DataFrame({source.name or 0: source.to_numpy()})
    if polars and isinstance(source, polars.DataFrame):
        return pd.DataFrame({name: source[name].to_numpy() for name in source.columns})
    if type(source).__module__.partition(".")[0] == "dask":
        return as_frame(source.compute())
    if hasattr(source, "to_pandas") and getattr(source, "ndim", 2) in (1, 2):  # Arrow, xarray and their like
        return _from_others(source)
    return None


def _from_fields(array: np.ndarray) -> pd.DataFrame:
    """Rows of named fields, (N,), masked or not."""
    if array.ndim != 1:
        raise ValueError(f"rows of named fields have shape (N,), not {array.shape}: give them in a row")
    fields = {name: array[name] for name in array.dtype.names or ()}
    return pd.DataFrame({name: _unmasked(field) if isinstance(field, np.ma.MaskedArray) else field for name, field in fields.items()})


def _from_rows(rows: Sequence[pd.Series]) -> pd.DataFrame:
    """Rows that have labels of their own, each value where the first row has its label."""
    labels = rows[0].index
    if not labels.is_unique or any(len(row) != len(labels) or set(row.index) != set(labels) for row in rows):
        raise ValueError("the rows of the table do not have the same labels, each once: give all of them the same")
    values = [row.loc[labels].tolist() for row in rows]
    named = all(row.name is not None for row in rows)
    return pd.DataFrame(values, columns=labels, index=[row.name for row in rows] if named else None)


def _from_others(source: Any) -> pd.DataFrame | None:
    """What knows itself how to become a pandas table."""
    found = source.to_pandas()
    if isinstance(found, pd.Series) and (hasattr(source, "ndim") or isinstance(found.index, pd.RangeIndex)):
        return as_frame(found)
    if not isinstance(found, pd.DataFrame):  # or single values by name
        raise ValueError(f"a {type(source).__name__} of this shape is no table: give a frame, or its values as an array")
    return found


def as_array(source, where: str) -> np.ndarray:
    """The array that `source`, an array, nested list or tensor, is or amounts to. Raises ValueError for rows that differ in length."""
    if hasattr(source, "detach"):  # a torch tensor
        source = source.detach().cpu().to_dense()
        source = source.double() if source.is_floating_point() else source  # numpy has no bfloat16
    if type(source).__module__.partition(".")[0] == "dask":
        source = source.compute()
    try:
        source = _masked(source)
        if isinstance(source, np.ma.MaskedArray):
            return _unmasked(source)
        array = np.asarray(source)
        if array.dtype.kind in "SU" and not isinstance(source, np.ndarray):  # numbers beside a text are still numbers
            array = np.asarray(source, dtype=object)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the rows of {where} differ in length: give each the same number of values, NaN where one is missing") from error
    if array.ndim == 0:
        raise ValueError(f"cannot read a {type(source).__name__} as a table: give an array, a frame or the path of a file")
    return array


def _masked(source: Any) -> Any:
    """Nested lists that hold masked arrays as one of these; anything else as it is."""
    if not isinstance(source, list | tuple):
        return source
    parts = [_masked(part) if isinstance(part, list | tuple) else part for part in source]
    return np.ma.stack([np.ma.asarray(part) for part in parts]) if any(isinstance(part, np.ma.MaskedArray) for part in parts) else source


def _unmasked(array: np.ma.MaskedArray) -> np.ndarray:
    """Its entries, NaN (None among words) where they are masked."""
    if array.dtype.kind in "biuf":
        return np.ma.filled(array.astype(np.float64), np.nan)
    entries = array.data.astype(object)
    entries[np.ma.getmaskarray(array)] = None
    return entries


def _read_file(path: Path) -> pd.DataFrame | np.ndarray:
    readers: dict[str, Callable[[Path], pd.DataFrame | np.ndarray]] = {
        ".csv": _read_csv,
        ".npy": _read_npy,
        ".parquet": _read_parquet,
    }
    if not path.exists():
        named = "" if path.suffix else f" (a data set that comes with ppvae is ppvae.load_data({str(path)!r}))"
        raise ValueError(f"no such file: {path}{named}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of one {', '.join(readers)} file")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"cannot read {path.name}: save the table as {', '.join(readers)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty: save the table in it again")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} cannot be read as a .csv table: its text is not UTF-8; save it as UTF-8") from error
    except (ValueError, EOFError, OSError, csv.Error) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ").rstrip(".")
        raise ValueError(f"{path.name} cannot be read as a {path.suffix.lower()} table: {reason}") from error


def _read_csv(path: Path, *, to_the_letter: bool = False) -> pd.DataFrame:
    """A .csv's numbers and words, or with `to_the_letter` the text of its entries and names."""
    first, second = _first_rows(path, skipinitialspace=True)
    for mark, name in {";": "semicolons", "\t": "tabs"}.items():
        if len(first) == 1 and mark in first[0] and mark in ",".join(second):
            raise ValueError(f"{name} stand between its fields: write commas there, and a point in numbers")
    if len(second) > len(first):  # pandas would take the first fields for row labels
        raise ValueError(
            f"its first rows have {len(first)} and {len(second)} fields: give each row as many, a text that holds a comma in quotes"
        )
    header = not _holds_numbers(first) or _counted(first)
    if header:
        _check_names(first, "its header")
    content: Path | StringIO = path
    layout: dict[str, Any] = {"header": 0 if header else None, "index_col": 0 if header and first[0] == "" else None}
    if len(first) == 1:  # a blank line is a missing entry, unless it stands before a header
        text = _text(path)
        if not text.strip("\r\n"):
            raise ValueError("it holds blank lines alone")
        content = StringIO(text.lstrip("\r\n") if header else text)
        layout |= {"skip_blank_lines": False} | ({} if header else {"names": range(1)})
    # Spaces before a quote do not belong to the text that it begins.
    spaced = not to_the_letter or re.search(r', +"', _text(path)) is not None
    # One dtype a column, not one a chunk.
    layout |= {"dtype": str, "keep_default_na": False} if to_the_letter else {"low_memory": False, **EXACT_DIGITS}
    frame = pd.read_csv(content, **layout, skipinitialspace=spaced)
    if len(first) > 1 and frame.iloc[:, -1].isna().any():  # what short rows leave
        _check_lengths(path, len(first))
    if not header:
        return frame
    names = _first_rows(path, skipinitialspace=spaced)[0]  # pandas gives names of its own to columns without
    return frame.set_axis(names[len(names) - frame.shape[1] :], axis=1)


def _check_lengths(path: Path, fields: int) -> None:
    """Raise ValueError for a row with fewer fields than the first."""
    with _opened(path) as file:
        rows = csv.reader(file, skipinitialspace=True)
        for row in rows:
            if len(row) < fields and "".join(row):  # neither blank nor whole
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} fields and the first row {fields}: give each row as many, "
                    "with nothing between the commas where an entry is missing"
                )


def _warn_of_numbers(path: Path, columns: Sequence[str] | None) -> None:
    """Say how the first row of a .csv is read where it holds only numbers, since it may be data or names; not where `columns` are given to
    columns that have none."""
    if path.suffix.lower() != ".csv":
        return
    first, _ = _first_rows(path, skipinitialspace=True)
    if _counted(first):
        said = (
            f"{path}: its first row holds only the numbers 0, 1, 2, ... and is read as the names that pandas gives to columns without any"
        )
        warnings.warn(f"{said}: write names there, or above it if it is data", stacklevel=4)
    elif _holds_numbers(first) and (columns is None or set(columns) & set(numbered(len(first)))):
        warnings.warn(f"{path}: its first row holds only numbers and is read as data: name its columns (columns=, --columns)", stacklevel=4)


def _text(path: Path) -> str:
    with _opened(path) as file:
        return file.read()


def _opened(path: Path) -> TextIO:
    return path.open(newline="", encoding="utf-8-sig")


def _first_rows(path: Path, *, skipinitialspace: bool) -> tuple[list[str], list[str]]:
    """The fields of the first two rows of a .csv that are not empty."""
    with _opened(path) as file:
        rows = (row for row in csv.reader(file, skipinitialspace=skipinitialspace) if row)
        return next(rows, [""]), next(rows, [])


def _holds_numbers(first: list[str]) -> bool:
    """Whether the first row of a .csv holds only numbers and missing entries, and so no names."""
    known = [field for field in first if field not in MISSING]
    return all(map(_is_number, known)) and (bool(known) or not any(first))


def _counted(first: list[str]) -> bool:
    """Whether the first row of a .csv is the plain count 0, 1, 2, ... that pandas writes for an unnamed frame, maybe above row labels."""
    counted = [str(i) for i in range(len(first))]
    return (len(first) > 1 and first[0] == "" and first[1:] == counted[:-1]) or (len(first) > 2 and first == counted)


def _is_number(field: str) -> bool:
    try:
        float(field or "nan")
    except ValueError:
        return False
    return "_" not in field  # Python's own way to write 1_000


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError("it is damaged, or holds Python objects; save an array of numbers with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds several arrays; save one of them with numpy.save")
    return array


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        from pyarrow import parquet
        from pyarrow import types as arrow
    except ImportError as error:
        raise ValueError("pandas needs pyarrow for it: pip install pyarrow") from error
    frame, schema = pd.read_parquet(path), parquet.read_schema(path)
    whole = [name for name in schema.names if arrow.is_integer(schema.field(name).type) and name in frame.columns]
    # Whole numbers with holes come as float64: 7 as 7.0, and those beyond 2^53 rounded.
    for name in (name for name in whole if types.is_float_dtype(frame[name].dtype)):
        exact = parquet.read_table(path, columns=[name])[name].to_pandas(types_mapper=pd.ArrowDtype)
        frame[name] = exact.astype("UInt64" if arrow.is_unsigned_integer(schema.field(name).type) else "Int64").array
    return frame


# --- what a table must be -----------------------------------------------------------------------------------------------------------


def _check_size(shape: tuple[int, ...], where: str) -> None:
    if shape[0] == 0:
        raise ValueError(f"{where} has no rows: give at least one")
    if 0 in shape:
        raise ValueError(f"{where} has no columns: give at least one")


def _check_names(names: Sequence[str], where: str) -> None:
    twice = sorted(name for name, times in Counter(names).items() if name and times > 1)
    if twice:
        raise ValueError(f"{where} has more than one column called {few(twice)}: give each its own name")


def _all_numbers(frame: pd.DataFrame, names: Sequence[str], where: str, choice: str) -> np.ndarray:
    """(N, D) float64. Raises ValueError for columns of something else, with `choice` as the last remedy, and for endless numbers."""
    _check_numeric(frame, names, where, choice)
    columns = []
    for place, name in enumerate(names):
        try:
            columns.append(_numbers(frame.iloc[:, place]))
        except OverflowError as error:
            raise ValueError(f"{where} has a number in {name} that is beyond float64's range: correct or rescale it") from error
    return np.column_stack(columns)


def _check_numeric(frame: pd.DataFrame, names: Sequence[str], where: str, choice: str) -> None:
    """Refuse columns of text, dates, categories, complex numbers or mixed objects, by name and with an example."""
    bad = [i for i in range(len(names)) if not is_numeric(frame.iloc[:, i])]
    if bad:
        values = [value for i in bad for value in frame.iloc[:, i].dropna()]
        words = (value for value in values if not _is_number(str(value)))
        example = next(words, values[0] if values else None)
        if isinstance(example, pd.Timedelta):
            remedy = "count it in seconds, .dt.total_seconds()"
        elif _is_number(str(example)):
            remedy = "it is text or a category of numbers, so make it one of numbers, .astype(float)"
        else:
            remedy = "encode it as numbers, leave missing values empty"
        raise ValueError(
            f"{where} has something other than real numbers in {few(names[i] for i in bad)} (such as {str(example)!r}): "
            f"{remedy}, or {choice}"
        )


def is_numeric(column: pd.Series) -> bool:
    """Whether a column holds real numbers or booleans, and missing entries, alone."""
    if types.is_object_dtype(column.dtype):  # Python's own objects: numbers and None, or text
        kind = types.infer_dtype(column, skipna=True)
        return kind in {"integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty"}
    real = types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype)
    return real or types.is_bool_dtype(column.dtype)


def _numbers(column: pd.Series) -> np.ndarray:
    if types.is_object_dtype(column.dtype):
        column = column.where(column.notna(), np.nan)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _table(values: np.ndarray, names: Sequence[str], where: str, whose: Names, index: pd.Index | None = None) -> Table:
    """The table of these values. Raises ValueError where one of them is inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(values.sum()))  # nothing that is not finite is lost in a sum
    if not finite and (endless := np.isinf(values)).any():
        rows, columns = endless.nonzero()
        inf = few(names[i] for i in sorted(set(columns.tolist())))
        raise ValueError(
            f"{where} holds inf in {inf} (first in row {rows[0]}, counting from 0): correct it, or write NaN for a missing value"
        )
    return Table(np.ascontiguousarray(values), finite or not np.isnan(values).any(), tuple(names), whose, index)
