"""DirectML: the exact likelihood's gradient ends where EM does; the naive estimate's ends too low, and says so."""

import re
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_cli import CENTRE

import ppvae
from ppvae import cli
from ppvae.exact import ExactGuide
from ppvae.inference.draws import Prior
from ppvae.inference.fit import start
from ppvae.inference.method import Task, seeded
from ppvae.inference.objectives import importance_rows
from ppvae.models import GMM, PCA, PPCA, VAE, Autoencoder, Die, FactorAnalysis, Gaussian, LinearVAE
from ppvae.parameters import Parameters


@pytest.mark.parametrize(
    ("model", "name"),
    [(GMM(2), "faithful"), (PPCA(2), "iris"), (PPCA(2), "airquality"), (Gaussian(), "airquality"), (FactorAnalysis(2), "wine")],
    ids=lambda value: value if isinstance(value, str) else value.describe(),
)
def test_the_exact_gradient_ends_where_em_does(model, name):
    data = ppvae.load_data(name)
    em = ppvae.fit(model, data, ppvae.EM(tolerance=1e-11, acceleration="squarem"))
    fit = ppvae.fit(model, data, ppvae.DirectML())
    # A last step of 1e-10 that shrinks by at most 0.99 a step leaves 1e-8 nats per row to go.
    assert float(fit.log_likelihood(data).mean()) == pytest.approx(float(em.log_likelihood(data).mean()), abs=1e-8)
    assert fit.converged
    assert fit.status == "converged: the last step gained less than 1e-10 nats per row"
    assert (np.diff(fit.history.log_likelihood) > -1e-10).all()
    assert fit.history.log_likelihood.iloc[-1] == pytest.approx(float(fit.log_likelihood(data).mean()), abs=1e-9)


def test_what_has_no_m_step_is_fitted_too():
    """The linear VAE gives a likelihood and no M-step; a story of the user's own gives nothing, and its likelihood follows from it."""
    iris = ppvae.load_data("iris")
    truth = float(ppvae.fit(PPCA(2), iris).log_likelihood(iris).mean())
    assert float(ppvae.fit(LinearVAE(2), iris, ppvae.DirectML()).log_likelihood(iris).mean()) == pytest.approx(truth, abs=1e-8)
    own = ppvae.fit(type("Own", (PPCA,), {"exact": None})(2), iris, ppvae.DirectML("exact"))
    assert float(own.log_likelihood(iris).mean()) == pytest.approx(truth, abs=1e-8)


def test_a_frozen_parameter_stays():
    """EM has to refuse this; a gradient does not."""
    half = type("GMM", (GMM,), {"init": lambda self, data, generator: GMM.init(self, data, generator).freeze("weights")})
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(half(2), data, ppvae.DirectML(), init={"weights": [0.5, 0.5]})
    assert fit.params["weights"] == pytest.approx([0.5, 0.5])
    assert fit.history.log_likelihood[0] < fit.history.log_likelihood.iloc[-1] < ppvae.fit(GMM(2), data).history.log_likelihood.iloc[-1]


def said(status: str) -> tuple[float, float]:
    """The two numbers of the verdict: the naive estimate's value, and the truth."""
    found = re.search(r"from the prior says (-?[\d.]+) \(s\.e\. .*\) nats per row, .* (-?[\d.]+)$", status)
    return float(found[1]), float(found[2])


def test_the_naive_estimate_serves_itself():
    iris = ppvae.load_data("iris")
    truth = float(ppvae.fit(PPCA(2), iris).log_likelihood(iris).mean())
    fits = [ppvae.fit(PPCA(2), iris, ppvae.DirectML("naive", draws=draws, steps=300)) for draws in (1, 30)]
    for fit in fits:
        estimate, own = said(fit.status)
        assert own == pytest.approx(float(fit.log_likelihood(iris).mean()), abs=1e-4)  # as printed
        assert own < truth - 0.05
        assert estimate < own + 0.005  # four of the standard errors that the sentence gives at draws=1
    assert said(fits[1].status)[0] < said(fits[1].status)[1] - 0.05  # too low, at its own parameters even
    one, thirty = (fit.params["loadings"] for fit in fits)
    assert np.abs(one).max() < 0.05 * np.abs(thirty).max()  # one draw: a latent is only noise, so it goes unused


def test_naive_without_a_likelihood_to_compare_with():
    iris = ppvae.load_data("iris")
    fit = ppvae.fit(VAE(1, (4,), "gaussian"), iris, ppvae.DirectML(steps=30, draws=5))
    assert "importance sampling from a trained guide" in fit.status
    estimate, truth = said(fit.status)
    assert estimate < truth
    assert fit.transform(iris).shape == (150, 1)
    assert len(fit.history) > 1


