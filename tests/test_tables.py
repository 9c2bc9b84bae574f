"""Whatever holds a table becomes the same numbers, and whatever is no table is refused by name."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from ppvae.tables import as_written, completed, read_frame, read_table, write_table

nan = float("nan")


@pytest.mark.parametrize(
    "source",
    [
        [[1, 2.5], [0, None]],
        np.array([[1, 2.5], [0, nan]]),
        np.ma.masked_array([[1, 2.5], [0, 7]], mask=[[False, False], [False, True]]),
        np.array([(1, 2.5), (0, nan)], dtype=[("a", int), ("b", float)]),
        torch.tensor([[1, 2.5], [0, nan]], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([[1, 2.5], [0, nan]]).to_sparse(),
        pd.DataFrame({"a": [True, False], "b": [2.5, None]}),
        pd.DataFrame({"a": pd.array([1, 0], "Int64"), "b": pd.array([2.5, None], "Float64")}),
        pd.DataFrame({"a": [1, 0], "b": [Decimal("2.5"), pd.NA]}),
        pd.DataFrame({"a": pd.array([True, False], "bool[pyarrow]"), "b": pd.array([2.5, None], "double[pyarrow]")}),
        pl.DataFrame({"a": [True, False], "b": [2.5, None]}),
        pl.DataFrame({"a": [1, 0], "b": [Decimal("2.5"), None]}),
    ],
    ids=lambda source: f"{type(source).__module__}.{type(source).__name__}",
)
def test_the_same_table_from_every_container(source):
    table = read_table(source)
    np.testing.assert_array_equal(table.values, [[1, 2.5], [0, nan]])
    assert table.values.dtype == np.float64
    assert table.columns in {("a", "b"), ("x0", "x1")}


def test_vectors_become_one_feature_and_pictures_rows():
    assert read_table(np.arange(3)).values.shape == (3, 1)
    assert read_table(pd.Series([1, 2], name="wait")).columns == ("wait",)
    assert read_table(pl.Series([1, 2])).columns == ("x0",)
    pictures = read_table(np.arange(12).reshape(2, 3, 2), image_shape=(3, 2))
    assert pictures.columns[:3] == ("pixel_0_0", "pixel_0_1", "pixel_1_0")
    np.testing.assert_array_equal(pictures.values[1], np.arange(6, 12))


def test_columns_name_an_array_and_choose_from_a_frame():
    assert read_table(np.eye(2), columns=["a", "b"]).columns == ("a", "b")
    chosen = read_table(pd.DataFrame({"a": [1], "b": ["text"], "c": [3]}, index=["row"]), columns=["c", "a"])
    assert chosen.columns == ("c", "a")
    assert chosen.values.tolist() == [[3, 1]]
    assert list(chosen.index) == ["row"]
    with pytest.raises(ValueError, match="2 columns without names and 1 names"):
        read_table(np.eye(2), columns=["a"])
    with pytest.raises(ValueError, match=r"unknown column 'bb'.*did you mean 'b'"):
        read_table(pd.DataFrame({"a": [1], "b": [2]}), columns=["bb"])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([[1, 2], [3]], "rows of the table differ in length"),
        ([["1", 2]], "other than real numbers in x0"),
        (pd.DataFrame({"kind": ["1", "x"], "n": [1, 2]}), "in kind .such as 'x'.*--columns"),
        (pd.DataFrame({"day": pd.to_datetime(["2020-01-01"])}), "other than real numbers in day"),
        (pd.DataFrame({"kind": pd.Categorical(["a"])}), "other than real numbers in kind"),
        (pd.DataFrame({"age": pd.Categorical([1, 2])}), "in age .such as '1'.: .* numbers, .astype.float., or name"),
        (pl.DataFrame({"age": ["1.5", None]}), "numbers, .astype.float., or name"),
        (pd.DataFrame({"id": ["1", "2"], "sex": ["m", "f"]}), "in id and sex .such as 'm'.: encode"),
        ([[1, "a"]], "other than real numbers in x1 .such as 'a'.: encode .* or leave it out"),
        ([[10**400, 1]], "a number in x0 that is beyond float64's range"),
        ([[10**400, 0.5]], "a number in x0 that is beyond float64's range"),
        (pd.DataFrame({"": [1], "a": [2]}), "a column without a name: give it one"),
        (pd.DataFrame({"stay": pd.to_timedelta([1, 2], unit="D")}), r"in stay .*\.dt\.total_seconds\(\), or name"),
        (pl.DataFrame({"kind": ["a", None]}), "other than real numbers in kind"),
        (np.ones(2) * 1j, "other than real numbers in x0"),
        (torch.ones(2) * 1j, "other than real numbers in x0"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than one column called a"),
        ([[1, 2], [-np.inf, 3]], "inf in x0 .first in row 1.*NaN"),
        (np.zeros((0, 2)), "no rows: give at least one"),
        (np.zeros((2, 0)), "no columns: give at least one"),
        (np.zeros((2, 2, 2, 2)), r"shape \(2, 2, 2, 2\)"),
        (np.zeros((6, 5, 3)), r"shape \(6, 5, 3\): give .*grey pictures, say so: Data\(..., image_shape=\(5, 3\)\)"),
        ([np.zeros((4, 2)), np.ones((4, 2))], r"shape \(2, 4, 2\)"),
        ([pd.Series([1, 2], ["a", "b"]), pd.Series([1, 2], ["a", "c"])], "do not have the same labels"),
        ([pl.Series("a", [1, 2]), pl.Series("b", [1, 2])], r"rows or columns: give polars\.DataFrame"),
        ({"a": 1}, "cannot read a dict"),
    ],
)
def test_what_is_no_table_is_refused(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_table(source)


@pytest.mark.parametrize(
    ("text", "columns", "values"),
    [
        ("a,b\n1,2\n3,NA\n", ("a", "b"), [[1, 2], [3, nan]]),
        ("a, b\n1, 2\n3, \n", ("a", "b"), [[1, 2], [3, nan]]),
        ("\ufeffa,b\n1,2\n3,\n", ("a", "b"), [[1, 2], [3, nan]]),
        ("1,2\n3,\n", ("x0", "x1"), [[1, 2], [3, nan]]),
        (",a,b\nrow,1,2\nother,3,\n", ("a", "b"), [[1, 2], [3, nan]]),
        (",0,1\n0,1,2\n1,3,\n", ("0", "1"), [[1, 2], [3, nan]]),
        ("0,1,2\n1,2,5\n", ("0", "1", "2"), [[1, 2, 5]]),
        ('\na\n1\n\n""\n3\n\n\n', ("a",), [[1], [nan], [nan], [3], [nan], [nan]]),
        ("1,NA\n3,4\n", ("x0", "x1"), [[1, nan], [3, 4]]),
        ("\r\n1\r\n\r\n3\r\n", ("x0",), [[nan], [1], [nan], [3]]),
    ],
    ids=[
        "header", "spaces", "byte-order mark", "no header", "row labels", "pandas' own", "pandas' own, no index",
        "blank lines", "no header, missing", "blank lines, no header",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*its first row holds only")
def test_a_csv_with_and_without_header(tmp_path, text, columns, values):
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    table = read_table(path)
    assert table.columns == columns
    np.testing.assert_array_equal(table.values, values)


def test_how_a_first_row_of_numbers_is_read_is_said(tmp_path, recwarn):
    for text, rows, said in (
        ("2019,2020\n1,2\n", 2, "its first row holds only numbers and is read as data: name its columns"),
        ("0,1\n1,2\n", 2, "its first row holds only numbers and is read as data: name its columns"),
        ("5,NA\n1,2\n", 2, "its first row holds only numbers and is read as data: name its columns"),
        ("0,1,2\n4,5,6\n", 1, "only the numbers 0, 1, 2, ... and is read as the names that pandas gives"),
        (",0,1\n3,1,4\n", 1, "only the numbers 0, 1, 2, ... and is read as the names that pandas gives"),
    ):
        (tmp_path / "a.csv").write_text(text)
        with pytest.warns(UserWarning, match=re.escape(said)):
            assert len(read_table(tmp_path / "a.csv").values) == rows
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    given = read_table(tmp_path / "a.csv", columns=["a", "b"])  # names say that it has none
    assert (given.columns, given.names, given.values.tolist()) == (("a", "b"), "own", [[1, 2], [3, 4]])
    (tmp_path / "a.csv").write_text("a,2020\n1,2\n")
    assert len(read_table(tmp_path / "a.csv").values) == 1
    assert not recwarn.list


def test_names_are_kept_whatever_holds_them():
    """And told apart from those that nobody gave."""
    xarray, arrow = pytest.importorskip("xarray"), pytest.importorskip("pyarrow")
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    rows = [pd.Series([1.0, 2.0], ["b", "a"], name="p"), pd.Series([4.0, 3.0], ["a", "b"], name="q")]
    for source in (
        arrow.table({"b": x[:, 0], "a": x[:, 1]}),
        arrow.record_batch({"b": x[:, 0], "a": x[:, 1]}),
        xarray.DataArray(x, coords={"name": ["b", "a"]}, dims=("row", "name")),
        xarray.Dataset({"b": ("row", x[:, 0]), "a": ("row", x[:, 1])}),
        pl.LazyFrame({"b": x[:, 0], "a": x[:, 1]}),
        rows,
        tuple(rows),
        np.ma.masked_array(np.array([(1, 2), (3, 4)], dtype=[("b", float), ("a", float)])),
    ):
        table = read_table(source)
        assert (table.columns, table.names) == (("b", "a"), "own")
        np.testing.assert_array_equal(table.values, x)
    assert read_table(x).names == "none"
    assert read_table(pd.DataFrame(x)).names == "counted"
    assert read_table(xarray.DataArray(x)).names == "counted"
    assert read_table(pd.DataFrame(x, columns=[1, 0])).names == "own"
    assert read_table(pd.DataFrame(x, columns=[2019, 2020]), columns=[2020]).columns == ("2020",)
    assert read_table(pd.DataFrame(x), columns=["a", "b"]).names == "own"


def test_masks_are_heeded_in_lists_and_fields():
    first, second = np.ma.masked_array([1, -9], [False, True]), np.ma.masked_array([2, 5], [False, False])
    expected = [[1, nan], [2, 5]]
    for source in ([first, second], (first, second), [first, [2, 5]], [[1, np.ma.masked], [2, 5]]):
        np.testing.assert_array_equal(read_table(source).values, expected)
    fields = np.ma.masked_array(np.array([(1, -9), (2, 5)], dtype=[("a", int), ("b", float)]), [(False, True), (False, False)])
    np.testing.assert_array_equal(read_table(fields).values, expected)
    with pytest.raises(ValueError, match="differ in length"):
        read_table([first, [2, 5, 6]])


def test_npy_and_parquet(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(2))
    assert read_table(str(tmp_path / "a.npy")).values.tolist() == [[1, 0], [0, 1]]
    pd.DataFrame({"a": [1, None]}, index=["p", "q"]).to_parquet(tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(table.values, [[1], [nan]])
    assert list(table.index) == ["p", "q"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_frame_is_written_and_read_as_it_was(tmp_path, name):
    for frame in (
        pd.DataFrame({"a": [1, 2], "kind": ["p", "q"], "b": [0.1, 1 / 3]}),
        pd.DataFrame({"a": [1, 2], "b": [0.1, 1 / 3]}, index=["p", "q"]),
    ):
        write_table(frame, tmp_path / name)
        pd.testing.assert_frame_equal(read_frame(tmp_path / name), frame)
        with pytest.raises(ValueError, match="exists already"):
            write_table(frame, tmp_path / name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("hole", ["", "NA"])
@pytest.mark.parametrize(
    "text",
    [
        "code,age,price, sp,\n001,43,1.10, a ,NA\n1E10,?,TRUE,,\n",
        ",age,flag\n07,?,0020\nNA,43.50,9007199254740993\n",
        'age,site\n4,"so,uth"\n?,"a ""b"""\n',
        "age,,\n43,1.10,\n?,,\n",
    ],
    ids=["codes", "row labels", "quotes", "no names"],
)
def test_a_csv_is_completed_to_the_letter(tmp_path, text, hole):
    """Only the hole in `age`, here "?", is filled; where that is to be a number, the other columns still are text."""
    path = tmp_path / "table.csv"
    path.write_text(text.replace("?", hole))
    frame, value = read_frame(path), 0.1 + 0.2
    ages = frame[["age"]].fillna(value).to_numpy()
    write_table(completed(as_written(frame, path, ["age"], numbers=False), ["age"], ages), tmp_path / "done.csv")
    assert (tmp_path / "done.csv").read_text() == text.replace("?", repr(value))
    numbers = completed(as_written(frame, path, ["age"], numbers=True), ["age"], ages)
    assert numbers["age"].tolist() == ages[:, 0].tolist()
    assert all(isinstance(dtype, pd.StringDtype) for dtype in numbers.drop(columns="age").dtypes)


