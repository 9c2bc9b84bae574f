"""What a story observes, found by value: sites of any names and columns, autoregressions, what is computed, and what has one sentence."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.nn import functional

import ppvae
from ppvae import Constrained, Data, Model, Parameters
from ppvae.criticism.leverage import row_scores
from ppvae.distributions import MaskedMultivariateNormal
from ppvae.program.graph import graph
from ppvae.program.observed import observed

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.normal(size=(200, 4)) + np.outer(RANDOM.normal(size=200), [1.0, -0.5, 0.8, 0.3]) + [0.0, 5.0, -5.0, 1.0]
LONG = 20_000  # rows whose moments are looked at: an error of a share sqrt(2 / 20000) = 0.01 in a variance


@dataclass(frozen=True)
class Story(Model):
    """A model of `body` alone: theta holds a mean, a scale for each column, a slope `phi` and loadings."""

    body: Callable = field(default=lambda theta, batch: None)
    phi: float = 0.7

    def init(self, data, generator):
        return Parameters(
            mean=data.mean,
            scale=Constrained(data.scale, constraints.positive),
            phi=torch.tensor(self.phi, dtype=data.dtype),
            loadings=torch.linspace(1.0, -1.0, data.n_features, dtype=data.dtype),
            classes=Constrained(torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=data.dtype), constraints.simplex),
        )

    def model(self, theta, batch):
        with batch.rows:
            self.body(theta, batch)


def started(body, x=TABLE, phi=0.7):
    """A fit that took no step to speak of: theta at its start."""
    return ppvae.fit(Story(body, phi), x, ppvae.SVI(steps=1, learning_rate=1e-12))


def seen(body, x=TABLE):
    data = Data(x)
    model = Story(body)
    with torch.random.fork_rng():
        theta = model.init(data, torch.Generator().manual_seed(0))
    return observed(model, theta, data.batch(), data.columns)


def normal(theta, value):
    return dist.Normal(theta.phi + torch.zeros_like(value, dtype=torch.float64), 1.0).to_event(value.ndim - 1)


def observing(*values):
    """A story that observes each of these functions of the rows under a normal."""

    def body(theta, batch):
        for number, value in enumerate(values):
            found = value(batch.x)
            pyro.sample(f"s{number}", normal(theta, found), obs=found)

    return body


COPIES = {
    "all": ([lambda x: x], [[0, 1, 2, 3]]),
    "slices": ([lambda x: x[..., :1], lambda x: x[..., 1:]], [[0], [1, 2, 3]]),
    "numbers": ([lambda x, j=j: x[..., j] for j in (2, 0, 1, 3)], [[2], [0], [1], [3]]),
    "a list": ([lambda x: x[..., [3, 1]], lambda x: x[..., [0, 2]]], [[3, 1], [0, 2]]),
    "a stack": ([lambda x: torch.stack([x[..., 3], x[..., 0]], -1), lambda x: x[..., 1:3]], [[3, 0], [1, 2]]),
    "a matrix": ([lambda x: x.reshape(-1, 2, 2)], [[0, 1, 2, 3]]),
    "filled": ([lambda x: torch.where(x > -1e9, x, 0.0)], [[0, 1, 2, 3]]),
    "single precision": ([lambda x: x.float()], [[0, 1, 2, 3]]),
}
OTHERS = {
    "logarithms": lambda x: x.abs().log(),
    "squares": lambda x: x.square(),
    "a sum": lambda x: x.sum(-1),
    "one-hot": lambda x: functional.one_hot((x > 0).long(), 2).double(),
    "signs": lambda x: (x > 0).double(),
    "whole numbers of real ones": lambda x: x.floor(),
    "ranks": lambda x: x.argsort(-1).double(),
}


@pytest.mark.parametrize("kind", COPIES)
def test_columns_of_copies(kind):
    values, columns = COPIES[kind]
    found = seen(observing(*values))
    assert list(found.columns.values()) == columns
    assert not found.made
    assert not found.reads
    x = torch.as_tensor(TABLE)
    torch.testing.assert_close(found.table({f"s{i}": value(x) for i, value in enumerate(values)}), x)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_made_of_the_rows_has_no_columns_and_no_draws(kind):
    found = seen(observing(OTHERS[kind]))
    assert found.made == ("s0",)
    assert not found.columns
    with pytest.raises(ValueError, match=r"what s0 observes is made of batch\.x and none of its columns"):
        started(observing(OTHERS[kind])).replicate(TABLE)


def test_classes_that_a_story_looks_up_are_columns_too():
    """Codes lie beyond the classes: the columns are spelled in noughts and ones instead."""
    classes = RANDOM.integers(0, 2, size=(60, 3)).astype(float)

    def body(theta, batch):
        for t in (0, 2, 1):
            at = batch.x[..., t].long()
            pyro.sample(f"s{t}", dist.Categorical(theta.classes[0]), obs=torch.arange(2)[at])

    assert seen(body, classes).columns == {"s0": [0], "s2": [2], "s1": [1]}


def autoregression(theta, batch):
    pyro.sample("x", dist.Normal(theta.phi * functional.pad(batch.x[:, :-1], (1, 0)), 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def loop(theta, batch):
    for t in range(4):
        loc = theta.phi * batch.x[..., t - 1] if t else torch.zeros_like(batch.x[..., 0])
        pyro.sample(f"y{t}", dist.Normal(loc, 1.0).mask(batch.observed[..., t]), obs=batch.x[..., t])


def backwards(theta, batch):
    """The last column first, and sites of two columns whose own entries hang on one another."""
    loc = theta.phi * functional.pad(batch.x[:, 1:], (0, 1))
    pyro.sample("early", dist.Normal(loc[:, :2], 1.0).to_event(1), obs=batch.x[:, :2])
    pyro.sample("late", dist.Normal(loc[:, 2:], 1.0).to_event(1), obs=batch.x[:, 2:])


def through_a_latent(theta, batch):
    """y0 -> z -> y1 -> ...: a latent that reads the row lies between the columns."""
    pyro.sample("y0", dist.Normal(torch.zeros_like(batch.x[..., 0]), 1.0), obs=batch.x[..., 0])
    for t in range(1, 4):
        z = pyro.sample(f"z{t}", dist.Normal(theta.phi * batch.x[..., t - 1], 0.6))
        pyro.sample(f"y{t}", dist.Normal(z, 0.8), obs=batch.x[..., t])


@pytest.mark.parametrize("body", [autoregression, loop, backwards, through_a_latent])
def test_an_autoregression_is_drawn_column_by_column(body):
    """x_t = phi x_{t-1} + e, so x = (I - phi S)^-1 e for the shift S, and its covariance is that inverse times its transpose."""
    fit = started(body)
    shift = np.eye(4, k=1 if body is backwards else -1)
    root = np.linalg.inv(np.eye(4) - 0.7 * shift)
    error = 5 * math.sqrt(2 / LONG) * np.max(root @ root.T)
    assert np.abs(np.cov(fit.sample(LONG).T) - root @ root.T).max() < error
    replicated = fit.replicate(TABLE, draws=LONG // 200, rows="new").reshape(-1, 4)
    assert np.abs(np.cov(replicated.T) - root @ root.T).max() < error
    assert len(ppvae.check(fit, TABLE, draws=20).table) == 2 * (5 * 4 + 6)


def test_the_same_rows_keep_their_latents_and_are_drawn_in_order():
    """x_t | x_{t-1}, z: with z = x_0 all but known, E of the last column is (phi^3 + phi^2 + phi + 1) z."""

    def body(theta, batch):
        z = pyro.sample("z", dist.Normal(batch.x.new_zeros(()), 100.0))
        for t in range(4):
            loc = z + theta.phi * batch.x[..., t - 1] if t else z
            pyro.sample(f"y{t}", dist.Normal(loc, 1.0 if t else 1e-4), obs=batch.x[..., t])

    fit = started(body, TABLE[:5])
    drawn = fit.replicate(TABLE[:5], draws=4000)
    at, error = TABLE[:5, 0], 5 * math.sqrt(1 + 0.7**2 + 0.7**4) / math.sqrt(4000)
    assert np.abs(drawn[..., 0].mean(0) - at).max() < 1e-3
    assert np.abs(drawn[..., 3].mean(0) - at * (1 + 0.7 + 0.7**2 + 0.7**3)).max() < error


def test_a_chain_of_classes_is_drawn_class_by_class():
    chain = RANDOM.integers(0, 2, size=(100, 3)).astype(float)

    def body(theta, batch):
        for t in range(3):
            probabilities = theta.classes[batch.x[..., t - 1].long()] if t else theta.classes[0]
            pyro.sample(f"s{t}", dist.Categorical(probabilities), obs=batch.x[..., t].long())

    fit = started(body, chain)
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    for last, share in enumerate(p[0] @ p @ p):
        assert abs((fit.sample(LONG)[:, 2] == last).mean() - share) < 5 * math.sqrt(share * (1 - share) / LONG)


def test_entries_that_wait_for_one_another_cannot_be_drawn():
    def circle(theta, batch):
        pyro.sample("x", dist.Normal(theta.phi * batch.x.roll(1, -1), 1.0).to_event(1), obs=batch.x)

    with pytest.raises(ValueError, match="in no order of the columns can each be drawn"):
        started(circle).sample(3)


def test_only_entries_that_nothing_is_told_by_are_imputed():
    fit = started(loop)
    last, first = TABLE.copy(), TABLE.copy()
    last[:5, 3] = first[:5, 0] = np.nan
    np.testing.assert_allclose(fit.impute(last)[:5, 3], 0.7 * TABLE[:5, 2], rtol=1e-9)
    for ask in (fit.impute, fit.log_likelihood):
        with pytest.raises(ValueError, match="the score of y1 moves with what stands where entries are missing"):
            ask(first)


def test_a_hole_that_a_distribution_reads_is_refused_before_the_fit():
    """Also where the slope starts at 0, and only one of many rows misses what is read."""
    holes = TABLE.copy()
    holes[:50, 3] = np.nan
    holes[150, 0] = np.nan
    with pytest.raises(ValueError, match="the score of x moves with what stands where entries are missing"):
        started(autoregression, holes, phi=0.0)
    holes[150, 0] = 0.0
    started(autoregression, holes)


def test_holes_that_come_after_the_fit_are_seen_too():
    """A story without a mask, fitted to complete rows, is not asked to score rows that lack a whole column."""

    def body(theta, batch):
        z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(theta.mean + z * theta.loadings, 1.0).to_event(1), obs=batch.x)

    fit, holes = started(body), TABLE[:10].copy()
    holes[:, 0] = np.nan
    for ask in (fit.log_likelihood, fit.elbo, fit.transform, fit.impute):
        with pytest.raises(ValueError, match="the story reads entries that are missing"):
            ask(holes)


MIXING = {
    "the batch's mean": lambda x: x.mean(0),
    "the row before": lambda x: functional.pad(x[:-1], (0, 0, 1, 0)),
    "the row after": lambda x: functional.pad(x[1:], (0, 0, 0, 1)),
    "all rows before": lambda x: x.cumsum(0) - x,
}


@pytest.mark.parametrize("kind", MIXING)
def test_rows_that_read_one_another_are_refused(kind):
    def body(theta, batch):
        pyro.sample("x", dist.Normal(MIXING[kind](batch.x) * theta.phi, 1.0).to_event(1), obs=batch.x)

    with pytest.raises(ValueError, match="the story scores a row's 'x' otherwise among other rows"):
        started(body)


def test_a_column_is_scored_once():
    """Twice is refused; in two parts, of which a row has one, is not."""

    def twice(theta, batch):
        pyro.sample("x", dist.Normal(theta.mean, 1.0).to_event(1), obs=batch.x)
        pyro.sample("again", dist.Normal(theta.mean[2], 1.0), obs=batch.x[..., 2])

    def parts(theta, batch):
        high = (batch.x > 0) & batch.observed
        pyro.sample("low", dist.Normal(theta.mean, 1.0).mask(batch.observed & ~high).to_event(1), obs=batch.x)
        pyro.sample("high", dist.Normal(theta.mean, 2.0).mask(high).to_event(1), obs=batch.x)

    with pytest.raises(ValueError, match=r"x and again score the same column of the same rows, batch.x\[..., 2\]"):
        started(twice)
    fit = started(parts)
    assert np.isfinite(fit.log_likelihood(TABLE)).all()
    with pytest.raises(ValueError, match="column x0 is observed more than once, in low and high"):
        fit.sample(3)


def test_columns_that_no_site_observes():
    """A regression on a column: the others can be imputed where it is known, and no row can be drawn."""

    def body(theta, batch):
        loc = theta.mean[1:] + theta.phi * batch.x[..., :1]
        pyro.sample("y", dist.Normal(loc, 1.0).mask(batch.observed[..., 1:]).to_event(1), obs=batch.x[..., 1:])

    fit, holes = started(body), TABLE.copy()
    holes[:5, 2] = np.nan
    np.testing.assert_allclose(fit.impute(holes)[:5, 2], TABLE.mean(0)[2] + 0.7 * TABLE[:5, 0], rtol=1e-9)
    for ask in (lambda: fit.sample(3), lambda: fit.replicate(TABLE), lambda: ppvae.check(fit, TABLE), lambda: fit.to_arviz(TABLE)):
        with pytest.raises(ValueError, match="no site observes column x0"):
            ask()


def factors(theta, batch):
    """One factor over four columns, in a scalar site and one of the other three, out of order."""
    z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
    loc = theta.mean + z * theta.loadings
    order = [3, 0, 2]
    pyro.sample("one", dist.Normal(loc[..., 1], 1.0).mask(batch.observed[..., 1]), obs=batch.x[..., 1])
    pyro.sample("x", dist.Normal(loc[..., order], 1.0).mask(batch.observed[..., order]).to_event(1), obs=batch.x[..., order])


@pytest.fixture(scope="module")
def split():
    return started(factors)


class TestSplitColumns:
    w, mean = np.linspace(1, -1, 4), TABLE.mean(0)
    covariance = np.outer(w, w) + np.eye(4)

    def test_samples(self, split):
        drawn = split.sample(LONG)
        assert np.abs(drawn.mean(0) - self.mean).max() < 5 * math.sqrt(2 / LONG)
        assert np.abs(np.cov(drawn.T) - self.covariance).max() < 5 * 2 * math.sqrt(2 / LONG)

    def test_means_of_missing_entries_are_regressions(self, split):
        holes = TABLE[:40].copy()
        holes[RANDOM.random(holes.shape) < 0.4] = np.nan
        expected = holes.copy()
        for row in expected:
            a, b = ~np.isnan(row), np.isnan(row)
            row[b] = self.mean[b] + self.covariance[np.ix_(b, a)] @ np.linalg.solve(self.covariance[np.ix_(a, a)], row[a] - self.mean[a])
        np.testing.assert_allclose(split.impute(holes), expected, atol=1e-9)

    def test_draws_of_missing_entries(self, split):
        row = TABLE[:1].copy()
        row[0, [1, 3]] = np.nan
        drawn = split.impute(row, draws=4000)[:, 0]
        a, b = [0, 2], [1, 3]
        gain = self.covariance[np.ix_(b, a)] @ np.linalg.inv(self.covariance[np.ix_(a, a)])
        left = self.covariance[np.ix_(b, b)] - gain @ self.covariance[np.ix_(a, b)]
        assert np.abs(drawn[:, b].mean(0) - self.mean[b] - gain @ (row[0, a] - self.mean[a])).max() < 5 * math.sqrt(2 / 4000)
        assert np.abs(np.cov(drawn[:, b].T) - left).max() < 5 * 2 * math.sqrt(2 / 4000)
        assert (drawn[:, a] == row[0, a]).all()

    def test_codes_are_decoded_in_the_tables_order(self, split):
        z = np.array([[0.5], [-2.0]])
        np.testing.assert_allclose(split.decode(z), self.mean + z * self.w, rtol=1e-12)

    def test_arviz_has_each_site_with_its_columns(self, split):
        holes = Data(np.where(RANDOM.random(TABLE.shape) < 0.1, np.nan, TABLE), columns=["a", "b", "c", "d"])
        found = split.to_arviz(holes, draws=6)
        assert found["posterior_predictive"]["one"].dims == ("chain", "draw", "row")
        assert found["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "x_feature")
        rows = found["observed_data"]["row"].values
        np.testing.assert_array_equal(found["observed_data"]["one"].values, holes.numpy()[rows, 1])
        for name in "acd":
            mine = found["observed_data"]["x"].sel(x_feature=name).values
            np.testing.assert_array_equal(mine, holes.numpy()[rows, "abcd".index(name)])
            replicated = found["posterior_predictive"]["x"].sel(x_feature=name).values[0]
            assert (np.isnan(replicated) == np.isnan(mine)).all()

    def test_laws(self, split):
        assert ppvae.laws.check(split.model, TABLE, only=[1, 8]).passed


def test_laws_try_each_kind_of_column():
    """A mask forgotten at the classes alone fails law 8, so does one at the numbers alone, and classes whose scores do not sum to 1."""
    mixed = np.column_stack([TABLE[:, :2], RANDOM.integers(0, 2, size=(200, 1))])

    def story(forgotten, power=1.0):
        def body(theta, batch):
            masks = [
                torch.ones_like(m) if part == forgotten else m for part, m in enumerate((batch.observed[..., :2], batch.observed[..., 2]))
            ]
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("numbers", dist.Normal(theta.mean[:2] + z, 1.0).mask(masks[0]).to_event(1), obs=batch.x[..., :2])
            with pyro.poutine.scale(scale=power):
                pyro.sample("class", dist.Categorical(theta.classes[0]).mask(masks[1]), obs=batch.x[..., 2])

        return ppvae.laws.check(Story(body), mixed, only=[8])[8]

    assert [story(None), story(0), story(1), story(None, 2.0)] == ["holds", "fails", "fails", "fails"]


def computing(theta, batch):
    z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
    loc = pyro.deterministic("loc", theta.mean + z * theta.loadings)
    pyro.deterministic("slope", theta.phi * 2)
    pyro.deterministic("residual", batch.x - loc)
    pyro.sample("x", dist.Normal(loc, 1.0).mask(batch.observed).to_event(1), obs=batch.x)


def test_what_a_story_computes_is_computed_again_and_never_drawn():
    fit = started(computing)
    assert fit.sample(7).shape == (7, 4)
    assert fit.replicate(TABLE, draws=3).shape == (3, 200, 4)
    found = fit.to_arviz(TABLE, draws=5)
    posterior, predictive = found["posterior"], found["posterior_predictive"]
    assert set(posterior.data_vars) == {"z", "loc", "slope", "residual"}
    assert set(predictive.data_vars) == {"x"} == set(found["observed_data"].data_vars)
    z, loc = posterior["z"].values, posterior["loc"].values
    np.testing.assert_allclose(loc, TABLE.mean(0) + z * np.linspace(1, -1, 4), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(posterior["residual"].values, predictive["x"].values - loc, rtol=1e-9, atol=1e-12)
    assert posterior["slope"].values.shape == (1, 5)
    assert ppvae.laws.check(fit.model, TABLE, only=[1, 8, 9]).passed


def test_what_is_observed_besides_the_columns_and_moves_the_latents():
    """A factor on a latent: new rows would not heed it; the same rows do, by the posterior: N(0, 1) exp(-z^2 / 2) is N(0, 1/2)."""

    def body(theta, batch):
        z = pyro.sample("z", dist.Normal(batch.x.new_zeros(()), 1.0))
        pyro.factor("pull", -(z**2) / 2)
        pyro.sample("x", dist.Normal(z.unsqueeze(-1) + theta.mean, 1.0).mask(batch.observed).to_event(1), obs=batch.x)

    fit = started(body)
    for ask in (lambda: fit.sample(3), lambda: fit.replicate(TABLE, rows="new"), lambda: ppvae.check(fit, TABLE)):
        with pytest.raises(ValueError, match="pull is observed besides the columns and says something of the latents"):
            ask()
    drawn = fit.replicate(TABLE[:3], draws=4000)
    expected = TABLE.mean(0) + ((TABLE[:3] - TABLE.mean(0)).sum(1) / (2 + 4))[:, None]
    assert np.abs(drawn.mean(0) - expected).max() < 5 * math.sqrt((1 + 1 / 6) / 4000)


def test_a_context_that_is_observed_is_kept():
    """x | label: new rows of a label are those of that label."""
    label = (RANDOM.random(200) < 0.5).astype(float)
    data = Data(RANDOM.normal(size=(200, 2)) + 10 * label[:, None], context=label)

    def body(theta, batch):
        k = pyro.sample("label", dist.Bernoulli(theta.classes[0, 1]), obs=batch.context[..., 0])
        pyro.sample("x", dist.Normal(10 * k.unsqueeze(-1), 1.0).expand([*k.shape, 2]).to_event(1), obs=batch.x)

    fit = started(body, data)
    for value in (0.0, 1.0):
        assert np.abs(fit.sample(1000, context=[value]).mean(0) - 10 * value).max() < 5 / math.sqrt(1000)


def test_totals_that_a_row_says_itself():
    counts = RANDOM.multinomial(9, [0.1, 0.2, 0.3, 0.4], size=80).astype(float)

    def told(theta, batch):
        x = dist.DirichletMultinomial(theta.scale, total_count=batch.x.sum(-1), is_sparse=False, validate_args=False)
        pyro.sample("x", x, obs=batch.x)

    def untold(theta, batch):
        pyro.sample("x", dist.Multinomial(probs=theta.scale / theta.scale.sum(), validate_args=False), obs=batch.x)

    fit = started(told, counts)
    assert (fit.replicate(counts, draws=3).sum(-1) == 9).all()
    with pytest.raises(ValueError, match=r"takes how much a row holds from batch\.x itself"):
        fit.sample(3)
    fit = started(untold, counts)
    for ask in (lambda: fit.sample(3), lambda: fit.replicate(counts)):
        with pytest.raises(ValueError, match="x holds more than its distribution ever draws"):
            ask()


def test_entries_that_hang_together_are_imputed_where_all_or_none_is_missing():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)

    def body(theta, batch):
        whole = batch.observed[..., 2:].all(-1)
        pyro.sample("a", dist.Normal(theta.mean[:2], 1.0).mask(batch.observed[..., :2]).to_event(1), obs=batch.x[..., :2])
        pyro.sample("b", dist.MultivariateNormal(theta.mean[2:], covariance).mask(whole), obs=batch.x[..., 2:])

    holes = TABLE.copy()
    holes[:10, 2:] = np.nan
    fit = started(body, holes)
    drawn = fit.impute(holes[:1], draws=4000)[:, 0, 2:]
    assert np.abs(np.cov(drawn.T) - covariance.numpy()).max() < 5 * 2 * math.sqrt(2 / 4000)
    holes[0, 3] = 0.0
    with pytest.raises(ValueError, match="MultivariateNormal does not say how the missing entries of a row depend on the observed ones"):
        fit.impute(holes)


def test_a_masked_normal_within_a_mask_is_conditioned():
    """A masked normal of two columns beside a site of its own: E[x_3 | x_2] is a regression."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)

    def body(theta, batch):
        pyro.sample("a", dist.Normal(theta.mean[:2], 1.0).mask(batch.observed[..., :2]).to_event(1), obs=batch.x[..., :2])
        b = MaskedMultivariateNormal(theta.mean[2:], covariance, batch.observed[..., 2:])
        pyro.sample("b", b.mask(torch.ones(batch.size, dtype=torch.bool)), obs=batch.x[..., 2:])

    holes = TABLE[:60].copy()
    holes[:10, 3] = np.nan
    fit = started(body, holes)
    mean = np.nanmean(holes, 0)
    np.testing.assert_allclose(fit.impute(holes)[:10, 3], mean[3] + 0.6 * (holes[:10, 2] - mean[2]), rtol=1e-9)


