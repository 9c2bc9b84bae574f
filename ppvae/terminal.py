"""What a person sees (tables, a progress bar), and the same tables as JSON for a program. Nothing here knows what the tables are about."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_WIDTH = 160  # columns where there is no terminal to measure: tables in a file are not folded to 80
LONGEST_WORD = 24  # characters; a longer text is a sentence
NARROWEST = 16  # characters that a column of sentences can be folded to and still be read


def show(table: pd.DataFrame, *, rename: dict[str, str] | None = None) -> None:
    """Print a table, numbers aligned; a column NAME_se is shown as the error of NAME.

    Sentences fold; where the terminal leaves too little room for that, they are printed below the table, each after what its row begins
    with. Everything else is printed whole, wider than the terminal if need be: a number without its last digits is another number.
    """
    console = _console()
    sentences = [c for c in table.columns if table[c].astype(str).str.len().max() > LONGEST_WORD]
    rest = _draw(table.drop(columns=sentences), rename or {})
    whole = console.measure(rest, options=console.options.update(width=10_000)).maximum
    if sentences and whole + len(sentences) * NARROWEST <= console.width:
        console.print(_draw(table, rename or {}))
        return
    Console(width=max(whole, console.width)).print(rest)
    if not sentences:
        return
    beginning = table.columns[: table.columns.get_loc(sentences[0])]
    for _, row in table.iterrows():
        for sentence in filter(None, row[sentences]):
            say(f"{' '.join(map(spell, row[beginning]))}: {sentence}")


def _draw(table: pd.DataFrame, rename: dict[str, str]) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    cells = []
    for column in table.columns:
        if str(column).removesuffix("_se") in table.columns.drop(column):
            continue
        numeric = pd.api.types.is_numeric_dtype(table[column].dtype)
        drawn.add_column(
            rename.get(column, str(column).replace("_", " ")), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
        errors = table.get(f"{column}_se", [0.0] * len(table))
        cells.append(
            [spell(value) + (f" ± {spell(error)}" if error > 0 else "") for value, error in zip(table[column], errors, strict=True)]
        )
    for row in zip(*cells, strict=True):
        drawn.add_row(*row)
    return drawn


def say(*sentences: str) -> None:
    """Print sentences, folded at the width of the terminal, none of their characters taken for markup."""
    console = _console()
    for sentence in sentences:
        console.print(sentence, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def show_json(content: dict[str, Any]) -> None:
    """Print one JSON object; a DataFrame becomes a list of rows, what is not a finite number null, and a date its ISO form."""
    print(json.dumps({key: rows(value) if isinstance(value, pd.DataFrame) else value for key, value in content.items()}, allow_nan=False))


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as plain Python values, at full precision; columns under two headings are called "upper_lower".

    >>> rows(pd.DataFrame({"kl": [0.1, float("nan")], "steps": [3, 4]}))
    [{'kl': 0.1, 'steps': 3}, {'kl': None, 'steps': 4}]
    """
    return [{_name(key): _plain(value) for key, value in row.items()} for row in table.astype(object).to_dict("records")]


def spell(value: object) -> str:
    """A value as a table shows it: four decimals, two significant digits where it is smaller than that, "-" where there is none.

    >>> spell(-4.155382), spell(0.0000312), spell(-2e-13), spell(0.0), spell(float("nan")), spell(51)
    ('-4.1554', '3.1e-05', '-2.0e-13', '0.0000', '-', '51')
    """
    if not isinstance(value, float):
        return "-" if value is None or value is pd.NA else str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}".replace("-0.0000", "0.0000")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on standard error while the block runs: yields what `progress=` takes, or None where standard error is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with redirect_stdout(sys.stderr):  # a model of the user's may print; standard output is for results
            yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}", markup=False))
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _console() -> Console:
    measured = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if measured else PIPE_WIDTH)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else value


def _name(column: object) -> str:
    return "_".join(filter(None, column)) if isinstance(column, tuple) else str(column)
