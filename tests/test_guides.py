"""Guides: each family on each kind of site, and what the encoder sees."""

import copy
import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import planar
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import ppvae
from ppvae import guides
from ppvae.exact import kl
from ppvae.inference.fit import start
from ppvae.model import Model
from ppvae.models import GMM, PPCA
from ppvae.networks import Rescaled
from ppvae.parameters import Parameters
from ppvae.program.joint import elbo_rows, latent_sites, random_sites, sites_of
from ppvae.program.read import read_guide


@dataclass(frozen=True)
class Supports(Model):
    """A latent of every support: a number, a vector, a matrix, a positive scale, a share and a simplex."""

    def init(self, data, generator):
        return Parameters(mean=data.mean)

    def model(self, theta, batch):
        zero = batch.x.new_zeros(())
        with batch.rows:
            z = pyro.sample("number", dist.Normal(zero, 1.0))
            pyro.sample("vector", dist.Normal(zero.expand(3), 1.0).to_event(1))
            pyro.sample("matrix", dist.Normal(zero.expand(2, 2), 1.0).to_event(2))
            scale = pyro.sample("scale", dist.LogNormal(zero, 1.0))
            pyro.sample("share", dist.Beta(zero + 2.0, zero + 2.0))
            pyro.sample("simplex", dist.Dirichlet(zero.expand(3) + 1.0))
            x = dist.Normal(theta.mean + z.unsqueeze(-1), scale.unsqueeze(-1))
            pyro.sample("x", x.mask(batch.observed).to_event(1), obs=batch.x)


def built(model: Model, data: ppvae.Data, guide=None) -> torch.nn.Module:
    torch.manual_seed(0)
    return guides.build(model, start(model, data, 0), data, guide)


def trace_of(guide: torch.nn.Module, data: ppvae.Data) -> dict[str, dict]:
    trace = poutine.trace(guide).get_trace(data.batch())
    trace.compute_log_prob()
    return random_sites(trace)


@pytest.mark.parametrize("family", guides.FAMILIES)
def test_every_family_serves_every_support(family):
    data = ppvae.load_data("iris")
    story, sites = Supports(), trace_of(built(Supports(), data, family), data)
    theta = start(story, data, 0)
    latent = latent_sites(partial(story.model, theta), data.head())
    assert set(sites) == set(latent) == {"number", "vector", "matrix", "scale", "share", "simplex"}
    for name, site in sites.items():
        assert site["value"].shape == (150, *latent[name]["fn"].event_shape)
        assert site["log_prob"].shape == (150,)
        assert bool(latent[name]["fn"].support.check(site["value"]).all())


@pytest.mark.parametrize("family", guides.FAMILIES)
def test_the_densities_of_a_guide_are_densities(family):
    """E_q [p(z) / q(z)] = 1 for a prior p that q covers; a lost Jacobian would show."""
    data = ppvae.load_data("iris").take([0])
    guide = built(Supports(), ppvae.load_data("iris"), family)
    with torch.no_grad(), pyro.plate("draws", 20_000, dim=-2):
        trace = poutine.trace(guide).get_trace(data.batch())
        trace.compute_log_prob()
    for name, prior in {"scale": dist.LogNormal(0.0, 0.5), "share": dist.Beta(4.0, 4.0), "number": dist.Normal(0.0, 0.5)}.items():
        site = trace.nodes[name]
        ratio = (prior.log_prob(site["value"]) - site["log_prob"]).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(ratio) ** 0.5


def test_families_differ_in_what_they_say_of_a_row():
    data = ppvae.load_data("iris")
    kinds = {family: trace_of(built(PPCA(2), data, family), data)["z"]["fn"] for family in guides.FAMILIES}
    assert isinstance(kinds["diagonal"], dist.Independent)
    assert kinds["full"].scale_tril.shape == (150, 2, 2)
    assert kinds["linear"].scale_tril.shape[0] == 1 or bool((kinds["linear"].scale_tril == kinds["linear"].scale_tril[0]).all())
    x = data.x
    loc = kinds["linear"].loc.detach()
    plane = torch.cat([x, torch.ones(150, 1, dtype=x.dtype)], 1)
    assert float((plane @ torch.linalg.lstsq(plane, loc).solution - loc).abs().max()) < 1e-10


def test_the_encoder_sees_standardised_rows_and_the_mask_where_there_are_holes():
    complete, holes = ppvae.load_data("iris"), ppvae.load_data("airquality")
    seen = guides.Standardize(complete)(complete.batch())
    assert seen.shape == (150, 4)
    assert seen.mean(0).numpy() == pytest.approx(0, abs=1e-10)
    assert seen.std(0, correction=0).numpy() == pytest.approx(1)
    both = guides.Standardize(holes)(holes.batch())
    values, mask = both.split(holes.n_features, -1)
    assert (mask.bool() == holes.observed).all()
    assert (values[~holes.observed] == 0).all()


def test_missing_values_are_never_read_by_a_guide():
    data = ppvae.load_data("airquality")
    garbage = data.take(range(data.n_rows))
    garbage.x[~garbage.observed] = 1e9
    guide = built(PPCA(2), data, "full")
    one, other = (trace_of(guide, d)["z"]["fn"].loc for d in (data, garbage))
    assert (one == other).all()


