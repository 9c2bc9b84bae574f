"""Where a fit loses: the parts add up, each is what it claims, and a biased twin shows in its own part."""

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from test_shared import Mean

import ppvae
from ppvae import guides
from ppvae.criticism import gaps as gaps_module
from ppvae.criticism.gaps import family_loss, gaps, refined_elbo
from ppvae.exact import Posterior, kl
from ppvae.models import GMM, PPCA, VAE


def svi(model, data: ppvae.Data, steps: int = 40, guide=None, init=None) -> ppvae.Fit:
    return ppvae.fit(model, data, ppvae.SVI(steps=steps, compile=False), guide=guide, init=init)


def parts_of(fit: ppvae.Fit, data: ppvae.Data, best: float | None) -> gaps_module.Gaps:
    return gaps(fit, fit.take(data), best, fit.log_likelihood(data), fit.elbo(data))


def reshaped(batch):
    """A guide whose Gaussian is hidden in a transformed distribution."""
    with batch.rows:
        base = dist.TransformedDistribution(
            dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1), [dist.transforms.AffineTransform(0.0, 0.5, event_dim=1)]
        )
        pyro.sample("z", base)


@pytest.mark.parametrize("guide", ["linear", "diagonal", "full"])
def test_exact_parts_add_up(guide):
    data = ppvae.load_data("iris")
    best = float(ppvae.fit(PPCA(2), data).log_likelihood(data).mean())
    # Latents that the data tell apart badly: their posterior is correlated, which a diagonal guide cannot say.
    alike = np.array([[1.0, 0.8], [1.0, 0.7], [1.0, 0.9], [1.0, 0.6]])
    fit = svi(PPCA(2), data, steps=5, guide=guide, init={"loadings": alike})
    found = parts_of(fit, data, best)
    assert found.total == pytest.approx(best - float(fit.elbo(data).mean()), abs=1e-10)
    assert min(found.parameters, found.amortization) > 0
    assert found.approximation > 0.1 if guide == "diagonal" else found.approximation == 0
    assert found.parameters_se == found.approximation_se == found.amortization_se == 0


def test_exact_guides_lose_nothing():
    data = ppvae.load_data("faithful")
    for model in (GMM(2), PPCA(1)):
        fit = ppvae.fit(model, data)
        found = parts_of(fit, data, float(fit.log_likelihood(data).mean()))
        assert (found.parameters, found.approximation, found.amortization) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_guided_component_loses_to_amortization_alone():
    data = ppvae.load_data("faithful")
    fit = svi(GMM(2, component="guided"), data)
    found = parts_of(fit, data, float(ppvae.fit(GMM(2), data).log_likelihood(data).mean()))
    assert found.approximation == 0
    assert found.amortization == pytest.approx(float(fit.kl(data).mean()), abs=1e-10)
    assert found.amortization > 0


def test_the_best_diagonal_guide_is_the_best():
    """The formula against every row's own diagonal Gaussian at the optimum, and against its neighbours."""
    data = ppvae.load_data("airquality")
    fit = svi(PPCA(2), data, guide="diagonal")
    lost, posterior = family_loss(fit, data), fit.posterior(data)
    tril = posterior.scale_tril[:, 0]
    scale = torch.linalg.inv(tril @ tril.mT).diagonal(dim1=-2, dim2=-1).rsqrt()

    def loss(stretch: float, shift: float) -> float:
        q = Posterior.gaussian(posterior.loc[:, 0] + shift, torch.diag_embed(scale * stretch))
        return float(kl(q, posterior).mean())

    assert lost == pytest.approx(loss(1.0, 0.0), rel=1e-8)
    assert all(lost < loss(*other) for other in ((1.02, 0.0), (0.98, 0.0), (1.0, 0.02)))


def test_the_search_row_by_row_finds_the_formula():
    """Where both are at hand: what the search finds is the formula's answer, within its errors and a thousandth of a nat."""
    data = ppvae.load_data("iris").take(torch.arange(0, 150, 5))
    fit = svi(PPCA(2), data, guide="diagonal")
    before = fit.params
    elbo, rows = refined_elbo(fit, data)
    assert all((fit.params[name] == value).all() for name, value in before.items())
    assert all(p.requires_grad for p in fit.theta.parameters())
    expected = float(fit.log_likelihood(data).mean()) - family_loss(fit, data)
    assert abs(float(elbo.mean()) - expected) < 4 * elbo.mean_standard_error + 0.001
    assert float(fit.elbo(data).mean()) < expected - 0.05  # the encoder was not there yet
    assert (rows == np.arange(30)).all()


