"""Reading a table: arrays, tensors, frames and files become float64 values in which NaN means missing; and writing one.

What is not a table of numbers is refused in one sentence that names the place and the remedy; nothing is guessed or dropped silently.
"""

import csv
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
import pandas as pd
from pandas.api import types

from ppvae.messages import few, unknown
from ppvae.places import check_new

# Older pandas rounds the last digit of numbers in a .csv unless told not to; newer ones need no telling, and warn.
EXACT_DIGITS = {"float_precision": "round_trip"} if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1) else {}


@dataclass(frozen=True)
class Table:
    """Numbers in rows and columns.

    values: (N, D) float64, C order, NaN where missing.  complete: none is.  columns: D names, all different.
    index: the row labels that a frame or file gave, or None.  image_shape: (H, W) where the source was N pictures, D = H W.
    """

    values: np.ndarray
    complete: bool
    columns: tuple[str, ...]
    index: pd.Index | None = None
    image_shape: tuple[int, int] | None = None


def read_table(source, columns: Sequence[str] | None = None) -> Table:
    """The table in `source`: an array, nested list or tensor of shape (N, D), (N,) or (N, H, W), a pandas or polars frame, or the path of
    a .csv, .npy or .parquet file.

    columns: where the source has names, those to take, in this order; where it has none (an array), the names to give.

    None, NA, null, NaN and empty fields mean missing, and so does a blank line among the rows of a .csv with one column. Booleans count
    as 0 and 1. A .csv whose first row holds only numbers has no header: its columns are called x0, x1, ...; a first column without a name
    holds row labels.

    Raises ValueError for a file that is missing, empty or not a table, for columns that are not real numbers, for inf, and for a table
    without rows or columns, with columns of the same name or without one, or of another number of dimensions.

    >>> table = read_table([[1, None], [3, 4.5]], columns=["a", "b"])
    >>> table.columns, table.values.tolist()
    (('a', 'b'), [[1.0, nan], [3.0, 4.5]])
    """
    where = "the table"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        where, source = path.name, _read_file(path)
    frame = _as_frame(source)
    if frame is None:
        return _from_array(as_array(source, where), columns, where)
    return _from_frame(frame, columns, where)


def read_frame(path: Path) -> pd.DataFrame:
    """Everything that a .csv, .npy or .parquet file holds, text columns too, with the names that `read_table` gives.

    Raises ValueError for a file that is missing, empty or not a table.
    """
    content = _read_file(path)
    frame = _as_frame(content)
    if frame is None:
        table = _from_array(np.asarray(content), None, path.name)
        return pd.DataFrame(table.values, columns=list(table.columns))
    return frame.set_axis(column_names(frame), axis=1)


def as_written(frame: pd.DataFrame, path: Path, columns: Sequence[str], *, numbers: bool) -> pd.DataFrame:
    """`frame`, as `read_frame` took it from `path`, but each entry and name of a .csv as text, to the letter; of another file, `frame`.

    columns: those that are known to hold numbers. They keep their names, their missing entries are missing, and with `numbers` they stay
    numbers.
    """
    if path.suffix.lower() != ".csv":
        return frame
    written = _read_csv(path, to_the_letter=True)
    for place, name in enumerate(frame.columns):
        if name in columns:
            column = frame.iloc[:, place]
            written.isetitem(place, column.array if numbers else written.iloc[:, place].where(column.notna().to_numpy()).array)
    names = zip(frame.columns, column_names(written), strict=True)
    return written.set_axis([name if name in columns else own for name, own in names], axis=1)


