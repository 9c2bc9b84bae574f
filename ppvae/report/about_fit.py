"""Sections on one fit: pictures of it, its parameters, its model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ppvae.program.graph import Graph, graph
from ppvae.report import runs, words
from ppvae.report.blocks import Block, Code, Section, Table, Text, drawing, picture, responsive
from ppvae.report.figures import fitted, images, walk

if TYPE_CHECKING:
    from ppvae.data import Data
    from ppvae.inference.result import Fit

LONGEST, LARGEST = 40, 150  # lines and entries of a parameter that is printed in full
WALK = (
    "A walk through latent space: what the model expects of codes along straight lines, from the 2nd to the 98th percentile of the rows' "
    "own, the other latents at their medians."
)
MATRICES = 6  # of one parameter that are printed (a covariance for each component)


def sections(fit: Fit, data: Data) -> Iterator[Section]:
    """What was fitted, and the model's own words."""
    yield Section("fit", "What was fitted", [*_pictures(fit, data), *_parameters(fit, data)])
    yield Section("model", "The model", list(_model(fit, data)))


def _pictures(fit: Fit, data: Data) -> Iterator[Block]:
    yield Text(f"The fit shown here is that of {runs.described(fit)}, seed {fit.seed}.")
    if data.image_shape is not None:
        caption = "Above: rows of the data. Below each: what the model makes of it, with latents from the row's own posterior."
        yield picture("Pictures of data above their reconstructions", caption, images.reconstructions(fit, data), kind="png")
        alt = "Pictures of data beside new ones from the model"
        caption = _generated_caption(fit, data)
        yield responsive(alt, caption, lambda n: images.generated(fit, data, columns=n), wide=3, narrow=1, kind="png")
    if data.image_shape is None and data.context is None:
        yield responsive(
            "The rows and the fitted density", _density_caption(fit, data), lambda n: fitted.density(fit, data, n), wide=4, narrow=3
        )
    if _has_latents(fit, data):
        known = "" if data.labels is None else " Colours are the known classes, which the fit never saw."
        caption = f"Each row at its posterior mean in latent space.{known}"
        yield picture("The rows in latent space", caption, fitted.latent_space(fit, data))
    if images.decodes(fit, data):
        kind = "svg" if data.image_shape is None else "png"
        alt = "Rows decoded along lines through latent space"
        yield responsive(alt, WALK, lambda n: walk.latent_walk(fit, data, n), wide=2, narrow=1, kind=kind)


def _has_latents(fit: Fit, data: Data) -> bool:
    try:
        fit.transform(data.take([0]))
    except ValueError:  # how a fit says that its model has no continuous latents, or a guide that cannot be read
        return False
    return True


def _generated_caption(fit: Fit, data: Data) -> str:
    said = "Rows of the data, and as many new ones that the fitted model draws."
    if images.decodes(fit, data):
        said = "Rows of the data; what the model expects for latents drawn from their prior; and the rows drawn with them, noise and all."
    return said if data.context is None else f"{said} Each new picture has the context of the real one in its place."


def _density_caption(fit: Fit, data: Data) -> str:
    if data.n_features == 1 and fitted.counts(fit, data):
        return "The share of the rows with each value (grey bars), and the probability that the fitted model gives it (points)."
    if data.n_features == 1:
        return "The data (grey, a histogram) and the fitted density."
    if data.n_features == 2:
        return "The rows, and contours around 50, 80 and 95 % of the fitted density. A right model has about so many rows inside."
    return "Grey: the rows. Blue: as many new rows drawn from the fitted model. Where the two clouds differ, the model misses something."


