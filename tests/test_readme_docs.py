"""What is written runs: the README's examples, and the doctests of every module."""

import doctest
import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import matplotlib.pyplot as plt
import pytest

import ppvae
import ppvae.models

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(m.name for package in (ppvae, ppvae.models) for m in walk_packages(package.__path__, f"{package.__name__}."))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_opens_with_the_two_commands():
    commands = [block.strip() for block in blocks("sh") if block.startswith("pip install ")]
    assert commands == [
        "pip install -c constraints.txt -e . && ppvae compare gmm faithful --set n_components=2 --seeds 3 --report report.html",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]


def test_the_readme_shows_the_model_file_that_the_docs_run():
    example = ROOT / "docs" / "examples" / "robust_pca.py"
    _, shown = blocks("python")
    assert shown == example.read_text(encoding="utf-8")
    assert len(shown.splitlines()) < 30


def test_the_readmes_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert (tmp_path / "report.html").stat().st_size > 0
    plt.close("all")


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(import_module(module), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_the_architecture_page_names_every_room():
    layout = re.search(r"^ppvae/\n(.*?)^models/", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    named = {line.split()[0].rstrip("/") for line in layout[1].splitlines()}
    rooms = {p.name for p in (ROOT / "ppvae").iterdir() if not p.name.startswith("_") and p.name != "py.typed"}
    assert named == rooms