def completed(frame: pd.DataFrame, columns: Sequence[str], values: np.ndarray) -> pd.DataFrame:
    """`frame` with the missing entries of `columns` taken from `values` (N, D); rows, other columns and their dtypes as they were.

    A column of whole numbers or booleans whose missing entries are filled in becomes one of real numbers, of its kind (Int64: Float64);
    one of text (`as_written`) stays text, with all digits of what is filled in.

    >>> completed(pd.DataFrame({"a": [1, 2], "b": [0.5, None]}), ["a", "b"], np.array([[1.0, 0.5], [2.0, 0.7]])).to_dict("list")
    {'a': [1, 2], 'b': [0.5, 0.7]}
    """
    frame, names = frame.copy(), column_names(frame)
    for name, filled in zip(columns, values.T, strict=True):
        place = names.index(name)
        column = frame.iloc[:, place]
        missing = column.isna()
        if isinstance(column.dtype, pd.StringDtype):
            frame.isetitem(place, column.where(~missing, [repr(value) for value in filled.tolist()]).array)
        elif missing.any():
            values = np.where(missing, filled, _numbers(column))
            frame.isetitem(place, pd.Series(values, frame.index, dtype=_float_like(column.dtype)))
    return frame


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
        words = [name for place, name in enumerate(column_names(frame)) if not _is_numeric(frame.iloc[:, place])]
        if words:
            raise ValueError(f"an .npy file holds numbers only, and the table has others in {few(words)}: write a .csv or .parquet file")


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
    names = column_names(frame)
    _check_names(names, where)
    if columns is not None:
        for column in columns:
            if column not in names:
                raise unknown("column", column, names)
        frame, names = frame.iloc[:, [names.index(c) for c in columns]], list(columns)
        _check_names(names, where)
    if "" in names:
        remedy = "give it one (a comma at the end of each line makes such a column), or name the columns to take (columns=, --columns)"
        raise ValueError(f"{where} has a column without a name: {remedy}")
    _check_size(frame.shape, where)
    values = _all_numbers(frame, names, where, "name the columns to take (columns=, --columns)")
    return _table(values, names, where, index=frame.index)


def column_names(source) -> list[str]:
    """The names of a frame's columns; x0, x1, ... where it has none; no names for what is not a frame."""
    frame = _as_frame(source)
    if frame is None:
        return []
    unnamed = frame.columns.equals(pd.RangeIndex(len(frame.columns)))
    return numbered(len(frame.columns)) if unnamed else [str(name) for name in frame.columns]


def numbered(n: int) -> list[str]:
    """The names of n columns that came without: x0, x1, ..."""
    return [f"x{i}" for i in range(n)]


def _from_array(array: np.ndarray, columns: Sequence[str] | None, where: str) -> Table:
    if array.ndim not in (1, 2, 3):
        raise ValueError(
            f"{where} has shape {array.shape}: give rows x features (N, D), one feature (N,) or grey pictures (N, height, width)"
        )
    image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    _check_size(array.shape, where)
    values = array.reshape(len(array), -1)
    if columns is not None:
        names = [str(c) for c in columns]
    elif image_shape:
        names = [f"pixel_{row}_{column}" for row in range(image_shape[0]) for column in range(image_shape[1])]
    else:
        names = numbered(values.shape[1])
    if len(names) != values.shape[1]:
        raise ValueError(f"{where} has {values.shape[1]} columns without names and {len(names)} names were given: give one name to each")
    _check_names(names, where)
    if values.dtype.kind not in "biuf":
        values = _all_numbers(pd.DataFrame(values), names, where, "leave it out")
    return _table(values.astype(np.float64, order="C"), names, where, image_shape=image_shape)


# --- what a source is ---------------------------------------------------------------------------------------------------------------


def _as_frame(source) -> pd.DataFrame | None:
    """The pandas frame that `source` is or amounts to; None for what is not a frame."""
    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, np.ndarray) and source.dtype.names:
        return pd.DataFrame(source)
    if isinstance(source, pd.Series):
        return source.to_frame("x0" if source.name is None else source.name)
    polars = sys.modules.get("polars")  # whoever holds a polars frame has imported polars
    if polars and isinstance(source, polars.Series):
        source = source.to_frame(source.name or "x0")
    if polars and isinstance(source, polars.DataFrame):
        return pd.DataFrame({name: source[name].to_numpy() for name in source.columns})
    return None


