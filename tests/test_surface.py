"""The public names: there, and what they say, whatever else has been imported."""

import subprocess
import sys

import numpy as np
import pytest

import ppvae
from ppvae.models import PPCA
from ppvae.parameters import Parameters

MODULES = {"models", "laws", "report", "guides", "distributions", "datasets"}


def test_no_module_hides_a_function_of_its_name():
    """Importing the module a.b binds b in a; were there a public function of that name, it would be gone."""
    program = """
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
import ppvae
for module in walk_packages(ppvae.__path__, "ppvae."):
    import_module(module.name)
print(*(name for name in ppvae.__all__ if isinstance(getattr(ppvae, name), ModuleType)))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) == MODULES


def test_modules_are_found_where_the_reference_names_them():
    program = """
import sys
import ppvae
assert not any(name.startswith("ppvae.") or name == "torch" for name in sys.modules)
print(ppvae.imputation.Pooled.__name__, ppvae.criticism.bounds.climb.__name__, ppvae.inference.objectives.__name__)
print([hasattr(package, "nonsense") for package in (ppvae, ppvae.criticism)])
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "Pooled climb ppvae.inference.objectives\n[False, False]\n"


@pytest.mark.parametrize("ask", [ppvae.fit, ppvae.compare, ppvae.laws.check], ids=["fit", "compare", "laws"])
def test_what_is_no_model_is_refused_in_the_same_words(ask):
    iris = ppvae.load_data("iris")
    for given, sentence in (("ppca", r"ppvae\.load_model\('gmm'\), not 'ppca'$"), (PPCA, r"^PPCA is a class"), (iris, "not Data$")):
        with pytest.raises(ValueError, match=sentence):
            ask(given, iris)


def test_what_is_no_fit_or_no_source_is_refused():
    with pytest.raises(ValueError, match=r"^check takes what ppvae\.fit gives, not PPCA"):
        ppvae.check(PPCA(2), ppvae.load_data("iris"))
    for source in (3, None, np.zeros((3, 2))):
        with pytest.raises(ValueError, match=r"^load_data takes a name or a file, not \w+: give a table to ppvae\.Data$"):
            ppvae.load_data(source)


class Unstarted(PPCA):
    def init(self, data, generator):
        return super().init(data, 1 / 0)


class Unguided(PPCA):
    def guide(self, data):
        return self.nothing


class Picky(PPCA):
    def check(self, data):
        return data.nothing


class Uncalled(PPCA):
    def init(self, data):
        raise AssertionError


class Refusing(PPCA):
    def check(self, data):
        raise ValueError("not today: come tomorrow")


class Ragged(PPCA):
    def init(self, data, generator):
        return Parameters(mean=np.zeros(2) + np.zeros(3))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Unstarted, r"^unstarted: init fails at line \d+, `return super\(\)\.init\(data, 1 / 0\)`: ZeroDivisionError: division by zero$"),
        (Unguided, r"^unguided: guide fails at line \d+, `return self\.nothing`: AttributeError: "),
        (Picky, r"^picky: check fails at line \d+, `return data\.nothing`: AttributeError: "),
        (Uncalled, r"^uncalled: init fails: TypeError: .* takes 2 positional arguments but 3 were given$"),
        (Refusing, "^not today: come tomorrow$"),  # a sentence of the model's own
        (Ragged, r"^ragged: init fails at line \d+, `return Parameters.*`: ValueError: operands could not be broadcast"),
    ],
)
def test_what_fails_in_a_model_is_said_with_its_line(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.fit(model(), ppvae.load_data("iris"), ppvae.SVI(steps=1, compile=False))
