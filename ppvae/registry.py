"""Names: the one place where a word becomes a model, a method or a data set.

Models and methods are found by looking at the files of `ppvae.models` and `ppvae.inference`, without importing them: a new one is a new
file there, and nothing else has to know of it.
"""

import ast
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zlib import crc32

from ppvae.messages import spelled, unknown

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ppvae.data import Data
    from ppvae.model import Model

_MODEL_FILE = re.compile(r"(?P<path>.+\.py)(:(?P<name>\w+))?")


@dataclass(frozen=True)
class Entry:
    """A model or method as its file shows it: where it is, the first line of its docstring, and its options with their defaults."""

    module: str
    class_name: str
    summary: str
    options: str

    def load(self) -> type:
        return getattr(import_module(self.module), self.class_name)


def models() -> dict[str, Entry]:
    """Every model by name, from the files of `ppvae.models`; torch is not imported."""
    return _entries("ppvae.models", "Model")


def methods() -> dict[str, Entry]:
    """Every method of fitting by name, from the files of `ppvae.inference`; torch is not imported."""
    return _entries("ppvae.inference", "Method")


def load_model(source: str, **config: Any) -> "Model":
    """The model called `source`, or the one in the file `source` ("path/file.py", or "path/file.py:Name" where it defines several).

    config: the model's options; text is read by the type of the option, so `load_model("gmm", n_components="3")` works.
    Raises ValueError for an unknown name or option, a value of the wrong kind, and a file that is missing or defines no model.
    """
    from ppvae.options import configured

    file = _MODEL_FILE.fullmatch(str(source))
    cls = _model_in(Path(file["path"]), file["name"]) if file else _find("model", str(source), models()).load()
    return configured(cls, config)


def load_method(name: str, **config: Any) -> Any:
    """The method called `name` ("em", "svi", ...) with these options, read as in `load_model`.

    >>> load_method("svi", steps="500").steps
    500
    """
    from ppvae.options import configured

    return configured(_find("method", name, methods()).load(), config)


def load_methods(words: str) -> list[Any]:
    """The methods in "em,svi", each with its options after colons: "em:acceleration=squarem:tolerance=1e-7,svi:steps=2000".

    >>> [type(m).__name__ for m in load_methods("em,svi:steps=500")]
    ['EM', 'SVI']
    """
    from ppvae.options import pairs

    parts = [word.split(":") for word in words.split(",")]
    return [load_method(name.strip(), **pairs(options)) for name, *options in parts]


def load_data(
    source: str | Path,
    rescale: bool = False,
    columns: Sequence[str] | None = None,
    context: Sequence[str] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> "Data":
    """The bundled data set called `source`, or the table in the .csv, .npy or .parquet file `source`.

    rescale: map the values onto [0, 1] (`Data.rescaled`).  columns: the features to take; for a file without names, those to give.
    context: columns that a conditional model is given: numbers as they are, words as a column of 0 and 1 for each word; "labels" stands
    for the known classes of a bundled data set.  image_shape: (height, width), where the rows of a file are pictures.
    Raises ValueError for an unknown name, a file that is missing and a table that cannot be used (see `ppvae.tables.read_table`).

    >>> load_data("faithful")
    Data(faithful: 272 rows x 2 features)
    >>> load_data("iris", context=["labels"]).context.shape
    torch.Size([150, 3])
    """
    from ppvae import datasets, tables
    from ppvae.data import Data, recipe

    if not isinstance(source, str | Path):
        raise ValueError(f"load_data takes a name or a file, not {type(source).__name__}: give a table to ppvae.Data")
    path = Path(source)
    if not _is_file(source):
        known = datasets.find(str(source))
        table, labels = known.read()
        given = None if context is None else context_of(table, labels, context)
        # A choice of pixels is no picture.
        shape = image_shape or (None if columns else known.image_shape)
        data = Data(table, given, columns or _but(table, context), name=str(source), labels=labels, image_shape=shape)
    elif context is None:
        data = Data(path, columns=columns, name=path.stem, image_shape=image_shape)
    else:
        table = load_frame(source)
        table = table.set_axis(tables.column_names(table), axis=1)
        data = Data(table, context_of(table, None, context), columns or _but(table, context), name=path.stem, image_shape=image_shape)
    data.recipe = recipe("load_data", source, columns=columns, context=context, image_shape=image_shape)
    return data.rescaled() if rescale else data


def context_of(table: "pd.DataFrame", labels: "np.ndarray | None", names: Sequence[str]) -> "pd.DataFrame":
    """The columns of these names; `labels` stands for known classes. Raises ValueError for names that are not there."""
    known = table if labels is None else table.assign(labels=labels.astype(str))
    for name in names:
        if name not in known.columns:
            raise unknown("context column", name, known.columns)
    return known[list(names)]


def _but(table: "pd.DataFrame", context: Sequence[str] | None) -> list[str] | None:
    return [name for name in table.columns if name not in context] if context else None


def load_frame(source: str | Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """The table that `load_data` would read, as it came: text columns, dtypes and all. Raises ValueError as `load_data` does."""
    from ppvae import datasets, tables

    return tables.read_frame(Path(source), columns) if _is_file(source) else datasets.find(str(source)).read()[0]


def known_labels(source: str | Path) -> "np.ndarray | None":
    """The known classes of a bundled data set; None of a file."""
    from ppvae import datasets

    return None if _is_file(source) else datasets.find(str(source)).read()[1]


def _is_file(source: str | Path) -> bool:
    """Whether this is meant as a path: a data set's name wins over a folder of that name."""
    from ppvae.datasets import DATASETS

    return str(source) not in DATASETS and (Path(source).suffix != "" or Path(source).exists())


def source_of(model: "Model") -> str:
    """The word by which `load_model` finds this model's class again: its name, or "path/file.py:Name" for a model outside ppvae."""
    cls = type(model)
    if cls.__module__.startswith("ppvae.models."):
        return model.name
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        raise ValueError(f"the model {cls.__name__} was not defined in a file: move it into one, so that it can be found again")
    return f"{Path(file).resolve()}:{cls.__qualname__}"


def _find(kind: str, name: str, entries: dict[str, Entry]) -> Entry:
    same = {key.replace("_", ""): entry for key, entry in entries.items()}
    key = name.lower().replace("_", "").replace("-", "")
    if key not in same:
        raise unknown(kind, name, entries)
    return same[key]


def _model_in(path: Path, name: str | None) -> type["Model"]:
    """The Model subclass in a user's file: the one called `name`, or the only one that the file defines."""
    from ppvae.model import Model

    module = _module_of(path)
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Model)}
    found = {key: cls for key, cls in classes.items() if cls.__module__ == module.__name__}
    if not found:
        raise ValueError(f"{path} defines no model: write a dataclass that inherits from ppvae.Model")
    if name is None and len(found) > 1:
        raise ValueError(f"{path} defines several models: name one of them, {path}:{next(iter(found))} (models: {', '.join(found)})")
    if name is not None and name not in found:
        raise unknown("model", name, found)
    cls = found[name or next(iter(found))]
    absent = [method for method in ("init", "model") if getattr(cls, method) is getattr(Model, method)]
    if absent:
        raise ValueError(f"{path}: {cls.__name__} does not define {' and '.join(absent)}: a model needs a start and a story")
    return cls


