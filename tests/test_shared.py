"""Latents that all rows share: bijections onto their supports, guides for them, and what a fit says of them."""

from dataclasses import dataclass
from functools import partial
from math import log, pi, sqrt

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import logsumexp
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae import guides
from ppvae.bijections import PositiveDefinite, bijection, unit_tril
from ppvae.distributions import Wishart
from ppvae.inference.fit import start
from ppvae.inference.method import Task, seeded
from ppvae.inference.svi import Training, posterior_of_shared
from ppvae.model import Model
from ppvae.parameters import Parameters
from ppvae.program.joint import log_joint, random_sites
from ppvae.scores import predictive_density, sampled_elbo, shared_divergence
from ppvae.shared import Draws


@dataclass(frozen=True)
class Supports(Model):
    """A shared latent of every support."""

    def init(self, data, generator):
        return Parameters()

    def model(self, theta, batch):
        zero = batch.x.new_zeros(())
        number = pyro.sample("number", dist.Normal(zero, 1.0))
        pyro.sample("matrix", dist.Normal(zero.expand(2, 2), 1.0).to_event(2))
        scale = pyro.sample("scale", dist.LogNormal(zero, 1.0))
        pyro.sample("simplex", dist.Dirichlet(zero.expand(3) + 1.0))
        pyro.sample("precisions", Wishart(zero + 4.0, torch.eye(2).to(zero)).expand([2]).to_event(1))
        with batch.rows:
            pyro.sample("x", dist.Normal(number.unsqueeze(-1), scale.unsqueeze(-1)).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Mean(Model):
    """mu ~ N(0, 10^2), x_n ~ N(mu, 1): everything about it is known."""

    def init(self, data, generator):
        return Parameters()

    def model(self, theta, batch):
        mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(()), 10.0))
        with batch.rows:
            pyro.sample("x", dist.Normal(mu.unsqueeze(-1), batch.x.new_ones(1)).mask(batch.observed).to_event(1), obs=batch.x)


ROWS = 50
DATA = ppvae.Data(3 + np.random.default_rng(0).standard_normal((ROWS, 1)))
PRECISION = 1 / 100 + ROWS
MEAN, SD = float(DATA.x.sum()) / PRECISION, PRECISION**-0.5
EVIDENCE = (-ROWS * log(2 * pi) - log(100 * PRECISION) - float(DATA.x.square().sum()) + PRECISION * MEAN**2) / 2 / ROWS  # nats per row


def built(model: Model, data: ppvae.Data, guide=None) -> torch.nn.Module:
    torch.manual_seed(0)
    return guides.build(model, start(model, data, 0), data, guide)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_bijection_onto_covariances_knows_its_jacobian(size):
    free = torch.randn(size * (size + 1) // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    to_matrix, (row, column) = PositiveDefinite(), torch.tril_indices(size, size)
    matrix = to_matrix(free)
    jacobian = torch.autograd.functional.jacobian(lambda v: to_matrix(v)[row, column], free)
    assert float(to_matrix.log_abs_det_jacobian(free, matrix)) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-12)
    assert torch.allclose(to_matrix.inv(matrix), free, rtol=1e-10)
    assert bool(constraints.positive_definite.check(matrix))


def test_the_wishart_is_torchs_and_its_draws_have_its_moments():
    scale = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    ours, torchs = Wishart(torch.tensor(4.5).double(), scale), torch.distributions.Wishart(torch.tensor(4.5).double(), scale)
    torch.manual_seed(0)
    drawn = ours.rsample(torch.Size([20_000]))
    assert torch.allclose(ours.log_prob(drawn), torchs.log_prob(drawn), atol=1e-10)
    logdet = torch.linalg.slogdet(drawn)[1]
    assert float(logdet.mean()) == pytest.approx(float(ours.expected_logdet), abs=4 * float(logdet.std()) / sqrt(20_000))
    assert bool(((drawn.mean(0) - ours.mean).abs() < 4 * drawn.std(0) / sqrt(20_000)).all())


