"""Sections on where the results come from: the data, the settings, the versions."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import ppvae
from ppvae.criticism import missingness
from ppvae.registry import source_of
from ppvae.report import runs, words
from ppvae.report.blocks import Block, Code, Points, Section, Table, Text, picture
from ppvae.report.figures import holes

if TYPE_CHECKING:
    from ppvae.comparison import Comparison
    from ppvae.data import Data
    from ppvae.inference.result import Fit
    from ppvae.model import Model

PACKAGES = ("torch", "pyro-ppl", "numpy", "pandas", "matplotlib")
FEATURES = 60  # lines of the table of features
NUMBERS = 1000  # of one option, written out


def of_data(data: Data, hidden: str = "") -> Section:
    """Rows, features, and what is missing; `hidden` says how many of the observed entries were kept from the fits."""
    return Section("data", "The data", list(_data(data, hidden)))


def _data(data: Data, hidden: str) -> Iterator[Block]:
    entries, missing = data.observed.numel(), int((~data.observed).sum())
    holes_said = f"{missing} of {entries} entries are missing ({missing / entries:.1%}); they are marginalised, never filled in"
    size = f"{words.count(data.n_rows, 'row')}, {words.count(data.n_features, 'feature')}"
    yield Text(f"{data.name}: {size}; {holes_said if missing else 'no entry is missing'}." + (f" Besides, {hidden}." if hidden else ""))
    if data.origin.range is not None:
        low, high = map(words.plain, data.origin.range)
        yield Text(f"Its entries were mapped onto [0, 1]: {low} became 0, and {high} became 1. All numbers here are of what came out.")
    if missing:
        yield picture(
            "Share missing in each feature, above the patterns of missing features",
            "Above: the share of each feature that is missing. Below: which are missing together (dark), the most common pattern first.",
            holes.missingness(data),
        )
        yield Text(
            "The fit assumes that entries are missing at random (MAR): whether one is missing may depend on what was observed in its row, "
            "not on its own value. Of the second no table can tell."
        )
        warning = missingness.warning(data)
        if warning:
            yield Text(f"Note: {warning}.")
    if data.image_shape is not None:
        height, width = data.image_shape
        span = f"from {words.plain(float(data.x.min()))} to {words.plain(float(data.x.max()))}"
        yield Text(f"Each row is a picture of {height} {words.TIMES} {width} pixels with values {span}.")
        return
    frame = data.frame()
    described = frame.describe().T.assign(std=frame.std(ddof=0)).iloc[:FEATURES]  # the checks' divisor, n
    rows = [
        [str(name), f"{row['count']:.0f}", *(words.plain(row[c]) for c in ("mean", "std", "min", "max"))]
        for name, row in described.iterrows()
    ]
    yield Table("Each feature over its observed entries", ["feature", "observed", "mean", "sd", "min", "max"], rows)


def of_comparison(comparison: Comparison) -> Section:
    """Settings, Python lines and versions that make the comparison again."""
    out = [f"{name}: {why}." for name, why in comparison.left_out.items()]
    left_out: list[Block] = [Text("Left out, as the model or the data do not allow it:"), Points(out)] if out else []
    return Section("again", "To run it again", [_settings(comparison), *left_out, Code(_lines(comparison)), _versions()])


def of_versions() -> Section:
    """The versions that made a report."""
    return Section("again", "Versions", [_versions()])


def _settings(comparison: Comparison) -> Table:
    model = comparison.model
    rows = [["model", f"{type(model).__name__}({_arguments(model.config())})"]]
    rows += [[method, f"{fit.method!r}, run by {fit.engine}"] for method, fit in _one_of_each(comparison).items()]
    return Table("Settings", ["", "value"], rows, text=(0, 1))


def _lines(comparison: Comparison) -> str:
    """Python that runs the comparison again; "..." where what it was given is in memory alone."""
    model = comparison.model
    made = type(model).__name__
    methods = [f"    ppvae.{fit.method!r}," for fit in _one_of_each(comparison).values()]
    options = {"seeds": str(comparison.table["seed"].nunique())} | {name: _spelled(value) for name, value in comparison.asked.items()}
    ours = type(model).__module__.startswith("ppvae.models.")
    return "\n".join(
        [
            "import ppvae",
            *([f"from {type(model).__module__} import {made}"] if ours else []),
            "",
            f"data = {comparison.recipe or f'...  # your table {comparison.data.name!r}, as a ppvae.Data'}",
            f"model = {made}({_arguments(model.config())})" if ours else f"model = {_loaded(model)}",
            "methods = [",
            *methods,
            "]",
            f"comparison = ppvae.compare(model, data, methods, {', '.join(f'{name}={value}' for name, value in options.items())})",
            'comparison.save("report.html")',
        ]
    )


def _loaded(model: Model) -> str:
    """A model of one's own, by its file."""
    file = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    if file is None:
        return f"...  # your {model.describe()}"
    return f"ppvae.load_model({', '.join(filter(None, [repr(source_of(model)), _arguments(model.config())]))})"


def _spelled(value: Any) -> str:
    """An option as Python has it, numbers with all their digits; "..." for what is no text or numbers, and for a great many of these."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {_spelled(part)}' for name, part in value.items())}}}"
    if isinstance(value, torch.dtype | torch.device) or (isinstance(value, type) and issubclass(value, np.generic)):
        return repr(getattr(value, "__name__", str(value).removeprefix("torch.")))
    if isinstance(value, str | float | int):
        return repr(value)
    if isinstance(value, nn.Module) or callable(value) or dataclasses.is_dataclass(value):
        return "..."
    numbers = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    return repr(numbers.tolist()) if numbers.dtype.kind in "biuf" and numbers.size <= NUMBERS else "..."


def _one_of_each(comparison: Comparison) -> dict[str, Fit]:
    """A fit by each method, by the method's name in the table."""
    return dict(zip(runs.labels(comparison), comparison.fits, strict=True))


def _arguments(config: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in config.items())


def _versions() -> Table:
    rows = [["python", platform.python_version()], ["ppvae", ppvae.__version__], *([name, version(name)] for name in PACKAGES)]
    return Table("Packages that made this report", ["package", "version"], rows, text=(0, 1))
