"""Stories and guides tried by value: what counts dims from the left, ties rows together or counts otherwise than once is refused before
anything is trained, and what is written right is taken."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.ops.indexing import Vindex
from scipy import stats
from torch import nn
from torch.distributions import constraints

import ppvae
from ppvae import Constrained, Model, Parameters, guides
from ppvae.inference.fit import start
from ppvae.program.story import check_holes, check_story

X = np.random.default_rng(0).normal(size=(12, 3))
GROUP = np.arange(12) % 3
DATA = ppvae.Data(X, context=np.stack([GROUP, np.linspace(-1, 1, 12)], 1))
PLAIN = ppvae.Data(X)


class Story(Model):
    """A story is its `model`; all have the same parameters, some at 0, where nothing that multiplies them shows."""

    def init(self, data, generator):
        return Parameters(
            W=torch.zeros(4, 3, dtype=torch.float64),
            m=torch.zeros(2, 3, dtype=torch.float64),
            s=Constrained(torch.tensor(1.0, dtype=torch.float64), constraints.positive),
            norm=nn.GroupNorm(2, 4),
        )


def of_rows(read):
    """A story whose row has four latents, of which x's means are `read(theta, z) @ W`."""

    class OfRows(Story):
        def model(self, theta, batch):
            with batch.rows:
                z = pyro.sample("z", dist.Normal(batch.x.new_zeros(4), 1.0).to_event(1))
                loc = read(theta, z) @ theta.W
                pyro.sample("x", dist.Normal(loc, theta.s).mask(batch.observed).to_event(1), obs=batch.x)

    return OfRows()


def of_all(read):
    """A story whose rows share four numbers, of which x's means are `read(u, group, t)`, (..., B)."""

    class OfAll(Story):
        def model(self, theta, batch):
            u = pyro.sample("u", dist.Normal(batch.x.new_zeros(4), 1.0).to_event(1))
            with batch.rows:
                loc = read(u, batch.context[:, 0].long(), batch.context[:, 1])
                pyro.sample("x", dist.Normal(loc.unsqueeze(-1), theta.s).expand((*loc.shape, 3)).to_event(1), obs=batch.x)

    return OfAll()


def of_values(read):
    """A mixture of two, whose means are `read(m, k)`."""

    class OfValues(Story):
        def model(self, theta, batch):
            with batch.rows:
                k = pyro.sample("k", dist.Categorical(batch.x.new_ones(2) / 2), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(read(theta.m, k), theta.s).to_event(1), obs=batch.x)

    return OfValues()


def tried(model, data):
    check_story(model, start(model, data, 0), data)


@pytest.mark.parametrize(
    "read",
    [
        lambda theta, z: F.softmax(z, dim=1),
        lambda theta, z: F.softmax(z),
        lambda theta, z: F.normalize(z),
        lambda theta, z: z / z.norm(dim=1, keepdim=True),
        lambda theta, z: z.sort(1).values,
        lambda theta, z: z.cumsum(1),
        lambda theta, z: z.flip(1),
        lambda theta, z: nn.Softmax(dim=1)(z),
        lambda theta, z: theta.norm(z),
    ],
)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_what_counts_dims_from_the_left_is_refused(read):
    with pytest.raises(ValueError, match=r"of_rows: the story .* several draws of its latents .* count dims from the right") as caught:
        tried(of_rows(read), PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        lambda theta, z: F.softmax(z, dim=-1),
        lambda theta, z: z / z.norm(dim=-1, keepdim=True),
        lambda theta, z: z.cumsum(-1),
        lambda theta, z: ppvae.networks.Flat(theta.norm)(z),
        lambda theta, z: F.dropout(z, 0.0),
    ],
)
def test_what_counts_them_from_the_right_is_taken(read):
    tried(of_rows(read), PLAIN)


@pytest.mark.parametrize("read", [lambda theta, z: z - z.mean(0), lambda theta, z: z.cumsum(-2), lambda theta, z: F.softmax(z, 0)])
def test_rows_tied_together_are_refused(read):
    with pytest.raises(ValueError, match=r"of_rows: the story scores a row's 'x' otherwise among other rows: .*dim=-1"):
        tried(of_rows(read), PLAIN)


@pytest.mark.parametrize(
    "read",
    [
        lambda u, g, t: u[0] + u[1] * t,
        lambda u, g, t: u.cumsum(0)[..., 3] + 0 * t,
        lambda u, g, t: (u / u.norm())[..., 0] + 0 * t,
        lambda u, g, t: F.softmax(u, 0)[..., 1] + 0 * t,
        lambda u, g, t: u[g],
        lambda u, g, t: u[..., g],
        lambda u, g, t: (t.new_ones(12, 4)[: len(t)] @ u.unsqueeze(-1)).squeeze(-1),
    ],
)
def test_draws_of_what_rows_share_must_not_mix(read):
    with pytest.raises(ValueError, match=r"of_all: the story .* several draws of u come at once, .*c\[..., 0\].*Vindex\(u\)\[..., g\]"):
        tried(of_all(read), DATA)


