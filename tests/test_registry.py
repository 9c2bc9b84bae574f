"""Words become models, methods and their options."""

import subprocess
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

import ppvae
from ppvae import registry
from ppvae.options import Configuration, configured, pairs

if TYPE_CHECKING:
    import pandas as pd

MODEL = """
from dataclasses import dataclass
import ppvae

@dataclass(frozen=True)
class Banana(ppvae.Model):
    bend: float = 1.0

    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean)

    def model(self, theta, batch):
        pass
"""


@dataclass(frozen=True)
class Config:
    size: int
    rate: float = 0.1
    covers: bool = False
    hidden: tuple[int, ...] = (64,)
    betas: tuple[float, float] = (0.9, 0.99)
    speed: Literal["slow", "fast"] | None = None
    limit: int | None = None
    word: str = "a"


def test_text_is_read_by_the_type_of_the_field():
    words = pairs(["size=1e4", "rate=1e-3", "covers=yes", "hidden=64,32", "betas=(0.5, 0.9)", "speed=fast", "limit=none", "word=3"])
    assert configured(Config, words) == Config(10_000, 1e-3, True, (64, 32), (0.5, 0.9), "fast", None, "3")
    assert configured(Config, {"size": 2, "hidden": [8, 4], "limit": "5"}) == Config(2, hidden=(8, 4), limit=5)


@dataclass(frozen=True)
class Net(Configuration):
    size: int = 1
    hidden: tuple[int, ...] = (64,)
    rate: float | None = None
    covers: bool = False
    speed: Literal["slow", "fast"] = "slow"
    table: np.ndarray | None = None


@dataclass(frozen=True)
class Unseen(Configuration):
    size: int = 1
    table: "pd.DataFrame | None" = None


