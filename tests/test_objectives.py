"""Objectives of SVI: the importance-weighted bound, its two gradients, and the weighed KL, each against what is known without it."""

from math import log

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae import guides, laws
from ppvae.inference.fit import start
from ppvae.inference.method import Task, seeded
from ppvae.inference.objectives import OBJECTIVES
from ppvae.inference.svi import Step
from ppvae.models import GMM, PPCA, VAE
from ppvae.program.joint import log_weights

IRIS = ppvae.load_data("iris").take(torch.arange(0, 150, 5))
BOUND = OBJECTIVES["iwae"].rows


def bench(model, data: ppvae.Data = IRIS) -> laws.Bench:
    return laws.Bench(model, data, start(model, data, 0), 0)


def step_of(model, method: ppvae.SVI, *rows: torch.Tensor, data: ppvae.Data = IRIS, guide=None) -> Step:
    with seeded(0):
        theta = start(model, data, 0)
        return Step(method, Task(model, data, theta, None, 0), guides.build(model, theta, data, guide), data, rows)


def gradient(step: Step, *rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with seeded(seed):
        step.run(*rows)
    return torch.cat([p.grad.flatten() for p in step.parameters])


# Law 9


@pytest.mark.parametrize("model", [PPCA(2), GMM(2), GMM(2, component="guided"), VAE(2, (8,), "gaussian")], ids=lambda m: m.describe())
def test_law_9_holds(model):
    verdicts = laws.check(model, IRIS, only=[9])
    assert verdicts[9] == "holds", verdicts.table.to_string()


def scaled_inside(program, guide, batch, draws):
    """As `RenyiELBO`: the weights carry the plate's N / B scale into the logarithm."""
    return ((batch.scale * log_weights(program, guide, batch, draws)).logsumexp(0) - log(draws)) / batch.scale


def shared_weight(program, guide, batch, draws):
    """One weight for the whole batch: its bound is the joint one, which is looser."""
    whole = log_weights(program, guide, batch, draws).sum(1)
    return ((whole.logsumexp(0) - log(draws)) / batch.size).expand(batch.size)


def uncounted(program, guide, batch, draws):
    """The draws are summed but not counted."""
    return log_weights(program, guide, batch, draws).logsumexp(0)


@pytest.mark.parametrize("twin", [scaled_inside, shared_weight, uncounted])
def test_law_9_finds_the_twin(twin):
    assert laws.importance_weights(bench(PPCA(2)), twin)[0] > 1


# The importance-weighted bound and its gradients


def test_bound_is_pyros_where_pyros_is_right():
    """RenyiELBO(alpha=0) weighs each row by itself on the whole data set, and there alone."""
    the = bench(VAE(2, (8,), "gaussian"))
    guide = the.guide()
    reference = RenyiELBO(alpha=0, num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False), seeded(1):
        theirs = -reference.loss(the.program, guide, the.batch) / IRIS.n_rows
    with seeded(1):
        ours = float(BOUND(the.program, guide, the.batch, 7).detach().mean())
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_double_reparametrisation_has_the_same_value_and_mean_and_less_noise():
    rows = ppvae.Data(IRIS.x.repeat(20, 1))
    found = {}
    for name in ("iwae", "dreg"):
        step = step_of(PPCA(2), ppvae.SVI(objective=name, particles=20), data=rows, guide="diagonal")
        with seeded(3):
            found[name, "value"] = float(step.run())
        found[name] = torch.stack([gradient(step, seed=seed) for seed in range(60)])
        theta = sum(p.numel() for p in step.module["theta"].parameters())
    assert found["iwae", "value"] == pytest.approx(found["dreg", "value"], rel=1e-12)
    apart = found["iwae"].mean(0) - found["dreg"].mean(0)
    error = ((found["iwae"].var(0) + found["dreg"].var(0)) / 60).sqrt()
    assert (apart.abs() < 5 * error + 1e-12).all()  # some 700 numbers: 5 standard errors are passed once in 2000 such tests
    noise = {name: float(found[name][:, theta:].var(0).sum()) for name in ("iwae", "dreg")}
    assert noise["dreg"] < noise["iwae"] / 2


def test_double_reparametrisation_is_silent_at_the_exact_posterior():
    """Where all weights are equal whatever is drawn, the guide has nothing to learn, and its gradient says so without noise."""
    the = bench(PPCA(2))
    posterior = the.exact.posterior(the.theta, the.batch)
    free = guides.PerRow("z", posterior.loc[:, 0].detach(), posterior.scale_tril[:, 0].detach())
    norms = {}
    for name in ("iwae", "dreg"):
        with seeded(0):
            value = OBJECTIVES[name].rows(the.program, free, the.batch, 5).mean()
        norms[name] = max(float(g.abs().max()) for g in torch.autograd.grad(value, list(free.parameters())))
    assert norms["dreg"] < 1e-12 < 1e-4 < norms["iwae"]


def test_training_by_the_bound_raises_it_above_the_elbo():
    data = ppvae.load_data("iris")
    fit = ppvae.fit(VAE(2, (8,), "gaussian"), data, ppvae.SVI(steps=500, objective="dreg"))
    assert fit.engine.startswith("captured")
    assert "importance-weighted bound" in fit.status
    evidence, elbo = fit.log_likelihood(data), fit.elbo(data)
    assert elbo.mean() + 0.2 < fit.history.elbo.iloc[-1] < evidence.mean() + 0.1  # the history's last point averages six steps of training


# The weighed KL


class Weighed(PPCA):
    """The same story with the latent's density scaled, as Pyro's own examples anneal."""

    def model(self, theta, batch):
        with batch.rows:
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.n_latents), 1.0).to_event(1))
            x = dist.Normal(theta.mean + z @ theta.loadings.mT, theta.noise_variance.sqrt())
            pyro.sample("x", x.mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("compile", ["auto", False])
@pytest.mark.parametrize(("objective", "pyros"), [("elbo", Trace_ELBO), ("analytic_kl", TraceMeanField_ELBO)])
def test_beta_has_pyros_gradient_and_the_elbos_value(objective, pyros, compile):
    half = torch.arange(IRIS.n_rows // 2)
    step = step_of(PPCA(2), ppvae.SVI(objective=objective, beta=0.3, compile=compile), half, guide="diagonal")
    ours, batch = gradient(step, half), IRIS.batch(half)
    story = Weighed(2)
    weighed = poutine.scale(step.guide, scale=0.3)
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False), seeded(0):
        theta = step.module["theta"]
        loss = pyros(max_plate_nesting=1).differentiable_loss(lambda b: story.model(theta, b), weighed, batch) / IRIS.n_rows
        theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, step.parameters)])
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    plain = step_of(PPCA(2), ppvae.SVI(objective=objective), half, guide="diagonal")
    with seeded(0):
        value = step.run(half)
    with seeded(0):
        assert torch.allclose(value, plain.run(half), rtol=1e-12)