@pytest.mark.filterwarnings("ignore:.*its first row holds only")
def test_a_csv_without_header_is_written_with_the_names_it_was_read_by(tmp_path):
    (tmp_path / "table.csv").write_text("1,2.50\n,4\n")
    written = as_written(read_frame(tmp_path / "table.csv"), tmp_path / "table.csv", ["x0"], numbers=False)
    assert written.fillna("").to_dict("list") == {"x0": ["1", ""], "x1": ["2.50", "4"]}


def test_only_holes_are_completed():
    frame = pd.DataFrame({"a": [1, 2], "b": pd.array([True, None], "boolean"), "c": np.array([0.5, nan], np.float32)})
    filled = completed(frame, ["a", "c"], np.array([[9.0, 9.0], [9.0, 0.25]]))
    pd.testing.assert_frame_equal(filled[["a", "b"]], frame[["a", "b"]])
    assert filled["c"].tolist() == [0.5, 0.25]
    assert filled["c"].dtype == np.float32


@pytest.mark.parametrize(
    ("holed", "filled"),
    [
        ("Int64", "Float64"),
        ("boolean", "Float64"),
        ("Float32", "Float32"),
        ("int64[pyarrow]", "double[pyarrow]"),
        ("bool[pyarrow]", "double[pyarrow]"),
        ("float[pyarrow]", "float[pyarrow]"),
        ("object", "float64"),
        ("float32", "float32"),
    ],
)
def test_a_completed_column_holds_real_numbers_of_its_own_kind(holed, filled):
    """Also in a frame without names, whose second column has nothing to fill in."""
    values = [1, None] if holed.startswith("float3") else pd.array([1, None], "Int64").astype("object")
    frame = pd.concat([pd.Series(values, dtype=holed), pd.Series([1, 0], dtype="Int64")], axis=1)
    done = completed(frame, ["x0"], np.array([[9.0], [0.25]]))
    assert [str(dtype) for dtype in done.dtypes] == [filled, "Int64"]
    assert done[0].tolist() == [1, 0.25]