@pytest.mark.parametrize("family", guides.FAMILIES)
def test_the_densities_of_a_shared_guide_are_densities(family):
    """E_q [p / q] = 1 for a narrow p that q covers, jointly over all sites; a lost Jacobian would show."""
    guide = built(Supports(), DATA, family).shared
    guide.log_scale.data.zero_().add_(log(2.0) + 0.25 * log(ROWS))  # twice the priors' width
    generator = torch.Generator().manual_seed(1)
    if guide.below is not None:
        guide.below.data.copy_(0.2 * torch.randn(guide.below.shape, generator=generator))
    with torch.no_grad(), pyro.plate("draws", 40_000, dim=-2):
        sites = random_sites(poutine.trace(guide).get_trace(DATA.batch()))
    places = guide.sites
    log_p = log_q = 0.0
    for name, site in sites.items():
        to_support = bijection(places[name].support)
        free = to_support.inv(site["value"])
        inner = dist.Normal(to_support.inv(to_support(places[name].start.reshape(places[name].free_shape))), 0.7)
        log_p = log_p + inner.to_event(free.ndim - 2).log_prob(free) - to_support.log_abs_det_jacobian(free, site["value"])
        log_q = log_q + site["fn"].log_prob(site["value"])
    ratio = (log_p - log_q).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5


def test_a_full_guide_correlates_sites():
    guide = built(Supports(), DATA, "full").shared
    guide.below.data.fill_(0.3)
    with torch.no_grad(), pyro.plate("draws", 20_000, dim=-2):
        sites = random_sites(poutine.trace(guide).get_trace(DATA.batch()))
    a, b = sites["number"]["value"].flatten(), sites["scale"]["value"].log().flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.2
    values = torch.cat([bijection(p.support).inv(sites[n]["value"]).flatten(1) for n, p in guide.sites.items()], -1)
    tril = guide.unit.unsqueeze(-1) * unit_tril(guide.log_scale.exp(), guide.below)
    noise = torch.linalg.solve_triangular(tril, (values - guide.unit * guide.loc).mT, upper=False).detach()
    assert (torch.cov(noise) - torch.eye(len(noise))).abs().max() < 5 * sqrt(2 / 20_000)  # of some 100 entries
    plain = built(Supports(), DATA, "diagonal").shared
    with torch.no_grad(), pyro.plate("draws", 20_000, dim=-2):
        sites = random_sites(poutine.trace(plain).get_trace(DATA.batch()))
    a, b = sites["number"]["value"].flatten(), sites["scale"]["value"].log().flatten()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / sqrt(20_000)


@pytest.fixture(scope="module")
def svi() -> ppvae.Fit:
    return ppvae.fit(Mean(), DATA, ppvae.SVI(steps=1500))


def test_svi_finds_a_known_posterior(svi):
    drawn = svi.shared_draws(4000)["mu"]
    assert abs(drawn.mean() - MEAN) < 0.1 * SD + 4 * SD / sqrt(4000)
    assert drawn.std() == pytest.approx(SD, rel=0.1)
    assert svi.params["mu"] == pytest.approx(MEAN, abs=0.3 * SD)


def test_elbo_and_divergence_add_up_to_a_known_evidence(svi):
    bound, gap = svi.elbo(DATA, draws=1000), svi.kl(DATA)
    error = 4 * (bound.mean_standard_error + gap.mean_standard_error)
    assert 0 < bound.mean_standard_error < 1e-2
    assert bound.mean() + gap.mean() == pytest.approx(EVIDENCE, abs=error)
    assert -error < gap.mean() < 0.01


def test_the_log_likelihood_is_the_posterior_predictive(svi):
    found = svi.log_likelihood(DATA, draws=4000)
    known = dist.Normal(MEAN, sqrt(1 + SD**2)).log_prob(DATA.x[:, 0]).mean()
    assert "posterior predictive" in found.how
    assert found.mean() == pytest.approx(float(known), abs=4 * found.mean_standard_error + 2e-3)  # SVI is a little off the posterior


def spread_in_errors(pairs: list[tuple[float, float]], truth: float) -> float:
    """The root mean square of (value - truth) / error: 1 where errors are what they say."""
    return float(np.sqrt(np.mean([((value - truth) / error) ** 2 for value, error in pairs])))


