"""The directed graph of a story, read from one run: what each site depends on, its distribution, and its plates."""

import html
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor, nn

from ppvae.data import Data
from ppvae.inference.fit import prepare, start
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import is_row_site, random_sites, unwrapped
from ppvae.program.observed import is_computed, observed
from ppvae.program.story import check_story


@dataclass(frozen=True)
class Node:
    """A sample site: its distribution's name (none where it is computed), the sites and parameters that it depends on, whether it is
    observed, and each row's own."""

    name: str
    distribution: str
    parents: tuple[str, ...]
    parameters: tuple[str, ...]
    observed: bool
    each_row: bool


@dataclass(frozen=True)
class Graph:
    """A story's graph. `factorisation` and `text` need nothing; `svg` needs Graphviz."""

    title: str
    nodes: tuple[Node, ...]
    n_rows: int

    @property
    def factorisation(self) -> str:
        """The product that the story implies, such as p(z_n) p(x_n | z_n; loadings, mean)."""

        def factor(node: Node) -> str:
            mark = "_n" if node.each_row else ""
            rows = {n.name for n in self.nodes if n.each_row}
            given = ", ".join(p + ("_n" if p in rows else "") for p in node.parents)
            theta = ", ".join(node.parameters)
            return f"p({node.name}{mark}{' | ' + given if given else ''}{'; ' + theta if theta else ''})"

        shared = " ".join(factor(n) for n in self.nodes if not n.each_row)
        rows = " ".join(factor(n) for n in self.nodes if n.each_row)
        return " ".join(part for part in (shared, f"prod_n {rows}" if rows else "") if part)

    @property
    def text(self) -> str:
        """One line a site, for a terminal."""
        lines = [self.title, f"  {self.factorisation}"]
        for node in self.nodes:
            depends = ", ".join((*node.parents, *node.parameters))
            kind = "observed" if node.observed else "latent"
            plate = f" [each of {self.n_rows} rows]" if node.each_row else ""
            said = f"~ {node.distribution}({depends})  {kind}" if node.distribution else f"= f({depends})  computed"
            lines.append(f"  {node.name} {said}{plate}")
        return "\n".join(lines)

    @property
    def dot(self) -> str:
        """The graph in Graphviz's language: circles for sites (grey: observed), dots for parameters, a box for the plate of rows."""
        inside = [n for n in self.nodes if n.each_row]
        lines = ["digraph {", "rankdir=TB; bgcolor=transparent;", 'node [fontname="sans-serif" fontsize=12];']
        names = {node.name for node in self.nodes}
        parameters = dict.fromkeys(p for n in self.nodes for p in n.parameters)
        lines += [f'"theta.{name}" [label="{name}" shape=plaintext];' for name in parameters]
        lines += [_circle(node) for node in self.nodes if node not in inside]
        if inside:
            lines += ["subgraph cluster_rows {", f'label="{self.n_rows} rows"; labeljust=r; fontname="sans-serif"; fontsize=11;']
            lines += [*map(_circle, inside), "}"]
        for node in self.nodes:
            lines += [f'"{p}" -> "{node.name}";' for p in node.parents if p in names]
            lines += [f'"theta.{p}" -> "{node.name}" [style=dashed];' for p in node.parameters]
        return "\n".join([*lines, "}"])

    def svg(self) -> str:
        """The drawing, by Graphviz. Raises ValueError where its program `dot` is not installed."""
        if shutil.which("dot") is None:
            raise ValueError("drawing the graph needs Graphviz (its program 'dot'): install it, or read the graph as text")
        drawn = subprocess.run(["dot", "-Tsvg"], input=self.dot, capture_output=True, text=True, check=True).stdout
        return drawn[drawn.index("<svg") :]  # without the prologue, which names a file elsewhere


def graph(model: Model, data: Data, theta: Parameters | None = None) -> Graph:
    """The graph of a model's story on these data; of a fit, with its `theta`, else with a start.

    Raises ValueError for data that the model cannot take, and for a story that fails, as `ppvae.fit` does.

    >>> import ppvae
    >>> print(graph(ppvae.models.PPCA(n_latents=2), ppvae.load_data("iris")).factorisation)
    prod_n p(z_n) p(x_n | z_n; loadings, mean, noise_variance)
    """
    if theta is None:
        data = prepare(model, data, None)
        theta = start(model, data, 0)
        check_story(model, theta, data)
    tracked: Any = Tracked(theta)
    story = partial(model.model, tracked)
    batch = data.head()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False), TrackProvenance():
        sites = random_sites(poutine.trace(story).get_trace(batch))
        known = {
            name: get_provenance(site["value"] if is_computed(site) else site["fn"].log_prob(site["value"])) for name, site in sites.items()
        }
    seen = observed(model, theta, data.batch())
    order = list(sites)
    for name, columns in seen.reads.items():  # what a distribution reads of the table, other sites observe
        known[name] |= {p for j in columns.any(0).nonzero().flatten().tolist() for p in seen.observers(j)}
    nodes = [
        Node(
            name,
            "" if is_computed(site) else type(unwrapped(site["fn"])).__name__,
            tuple(p for p in order if p != name and p in known[name]),
            tuple(p for p in (*theta.names, *dict(theta.named_children())) if f"theta.{p}" in known[name]),
            site["is_observed"] and not is_computed(site),
            is_row_site(site),
        )
        for name, site in sites.items()
    ]
    return Graph(model.describe(), tuple(nodes), data.n_rows)


class Tracked:
    """Theta as the story sees it, with a mark on each value that says from which parameter it came."""

    def __init__(self, theta: Parameters) -> None:
        self._theta = theta

    def __getattr__(self, name: str) -> object:
        value = getattr(self._theta, name)
        mark = frozenset({f"theta.{name}"})
        if isinstance(value, nn.Module):
            return _marked(value, mark)
        return track_provenance(value, mark) if isinstance(value, Tensor) and name in self._theta.names else value


def _marked(network: nn.Module, mark: frozenset[str]) -> Callable[..., Tensor]:
    return lambda *inputs: track_provenance(network(*inputs), mark)


def _circle(node: Node) -> str:
    fill = ' style=filled fillcolor="#d0d0d0"' if node.observed else ""
    label = f'{html.escape(node.name)}<br/><font point-size="9">{html.escape(node.distribution)}</font>'
    return f'"{node.name}" [label=<{label}> shape=ellipse{fill}];'