def test_classes_have_no_mean():
    classes = np.column_stack([TABLE[:60, :1], RANDOM.integers(0, 2, size=60)])

    def body(theta, batch):
        z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("a", dist.Normal(theta.mean[0] + z[..., 0], 1.0).mask(batch.observed[..., 0]), obs=batch.x[..., 0])
        pyro.sample("b", dist.Categorical(theta.classes[0]).mask(batch.observed[..., 1]), obs=batch.x[..., 1])

    fit, holes = started(body, classes), classes.copy()
    holes[:5, 1] = np.nan
    with pytest.raises(ValueError, match="a missing entry of x1 has no finite mean under this fit, as classes have none"):
        fit.impute(holes)
    assert set(np.unique(fit.impute(holes, draws=50)[:, :5, 1])) == {0.0, 1.0}
    with pytest.raises(ValueError, match="b has no mean, as classes have none"):
        fit.decode([[0.0]])


def test_the_graph_shows_what_is_read_and_what_is_computed():
    drawn = graph(Story(loop), Data(TABLE))
    assert "p(y1_n | y0_n; phi)" in drawn.factorisation
    assert "p(y3_n | y2_n; phi)" in drawn.factorisation
    nodes = {node.name: node for node in graph(Story(computing), Data(TABLE)).nodes}
    assert not nodes["loc"].observed
    assert not nodes["loc"].distribution
    assert nodes["loc"].parents == ("z",)
    assert nodes["x"].observed
    assert "loc = f(z, mean, loadings)  computed" in graph(Story(computing), Data(TABLE)).text


def test_a_parameter_that_no_score_uses_pulls_at_nothing():
    fit = started(factors)
    scores = row_scores(fit.exact.log_marginal, fit.theta, Data(TABLE))[1]
    assert scores.shape == (200, sum(p.numel() for p in fit.theta.parameters()))
    assert len(fit.to_arviz(TABLE, draws=5)["log_likelihood"]["log_marginal"].values[0]) == 5