def test_a_predictive_density_errs_as_much_as_it_says():
    """400 sets of 300 draws whose mean density is known, 1, and in which the rows go up and down together by half: 5 sds of the sd."""
    generator = torch.Generator().manual_seed(0)
    rows = ppvae.Data(np.ones((8, 1)))
    found = []
    for _ in range(400):
        noise = torch.randn(300, 9, dtype=torch.float64, generator=generator)
        found.append(predictive_density(0.5**0.5 * (noise[:, :1] + noise[:, 1:]) / 2 - 1 / 8, rows))
    tolerance = 5 / sqrt(2 * 400)
    assert spread_in_errors([(s[0], s.standard_error[0]) for s in found], 0.0) == pytest.approx(1, abs=tolerance)
    assert spread_in_errors([(s.mean(), s.mean_standard_error) for s in found], 0.0) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("stretch", [1.0, 1.3])
def test_a_divergence_is_the_known_one_and_errs_as_much_as_it_says(stretch):
    """KL(N(m + 0.4 s, (c s)^2) || N(m, s^2)) = -log c + (c^2 + 0.4^2 - 1) / 2, spread over the rows; 60 sets of draws."""
    guide = built(Mean(), DATA, "diagonal").shared
    guide.loc.data.fill_((MEAN + 0.4 * SD) / float(guide.unit))
    guide.log_scale.data.fill_(log(stretch * SD / float(guide.unit)))
    known = (-log(stretch) + (stretch**2 + 0.4**2 - 1) / 2) / ROWS
    found = [shared_divergence(partial(Mean().model, Parameters()), guide, DATA, 500) for _ in range(60)]
    assert np.ptp(found[0]) == 0
    assert np.mean([s.mean() for s in found]) == pytest.approx(known, abs=5 * found[0].mean_standard_error / sqrt(60))
    assert spread_in_errors([(s[0], s.mean_standard_error) for s in found], known) == pytest.approx(1, abs=5 / sqrt(2 * 60))
    bounds = [sampled_elbo(partial(Mean().model, Parameters()), guide, DATA, 100, shared=True) for _ in range(60)]
    assert spread_in_errors([(s.mean(), s.mean_standard_error) for s in bounds], EVIDENCE - known) == pytest.approx(1, abs=5 / sqrt(2 * 60))


def expected(rows: ppvae.Data, loc: float, sd: float, learnt_from: int) -> torch.Tensor:
    """(N,): E_q log N(x_n; mu, 1) less an N-th of KL(q || N(0, 10^2)) for q = N(loc, sd^2), N the rows that q was learnt from."""
    fitted = -0.5 * log(2 * pi) - 0.5 * ((rows.x[:, 0] - loc).square() + sd**2)
    return fitted - (log(10 / sd) + (sd**2 + loc**2) / 200 - 0.5) / learnt_from


def gaussian_of(guide: torch.nn.Module) -> tuple[float, float]:
    return float(guide.unit * guide.loc.detach()), float(guide.unit * guide.log_scale.detach().exp())


@pytest.mark.parametrize(
    "rows", [DATA, DATA.take(range(7)), DATA.take([0]), DATA.take([*range(ROWS)] * 2)], ids=lambda rows: str(rows.n_rows)
)
def test_a_row_s_bound_does_not_depend_on_the_rows_beside_it(svi, rows):
    known = expected(rows, *gaussian_of(svi.guide.shared), ROWS).numpy()
    found, predictive = svi.elbo(rows, draws=2000), svi.log_likelihood(rows)
    assert (abs(found - known) < 5 * found.standard_error).all()
    assert (found < predictive + 5 * found.standard_error).all()
    assert np.allclose(predictive[:1], svi.log_likelihood(DATA)[:1])


def test_a_divergence_is_known_from_the_rows_of_the_fit_alone(svi):
    """In any order; of others it would be that to another posterior."""
    turned, other = svi.kl(DATA.take(range(ROWS - 1, -1, -1))), svi.kl(DATA.take(range(10)))
    assert turned.mean() == pytest.approx(svi.kl(DATA).mean(), abs=1e-12)
    assert np.isnan(other).all()
    assert np.isnan(other.mean_standard_error)
    assert other.how == "unknown: what all rows share was learnt from others, so ask with those"
    assert np.isnan(svi.kl(ppvae.Data(DATA.x.numpy() + 0.1))).all()