def test_the_weight_of_the_kl_is_an_argument_of_the_graph():
    captured = step_of(PPCA(2), ppvae.SVI(kl_warmup=0.5))
    plain = step_of(PPCA(2), ppvae.SVI(kl_warmup=0.5, compile=False))
    assert captured.engine.startswith("captured")
    found = []
    for weight in (0.0, 0.4, 1.0):
        for step in (captured, plain):
            step.kl_weight.fill_(weight)
        found.append(gradient(captured))
        assert torch.allclose(found[-1], gradient(plain), rtol=1e-10, atol=1e-12)
    elbo = step_of(PPCA(2), ppvae.SVI())
    assert torch.allclose(found[-1], gradient(elbo), rtol=1e-10, atol=1e-12)
    assert torch.allclose(found[1], 0.6 * found[0] + 0.4 * found[2], rtol=1e-8, atol=1e-10)


def test_the_warm_up_is_a_straight_line():
    method = ppvae.SVI(steps=100, kl_warmup=0.2, beta=4.0)
    assert [method.kl_weight(s) for s in (0, 5, 20, 99)] == [0.0, 1.0, 4.0, 4.0]
    assert ppvae.SVI(beta=2.0).kl_weight(0) == 2.0


@pytest.mark.parametrize("guide", ["diagonal", "full"])
@pytest.mark.parametrize("objective", ["elbo", "analytic_kl"])
def test_free_bits_below_and_above_the_kl(objective, guide):
    """More free nats than there are: the KL has no gradient, as with beta=0. Fewer than any dimension has: as in the ELBO."""

    def of(**options) -> torch.Tensor:
        return gradient(step_of(PPCA(2), ppvae.SVI(objective=objective, particles=3, compile=False, **options), guide=guide))

    assert torch.allclose(of(free_bits=1e3), of(beta=0.0), rtol=1e-10, atol=1e-12)
    if objective == "analytic_kl":  # a KL estimated by draws may be negative, and then lies below the floor
        assert torch.allclose(of(free_bits=1e-9), of(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(of(beta=0.0), of())


def test_free_bits_keep_a_latent_awake():
    """Noise has nothing to say, so a VAE's latents sleep; free nats are used nevertheless."""
    data = ppvae.Data(np.random.default_rng(0).normal(size=(200, 3)))
    rates = []
    for free_bits in (0.0, 0.5):
        fit = ppvae.fit(VAE(2, (8,), "gaussian"), data, ppvae.SVI(steps=200, objective="analytic_kl", free_bits=free_bits))
        batch = fit.take(data).batch()
        posterior = fit.posterior(data)
        prior = dist.Normal(torch.zeros_like(batch.x[:, :2]), 1.0)
        scale = posterior.scale_tril[:, 0].diagonal(dim1=-2, dim2=-1)
        rates.append(torch.distributions.kl_divergence(dist.Normal(posterior.loc[:, 0], scale), prior).mean(0))
    assert (rates[0] < 0.2).all()
    assert (rates[1] > 0.4).all()


@pytest.mark.parametrize("options", [{"beta": 0.2}, {"free_bits": 0.5}])
def test_what_bounds_nothing_is_named_and_the_elbo_stays_true(options):
    data = ppvae.load_data("iris")
    fit = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=400, **options))
    assert "no lower bound" in fit.status
    last = fit.history.iloc[-10:]
    assert (last.elbo < last.log_likelihood).all()
    assert last.elbo.mean() == pytest.approx(float(fit.elbo(data).mean()), abs=0.1)
    assert "no lower bound" not in ppvae.fit(PPCA(2), data, ppvae.SVI(steps=20, beta=2.0, kl_warmup=0.5)).status