def test_whole_numbers_that_float64_does_not_hold_stay_as_they_were(tmp_path):
    """In a column that is completed, what is filled in is rounded; in a file, whatever its kind."""
    large = 2**53 + 1
    for holed in (pd.array([large, None], "Int64"), pd.array([large, None], "int64[pyarrow]"), np.array([large, None], dtype=object)):
        done = completed(pd.DataFrame({"a": holed}), ["a"], np.array([[0.0], [7.6]]))
        assert [int(value) for value in done["a"]] == [large, 8]
        assert done["a"].dtype == pd.Series(holed).dtype
    done = completed(pd.DataFrame({"a": [Decimal("0.1"), None]}), ["a"], np.array([[0.0], [7.5]]))
    assert done["a"].tolist() == [Decimal("0.1"), Decimal("7.5")]
    pd.DataFrame({"id": pd.array([large, None], "Int64"), "small": pd.array([7, None], "Int32")}).to_parquet(tmp_path / "p.parquet")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"id": [large, None], "small": arrow.array([7, None], arrow.int32())}), tmp_path / "q.parquet")
    for name in ("p.parquet", "q.parquet"):
        frame = read_frame(tmp_path / name)
        assert frame["id"].dropna().tolist() == [large]
        write_table(frame, tmp_path / f"again_{name}")
        assert parquet.read_table(tmp_path / f"again_{name}")["id"].to_pylist() == [large, None]
        with pytest.raises(ValueError, match="holds float64, which rounds whole numbers in id: write a"):
            write_table(frame, tmp_path / "a.npy")
        write_table(frame, tmp_path / f"{name}.csv")
        assert (tmp_path / f"{name}.csv").read_text() == f"id,small\n{large},7\n,\n"
    (tmp_path / "c.csv").write_text(f"id,a\n{large},1\n,2\n")
    written = as_written(read_frame(tmp_path / "c.csv"), tmp_path / "c.csv", ["id", "a"], numbers=True)
    assert written["id"].dropna().tolist() == [large]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"", "a.csv is empty: save the table in it again"),
        ("a.csv", b"\n\n", "a.csv cannot be read"),
        ("a.csv", b"a,b\n", "a.csv has no rows"),
        ("a.csv", b"a,a\n1,2\n", "more than one column called a"),
        ("a.csv", b"a,b\n1,2,3\n", "first rows have 2 and 3 fields"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("a.csv", b"a,b,c\n1,2,3\n\n4,5\n6\n", "line 4 has 2 fields and the first row 3: give each row as many, with nothing between"),
        ("a.csv", b"a,b\n1,\n  \n2\n", "line 4 has 1 fields and the first row 2"),
        ("a.csv", b"a;b\n1;2\n", "semicolons stand between its fields: write commas"),
        ("a.csv", b"a,b\n1,?\n", r"in b \(such as '\?'\)"),
        ("a.csv", b"a,b\n1,-inf\n", "inf in b"),
        ("a.csv", b"a,b,\n1,2,\n", "a.csv has a column without a name"),
        ("a.csv", b"a,b\n1_000,2\n", r"in a \(such as '1_000'\): encode it as numbers"),
        ("a.csv", b"a,b\n" + b"9" * 400 + b",2\n", "a number in a that is beyond float64's range"),
        ("a.csv", "größe\n1\n".encode("latin-1"), "its text is not UTF-8; save it as UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "its text is not UTF-8; save it as UTF-8"),
        ("a.csv", b"\x89PNG\x00\xff", "a.csv cannot be read as a .csv table"),
        ("a.npy", b"hello", "a.npy cannot be read as a .npy table"),
        ("a.parquet", b"hello", "a.parquet cannot be read as a .parquet table"),
        ("a.xlsx", b"hello", "save the table as .csv, .npy, .parquet"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_table(tmp_path / name)


def test_missing_files_folders_and_pickles_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read_table(tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        read_table(tmp_path / "objects.npy")
    np.savez(tmp_path / "several", np.eye(2))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(ValueError, match="several arrays"):
        read_table(tmp_path / "several.npy")
