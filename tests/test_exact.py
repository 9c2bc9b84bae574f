"""Posterior and its divergence: against torch's formulas, and against Monte Carlo within 4 standard errors."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

import ppvae
from ppvae.exact import ExactGuide, Posterior, kl
from ppvae.inference.fit import start
from ppvae.models import GMM, PPCA
from ppvae.program.read import read_guide

N, K, L = 6, 3, 2
DRAWS = 20_000


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tril(seed: int, *batch: int) -> torch.Tensor:
    raw = random(seed, *batch, L, L)
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


def gaussian(seed: int, rows: int = N) -> Posterior:
    return Posterior.gaussian(random(seed, N, L), tril(seed + 1, rows))


def categorical(seed: int) -> Posterior:
    return Posterior.categorical(random(seed, N, K).log_softmax(-1))


def mixture(seed: int) -> Posterior:
    return Posterior(random(seed, N, K).log_softmax(-1), random(seed + 1, N, K, L), tril(seed + 2, N, K), component="k", latent="z")


def marginal(p: Posterior) -> Posterior:
    """The same mixture with its component summed out."""
    return Posterior(p.log_weights, p.loc, p.scale_tril, latent="z")


def test_the_divergence_of_gaussians_is_torchs():
    for rows_q, rows_p in ((N, N), (1, N), (N, 1), (1, 1)):
        q, p = gaussian(0, rows_q), gaussian(5, rows_p)
        expected = kl_divergence(*(MultivariateNormal(d.loc[:, 0], scale_tril=d.scale_tril[:, 0]) for d in (q, p)))
        torch.testing.assert_close(kl(q, p), expected)
        assert (kl(q, p) > 0).all()
        torch.testing.assert_close(kl(q, q), torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_divergence_of_categoricals_is_torchs():
    q, p = categorical(0), categorical(1)
    torch.testing.assert_close(kl(q, p), kl_divergence(Categorical(logits=q.log_weights), Categorical(logits=p.log_weights)))
    certain = Posterior.categorical(torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64).expand(N, -1))
    torch.testing.assert_close(kl(certain, p), -p.log_weights[:, 0])


@pytest.mark.parametrize("kind", [gaussian, categorical, mixture])
def test_the_divergence_is_what_draws_say(kind):
    q, p = kind(0), kind(7)
    draws = q.sample(DRAWS, torch.Generator().manual_seed(3))
    terms = q.log_prob(draws) - p.log_prob(draws)
    error = terms.std(0) / DRAWS**0.5
    assert ((terms.mean(0) - kl(q, p)).abs() < 4 * error).all()
    assert not ((terms.mean(0) - 1.1 * kl(q, p)).abs() < 4 * error).all()  # a tenth off would show


def test_pairs_without_a_formula_have_none():
    assert kl(marginal(mixture(0)), marginal(mixture(1))) is None
    assert kl(gaussian(0), categorical(0)) is None
    assert kl(mixture(0), marginal(mixture(0))) is None


@pytest.mark.parametrize("kind", [gaussian, mixture])
def test_moments_are_those_of_the_draws(kind):
    p = kind(0)
    z = p.sample(DRAWS, torch.Generator().manual_seed(1))["z"]
    assert z.shape == (DRAWS, N, L)
    assert p.mean.shape == (N, L)
    assert p.covariance.shape == (N, L, L)
    assert ((z.mean(0) - p.mean).abs() < 4 * z.std(0) / DRAWS**0.5).all()
    apart = z - p.mean
    products = apart.unsqueeze(-1) * apart.unsqueeze(-2)
    assert ((products.mean(0) - p.covariance).abs() < 4 * products.std(0) / DRAWS**0.5).all()


def test_components_are_drawn_by_their_weights():
    for p in (categorical(0), mixture(0)):
        k = p.sample(DRAWS, torch.Generator().manual_seed(1))[p.component]
        share = torch.nn.functional.one_hot(k, K).double().mean(0)
        weights = p.log_weights.exp()
        assert ((share - weights).abs() < 4 * (weights * (1 - weights) / DRAWS).sqrt()).all()


def test_log_prob_sums_out_what_is_not_given():
    p = mixture(0)
    z = random(9, 5, N, L)
    parts = torch.stack([p.log_prob({"k": torch.full((5, N), k), "z": z}) for k in range(K)])
    torch.testing.assert_close(p.log_prob({"z": z}), parts.logsumexp(0))
    torch.testing.assert_close(p.log_prob({"k": torch.full((N,), 1)}), p.log_weights[:, 1])
    torch.testing.assert_close(p.log_prob({}), torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(marginal(p).log_prob({"z": z}), parts.logsumexp(0))


def test_without_component():
    assert gaussian(0).without_component() is not None
    nothing = categorical(0).without_component()
    assert nothing.component is None
    assert nothing.latent is None
    assert mixture(0).without_component() is None


def test_a_seeded_generator_repeats_the_draws():
    for kind in (gaussian, categorical, mixture):
        one, two = (kind(0).sample(4, torch.Generator().manual_seed(2)) for _ in range(2))
        assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize("model", [PPCA(2), GMM(3, component="guided")], ids=lambda m: m.describe())
def test_the_exact_guide_is_read_as_the_posterior(model):
    data = ppvae.load_data("iris")
    theta = start(model, data, 0)
    guide = ExactGuide(model.closed_forms, theta)
    with torch.no_grad():
        p, q = model.closed_forms.posterior(theta, data.batch()), read_guide(guide, data.batch())
    torch.testing.assert_close(kl(q, p), torch.zeros(150, dtype=torch.float64), atol=1e-9, rtol=0)
    assert list(guide.parameters()) == []


def test_a_diagonal_guide_is_read_as_its_distribution():
    data = ppvae.load_data("iris")
    fit = ppvae.fit(PPCA(2), data, ppvae.SVI(steps=2, compile=False), guide="diagonal")
    with torch.no_grad():
        q = read_guide(fit.guide, data.batch())
    scale = q.scale_tril[:, 0].diagonal(dim1=-2, dim2=-1)
    z = random(0, 150, 2)
    torch.testing.assert_close(q.log_prob({"z": z}), Independent(Normal(q.loc[:, 0], scale), 1).log_prob(z))


@dataclass(frozen=True)
class Shaped(ppvae.Model):
    """One factor whose latent is a number, or a matrix of which two entries matter."""

    shape: tuple[int, ...] = ()

    def init(self, data, generator):
        loadings = torch.randn(data.n_features, generator=generator, dtype=torch.float64)
        return ppvae.Parameters(mean=data.mean, loadings=loadings)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(self.shape), 1.0).to_event(len(self.shape)))
            score = z.flatten(-2)[..., 0] + 2 * z.flatten(-2)[..., 1] if self.shape else z
            x = dist.Normal(theta.mean + score.unsqueeze(-1) * theta.loadings, 0.5)
            pyro.sample("x", x.mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("shape", [(), (2, 2)], ids=["number", "matrix"])
def test_latents_of_any_shape_are_exact(shape):
    iris = ppvae.load_data("iris")
    verdicts = ppvae.laws.check(Shaped(shape), iris, only=[1, 2, 5, 7, 8, 9])
    assert (verdicts.table.verdict == "holds").all(), verdicts.table.to_string()
    fit = ppvae.fit(Shaped(shape), iris, ppvae.SVI(steps=30))
    assert fit.log_likelihood(iris).exact
    assert fit.kl(iris).exact
    assert fit.posterior(iris).sample(3)["z"].shape == (3, 150, *shape)
    assert fit.impute(iris.with_holes(0.1), draws=2).shape == (2, 150, 4)
    assert fit.to_arviz(iris, draws=2)["posterior"]["z"].shape == (1, 2, 150, *shape)


@dataclass(frozen=True)
class Gated(ppvae.Model):
    """The latent chooses the component, by a softmax: no closed forms."""

    def init(self, data, generator):
        gates = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        return ppvae.Parameters(gates=gates, means=torch.randn(3, data.n_features, generator=generator, dtype=torch.float64))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))
            c = pyro.sample("c", dist.Categorical(logits=z @ theta.gates), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(theta.means[c], 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_a_latent_that_chooses_the_component_has_no_closed_forms_and_is_fitted():
    """Given z the component is summed out: the score is within 4 standard errors of the integral over z on a grid."""
    data = ppvae.Data(random(0, 4, 2).numpy())
    fit = ppvae.fit(Gated(), data, ppvae.SVI(steps=20, compile=False))
    assert fit.exact is None
    scores = fit.log_likelihood(data, draws=5000)
    line = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    means, gates = (torch.as_tensor(fit.params[name]) for name in ("means", "gates"))
    given = Independent(Normal(means, 1.0), 1).log_prob(data.x.unsqueeze(1))  # (N, K)
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * (line[1] - line[0]).log()
    joint = prior.unsqueeze(-1) + (z @ gates.to(z)).log_softmax(-1)
    integral = (joint.unsqueeze(0) + given.unsqueeze(1)).flatten(1).logsumexp(1)
    assert ((torch.as_tensor(scores) - integral).abs() <= 4 * torch.as_tensor(scores.standard_error) + 1e-6).all()