def test_a_component_is_guided_only_where_it_is_asked_for():
    data = ppvae.load_data("faithful")
    assert trace_of(built(GMM(3), data), data) == {}
    site = trace_of(built(GMM(3, component="guided"), data), data)["component"]
    assert site["fn"].logits.shape == (272, 3)
    assert site["infer"]["enumerate"] == "parallel"


def test_a_guide_of_ones_own_is_taken_as_it_is():
    data = ppvae.load_data("iris")
    module = built(PPCA(2), data, "full")
    assert built(PPCA(2), data, module) is module

    def prior(batch):
        with batch.rows:
            pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))

    assert list(built(PPCA(2), data, prior).parameters()) == []


@pytest.mark.parametrize("family", ["full", "diagonal"])
def test_rows_of_their_own_hold_each_posterior(family):
    """Free parameters for every row, set to the exact posterior: the full family holds it, and the diagonal one its best likeness."""
    data, model = ppvae.load_data("airquality"), PPCA(2)
    theta = start(model, data, 0)
    with torch.no_grad():
        posterior = model.closed_forms.posterior(theta, data.batch())
        tril = posterior.scale_tril[:, 0]
        precise = torch.linalg.inv(tril @ tril.mT).diagonal(dim1=-2, dim2=-1)
        guide = guides.PerRow("z", posterior.loc[:, 0], tril if family == "full" else precise.rsqrt())
        lost = kl(read_guide(guide, data.batch()), posterior)
        some = torch.tensor([4, 2])  # the first of these has holes
        assert torch.equal(kl(read_guide(guide, data.batch(some)), model.closed_forms.posterior(theta, data.batch(some))), lost[some])
        if family == "full":
            assert float(lost.max()) < 1e-10
            draws = elbo_rows(lambda batch: model.model(theta, batch), guide, data.batch(), 3)
            torch.testing.assert_close(draws, model.closed_forms.log_marginal(theta, data.batch()).expand_as(draws))
        else:
            other = guides.PerRow("z", posterior.loc[:, 0], 1.05 * precise.rsqrt())
            assert (lost < kl(read_guide(other, data.batch()), posterior)).all()