def test_seeds_repeat_and_differ():
    data, method = ppvae.load_data("iris"), ppvae.DirectML("naive", steps=5, draws=3)
    first, again, other = (ppvae.fit(PPCA(1), data, method, seed=seed).params["loadings"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_it_stops_where_it_says():
    iris, seen = ppvae.load_data("iris"), []
    fit = ppvae.fit(PPCA(2), iris, ppvae.DirectML(steps=3), progress=lambda done, total, note: seen.append((done, total)))
    assert fit.status == "stopped at steps=3 before the tolerance was met: raise steps"
    assert not fit.converged
    assert fit.steps == 3
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@dataclass(frozen=True)
class Cliff(ppvae.Model):
    """A normal whose scale is theta, not constrained to be positive."""

    def init(self, data, generator):
        return Parameters(scale=torch.tensor(0.5, dtype=torch.float64))

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(batch.x.new_zeros(1), torch.log(theta.scale + 1)).mask(batch.observed).to_event(1), obs=batch.x)


def test_a_likelihood_that_is_not_finite_is_reported():
    fit = ppvae.fit(Cliff(), np.full((5, 1), 1e-3) * np.arange(5)[:, None], ppvae.DirectML())
    assert np.isfinite(fit.params["scale"])
    assert fit.converged or fit.status.startswith("stopped: the log-likelihood was no longer finite")


@dataclass(frozen=True)
class Fence(Cliff):
    """The likelihood rises up to a fence, beyond which there is none."""

    raises: bool = False

    def model(self, theta, batch):
        beyond = theta.scale > 30
        if self.raises and bool(beyond):
            raise torch.linalg.LinAlgError
        with batch.rows:
            loc = torch.where(beyond, torch.nan, 100 - theta.scale).expand(1)
            pyro.sample("x", dist.Normal(loc, 1.0).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("raises", [False, True])
def test_a_step_beyond_what_is_finite_is_taken_back(raises):
    data = np.arange(5.0)[:, None]
    fit = ppvae.fit(Fence(raises), data, ppvae.DirectML())
    assert fit.status.startswith("stopped: the log-likelihood was no longer finite") == raises
    assert (5 if raises else 29) < fit.params["scale"] <= 30
    assert float(fit.log_likelihood(data).mean()) == pytest.approx(fit.history.log_likelihood.iloc[-1])
    assert fit.history.log_likelihood.is_monotonic_increasing


def test_the_naive_estimate_comes_with_the_standard_error_of_its_mean():
    data, model, method = ppvae.load_data("iris"), PPCA(2), ppvae.DirectML("naive", draws=5)
    task = Task(model, data, start(model, data, 0), None, seed=3)
    prior, exact = Prior(task), model.closed_forms
    with seeded(3), torch.no_grad():
        means = np.array([float(importance_rows(partial(model.model, task.theta), prior, data.batch(), 5).mean()) for _ in range(10)])
    told = method.verdict(task, exact, prior, ExactGuide(exact, task.theta))
    assert f"says {means.mean():.4f} (s.e. {means.std(ddof=1) / np.sqrt(10):.1g}) nats" in told


def test_what_it_cannot_do_is_refused():
    iris = ppvae.load_data("iris")
    with pytest.raises(ValueError, match="unknown estimator 'naiv': did you mean 'naive'"):
        ppvae.DirectML("naiv")
    for settings in ({"steps": 0}, {"draws": 0}, {"tolerance": -1.0}, {"batch_size": 0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ppvae.DirectML(**settings)
    with pytest.raises(ValueError, match="batch_size=151 is larger than the data"):
        ppvae.fit(PPCA(2), iris, ppvae.DirectML("naive", batch_size=151))
    with pytest.raises(ValueError, match="no closed form that is given or follows from its story: use SVI, or estimator='naive'"):
        ppvae.fit(VAE(2, likelihood="gaussian"), iris, ppvae.DirectML("exact"))
    with pytest.raises(ValueError, match="which leaves nothing to draw: use estimator='exact'"):
        ppvae.fit(GMM(2), iris, ppvae.DirectML("naive"))
    with pytest.raises(ValueError, match=r"die has no latents, or its story sums them out, .*: use estimator='exact'"):
        ppvae.fit(Die(), [[1], [2], [6]], ppvae.DirectML("naive"))
    with pytest.raises(ValueError, match="autoencoder has no prior over z, so its rows have no likelihood: use SVI"):
        ppvae.fit(Autoencoder(1), iris, ppvae.DirectML())
    frozen = type("PCA", (PCA,), {"init": lambda self, data, generator: PCA.init(self, data, generator).freeze("loadings", "mean")})
    with pytest.raises(ValueError, match="has no free parameters for this method to move"):
        ppvae.fit(frozen(2), iris, ppvae.DirectML())


def test_the_command_line_takes_it_for_a_story_of_ones_own(tmp_path, monkeypatch):
    """The fit comes back whole: its exact posterior follows from the story, not from the model's file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CENTRE)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "own.py", "faithful", "--method", "direct_ml:steps=50", "--out", "centre"])
    assert not stop.value.code
    data, fit = ppvae.load_data("faithful"), ppvae.load("centre")
    assert fit.method == ppvae.DirectML(steps=50)
    assert fit.params["mean"] == pytest.approx(data.mean.numpy(), abs=1e-3)
    assert fit.elbo(data).exact
