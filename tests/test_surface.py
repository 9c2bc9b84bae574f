"""The public names: there, and what they say, whatever else has been imported."""

import subprocess
import sys

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