def test_values_are_held_to_their_annotations_and_kept_plain():
    net = Net(np.int64(3), [32.0, np.int32(16)], 1, np.bool_(True), "fast", table := np.zeros(2))
    assert net == Net(3, (32, 16), 1.0, True, "fast", table)
    assert [type(v) for v in (net.size, *net.hidden, net.rate, net.covers)] == [int, int, int, float, bool]
    assert Net(size=2**60 + 1).size == 2**60 + 1
    assert (Net(size=1e3).size, Net(hidden=8).hidden, Net(hidden=()).hidden) == (1000, (8,), ())
    assert Unseen(table="anything").table == "anything"  # its annotation cannot be read here


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": 1.5}, "net: size must be a whole number, not 1.5"),
        ({"size": "2"}, "net: size must be a whole number, not '2'"),
        ({"size": float("inf")}, "net: size must be a whole number, not inf"),
        ({"size": float("nan")}, "net: size must be a whole number, not nan"),
        ({"rate": 10**400}, "net: rate must be a number or none, not 1000"),
        ({"size": True}, "net: size must be a whole number, not True"),
        ({"size": None}, "net: size must be a whole number, not None"),
        ({"hidden": ("a",)}, r"net: hidden must be whole numbers with commas between, not \('a',\)"),
        ({"rate": "x"}, "net: rate must be a number or none, not 'x'"),
        ({"rate": False}, "net: rate must be a number or none, not False"),
        ({"covers": "yes"}, "net: covers must be true or false, not 'yes'"),
        ({"covers": 1}, "net: covers must be true or false, not 1"),
        ({"speed": 3}, "net: speed must be slow or fast, not 3"),
    ],
)
def test_a_value_of_another_kind_says_what_is_right(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Net(**values)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["size=two"], "config: size must be a whole number, not 'two'"),
        (["size=1.5"], "config: size must be a whole number, not '1.5'"),
        (["size=nan"], "config: size must be a whole number, not 'nan'"),
        (["size=inf"], "config: size must be a whole number, not 'inf'"),
        (["size=1", "covers=2"], "config: covers must be true or false, not '2'"),
        (["size=1", "hidden=a,b"], "config: hidden must be whole numbers with commas between, not 'a,b'"),
        (["size=1", "betas=0.9"], "config: betas must be numbers with commas between, not '0.9'"),
        (["size=1", "speed=fats"], "config: speed must be slow or fast or none, not 'fats'"),
        (["size=1", "sped=fast"], "unknown config option 'sped': did you mean 'speed'"),
        (["rate=1"], "config needs a value for size"),
        (["size"], "cannot read the option 'size': write it as name=value"),
        (["size="], "cannot read the option 'size='"),
        (["size=1", "size=2"], "the option size is given twice"),
    ],
)
def test_a_wrong_option_says_what_is_right(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        configured(Config, pairs(words))


def test_every_model_file_is_found_and_loads():
    for name, entry in registry.models().items():
        model = ppvae.load_model(name)
        assert ppvae.load_model(registry.source_of(model)) == model
        assert type(model).__name__ == entry.class_name
        assert entry.summary
        assert [option.partition("=")[0] for option in entry.options.split(", ") if "=" in option] == [f.name for f in fields(model)]


@pytest.mark.parametrize("make", [*registry.models().values(), *registry.methods().values()], ids=lambda entry: entry.class_name)
def test_models_and_methods_hold_all_their_fields_to_their_annotations(make):
    """Also where a class has checks of its own, which would otherwise meet what they cannot compare."""
    cls = make.load()
    for field in fields(cls):
        with pytest.raises(ValueError, match=f"^{cls().name}: {field.name} must be .*, not "):
            cls(**{field.name: object()})


def test_every_method_is_found_and_loads():
    assert {"em", "svi", "closed_form"} <= set(registry.methods())
    for name in registry.methods():
        registry.load_method(name)
    em, svi = registry.load_methods("EM:acceleration=squarem:tolerance=1e-7, svi:steps=10")
    assert (em.acceleration, em.tolerance, svi.steps) == ("squarem", 1e-7, 10)
    assert type(registry.load_method("closedform")).__name__ == "ClosedForm"
    with pytest.raises(ValueError, match="unknown method 'emm': did you mean 'em'"):
        registry.load_methods("emm")
    with pytest.raises(ValueError, match="unknown svi option 'stepps': did you mean 'steps'"):
        registry.load_methods("svi:stepps=3")


def test_unknown_models_and_options_get_the_nearest_names():
    with pytest.raises(ValueError, match="unknown model 'gmn': did you mean 'gmm'"):
        ppvae.load_model("gmn")
    with pytest.raises(ValueError, match="unknown ppca option 'n_latent': did you mean 'n_latents'"):
        ppvae.load_model("ppca", n_latent=2)
    with pytest.raises(ValueError, match="unknown bayesian_gmm option 'covarience': did you mean 'covariance'"):
        ppvae.load_model("bayesian_gmm", covarience="diag")


def test_a_model_from_a_file(tmp_path):
    path = tmp_path / "my-model.py"
    path.write_text(MODEL)
    model = ppvae.load_model(str(path), bend="2")
    assert (model.name, model.bend) == ("banana", 2.0)
    assert registry.source_of(model) == f"{path}:Banana"
    assert ppvae.load_model(f"{path}:Banana").bend == 1.0
    with pytest.raises(ValueError, match="unknown model 'Banan': did you mean 'Banana'"):
        ppvae.load_model(f"{path}:Banan")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "defines no model: write a dataclass"),
        ("class Broken(:\n", r"is not valid Python: .*line 1"),
        (MODEL.replace("def model", "def story"), "Banana does not define model: a model needs a start and a story"),
        (MODEL.replace("@dataclass(frozen=True)", "@dataclass"), r"a model is a frozen dataclass: write @dataclass\(frozen=True\)"),
        (MODEL + MODEL.replace("Banana", "Pear"), "defines several models: name one of them, .*:Banana"),
    ],
)
def test_a_file_without_one_model_is_refused(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        ppvae.load_model(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "change", [("bend: float = 1.0", "bend = 1.0"), ("@dataclass(frozen=True)\n", "")], ids=["annotation", "decorator"]
)
def test_an_option_without_its_annotation_or_decorator(tmp_path, change):
    (tmp_path / "mine.py").write_text(MODEL.replace(*change))
    with pytest.raises(
        ValueError, match=r"bend is no field of Banana, so no option: write `bend: float = 1\.0` under @dataclass\(frozen=True\)"
    ):
        ppvae.load_model(str(tmp_path / "mine.py"), bend="2")


def test_python_can_suggest_a_model():
    assert {entry.class_name for entry in registry.models().values()} == set(dir(ppvae.models))


def test_a_missing_model_file_is_refused():
    with pytest.raises(ValueError, match=r"no such model file: none\.py"):
        ppvae.load_model("none.py:Name")


def test_names_are_listed_without_torch():
    look = "import sys; from ppvae import datasets, registry; registry.models(), registry.methods(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)
