"""The wheel holds every file of the package, models/ included, and works where the checkout is out of sight."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {"ppvae": "ppvae", "models": "ppvae/models"}  # folder of the tree -> folder of the wheel


def run(*command, cwd: Path) -> str:
    """The command's standard output, run in `cwd` without the caller's PYTHONPATH; fails with all it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree, so that nothing is left in the checkout."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ".", cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of a clean environment that holds the wheel and sees the dependencies installed here, but no editable install."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    # A folder named in a .pth joins sys.path, but the .pth files inside it (such as that of `pip install -e .`) are not read.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies.pth").write_text("\n".join(sorted(here)) + "\n")
    return python


def test_every_file_of_the_tree_reaches_the_wheel(wheel):
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("ppvae/")}
    tree = {f"{inside}/{name}" for folder, inside in SHIPPED.items() for name in files(ROOT / folder)}
    assert held == tree


def test_the_wheel_serves_every_model_outside_the_checkout(installed, tmp_path):
    program = """
import json, ppvae, ppvae.models
from pathlib import Path
from importlib import import_module
files = [Path(ppvae.__file__), Path(ppvae.models.__file__)]
for file in Path(ppvae.models.__file__).parent.glob("[!_]*.py"):
    files.append(Path(import_module(f"ppvae.models.{file.stem}").__file__))
print(json.dumps([str(f) for f in files]))
"""
    imported = [Path(f) for f in json.loads(run(installed, "-c", program, cwd=tmp_path))]
    assert all(f.is_relative_to(installed.parents[1]) for f in imported), imported
    assert {f.name for f in imported} == {p.name for p in (ROOT / "models").glob("*.py")}


def test_the_wheel_brings_the_command_and_the_data(installed, tmp_path):
    listed = run(installed.with_name("ppvae"), "models", cwd=tmp_path)
    for file in (ROOT / "models").glob("[!_]*.py"):
        assert file.stem in listed
    shape = run(installed, "-c", "import ppvae; d = ppvae.load_data('faithful'); print(d.n_rows, d.n_features)", cwd=tmp_path)
    assert shape.split() == ["272", "2"]
