"""Mistakes in a model of one's own, and values that no fit can use: one sentence each, before anything runs for long."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import ppvae
from ppvae.models import GMM, PPCA


@dataclass(frozen=True)
class Sound(ppvae.Model):
    """A Gaussian factor, with the mistake of each test put in its place."""

    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean, noise_scale=ppvae.Constrained(data.scale.mean(), constraints.positive))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.mean + z, theta.noise_scale).to_event(1), obs=batch.x)


class Misspelt(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scal).to_event(1), obs=batch.x)


class FeaturesAsRows(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scale), obs=batch.x)


class Unobserved(Sound):
    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.noise_scale).to_event(1))


class Unlike(Sound):
    def model(self, theta, batch):
        with batch.rows:
            loc = theta.mean + torch.ones(batch.size, 99, dtype=torch.float64)
            pyro.sample("x", dist.Normal(loc, theta.noise_scale).to_event(1), obs=batch.x)


class Bare(Sound):
    def init(self, data, generator):
        return {"mean": data.mean}


class Nowhere(Sound):
    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean * float("nan"), noise_scale=data.scale.mean())


class Negative(Sound):
    def init(self, data, generator):
        return ppvae.Parameters(mean=data.mean, noise_scale=ppvae.Constrained(-data.scale.mean(), constraints.positive))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Misspelt, "story fails at line .*noise_scal.*did you mean 'noise_scale'"),
        (FeaturesAsRows, r"add \.to_event\(1\)"),
        (Unobserved, "observes nothing: add pyro.sample"),
        (Unlike, "story fails at line .*torch.ones"),
        (Bare, "init must return ppvae.Parameters, not dict"),
        (Nowhere, "parameter 'mean' is not finite"),
        (Negative, "parameter 'noise_scale' is not finite, or outside its constraint"),
    ],
)
def test_a_model_says_where_it_is_wrong(model, words):
    with pytest.raises(ValueError, match=words) as caught:
        ppvae.fit(model(), ppvae.load_data("iris"), ppvae.SVI(steps=2))
    assert "\n" not in str(caught.value)


def test_the_sound_model_fits():
    fit = ppvae.fit(Sound(), ppvae.load_data("iris"), ppvae.SVI(steps=2))
    assert np.isfinite(fit.log_likelihood(ppvae.load_data("iris"))).all()


@pytest.mark.parametrize(("change", "words"), [(lambda x: x + 1e12, "subtract its mean"), (lambda x: x * 1e200, "beyond float64's range")])
def test_columns_beyond_float64(change, words):
    with pytest.raises(ValueError, match=words):
        ppvae.fit(GMM(2), change(ppvae.load_data("iris").numpy()))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "a", True])
def test_seeds(seed):
    with pytest.raises(ValueError, match="a seed is a whole number"):
        ppvae.fit(PPCA(1), ppvae.load_data("iris"), seed=seed)


def test_methods_in_words_and_classes():
    iris = ppvae.load_data("iris")
    assert ppvae.fit(PPCA(1), iris, "em:max_steps=3").steps == 3
    for arguments in ((PPCA, iris), (PPCA(1), iris, ppvae.EM)):
        with pytest.raises(ValueError, match=r"is a class: give an object, \w+\(\)"):
            ppvae.fit(*arguments)


def test_tables_print_whole(capsys):
    iris = ppvae.load_data("iris")
    found = ppvae.compare(PPCA(1), iris, "closed_form,em")
    print(found)
    print(ppvae.check(found.best, iris, draws=20))
    said = capsys.readouterr().out
    assert "..." not in said
    assert all(word in said for word in ("log_likelihood", "gap_to_best", "closed_form: exact", "replicated_mean", "skewness"))