@dataclass(frozen=True)
class Scaled(Mean):
    """The same with a scale to be learnt beside the posterior."""

    def init(self, data, generator):
        return Parameters(scale=ppvae.Constrained(torch.tensor(1.0), constraints.positive))

    def model(self, theta, batch):
        mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(()), 10.0))
        with batch.rows:
            pyro.sample("x", dist.Normal(mu.unsqueeze(-1), theta.scale).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("model", [Mean(), Scaled()], ids=lambda model: model.name)
def test_held_out_rows_do_not_widen_a_posterior(model):
    """The posterior is that of the 40 rows that were trained on, whatever the other 10 chose."""
    fit = ppvae.fit(model, DATA, ppvae.SVI(steps=1500, holdout=0.2, particles=10, patience=3))
    scale = float(fit.params.get("scale", 1.0))
    known = (1 / 100 + 0.8 * ROWS / scale**2) ** -0.5
    print(model, gaussian_of(fit.guide.shared)[1] / known, fit.status)
    assert gaussian_of(fit.guide.shared)[1] == pytest.approx(known, rel=0.1)
    assert fit.steps == 1500
    early = "stopped early at step" in fit.status and fit.status.endswith(
        "from there the posterior of what all rows share was trained alone"
    )
    assert early == (model == Scaled())


def test_a_held_out_bound_bears_its_share():
    """The share of a row, held out or trained on, is that of one among the rows trained on."""
    train, held = DATA.split(0.2)
    with seeded(0):
        guide = guides.build(Mean(), Parameters(), train)
        method = ppvae.SVI(steps=1, holdout=0.2, particles=20_000)
        guide.shared.loc.data.fill_(float(train.mean / guide.shared.unit))
        guide.shared.log_scale.data.fill_(log(0.2 / float(guide.shared.unit)))
        training = Training(method, Task(Mean(), train, Parameters(), None, 0), train, held, guide)
    loc, sd = gaussian_of(guide.shared)
    found, known = training._heldout(), float(expected(held, loc, sd, train.n_rows).mean())
    spread = sd * float((held.x - loc).mean().abs() + sd)  # of the mean over rows in one draw, to first order
    assert found == pytest.approx(known, abs=5 * spread / sqrt(20_000))
    assert abs(known - float(expected(held, loc, sd, held.n_rows).mean())) > 20 * spread / sqrt(20_000)


def test_which_parameters_a_shared_posterior_has():
    class Points(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mu, self.code = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))

        def forward(self, batch):
            pyro.sample("mu", dist.Delta(self.mu))
            with batch.rows:
                pyro.sample("z", dist.Normal(self.code, 1.0))

    points, gaussian = Points(), built(Supports(), DATA, "full")
    assert posterior_of_shared(points, DATA.head()) == {points.mu}
    assert posterior_of_shared(gaussian, DATA.head()) == set(gaussian.shared.parameters())
    assert posterior_of_shared(built(ppvae.models.PPCA(1), ppvae.load_data("iris")), ppvae.load_data("iris").head()) == set()


def test_the_sampler_finds_a_known_posterior():
    fit = ppvae.fit(Mean(), DATA, ppvae.NUTS(draws=500, warmup=200, chains=2))
    chains = fit.shared_chains()["mu"]
    assert chains.shape == (2, 500)
    assert fit.converged
    assert "no divergences" in fit.status
    assert chains.mean() == pytest.approx(MEAN, abs=4 * SD / sqrt(200))  # at least 200 effective draws of 1000
    assert chains.std() == pytest.approx(SD, rel=4 / sqrt(2 * 200))
    assert np.isnan(fit.elbo(DATA)).all()
    assert "no density" in fit.elbo(DATA).how
    assert np.array_equal(fit.shared_draws()["mu"], chains.flatten())
    assert fit.params["mu"] == chains.mean()
    assert set(fit.shared_draws(900)["mu"]) < set(chains.flatten())
    assert fit.log_likelihood(DATA, draws=5000).how == "posterior predictive, 1000 draws of what all rows share"
    for draws, sentence in ((1001, "the sampler drew 1000 times, not 1001"), (0, "at least 1, not 0"), (1.5, "a whole number, not 1.5")):
        with pytest.raises(ValueError, match=sentence):
            fit.shared_draws(draws)


