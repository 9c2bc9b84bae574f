"""Save and load: JSON for what a person may read, safetensors for tensors. Nothing is pickled."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ppvae import guides
from ppvae.data import Data, Summary
from ppvae.exact import ExactGuide
from ppvae.factors import Factors
from ppvae.failures import MISTAKES
from ppvae.inference.fit import start
from ppvae.inference.result import Fit
from ppvae.messages import why
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.places import check_new
from ppvae.program.derive import shaped
from ppvae.registry import load_method, load_model, source_of
from ppvae.shared import Draws, WithRows

FORMAT = 2
FILES = ("fit.json", "tensors.safetensors", "history.csv")
UNREADABLE = (*MISTAKES, SafetensorError)  # what a file that was changed may lead to


def save(fit: Fit, folder: str | Path) -> Path:
    """Write the fit into a new folder, whole or not at all.

    Raises ValueError if the folder exists, if its parent does not or may not be written in, or if the guide was passed as code that a new
    process could not find.
    """
    folder = Path(folder)
    check_new(folder)
    about = {
        "format": FORMAT,
        "model": {"source": source_of(fit.model), "config": fit.model.config()},
        "method": {"name": fit.method.name, "config": fit.method.config()},
        "guide": _guide_recipe(fit),
        "dtype": str(fit.dtype).removeprefix("torch."),
        "status": fit.status,
        "converged": fit.converged,
        "seconds": fit.seconds,
        "steps": fit.steps,
        "seed": fit.seed,
        "engine": fit.engine,
        "trained_on": asdict(fit.trained_on),
    }
    tensors = nn.ModuleDict({"theta": fit.theta, "guide": fit.guide}).state_dict()
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent) as scratch:
        (Path(scratch) / FILES[0]).write_text(json.dumps(about, indent=1))
        apart = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}  # a network under two names shares its own
        save_file(apart, Path(scratch) / FILES[1])
        fit.history.to_csv(Path(scratch) / FILES[2], index=False)
        made = Path(scratch) / "fit"
        made.mkdir()
        os.chmod(Path(scratch) / FILES[1], (Path(scratch) / FILES[0]).stat().st_mode)  # safetensors writes for the owner alone
        for name in FILES:
            shutil.move(Path(scratch) / name, made / name)
        os.rename(made, folder)
    return folder


def load(folder: str | Path) -> Fit:
    """A fit that predicts bit for bit as the one that was saved, on the CPU.

    Raises ValueError for a folder that is missing, damaged, or not a saved fit, and for a model of one's own whose file was moved or no
    longer defines it.

    >>> import ppvae, tempfile, pathlib
    >>> faithful = ppvae.load_data("faithful")
    >>> fit = ppvae.fit(ppvae.models.GMM(), faithful)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     again = ppvae.load(fit.save(pathlib.Path(place) / "fit"))
    >>> bool((again.log_likelihood(faithful) == fit.log_likelihood(faithful)).all())
    True
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder with a saved fit")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a saved fit: {missing[0]} is missing")
    try:
        about = json.loads((folder / FILES[0]).read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"it was saved in format {about['format']}, this version reads format {FORMAT}")
        tensors = load_file(folder / FILES[1])
        source, config, recipe = about["model"]["source"], _tuples(about["model"]["config"]), about["guide"]
        summary = Summary.of(about["trained_on"])
        sketch = summary.sketch().to(getattr(torch, about["dtype"]))
        kept = {name: about[name] for name in ("status", "converged", "seconds", "steps", "seed", "engine")}
        kept["method"] = load_method(about["method"]["name"], **_tuples(about["method"]["config"]))
        kept["history"] = pd.read_csv(folder / FILES[2])
    except UNREADABLE as error:
        raise _damaged(folder, error) from error
    try:
        model = load_model(source, **config)
        theta = start(model, sketch, 0)
        guide = _guide(recipe, model, theta, sketch)
        nn.ModuleDict({"theta": theta, "guide": guide}).load_state_dict(tensors)
    except UNREADABLE as error:
        file = str(source).rpartition(":")[0]
        if not file:
            raise _damaged(folder, error) from error
        raise ValueError(f"{folder} needs its model as it was, and {file} was moved or changed: put it back ({why(error)})") from error
    return Fit(model=model, theta=theta, guide=guide, trained_on=summary, **kept)


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder} is damaged or not a saved fit ({type(error).__name__}: {why(error)})")


def _guide_recipe(fit: Fit) -> object:
    """How to build the guide again: a kind with its settings, or (None) what the model's own `guide` gives."""
    if isinstance(fit.guide, ExactGuide):
        return {"kind": "exact"}
    if isinstance(fit.guide, Draws):
        return {"kind": "draws", "shapes": {name: list(value.shape) for name, value in fit.guide.values.items()}}
    if isinstance(fit.guide, Factors):
        return {"kind": "factors", "point": fit.guide.point}
    rows = fit.guide.rows if isinstance(fit.guide, WithRows) else fit.guide
    if isinstance(rows, guides.Amortized):
        return {"kind": "family", **asdict(rows.family)}
    own = fit.model.guide(fit.trained_on.sketch())
    if type(own) is type(fit.guide):
        return None
    raise ValueError(
        f"the guide is a {type(fit.guide).__name__} of your own: let the model's guide(self, data) return it, for load to build it again"
    )


def _guide(recipe: dict[str, Any] | None, model: Model, theta: Parameters, sketch: Data) -> nn.Module:
    """The guide that `_guide_recipe` describes, its tensors still to be loaded."""
    if recipe is None:
        return guides.build(model, theta, sketch)
    settings = {name: value for name, value in recipe.items() if name != "kind"}
    if recipe["kind"] == "exact":
        exact = model.closed_forms or shaped(model, theta, sketch.head())
        if exact is None:
            raise KeyError("closed forms")
        return ExactGuide(exact, theta)
    if recipe["kind"] == "draws":
        return Draws({name: sketch.x.new_empty(shape) for name, shape in settings["shapes"].items()})
    if recipe["kind"] == "factors":
        return Factors(model, theta, sketch, settings["point"])
    return guides.build(model, theta, sketch, guides.Family(**_tuples(settings)))


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