def _module_of(path: Path) -> ModuleType:
    """A user's file as a module. The script that is running is there already: to run it once more would fit and save all over again."""
    if not path.is_file():
        raise ValueError(f"no such model file: {path}")
    running = getattr(sys.modules["__main__"], "__file__", None)
    if running is not None and Path(running).resolve() == path.resolve():
        return sys.modules["__main__"]
    # The module must be findable while it runs, since dataclasses look there; the path's checksum keeps files of one name apart.
    spec = spec_from_file_location(f"{path.stem}_{crc32(str(path.resolve()).encode()):08x}", path)
    assert spec is not None  # the path ends in .py
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} is not valid Python: {error.msg} (line {error.lineno})") from error
    except ImportError as error:
        raise ValueError(f"{path} imports what is not there: {error}: install it, or correct the import") from error
    except TypeError as error:
        if "non-frozen dataclass" not in str(error):
            raise
        raise ValueError(f"{path}: a model is a frozen dataclass: write @dataclass(frozen=True)") from error
    return module


# --- looking without importing ------------------------------------------------------------------------------------------------------


@cache
def _entries(package: str, base: str) -> dict[str, Entry]:
    """The public classes in a package's files that inherit from `base`, even through one another, by name (ClosedForm: "closed_form")."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is not installed: pip install -e . in the checkout")
    classes: dict[str, tuple[str, ast.Module, ast.ClassDef]] = {}
    for folder in spec.submodule_search_locations:
        for file in sorted(Path(folder).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            classes |= {node.name: (file.stem, tree, node) for node in tree.body if isinstance(node, ast.ClassDef)}

    def line(name: str) -> list[ast.ClassDef]:
        """The class and those of its bases that these files define, `base` left out; empty where it does not inherit from `base`."""
        node = classes[name][2]
        for parent in (ast.unparse(b).rpartition(".")[2] for b in node.bases):
            if parent == base:
                return [node]
            if parent in classes and line(parent):
                return [node, *line(parent)]
        return []

    ancestries = {name: line(name) for name in classes if not name.startswith("_") and line(name)}
    files = [classes[name][0] for name in ancestries]
    found = {}
    for name, ancestry in ancestries.items():
        stem, tree, node = classes[name]
        about = tree if files.count(stem) == 1 else node  # a file with one story opens with it
        summary = (ast.get_docstring(about) or "").partition("\n")[0].rstrip(".")
        found[spelled(name)] = Entry(f"{package}.{stem}", name, summary, _options(ancestry))
    return dict(sorted(found.items()))


def _options(ancestry: list[ast.ClassDef]) -> str:
    """The dataclass fields of a class and its bases, as "n_latents=2, hidden=(64,)"."""
    fields: dict[str, str] = {}
    for node in reversed(ancestry):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and "ClassVar" not in ast.unparse(item.annotation):
                fields[item.target.id] = "" if item.value is None else f"={ast.unparse(item.value)}"
    return ", ".join(name + default for name, default in fields.items())