def test_parts_of_the_rows_add_up_to_the_log_joint():
    """What all rows share counts once, however the rows are cut."""
    program, mu = partial(Mean().model, Parameters()), {"mu": torch.tensor(2.0, dtype=torch.float64)}
    whole = log_joint(program, DATA.batch(), mu).sum()
    assert float(whole) == pytest.approx(
        float(dist.Normal(0.0, 10.0).log_prob(mu["mu"]) + dist.Normal(mu["mu"], 1.0).log_prob(DATA.x).sum())
    )
    assert float(sum(log_joint(program, part, mu).sum() for part in DATA.chunks(7))) == pytest.approx(float(whole))


def test_new_rows_come_from_the_posterior_and_not_from_the_prior(svi):
    rows = svi.replicate(DATA, draws=200, rows="new")
    assert rows.mean() == pytest.approx(MEAN, abs=4 * sqrt((1 / ROWS + SD**2) / 200) + 0.1 * SD)
    assert abs(svi.sample(500).mean() - MEAN) < 4 * sqrt(1 / 500 + SD**2)


def test_arviz_gets_draws_of_what_is_shared(svi):
    container = svi.to_arviz(DATA, draws=50)
    assert container["posterior"]["mu"].shape == (1, 50)
    assert container["log_likelihood"]["log_marginal"].shape == (1, 50, ROWS)
    mu = container["posterior"]["mu"].values[0]
    expected = dist.Normal(torch.tensor(mu)[:, None], 1.0).log_prob(DATA.x[:, 0])
    assert np.allclose(container["log_likelihood"]["log_marginal"].values[0], expected)


@pytest.mark.parametrize("method", [ppvae.SVI(steps=5), ppvae.NUTS(draws=4, warmup=4, chains=2)], ids=lambda m: m.name)
def test_what_is_shared_is_saved(method, tmp_path):
    data = ppvae.load_data("low_dim_gauss_mix").take(range(60))
    fit = ppvae.fit(ppvae.models.BayesianGMM(), data, method)
    again = ppvae.load(fit.save(tmp_path / "fit"))
    assert np.array_equal(again.log_likelihood(data), fit.log_likelihood(data))
    for name, value in fit.shared_chains().items():
        assert np.array_equal(again.shared_chains()[name], value)


def test_criteria_about_a_point_are_refused(svi):
    with pytest.raises(ValueError, match=r"bic is about a point estimate.*arviz\.loo"):
        svi.bic(DATA)


def test_draws_stay_together():
    """One index for all sites: values that were drawn together come together."""
    values = torch.arange(6.0).reshape(2, 3)
    guide = Draws({"a": values, "b": 10 * values.unsqueeze(-1).expand(2, 3, 4)})
    with pyro.plate("draws", 100, dim=-2):
        sites = random_sites(poutine.trace(guide).get_trace(DATA.batch()))
    a, b = sites["a"]["value"], sites["b"]["value"]
    assert a.shape == (100, 1)
    assert torch.equal(b, 10 * a.unsqueeze(-1).expand(100, 1, 4))
    assert len(a.unique()) == 6