def _parameters(fit: Fit, data: Data) -> Iterator[Block]:
    for name, drawn in fit.shared_draws().items():
        if (drawn == drawn[0]).all():
            yield from _parameter(f"{name} (a point)", drawn[0], fit, data)
            continue
        yield from _parameter(f"{name}, posterior mean", drawn.mean(0), fit, data)
        yield from _parameter(f"{name}, posterior sd", drawn.std(0), fit, data)
    values = {name: np.asarray(value) for name, value in fit.params.items() if name not in fit.shared}
    for name, value in values.items():
        if name in fit.theta.names:
            title = name.replace("_", " ") + (", of the prior" if fit.shared and name not in fit.theta.trainable else "")
            yield from _parameter(title, value, fit, data)
    weights = [[name, _shape(v), words.plain(v.min()), words.plain(v.max())] for name, v in values.items() if name not in fit.theta.names]
    if weights:
        yield Table("Networks", ["weights", "shape", "least", "greatest"], weights)


def _parameter(title: str, value: np.ndarray, fit: Fit, data: Data) -> Iterator[Block]:
    """One parameter as tables, one for each matrix of a stack."""
    if value.ndim > 2:
        for k, matrix in enumerate(value[:MATRICES]):
            yield from _parameter(f"{title}, {k + 1}", matrix, fit, data)
        if len(value) > MATRICES:
            yield Text(f"{title}: {len(value) - MATRICES} more like these.")
    elif value.size > LARGEST or (value.ndim and len(value) > LONGEST):
        yield Text(f"{title}: {_shape(value)} numbers from {words.plain(value.min())} to {words.plain(value.max())}.")
    elif value.ndim == 0:
        yield Table(title, ["", "value"], [["", words.plain(value.item())]])
    else:
        columns = _axis(value, 1, fit, data) if value.ndim == 2 else ["value"]
        numbers = value if value.ndim == 2 else value[:, None]
        rows = [[name, *map(words.plain, row)] for name, row in zip(_axis(value, 0, fit, data), numbers, strict=True)]
        yield Table(title, ["", *columns], rows)


def _shape(value: np.ndarray) -> str:
    return f" {words.TIMES} ".join(map(str, value.shape))


def _axis(value: np.ndarray, axis: int, fit: Fit, data: Data) -> list[str]:
    """Names along an axis: the features' where the axis can only be that of the features, else 1, 2, ...

    Of a square matrix the columns are features; so are the rows if it is symmetric (a covariance). A vector as long as the weights of a
    mixture may be one number a component.
    """
    length = value.shape[axis]
    numbered = [str(i + 1) for i in range(length)]
    if length != data.n_features:
        return numbered
    if value.ndim == 1:
        return numbered if length in _components(fit) else list(data.columns)
    square = value.shape[0] == value.shape[1]
    return numbered if axis == 0 and square and not np.allclose(value, value.T, atol=1e-8 * np.abs(value).max()) else list(data.columns)


def _components(fit: Fit) -> set[int]:
    """The lengths of the parameters that are probabilities over components."""
    return {len(v) for v in fit.params.values() if np.ndim(v) == 1 and np.isclose(np.sum(v), 1.0) and np.all(v >= 0)}


def _model(fit: Fit, data: Data) -> Iterator[Block]:
    model = fit.model
    yield Text(f"{model.describe()}, {words.count(fit.n_parameters, 'free parameter')}.")
    yield from _graph(graph(model, data, fit.theta))
    module = inspect.getmodule(type(model))
    story = (module and module.__doc__) or type(model).__doc__
    if story:
        yield Code(inspect.cleandoc(story))


def _graph(found: Graph) -> Iterator[Block]:
    """The story's graph with the product that it implies; where nothing can draw it, in words."""
    try:
        svg = found.svg()
    except ValueError:  # how a graph says that Graphviz is not installed
        yield Code(found.text)
        return
    yield Code(found.factorisation)
    caption = (
        "The story as a graph, read from the program: an arrow from each site or parameter to what depends on it, dashed from "
        "parameters; grey is observed; the box is repeated for every row."
    )
    yield drawing(f"Graph of the story: {found.factorisation}", caption, svg)
