"""The graph of a story, and its drawing."""

import shutil
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest

import ppvae
from ppvae.models import GMM, VAE
from ppvae.program.graph import graph


@dataclass(frozen=True)
class Chain(ppvae.Model):
    """Two latents in a row, of which only the second reaches x."""

    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean)

    def model(self, theta, batch):
        with batch.rows:
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            second = pyro.sample("second", dist.Normal(first, 1.0))
            pyro.sample("x", dist.Normal(theta.mean + second.unsqueeze(-1), 1.0).to_event(1), obs=batch.x)


def test_parents_are_those_that_the_story_uses():
    found = graph(Chain(), ppvae.load_data("iris"))
    assert found.factorisation == "prod_n p(first_n) p(second_n | first_n) p(x_n | second_n; mean)"
    assert [(n.name, n.observed) for n in found.nodes] == [("first", False), ("second", False), ("x", True)]


def test_parameters_and_networks_are_named():
    assert graph(GMM(2), ppvae.load_data("faithful")).factorisation == (
        "prod_n p(component_n; weights) p(x_n | component_n; means, covariances)"
    )
    assert "decoder" in graph(VAE(2, likelihood="gaussian"), ppvae.load_data("iris")).text


class Positive(Chain):
    def model(self, theta, batch):
        with batch.rows:
            x = dist.LogNormal(theta.mean.log(), 1.0).mask(batch.observed).to_event(1)
            pyro.sample("x", x, obs=batch.x)


def test_a_distribution_keeps_its_own_name():
    assert [node.distribution for node in graph(Positive(), ppvae.load_data("iris")).nodes] == ["LogNormal"]


@pytest.mark.parametrize(("name", "words"), [("die", "takes one column of faces"), ("cvae", "the data have no context")])
def test_data_that_a_model_cannot_take(name, words):
    with pytest.raises(ValueError, match=words):
        graph(ppvae.load_model(name), ppvae.load_data("iris"))


def test_no_random_state_is_spent():
    import torch

    before = torch.get_rng_state()
    graph(Chain(), ppvae.load_data("iris"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz (its program dot) is not installed")
def test_drawing():
    svg = graph(GMM(2), ppvae.load_data("faithful")).svg()
    assert "</svg>" in svg
    assert all(name in svg for name in ("component", "weights", "272 rows"))


def test_without_graphviz_the_remedy_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs Graphviz"):
        graph(Chain(), ppvae.load_data("iris")).svg()