def test_without_exact_answers_the_parts_carry_errors():
    data = ppvae.load_data("iris").take(torch.arange(0, 150, 5))
    fit = svi(VAE(2, (8,), "gaussian"), data, steps=60)
    found = parts_of(fit, data, None)
    assert np.isnan(found.parameters)
    assert found.approximation_se > 0
    assert found.amortization_se > 0
    loss = float(fit.log_likelihood(data).mean() - fit.elbo(data).mean())
    assert found.total == pytest.approx(loss, abs=1e-5)  # float32
    assert found.amortization > 4 * found.amortization_se  # an encoder of 60 steps is far from each row's best


def test_errors_add_in_squares(monkeypatch):
    """Of two estimates of independent draws: sqrt(a^2 + b^2), for what is searched row by row and for what is not."""
    monkeypatch.setattr(gaps_module, "REFINEMENT", replace(gaps_module.REFINEMENT, steps=10))
    data = ppvae.load_data("iris").take(torch.arange(0, 150, 5))
    searched = svi(VAE(2, (8,), "gaussian"), data, steps=5)
    evidence, bound = searched.log_likelihood(data), searched.elbo(data)
    best, _ = refined_elbo(searched, searched.take(data))
    found = gaps(searched, searched.take(data), None, evidence, bound)
    errors = [score.mean_standard_error for score in (evidence, best, bound)]
    assert min(errors) > 0
    assert found.approximation_se == pytest.approx(np.hypot(*errors[:2]))
    assert found.amortization_se == pytest.approx(np.hypot(*errors[1:]))
    assert found.approximation == pytest.approx(float(evidence.mean() - best.mean()), abs=1e-6)
    unread = svi(VAE(2, (8,), "gaussian"), data, steps=5, guide=reshaped)
    evidence, bound = unread.log_likelihood(data), unread.elbo(data)
    assert gaps(unread, unread.take(data), None, evidence, bound).amortization_se == pytest.approx(
        np.hypot(evidence.mean_standard_error, bound.mean_standard_error)
    )


def test_what_rows_share_loses_its_divergence():
    """KL(q || p) / N of what all rows share, by quadrature over one mean: all of it lost to the family, or to the encoder besides."""
    data = ppvae.Data(3 + np.random.default_rng(0).standard_normal((50, 1)))
    fit = ppvae.fit(Mean(), data, ppvae.SVI(steps=300, learning_rate=0.03, compile=False))
    draws = fit.shared_draws(20_000)["mu"]
    precision = 1 / 100 + 50
    posterior = stats.norm(float(data.x.sum()) / precision, precision**-0.5)
    q = stats.norm(draws.mean(), draws.std())  # a Gaussian guide
    mean = integrate.quad(lambda t: q.pdf(t) * (q.logpdf(t) - posterior.logpdf(t)), *q.interval(1 - 1e-12))[0] / 50
    found = parts_of(fit, data, None)
    assert np.isnan(found.parameters)
    assert found.amortization == found.amortization_se == 0
    assert found.approximation == found.total == pytest.approx(mean, rel=0.1)
    assert 0 < found.approximation_se < 0.2 * mean


def test_a_guide_that_cannot_be_read_leaves_the_split_open():
    data = ppvae.load_data("iris")

    fit = svi(PPCA(2), data, guide=reshaped)
    found = parts_of(fit, data, -2.0)
    assert np.isnan(found.approximation)
    assert found.amortization == pytest.approx(float(fit.log_likelihood(data).mean() - fit.elbo(data).mean()))


def test_a_row_guide_that_holds_the_posterior_loses_nothing():
    data = ppvae.load_data("airquality")
    em = ppvae.fit(PPCA(2), data, ppvae.EM(acceleration="squarem"))
    posterior = em.posterior(data)
    held = guides.PerRow("z", posterior.loc[:, 0], posterior.scale_tril[:, 0])
    fit = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=1, learning_rate=1e-12, compile=False), init=em.theta.values(), guide=held)
    found = parts_of(fit, data, float(em.log_likelihood(data).mean()))
    assert (found.parameters, found.approximation, found.amortization) == pytest.approx((0, 0, 0), abs=1e-8)