@pytest.mark.parametrize(
    "read",
    [
        lambda u, g, t: u[..., 0] + u[..., 1] * t,
        lambda u, g, t: Vindex(u)[..., g],
        lambda u, g, t: (u / u.norm(dim=-1, keepdim=True))[..., 0] + t,
        lambda u, g, t: (F.one_hot(g, 4).to(u) * u).sum(-1),
    ],
)
def test_what_rows_share_indexed_from_the_right_is_taken(read):
    tried(of_all(read), DATA)


@pytest.mark.parametrize(
    "read",
    [
        lambda m, k: m[k].cumsum(1),
        lambda m, k: m[k].flip(1),
        lambda m, k: F.softmax(m[k], 1),
        lambda m, k: m[1] + torch.zeros(*k.shape, 3) if (k == 1).all() else m[0] + torch.zeros(*k.shape, 3),  # where all rows agree
    ],
)
def test_values_of_a_finite_latent_must_not_mix(read):
    with pytest.raises(ValueError, match="of_values: the story scores 'x' otherwise when all values of k come at once"):
        tried(of_values(read), PLAIN)


def test_draws_of_a_finite_latent_must_not_mix():
    """k comes as (values, 1) where it is summed out, and as (draws, rows) where rows are drawn or filled in: k[:, None] serves one."""
    with pytest.raises(ValueError, match="of_values: the story fails when several draws of its latents come at once"):
        tried(of_values(lambda m, k: m[0] + k[:, None] * m[1]), PLAIN)


@pytest.mark.parametrize("read", [lambda m, k: m[k].cumsum(-1), lambda m, k: Vindex(m)[k], lambda m, k: F.one_hot(k, 2).to(m) @ m])
def test_values_of_a_finite_latent_side_by_side_are_taken(read):
    tried(of_values(read), PLAIN)


class Weighed(Story):
    how = "scale"

    def model(self, theta, batch):
        around = {"scale": poutine.scale(scale=0.2), "mask": poutine.mask(mask=batch.x[:, 0] > 0)}
        with batch.rows:
            with around[self.how]:
                z = pyro.sample("z", dist.Normal(batch.x.new_zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ theta.W, theta.s).to_event(1), obs=batch.x)


def test_a_latent_that_counts_otherwise_than_once_is_refused():
    with pytest.raises(ValueError, match=r"poutine.scale weighs the density of 'z'.*SVI\(beta=...\)"):
        tried(Weighed(), PLAIN)
    with pytest.raises(ValueError, match=r"a mask takes the density of 'z' away from some rows.* mask what is observed alone"):
        tried(type("Masked", (Weighed,), {"how": "mask"})(), PLAIN)


def test_an_observed_site_that_counts_twice_is_refused():
    class Twice(Story):
        def model(self, theta, batch):
            with batch.rows, poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(theta.m[0], theta.s).to_event(1), obs=batch.x)

    with pytest.raises(ValueError, match=r"poutine.scale makes 'x' count otherwise than once"):
        tried(Twice(), PLAIN)


@pytest.mark.parametrize("masked", [0, 1, 3])
def test_holes_are_overlooked_in_no_column(masked):
    class Partly(Story):
        def model(self, theta, batch):
            mask = batch.observed | (torch.arange(3) >= masked)
            with batch.rows:
                pyro.sample("x", dist.Normal(theta.m[0], theta.s).mask(mask).to_event(1), obs=batch.x)

    holed = X.copy()
    holed[2, 1] = holed[5, 2] = holed[7, 0] = np.nan
    model, data = Partly(), ppvae.Data(holed)
    theta = start(model, data, 0)
    if masked == 3:
        check_holes(model, theta, data)
        return
    with pytest.raises(ValueError, match=r"entries (that )?are missing: leave them out, as .mask\(batch.observed\) does"):
        check_holes(model, theta, data)


