"""Sphinx: Markdown pages, run while they are built, and a reference drawn from the docstrings."""

import os
from importlib.metadata import version as installed

from ppvae import registry

# Pyro's progress bar misses its widgets in every page that is run; the warning is not the reader's concern.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
os.environ["OMP_NUM_THREADS"] = "1"  # as in the tests: small tensors, and cores that others may use


def models_reference() -> str:
    """Every model file's story and class, so that a new model is in the reference as it is in the registry."""
    modules: dict[str, list[str]] = {}
    for entry in registry.models().values():
        modules.setdefault(entry.module, []).append(entry.class_name)
    listed = (f".. automodule:: {m}\n" + "".join(f".. autoclass:: {m}.{c}\n" for c in classes) for m, classes in modules.items())
    return "\n".join(["```{eval-rst}", *listed, "```"])


project = "ppvae"
author = "the ppvae authors"
copyright = f"2026, {author}"
version = release = installed("ppvae")

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "ppvae"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_enable_extensions = ["dollarmath", "substitution"]
myst_substitutions = {"models": models_reference()}
myst_heading_anchors = 2
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "literal"  # docstrings write `name`, as Markdown does


def as_markup(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are laid out for the eye: an indented block is an equation, kept as it stands; other indented lines carry on."""
    kept: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal and kept and not kept[-1]:
            kept += ["::", ""]
            literal = True
        elif line and not indented:
            literal = False
        kept.append(line if literal or line.startswith((">>>", "...")) else line.lstrip() if indented else line)
    lines[:] = kept


def setup(app) -> None:
    app.connect("autodoc-process-docstring", as_markup)