def as_array(source, where: str) -> np.ndarray:
    """The array that `source`, an array, nested list or tensor, is or amounts to. Raises ValueError for rows that differ in length."""
    if hasattr(source, "detach"):  # a torch tensor
        source = source.detach().cpu().to_dense()
        source = source.double() if source.is_floating_point() else source  # numpy has no bfloat16
    if isinstance(source, np.ma.MaskedArray):
        return np.ma.filled(source.astype(np.float64), np.nan)
    try:
        array = np.asarray(source)
        if array.dtype.kind in "SU" and not isinstance(source, np.ndarray):  # numbers beside a text are still numbers
            array = np.asarray(source, dtype=object)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the rows of {where} differ in length: give each the same number of values, NaN where one is missing") from error
    if array.ndim == 0:
        raise ValueError(f"cannot read a {type(source).__name__} as a table: give an array, a frame or the path of a file")
    return array


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
    header = _is_header(first)
    if header:
        _check_names(first, "its header")
    content: Path | StringIO = path
    layout: dict[str, Any] = {"header": 0 if header else None, "index_col": 0 if header and first[0] == "" else None}
    if len(first) == 1:  # a blank line is a missing entry, unless it stands before a header or after all rows
        text = _text(path).rstrip("\r\n")
        content = StringIO(text.lstrip("\r\n") if header else text)
        layout |= {"skip_blank_lines": False} | ({} if header else {"names": range(1)})
    # Spaces before a quote do not belong to the text that it begins.
    spaced = not to_the_letter or re.search(r', +"', _text(path)) is not None
    # One dtype a column, not one a chunk.
    layout |= {"dtype": str, "keep_default_na": False} if to_the_letter else {"low_memory": False, **EXACT_DIGITS}
    frame = pd.read_csv(content, **layout, skipinitialspace=spaced)
    if not header:
        return frame
    names = _first_rows(path, skipinitialspace=spaced)[0]  # pandas gives names of its own to columns without
    return frame.set_axis(names[len(names) - frame.shape[1] :], axis=1)


def headless(path: Path) -> bool:
    """Whether the first row of this .csv file holds only numbers, and so is read as data; False for other files."""
    return path.suffix.lower() == ".csv" and not _is_header(_first_rows(path, skipinitialspace=True)[0])


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


def _is_header(first: list[str]) -> bool:
    """Whether the first row of a .csv holds names: any word, or the plain count 0, 1, 2, ... that pandas writes for an unnamed frame."""
    counted = [str(i) for i in range(len(first))]
    pandas_own = (first[0] == "" and first[1:] == counted[:-1]) or (len(first) > 2 and first == counted)
    return pandas_own or not all(_is_number(field) for field in first)


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
        return pd.read_parquet(path)
    except ImportError as error:
        raise ValueError("pandas needs pyarrow for it: pip install pyarrow") from error


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
    bad = [i for i in range(len(names)) if not _is_numeric(frame.iloc[:, i])]
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


def _is_numeric(column: pd.Series) -> bool:
    if types.is_object_dtype(column.dtype):  # Python's own objects: numbers and None, or text
        kind = types.infer_dtype(column, skipna=True)
        return kind in {"integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty"}
    real = types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype)
    return real or types.is_bool_dtype(column.dtype)


def _numbers(column: pd.Series) -> np.ndarray:
    if types.is_object_dtype(column.dtype):
        column = column.where(column.notna(), np.nan)
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _table(values: np.ndarray, names: Sequence[str], where: str, **more: Any) -> Table:
    """The table of these values. Raises ValueError where one of them is inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(values.sum()))  # nothing that is not finite is lost in a sum
    if not finite and (endless := np.isinf(values)).any():
        rows, columns = endless.nonzero()
        inf = few(names[i] for i in sorted(set(columns.tolist())))
        raise ValueError(
            f"{where} holds inf in {inf} (first in row {rows[0]}, counting from 0): correct it, or write NaN for a missing value"
        )
    return Table(np.ascontiguousarray(values), finite or not np.isnan(values).any(), tuple(names), **more)