class Encoder(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.read, self.net = read, nn.Linear(3, 4).double()
        nn.init.zeros_(self.net.weight)

    def forward(self, batch):
        with batch.rows:
            pyro.sample("z", dist.Normal(self.read(self.net, batch), 1.0).to_event(1))


def test_a_guide_that_reads_other_rows_is_refused():
    model = of_rows(lambda theta, z: z)
    theta = start(model, PLAIN, 0)
    guides.build(model, theta, PLAIN, Encoder(lambda net, batch: net(batch.x)))
    with pytest.raises(ValueError, match="of_rows: the guide scores a row's 'z' otherwise among other rows"):
        guides.build(model, theta, PLAIN, Encoder(lambda net, batch: net(batch.x - batch.x.mean(0))))


def test_a_guide_of_two_latents_counts_dims_from_the_right():
    class Two(Story):
        def model(self, theta, batch):
            with batch.rows:
                z = pyro.sample("z", dist.Normal(batch.x.new_zeros(4), 1.0).to_event(1))
                a = pyro.sample("a", dist.Normal(z, 1.0).to_event(1))
                pyro.sample("x", dist.Normal(a @ theta.W, theta.s).to_event(1), obs=batch.x)

    class Chain(Encoder):
        def forward(self, batch):
            with batch.rows:
                z = pyro.sample("z", dist.Normal(self.net(batch.x), 1.0).to_event(1))
                pyro.sample("a", dist.Normal(self.read(z), 1.0).to_event(1))

    model = Two()
    theta = start(model, PLAIN, 0)
    guides.build(model, theta, PLAIN, Chain(lambda z: F.softmax(z, -1)))
    with pytest.raises(ValueError, match="two: the guide scores 'a' otherwise when several draws"):
        guides.build(model, theta, PLAIN, Chain(lambda z: F.softmax(z, 1)))


def test_a_trial_leaves_everything_as_it_was():
    torch.manual_seed(3)
    before, model = torch.get_rng_state(), of_rows(lambda theta, z: z)
    theta = start(model, PLAIN, 0)
    kept = {name: value.clone() for name, value in theta.state_dict().items()}
    check_story(model, theta, PLAIN)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(kept[name], value) for name, value in theta.state_dict().items())
    assert theta.training