@dataclass(frozen=True)
class ByGroup(Model):
    """u_g ~ N(0, 1), x_n ~ N(u_g(n), 0.5^2), the group in the context: -1 or 3 is none, and no row may be made up with it."""

    how: str = "one_hot"

    def init(self, data, generator):
        return Parameters(table=nn.Embedding(3, 1).requires_grad_(False))

    def model(self, theta, batch):
        u = pyro.sample("u", dist.Normal(batch.x.new_zeros(3), 1.0).to_event(1))
        with batch.rows:
            group = batch.context[..., 0].long()
            if self.how == "one_hot":
                loc = (nn.functional.one_hot(group, 3).to(u) * u).sum(-1)
            else:
                loc = Vindex(u)[..., group] + 0 * theta.table(group)[..., 0]
            pyro.sample("x", dist.Normal(loc.unsqueeze(-1), 0.5).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize("how", ["one_hot", "embedding"])
def test_groups_in_the_context_stay_groups(how, tmp_path):
    """Whatever a fit is asked, also after it was saved, the story never meets a group that the data lack."""
    rng = np.random.default_rng(0)
    group = np.arange(30) % 3
    data = ppvae.Data((np.array([-1.0, 0.0, 2.0])[group] + 0.5 * rng.standard_normal(30))[:, None], context=group)
    fit = ppvae.fit(ByGroup(how), data, ppvae.SVI(steps=30, compile=False), dtype="float64")
    again = ppvae.load(fit.save(tmp_path / "fit"))
    for one in (fit, again):
        found = one.log_likelihood(data, draws=200)
        drawn = one.shared_draws(200)["u"][:, group]
        density = stats.norm.logpdf(data.numpy()[:, 0], drawn, 0.5)
        assert np.asarray(found) == pytest.approx(logsumexp(density, 0) - log(200))
        assert one.sample(5, context=[2.0]).shape == (5, 1)
        assert one.replicate(data, draws=2).shape == (2, 30, 1)
        assert np.isfinite(one.elbo(data)).all()


@dataclass(frozen=True)
class Plated(Mean):
    """A shared latent in a plate of its own."""

    def model(self, theta, batch):
        with pyro.plate("parts", 2):
            mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(()), 10.0))
        with batch.rows:
            pyro.sample("x", dist.Normal(mu.sum().unsqueeze(-1), batch.x.new_ones(1)).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Discrete(Mean):
    """A shared choice."""

    def model(self, theta, batch):
        k = pyro.sample("k", dist.Categorical(batch.x.new_ones(2) / 2))
        with batch.rows:
            pyro.sample("x", dist.Normal(k.to(batch.x), batch.x.new_ones(1)).mask(batch.observed).to_event(1), obs=batch.x)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Plated(), r"'mu' lies in the plate 'parts': take the plate away and add .to_event\(1\)"),
        (Discrete(), "'k' is discrete: sum it out"),
    ],
    ids=["plate", "discrete"],
)
def test_shared_latents_that_no_guide_serves_are_refused(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.fit(model, DATA, ppvae.SVI(steps=2))


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        (ppvae.models.GMM(2), "faithful", "gmm learns weights, means and covariances as parameters: use .*EM.* SVI"),
        (ppvae.models.VAE(likelihood="gaussian"), "iris", "vae learns .*decoder"),
    ],
    ids=["gmm", "vae"],
)
def test_the_sampler_says_what_it_cannot_draw(model, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.fit(model, ppvae.load_data(data), ppvae.NUTS())


@pytest.mark.parametrize("setting", [{"draws": 0}, {"chains": 0}, {"warmup": 0}, {"target_accept": 1.0}, {"max_tree_depth": 0}])
def test_the_sampler_refuses_bad_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ppvae.NUTS(**setting)


@dataclass(frozen=True)
class Tiers(Mean):
    """mu ~ N(0, 10^2), z_n ~ N(mu, 1), x_n ~ N(z_n, 1): x_n ~ N(mu, 2), so the posterior of mu is known again."""

    def model(self, theta, batch):
        mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(()), 10.0))
        with batch.rows:
            z = pyro.sample("z", dist.Normal(mu, batch.x.new_ones(())))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_the_sampler_integrates_the_rows_own_latents_out():
    fit = ppvae.fit(Tiers(), DATA, ppvae.NUTS(draws=400, warmup=200, chains=2))
    assert fit.engine.startswith("captured")
    precision = 1 / 100 + ROWS / 2
    mean, sd = float(DATA.x.sum()) / 2 / precision, precision**-0.5
    drawn = fit.shared_chains()["mu"]
    assert drawn.mean() == pytest.approx(mean, abs=4 * sd / sqrt(160))  # at least 160 effective draws of 800
    assert drawn.std() == pytest.approx(sd, rel=4 / sqrt(2 * 160))
    rows = fit.to_arviz(DATA, draws=5)["log_likelihood"]["log_marginal"].values
    expected = dist.Normal(torch.tensor(drawn)[..., None], sqrt(2)).log_prob(DATA.x[:, 0])
    assert np.allclose(rows, expected)


@dataclass(frozen=True)
class Curved(Mean):
    """z_n enters through its square: no formula integrates it out."""

    def model(self, theta, batch):
        mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(()), 10.0))
        with batch.rows:
            z = pyro.sample("z", dist.Normal(mu, batch.x.new_ones(())))
            pyro.sample("x", dist.Normal(z.square().unsqueeze(-1), 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_rows_latents_without_a_formula_are_refused_by_the_sampler():
    with pytest.raises(ValueError, match=r"z of curved is each row's own and has no formula.*: use .*SVI"):
        ppvae.fit(Curved(), DATA, ppvae.NUTS())