def test_unit_tril():
    found = guides.unit_tril(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    assert found.tolist() == [[1, 0, 0], [4, 2, 0], [5, 6, 3]]
    assert constraints.lower_cholesky.check(found)


@dataclass(frozen=True)
class Discrete(Model):
    """x is near 0 or near 1 of its latent's values."""

    coin: bool = True

    def init(self, data, generator):
        return Parameters(mean=torch.zeros_like(data.mean))

    def model(self, theta, batch):
        chance = batch.x.new_tensor(0.5)
        with batch.rows:
            z = pyro.sample("z", dist.Bernoulli(chance) if self.coin else dist.Poisson(chance))
            pyro.sample("x", dist.Normal(theta.mean + z.unsqueeze(-1), 0.1).to_event(1), obs=batch.x)


def test_a_coin_has_a_guide_and_a_count_is_refused():
    random = np.random.default_rng(0)
    data = ppvae.Data(random.integers(0, 2, (40, 1)) + 0.1 * random.standard_normal((40, 1)))
    fit = ppvae.fit(Discrete(), data, ppvae.SVI(steps=300))
    # Log p(x) is known by summing both sides of the coin; guessed right, the guide loses next to nothing.
    sides = [dist.Normal(torch.tensor(fit.params["mean"]) + side, 0.1).log_prob(data.x).sum(-1) - math.log(2) for side in (0, 1)]
    assert float(torch.stack(sides).logsumexp(0).mean()) - float(fit.elbo(data).mean()) < 0.05
    with pytest.raises(ValueError, match=r"support is IntegerGreaterThan.*enumerate"):
        ppvae.fit(Discrete(coin=False), data, ppvae.SVI(steps=2))


class Encoder(torch.nn.Module):
    """A sound guide of PPCA(2) on iris, with the mistake of each test put in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(4, 4)

    def forward(self, batch):
        with batch.rows:
            pyro.sample("z", self.q(*self.network(batch.x).chunk(2, -1)))

    def q(self, loc, log_scale):
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class InPlace(Encoder):
    def forward(self, batch):
        batch.x.sub_(batch.x.mean(0))
        super().forward(batch)


class Param(Encoder):
    def q(self, loc, log_scale):
        return super().q(loc + pyro.param("shift", torch.zeros(2)), log_scale)


class Registered(Encoder):
    def forward(self, batch):
        pyro.module("encoder", self.network)
        super().forward(batch)


class Normalised(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.BatchNorm1d(4), self.network)


class Flat(Encoder):
    def q(self, loc, log_scale):
        return dist.Normal(loc[:, 0], 1.0)


class Twice(Encoder):
    def forward(self, batch):
        with batch.rows:
            pass
        super().forward(batch)


class Failing(Encoder):
    def q(self, loc, log_scale):
        return dist.Normal(loc, self.scale).to_event(1)


NETWORK = torch.nn.Linear(4, 2).double()


def beyond(batch):
    with batch.rows:
        pyro.sample("z", dist.Normal(NETWORK(batch.x), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (InPlace(), r"^ppca: the guide changes batch\.x in place, and so the data: change a copy, batch\.x\.clone\(\)$"),
        (Param(), "^ppca: the guide has a pyro.param 'shift', which no method trains: make the guide a torch.nn.Module"),
        (Registered(), "^ppca: the guide has a pyro.module 'encoder', which no method trains"),
        (beyond, "^ppca: the guide reads parameters beyond it, which no method trains"),
        (Normalised(), "^ppca: the guide: batch normalisation ties rows to one another"),
        (Flat(), r"^ppca: the guide gives a row's 'z' the shape \(\), but the story \(2,\): sample it as the story does$"),
        (Twice(), r"^ppca: the guide fails at line \d+, `with batch\.rows:`: .*keep the plate: rows = batch\.rows\)$"),
        (Failing(), r"^ppca: the guide fails at line \d+, `return .*`: AttributeError: .* no attribute 'scale'$"),
        (torch.nn.Linear(4, 2), "^ppca: the guide fails: TypeError: .*a guide is called with a batch"),
        (AutoNormal(beyond), "^AutoNormal has no encoder .*: name a family, diagonal, full or linear$"),
        (Encoder, r"^Encoder is a class: give an object, Encoder\(\)$"),
        (3, "^a guide is a module, a function of the batch, or one of diagonal"),
    ],
    ids=lambda g: None if isinstance(g, str) else type(g).__name__,
)
def test_a_guide_says_what_is_wrong_with_it(guide, sentence):
    data = ppvae.load_data("iris")
    before, stored = data.x.clone(), dict(pyro.get_param_store().items())
    with pytest.raises(ValueError, match=sentence) as caught:
        built(PPCA(2), data, guide)
    assert "\n" not in str(caught.value)
    assert torch.equal(data.x, before)
    assert dict(pyro.get_param_store().items()) == stored


def test_an_objective_that_scores_draws_anew_refuses_a_flow_without_an_inverse():
    class Flow(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.flow = planar(2)

        def q(self, loc, log_scale):
            return dist.TransformedDistribution(super().q(loc, log_scale), [self.flow])

    data = ppvae.load_data("iris")
    assert ppvae.fit(PPCA(2), data, ppvae.SVI(steps=1, compile=False), guide=Flow())
    with pytest.raises(ValueError, match=r"objective='dreg' scores draws anew, .* use objective='iwae'$"):
        ppvae.fit(PPCA(2), data, ppvae.SVI(steps=1, objective="dreg", compile=False), guide=Flow())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_context_is_only_centred(dtype):
    """Also where its mean is rounded: 0.1 ten times over sums to other than 1, and what is left is no spread."""
    values = torch.tensor([0.1, 1e3 / 3, 0.0, -7e-9], dtype=torch.float64).expand(10, 4)
    varied = torch.cat([values, 5 + 1e-3 * torch.arange(10, dtype=torch.float64).unsqueeze(-1)], 1).to(dtype)
    rescaled = Rescaled(varied)
    assert rescaled.scale[:4].tolist() == [1.0] * 4
    assert float(rescaled.scale[4]) == pytest.approx(1e-3 * 8.25**0.5, rel=1e-3)  # the variance of 0 ... 9 is 99 / 12
    data = ppvae.Data(torch.arange(20.0).reshape(10, 2), context=varied.double()).to(dtype)
    seen = guides.Standardize(data)(data.batch())[:, 2:]
    assert seen[:, :4].abs().max() < 1e-3
    assert float(seen[:, 4].std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_a_copied_guide_says_the_same():
    """A copy holds copied constraints: a coin stays a coin, of numbers, and a Gaussian one that can be read."""

    @dataclass(frozen=True)
    class Coin(ppvae.Model):
        def init(self, data, generator):
            return ppvae.Parameters(step=torch.tensor([1.0, -2.0]))

        def model(self, theta, batch):
            with batch.rows:
                coin = pyro.sample("coin", dist.Bernoulli(batch.x.new_tensor(0.3)))
                z = pyro.sample("z", dist.Normal(batch.x.new_tensor(0.0), 1.0))
                loc = coin.unsqueeze(-1) * theta.step + z.unsqueeze(-1)
                pyro.sample("x", dist.Normal(loc, 1.0).mask(batch.observed).to_event(1), obs=batch.x)

    data = ppvae.Data(np.random.default_rng(0).standard_normal((5, 2)))
    guide = guides.build(Coin(), start(Coin(), data, 0), data)
    for one in (guide, copy.deepcopy(guide)):
        sites = sites_of(one, data.batch())
        assert {name: type(site["fn"]) for name, site in sites.items()} == {"coin": dist.Bernoulli, "z": dist.TransformedDistribution}
    linear = guides.build(PPCA(1), start(PPCA(1), data, 0), data)
    assert torch.equal(read_guide(copy.deepcopy(linear), data.batch()).loc, read_guide(linear, data.batch()).loc)