@dataclass(frozen=True)
class Chain(Model):
    """A hidden Markov chain, its links marked by pyro.markov, which hands out the same dims again, or not."""

    markov: bool = True

    def init(self, data, generator):
        of = partial(torch.tensor, dtype=data.dtype)
        return Parameters(
            first=Constrained(of([0.6, 0.4]), constraints.simplex),
            move=Constrained(of([[0.9, 0.1], [0.2, 0.8]]), constraints.simplex),
            loc=of([-1.0, 2.0]),
            scale=Constrained(of([1.0, 0.7]), constraints.positive),
        )

    def model(self, theta, batch):
        steps = range(batch.x.shape[-1])
        with batch.rows:
            k = None
            for t in pyro.markov(steps) if self.markov else steps:
                k = pyro.sample(f"k_{t}", dist.Categorical(theta.first if t == 0 else theta.move[k]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(theta.loc[k], theta.scale[k]).mask(batch.observed[..., t]), obs=batch.x[..., t])


def forward(x, p):
    """(N,): log p(x) by the forward algorithm, missing entries left out."""
    emission = np.where(np.isnan(x)[..., None], 0.0, stats.norm.logpdf(x[..., None], p["loc"], p["scale"]))
    a = np.log(p["first"]) + emission[:, 0]
    for t in range(1, x.shape[1]):
        a = np.logaddexp.reduce(a[:, :, None] + np.log(p["move"]), 1) + emission[:, t]
    return np.logaddexp.reduce(a, 1)


@pytest.mark.parametrize("markov", [True, False])
def test_a_chain_is_summed_out_exactly(markov):
    x = 1.5 * np.random.default_rng(0).normal(size=(20, 7))
    x[3, 2] = x[4, 6] = np.nan
    fit = ppvae.fit(Chain(markov), x, ppvae.SVI(steps=2, compile=False))
    right = forward(x, fit.params)
    for scores in (fit.log_likelihood(x), fit.elbo(x)):
        assert scores.exact
        assert np.abs(np.asarray(scores) - right).max() < 1e-10


def test_a_long_chain_costs_its_length():
    x = np.random.default_rng(0).normal(size=(3, 100))
    fit = ppvae.fit(Chain(), x, ppvae.SVI(steps=1, compile=False))
    assert np.abs(np.asarray(fit.log_likelihood(x)) - forward(x, fit.params)).max() < 1e-9


class Numbered(Story):
    """Each row has a mean of its own: its parameters are those of one table."""

    def init(self, data, generator):
        return Parameters(a=torch.zeros(data.n_rows, 3, dtype=data.dtype))

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.a[batch.index], 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_rows_with_numbers_are_those_of_the_fit(tmp_path):
    fit = ppvae.fit(Numbered(), PLAIN, ppvae.SVI(steps=60, learning_rate=0.3, compile=False))
    right = stats.norm.logpdf(X, fit.params["a"]).sum(1)
    assert np.abs(np.asarray(fit.log_likelihood(X)) - right).max() < 1e-10
    for other in (X[::-1], X[:5], np.r_[X, X], PLAIN.split(0.5)[0]):
        with pytest.raises(ValueError, match=r"reads the rows' numbers, batch\.index"):
            fit.log_likelihood(other)
    with pytest.raises(ValueError, match="reads the rows' numbers, so none can be held out"):
        ppvae.fit(Numbered(), PLAIN, ppvae.SVI(steps=2, holdout=0.5))
    holed = X.copy()
    holed[0, 0] = np.nan
    with pytest.raises(ValueError, match="leave bootstrap out"):
        ppvae.fit(Numbered(), holed, ppvae.SVI(steps=2, compile=False)).impute(holed, draws=2, bootstrap=True)


def test_a_fit_to_complete_rows_looks_at_the_holes_of_others():
    class Overlooks(Story):
        def model(self, theta, batch):
            with batch.rows:
                pyro.sample("x", dist.Normal(theta.m[0], theta.s).to_event(1), obs=batch.x)

    fit = ppvae.fit(Overlooks(), X, ppvae.SVI(steps=2, compile=False))
    holed = X.copy()
    holed[0, 0] = np.nan
    for ask in (fit.log_likelihood, fit.elbo, fit.impute, fit.replicate):
        with pytest.raises(ValueError, match="the story reads entries that are missing"):
            ask(holed)


class Decoded(Story):
    """Rows decoded by a network with dropout, which acts at random and on no row for another's sake."""

    def init(self, data, generator):
        with torch.random.fork_rng():
            network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
        return Parameters(network=network)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.network(z), 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_dropout_is_no_mixing_of_rows():
    fit = ppvae.fit(Decoded(), X, ppvae.SVI(steps=3, particles=2, compile=False))
    assert np.array_equal(fit.elbo(X), fit.elbo(X))
    assert fit.elbo(X)[:4] == pytest.approx(fit.elbo(X[:4]), abs=1.0)


class Point(nn.Module):
    """A guide that is certain of its latents, each row's from its own entries, or from those of all."""

    def __init__(self, together):
        super().__init__()
        self.network, self.together = nn.Linear(4, 2), together

    def forward(self, batch):
        with batch.rows:
            z = self.network(batch.x - batch.x.mean(0) if self.together else batch.x)
            pyro.sample("z", dist.Delta(z, event_dim=1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_guide_that_is_certain_of_its_latents_is_tried_too(dtype):
    """A point scores -inf beside itself, and a network's output for a row is rounded otherwise among other rows."""
    data, model, method = ppvae.load_data("iris"), ppvae.models.Autoencoder(2), ppvae.SVI(steps=1, compile=False)
    for guide in (None, Point(together=False)):
        assert ppvae.fit(model, data, method, guide=guide, dtype=dtype).transform(data).shape == (150, 2)
    with pytest.raises(ValueError, match="scores a row's 'z' otherwise among other rows"):
        ppvae.fit(model, data, method, guide=Point(together=True), dtype=dtype)


def test_a_sampler_reads_no_numbers():
    """The draws of a sampler are taken at random: two runs that differ say nothing of the rows' numbers."""

    class Mean(Story):
        def init(self, data, generator):
            return Parameters(s=Constrained(torch.tensor(1.0, dtype=torch.float64), constraints.positive)).freeze("s")

        def model(self, theta, batch):
            mu = pyro.sample("mu", dist.Normal(batch.x.new_zeros(3), 5.0).to_event(1))
            with batch.rows:
                pyro.sample("x", dist.Normal(mu, theta.s).mask(batch.observed).to_event(1), obs=batch.x)

    fit = ppvae.fit(Mean(), X, ppvae.NUTS(draws=20, warmup=20, chains=1))
    assert not fit.numbered
    drawn = fit.shared_draws()["mu"]
    right = np.logaddexp.reduce(stats.norm.logpdf(X[:5][:, None], drawn, 1.0).sum(-1), 1) - np.log(len(drawn))
    assert np.abs(np.asarray(fit.log_likelihood(X[:5])) - right).max() < 1e-9


def test_a_group_that_no_parameter_has_is_said_with_its_line():
    model = of_all(lambda u, g, t: Vindex(u)[..., g])
    fit = ppvae.fit(model, DATA, ppvae.SVI(steps=2, compile=False))
    other = ppvae.Data(X, context=np.stack([GROUP + 2, np.linspace(-1, 1, 12)], 1))
    for ask in (lambda: fit.log_likelihood(other), lambda: fit.sample(2, context=[7, 0.0])):
        with pytest.raises(ValueError, match=r"of_all: the story fails at line \d+, .*IndexError: "):
            ask()


def test_posteriors_that_a_story_gives_away_keep_no_gradients():
    fit = ppvae.fit(of_values(lambda m, k: m[k]), X, ppvae.SVI(steps=2, compile=False))
    posterior = fit.posterior(X)
    assert not any(t.requires_grad for t in (posterior.log_weights, posterior.loc, posterior.scale_tril, posterior.mean))