# What cannot be


def test_draws_where_none_are_asked_for():
    assert [ppvae.SVI(objective=name).draws for name in ("elbo", "analytic_kl", "iwae", "dreg")] == [1, 1, 20, 20]
    assert ppvae.SVI(objective="iwae", particles=5).draws == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "iwea"}, "did you mean 'iwae'"),
        ({"objective": "iwae", "beta": 2.0}, "no KL for beta"),
        ({"objective": "dreg", "free_bits": 0.1}, "use 'elbo' or 'analytic_kl'"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"beta": float("nan")}, "beta must be at least 0"),
        ({"kl_warmup": 1.5}, "share of the steps"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        ppvae.SVI(**options)


@pytest.mark.parametrize("options", [{"objective": "analytic_kl"}, {"beta": 0.5}, {"free_bits": 0.5}])
def test_a_story_that_sums_out_a_site_is_refused(options):
    with pytest.raises(ValueError, match=r"gmm: the story sums out a discrete site"):
        ppvae.fit(GMM(2), IRIS, ppvae.SVI(steps=2, **options))


class Jumps(nn.Module):
    """A guide whose draws have no gradient."""

    def forward(self, batch):
        with batch.rows:
            pyro.sample("z", dist.Poisson(batch.x.new_ones(2)).to_event(1))


@pytest.mark.parametrize("options", [{"objective": "iwae"}, {"objective": "dreg"}, {"beta": 0.5}])
def test_a_guide_without_reparametrised_draws_is_refused(options):
    with pytest.raises(ValueError, match="no reparametrised gradient"):
        ppvae.fit(PPCA(2), IRIS, ppvae.SVI(steps=2, **options), guide=Jumps())
