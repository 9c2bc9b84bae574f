"""Predictive draws and checks: a good model passes, a biased twin fails, and p-values honour holes and ties."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

import ppvae
from ppvae.criticism import missingness
from ppvae.criticism.checks import correlations, moments, p_value, standard_statistics
from ppvae.criticism.leverage import log_likelihood_draws, row_scores
from ppvae.criticism.predictive import blank_batch, posterior_predictive, prior_predictive
from ppvae.data import Data
from ppvae.model import Model
from ppvae.parameters import Constrained, Parameters

NEWCOMB = [
    28, 26, 33, 24, 34, -44, 27, 16, 40, -2, 29, 22, 24, 21, 25, 30, 23, 29, 31, 19, 24, 20, 36, 32, 36, 28, 25, 21, 28, 29, 37, 25, 28,
    26, 30, 32, 36, 26, 30, 22, 36, 23, 27, 27, 28, 27, 31, 27, 26, 33, 26, 32, 32, 24, 39, 28, 24, 25, 32, 25, 29, 27, 28, 29, 16, 23,
]  # fmt: skip


@dataclass(frozen=True)
class Banana(Model):
    """k ~ Categorical(w), z | k ~ N(m_k, 1), x | z ~ N((z, z^2 / 4), s^2): nothing about it is in closed form."""

    def init(self, data, generator):
        return Parameters(
            weights=Constrained(data.x.new_tensor([0.3, 0.7]), constraints.simplex),
            means=data.x.new_tensor([-2.0, 2.0]),
            noise_scale=Constrained(data.x.new_tensor(0.5), constraints.positive),
        )

    def model(self, theta, batch):
        with batch.rows:
            k = pyro.sample("k", dist.Categorical(theta.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(theta.means[k], 1.0))
            loc = torch.stack([z, z**2 / 4], -1)
            pyro.sample("x", dist.Normal(loc, theta.noise_scale).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Bumps(Model):
    """k ~ Categorical(w), x | k ~ N(m_k, I): its component is summed out, and no closed form is given."""

    def init(self, data, generator):
        return Parameters(means=data.x.new_tensor([[0.0, 0.0], [3.0, 3.0]]))

    def model(self, theta, batch):
        with batch.rows:
            k = pyro.sample("k", dist.Categorical(batch.x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(theta.means[k], 1.0).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Shared(Model):
    """m ~ N(0, 1) for all rows, x ~ N(m, 0.1^2)."""

    def init(self, data, generator):
        return Parameters(scale=data.x.new_tensor(0.1))

    def model(self, theta, batch):
        m = pyro.sample("m", dist.Normal(batch.x.new_zeros(()), 1.0))
        with batch.rows:
            pyro.sample("x", dist.Normal(m.expand(batch.x.shape), theta.scale).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Line(Model):
    """x ~ N(m, s^2), its mean learnt as it is."""

    def init(self, data, generator):
        return Parameters(mean=data.mean, log_scale=data.scale.log())

    def model(self, theta, batch):
        with batch.rows:
            pyro.sample("x", dist.Normal(theta.mean, theta.log_scale.exp()).mask(batch.observed).to_event(1), obs=batch.x)


@dataclass(frozen=True)
class Factors(Model):
    """Two latents that may be turned into one another: three features have six variances and covariances, and three means."""

    def init(self, data, generator):
        noise = torch.randn(2, 3, generator=generator).to(data.x)
        return Parameters(mean=data.mean, loadings=data.scale * noise, log_scale=data.scale.mean().log() - 1)

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(2), 1.0).to_event(1))
            loc = theta.mean + z @ theta.loadings
            pyro.sample("x", dist.Normal(loc, theta.log_scale.exp()).mask(batch.observed).to_event(1), obs=batch.x)


FACTOR = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.3, 0.2, 0.7]])


def started(model, data):
    return model.init(data, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gaussian_rows():
    """200 rows of a three-feature normal, their order and scale arbitrary."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((200, 3)) @ FACTOR.T + [1.0, 20.0, -3.0]


class TestPValue:
    def test_is_the_share_of_replicates_above(self):
        assert p_value(2.5, np.arange(5.0)) == 2 / 5

    def test_ties_count_half(self):
        assert p_value(1.0, np.array([0.0, 1.0, 1.0, 2.0])) == 0.5
        assert p_value(3.0, np.full(7, 3.0)) == 0.5

    def test_equal_up_to_rounding_is_a_tie(self):
        assert p_value(0.1 + 0.2, np.full(4, 0.3)) == 0.5

    def test_undefined_draws_are_left_out(self):
        replicated = np.array([[2.0, 2.0, np.nan], [np.nan, 2.0, np.nan]])
        np.testing.assert_equal(p_value(np.array([1.0, np.nan, 1.0]), replicated), [1.0, np.nan, np.nan])

    def test_is_uniform_where_the_model_is_true(self):
        rng = np.random.default_rng(1)
        p = np.array([p_value(rng.standard_normal(), rng.standard_normal(199)) for _ in range(400)])
        assert stats.kstest(p, "uniform").pvalue > 0.001
        biased = np.array([p_value(rng.standard_normal() + 0.5, rng.standard_normal(199)) for _ in range(400)])
        assert stats.kstest(biased, "uniform").pvalue < 0.001

    def test_gold_newcomb(self):
        """D12: Newcomb's speeds of light against a normal with the standard noninformative prior (BDA 3, ch. 6)."""
        y, rng, draws = np.array(NEWCOMB, dtype=float), np.random.default_rng(2), 20_000
        n = len(y)
        variance = (n - 1) * y.var(ddof=1) / rng.chisquare(n - 1, draws)
        mu = y.mean() + np.sqrt(variance / n) * rng.standard_normal(draws)
        replicated = np.sort(mu[:, None] + np.sqrt(variance)[:, None] * rng.standard_normal((draws, n)), 1)
        y = np.sort(y)

        def asymmetry(rows):
            return np.abs(rows[..., 60] - mu) - np.abs(rows[..., 5] - mu)

        # The book's p-value of the smallest value is the share of replicates *below* it.
        assert 1 - p_value(y.min(), replicated.min(1)) == pytest.approx(0.0, abs=0.02)
        assert p_value(y.var(), replicated.var(1)) == pytest.approx(0.499, abs=0.02)
        assert p_value(asymmetry(y), asymmetry(replicated)) == pytest.approx(0.209, abs=0.02)


class TestStatistics:
    def test_agree_with_pandas_on_a_table_with_holes(self, gaussian_rows):
        holes = np.random.default_rng(3).random(gaussian_rows.shape) < 0.3
        frame = Data(np.where(holes, np.nan, gaussian_rows)).frame()
        values = standard_statistics(np.where(holes, 9e9, gaussian_rows)[None], ~holes)
        np.testing.assert_allclose(values["mean"][0], frame.mean())
        np.testing.assert_allclose(values["sd"][0], frame.std(ddof=0))
        np.testing.assert_allclose(values["min"][0], frame.min())
        np.testing.assert_allclose(values["max"][0], frame.max())
        np.testing.assert_allclose(values["skewness"][0], stats.skew(frame, nan_policy="omit"))
        np.testing.assert_allclose(values["correlation"][0], frame.corr().to_numpy()[np.triu_indices(3, 1)])

    def test_of_many_tables_are_those_of_each(self, gaussian_rows):
        tables = np.stack([gaussian_rows, gaussian_rows**2])
        seen = np.ones_like(gaussian_rows, dtype=bool)
        for i, table in enumerate(tables):
            np.testing.assert_allclose(correlations(tables, seen)[i], np.corrcoef(table.T))
            np.testing.assert_allclose(moments(tables, seen)["sd"][i], table.std(0))

    def test_a_constant_has_no_skewness_and_no_correlation(self):
        x = np.column_stack([np.full(7, 0.1), np.arange(7.0)])
        values = standard_statistics(x[None], np.ones_like(x, dtype=bool))
        assert values["mean"][0, 0] == 0.1
        assert values["sd"][0, 0] == 0.0
        assert np.isnan(values["skewness"][0, 0])
        assert np.isnan(values["correlation"][0, 0])

    def test_what_too_few_entries_leave_undefined(self):
        """A pair needs two different values of both where both are seen; a feature that these rows miss altogether has no statistic."""
        x = np.array([[0.1, 1.0, np.nan], [0.1, 2.0, np.nan], [0.7, np.nan, np.nan]])
        values = standard_statistics(np.nan_to_num(x)[None], ~np.isnan(x))
        assert np.isnan(values["correlation"]).all()
        assert all(np.isnan(value[0, 2]) for name, value in values.items() if name != "correlation")

    def test_wide_tables_have_one_correlation_a_feature(self):
        x = np.random.default_rng(4).standard_normal((30, 65))
        values = standard_statistics(x[None], np.ones_like(x, dtype=bool))
        others = np.corrcoef(x.T)[0, 1:]
        assert "correlation" not in values
        assert values["rms correlation"][0, 0] == pytest.approx(np.sqrt(np.mean(others**2)))


class TestPredictive:
    def test_new_rows_follow_the_story(self):
        """E[x] = (E z, E z^2 / 4) of the banana: z has mean 0.8 and E z^2 = 5."""
        model = Banana()
        x = prior_predictive(model, started(model, Data(np.eye(2))), blank_batch(20_000, 2))["x"][0].numpy()
        error = x.std(0) / len(x) ** 0.5
        assert (np.abs(x.mean(0) - [0.8, 1.25]) < 4 * error).all()
        assert not (np.abs(x.mean(0) - [0.9, 1.35]) < 4 * error).any()

    def test_same_rows_draw_the_component_by_enumeration(self):
        model, draws = Bumps(), 4000
        data = Data([[1.0, 1.2], [1.5, np.nan], [np.nan, np.nan], [9.0, 9.0]])
        theta = started(model, data)
        k = posterior_predictive(model, theta, data.batch(), draws)["k"].double().mean(0)
        normal = dist.Normal(theta.means.detach()[:, None], 1.0).mask(data.observed).to_event(1)
        exact = (normal.log_prob(data.x) + torch.tensor([[0.3], [0.7]]).log()).softmax(0)[1]
        assert ((k - exact).abs() <= 4 * (exact * (1 - exact) / draws).sqrt() + 1e-4).all()

    def test_same_rows_take_z_from_the_exact_posterior(self):
        model, data = ppvae.models.PPCA(n_latents=2), ppvae.load_data("iris")
        theta = started(model, data)
        drawn = posterior_predictive(model, theta, data.batch(), 500)
        posterior = model.closed_forms.posterior(theta, data.batch())
        error = posterior.covariance.diagonal(dim1=-2, dim2=-1).sqrt() / 500**0.5
        assert ((drawn["z"].mean(0) - posterior.mean).abs() < 5 * error).all()
        assert drawn["x"].shape == (500, 150, 4)

    def test_same_rows_take_what_the_guide_samples_and_enumerate_the_rest(self):
        def guide(batch):
            with batch.rows:
                pyro.sample("z", dist.Normal(batch.x[:, 0], 0.01))

        model, data = Banana(), Data([[-3.0, 2.0], [0.0, 0.0], [4.0, 4.0]])
        theta = started(model, data)
        drawn = posterior_predictive(model, theta, data.batch(), 50, guide=guide)
        assert (drawn["z"] - data.x[:, 0]).abs().max() < 0.1
        assert (drawn["k"][:, 0] == 0).double().mean() > 0.9
        assert (drawn["k"][:, 2] == 1).double().mean() > 0.9
        with pytest.raises(ValueError, match="the story samples z but no guide does"):
            posterior_predictive(model, theta, data.batch())

    def test_a_latent_that_rows_share_is_drawn_anew_for_each_draw(self):
        model, data = Shared(), Data(np.ones((6, 2)) + np.eye(6, 2))
        drawn = prior_predictive(model, started(model, data), data.batch(), 40)
        assert drawn["m"].shape == (40,)
        assert (drawn["x"].mean((1, 2)) - drawn["m"]).abs().max() < 0.2
        assert drawn["m"].std() > 0.5

    def test_blocks_bound_memory(self, monkeypatch):
        model, sizes, story = Bumps(), [], Bumps.model
        data = Data(np.random.default_rng(0).standard_normal((50, 2)))
        theta = started(model, data)
        monkeypatch.setattr("ppvae.criticism.predictive.ENTRIES_PER_RUN", 60)
        monkeypatch.setattr(Bumps, "model", lambda self, theta, batch: (sizes.append(batch.size), story(self, theta, batch)))
        assert posterior_predictive(model, theta, data.batch(), 3)["x"].shape == (3, 50, 2)
        assert prior_predictive(model, theta, blank_batch(7, 2), 11)["x"].shape == (11, 7, 2)
        assert max(size for size in sizes if size != 50) <= 30  # the run that reads the sites sees all 50 rows

    def test_seeds_reproduce_and_leave_the_global_state(self):
        model, data = Bumps(), Data([[0.0, 1.0], [2.0, 3.0]])
        theta, before = started(model, data), torch.get_rng_state()
        first, again, other = (posterior_predictive(model, theta, data.batch(), 3, seed)["x"] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(before, torch.get_rng_state())

    def test_draws_must_be_positive(self):
        model, data = Bumps(), Data([[0.0, 1.0], [2.0, 3.0]])
        with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
            prior_predictive(model, started(model, data), data.batch(), 0)


@pytest.fixture(scope="module")
def fit(gaussian_rows):
    return ppvae.fit(ppvae.models.PPCA(n_latents=2), Data(gaussian_rows))


class TestCheck:
    def test_a_good_model_passes_and_a_biased_twin_fails(self, gaussian_rows, fit):
        good = ppvae.check(fit, Data(gaussian_rows), draws=100)
        assert len(good.surprising) <= 0.1 * len(good.table)
        heavy = ppvae.check(fit, Data(gaussian_rows + 1.0), draws=100)
        means = heavy.table.query("statistic == 'mean' and rows_kind == 'new'")
        assert (means["p_value"] < 0.01).all()

    def test_heavy_tails_fail_against_a_gaussian(self):
        rng = np.random.default_rng(5)
        for rows, passes in ((rng.standard_normal((300, 3)), True), (rng.standard_t(3, (300, 3)), False)):
            table = ppvae.check(
                ppvae.fit(ppvae.models.PPCA(n_latents=1), Data(rows)), Data(rows), {"kurtosis": stats.kurtosis}, draws=100
            ).table
            assert all(table["p_value"].between(0.01, 0.99)) if passes else all(table["p_value"] < 0.01)

    def test_the_table(self, gaussian_rows, fit):
        criticism = ppvae.check(fit, Data(gaussian_rows, columns=["a", "b", "c"]), draws=30)
        assert list(criticism.table) == ["rows_kind", "statistic", "feature", "observed", "replicated_mean", "replicated_sd", "p_value"]
        assert len(criticism.table) == 2 * (5 * 3 + 3)
        assert criticism.table.query("statistic == 'correlation'")["feature"].tolist() == ["a ~ b", "a ~ c", "b ~ c"] * 2
        assert {name: values.shape for name, values in criticism.draws["new"].items()}["correlation"] == (30, 3)
        assert criticism.summary.startswith(f"{sum(criticism.surprising['rows_kind'] == 'same')} of 18 statistics for the same rows and ")

    def test_the_figure(self, gaussian_rows, fit):
        assert ppvae.check(fit, Data(gaussian_rows), draws=20).plot().axes

    def test_replicates_have_the_holes_of_the_data(self, gaussian_rows, fit):
        holes = np.random.default_rng(6).random(gaussian_rows.shape) < 0.2
        data = Data(np.where(holes, np.nan, gaussian_rows))
        seen = []

        def missing(x):
            seen.append(np.isnan(x))
            return np.isnan(x).sum()

        criticism = ppvae.check(fit, data, missing, draws=20)
        assert len(seen) == 1 + 2 * 20
        assert all(np.array_equal(s, holes) for s in seen)
        assert criticism.table["p_value"].tolist() == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("rule", "said"),
        [
            (lambda x, y, chance: x > 0.8, "x is 1.8 sd higher there"),
            (lambda x, y, chance: chance < 1 / (1 + np.exp(2 * x)), "sd lower there"),
            (lambda x, y, chance: np.abs(x) > 1.2, "sd further from its mean there"),
            (lambda x, y, chance: y > 0.8, "sd higher there"),  # on itself, which shows in the x that goes with it
            (lambda x, y, chance: np.abs(chance - 0.5) < 0.1, None),
        ],
    )
    def test_missingness_that_depends_on_observed_values_is_said(self, rule, said):
        rng = np.random.default_rng(0)
        x, noise = rng.standard_normal((2, 300))
        y = 0.8 * x + 0.6 * noise
        found = missingness.warning(Data(np.column_stack([x, np.where(rule(x, y, rng.random(300)), np.nan, y)]), columns=["x", "y"]))
        if said is None:
            assert found is None
        else:
            assert "whether y is missing depends on what was observed (x is" in found
            assert said in found

    def test_dependence_is_tested_by_scipy_and_corrected_for_the_number_of_tests(self):
        """The same two columns, alone and among twenty: what two tests show plainly may be chance among 38."""
        others, gone = np.random.default_rng(0).standard_normal((60, 19)), np.arange(60) < 20
        given = np.concatenate([stats.norm.ppf((np.arange(n) + 0.5) / n) + shift for n, shift in ((20, 1.0), (40, 0.0))])
        table = np.column_stack([np.where(gone, np.nan, others[:, 0]), given])
        alone, among = (missingness.dependence(Data(t)).query("given == 'x1'") for t in (table, np.column_stack([table, others[:, 1:]])))
        for i, measured in enumerate((given, np.abs(given - given.mean()))):
            p = stats.ttest_ind(measured[gone], measured[~gone], equal_var=False).pvalue
            assert alone.p_value.iloc[i] == among.p_value.iloc[i] == pytest.approx(p)
            difference = (measured[gone].mean() - measured[~gone].mean()) / given.std()
            assert alone.difference.iloc[i] == pytest.approx(difference)
        assert 0.01 / 38 < alone.p_value.iloc[0] < 0.01 / 2
        assert alone.difference.iloc[0] > 0.5
        assert alone.plain.tolist() == [True, False]
        assert among.plain.tolist() == [False, False]

    def test_a_small_difference_is_not_plain_however_certain(self):
        """Among 4,000 rows 0.3 standard deviations are certain, and of no account; among as many 0.7 are said, with the other pairs."""
        rng = np.random.default_rng(0)
        gone, x = np.arange(4000) < 1000, rng.standard_normal((4000, 4))
        for shift, plain in ((0.3, False), (0.7, True)):
            table = x + np.outer(gone, [0.0, shift, shift, shift])
            table[gone, 0] = np.nan
            values = missingness.dependence(Data(table)).query("measure == 'value'")
            assert (values.p_value < 1e-9).all()
            assert values.plain.tolist() == [plain] * 3
        assert "whether x0 is missing depends on what was observed" in missingness.warning(Data(table))
        assert "and 2 more such pairs" in missingness.warning(Data(table))

    def test_dependence_is_read_off_entries_that_are_there(self):
        """Both columns have holes, their numbers are far from 0, and a row that misses both says nothing."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((200, 2)) + np.array([50.0, -80.0])
        x[:60, 0], x[40:90, 1] = np.nan, np.nan
        found = missingness.dependence(Data(x)).set_index(["missing", "given", "measure"])
        for i, j in ((0, 1), (1, 0)):
            gone, there = np.isnan(x[:, i]), ~np.isnan(x[:, j])
            value = x[:, j]
            for measure, y in (("value", value), ("distance", np.abs(value - np.nanmean(value)))):
                row = found.loc[(f"x{i}", f"x{j}", measure)]
                assert row.p_value == pytest.approx(stats.ttest_ind(y[gone & there], y[~gone & there], equal_var=False).pvalue)
                assert row.difference == pytest.approx((y[gone & there].mean() - y[~gone & there].mean()) / np.nanstd(value))

    def test_user_statistics_are_numbers_or_vectors(self, gaussian_rows, fit):
        statistics = {"range": np.ptp, "medians": lambda x: np.median(x, 0), "quartiles": lambda x: np.quantile(x, [0.25, 0.75])}
        table = ppvae.check(fit, Data(gaussian_rows, columns=["a", "b", "c"]), statistics, draws=20).table.query("rows_kind == 'same'")
        assert table["feature"].tolist() == ["", "a", "b", "c", "0", "1"]
        assert table["statistic"].tolist() == ["range"] + ["medians"] * 3 + ["quartiles"] * 2

    def test_a_statistic_that_sorts_in_place_spoils_nothing(self, gaussian_rows, fit):
        def spoiler(x):
            x[:] = 0.0
            return 0.0

        table = ppvae.check(fit, Data(gaussian_rows), {"spoiler": spoiler, "mean": np.mean}, draws=20).table
        assert table.query("statistic == 'mean'")["observed"].tolist() == pytest.approx([gaussian_rows.mean()] * 2)

    @pytest.mark.parametrize(
        ("statistics", "message"),
        [
            ({"bad": lambda x: 1 / 0}, r"the statistic 'bad' failed \(ZeroDivisionError: .*\): it must take an \(200, 3\) array"),
            ({"bad": lambda x: "high"}, "the statistic 'bad' returned 'high'"),
            ({"bad": lambda x: x}, r"the statistic 'bad' returned an array of shape \(200, 3\)"),
            ({"bad": lambda x: x[x[:, 0] > 1.0, 0]}, "the statistic 'bad' returned .* return as many for each"),
            ({"bad": 3}, "statistics must be a function"),
            ({}, "statistics must be a function"),
        ],
    )
    def test_a_bad_statistic_is_named(self, gaussian_rows, fit, statistics, message):
        with pytest.raises(ValueError, match=message):
            ppvae.check(fit, Data(gaussian_rows), statistics, draws=20)

    def test_seeds_reproduce_and_leave_the_global_state(self, gaussian_rows, fit):
        before = torch.get_rng_state()
        first, again, other = (ppvae.check(fit, Data(gaussian_rows), draws=20, seed=s).table for s in (0, 0, 1))
        assert first.equals(again)
        assert not first.equals(other)
        assert torch.equal(before, torch.get_rng_state())

    def test_other_columns_are_refused(self, gaussian_rows, fit):
        with pytest.raises(ValueError, match="3"):
            ppvae.check(fit, Data(gaussian_rows[:, :2]), draws=20)

    @pytest.mark.parametrize("name", ["gmm", "vae"])
    def test_mixtures_and_networks(self, name):
        data = ppvae.load_data("faithful")
        options = {"gmm": {"n_components": 2}, "vae": {"n_latents": 1, "likelihood": "gaussian"}}[name]
        method = {"gmm": ppvae.EM(), "vae": ppvae.SVI(steps=20)}[name]
        criticism = ppvae.check(ppvae.fit(ppvae.load_model(name, **options), data, method), data, draws=50)
        assert len(criticism.table) == 2 * 11
        assert criticism.table["p_value"].between(0, 1).all()
        if name == "gmm":
            assert criticism.table.query("statistic == 'mean'")["p_value"].between(0.05, 0.95).all()


class TestLeverage:
    def test_the_spread_counts_the_identifiable_parameters(self):
        """The trace of the hat matrix is the number of free parameters, a rotation of the latents left out."""
        data = ppvae.load_data("iris")
        model = ppvae.models.PPCA(n_latents=2)
        fit = ppvae.fit(model, data)
        draws = log_likelihood_draws(model.closed_forms.log_marginal, fit.theta, data, 4000)
        value, _ = row_scores(model.closed_forms.log_marginal, fit.theta, data)
        lost = -2 * (draws - value).sum(1)  # E[-2 (a - a^2 / 2)] summed is tr H
        free = model.degrees_of_freedom(fit.theta)
        assert abs(lost.mean() - free) < 4 * lost.std() / 4000**0.5
        assert abs(lost.mean() - (free + 1)) > 4 * lost.std() / 4000**0.5

    @pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
    def test_parameters_count_whatever_their_units(self, unit):
        """A mean in units of the data beside a logarithm of a scale, and a latent's rotation that no unit makes identifiable."""
        rng = np.random.default_rng(0)
        for model, x, free in ((Line(), rng.standard_normal((100, 2)), 4), (Factors(), rng.standard_normal((100, 3)) @ FACTOR.T, 9)):
            fit = ppvae.fit(model, Data(unit * x), ppvae.DirectML(steps=100))
            value, _ = row_scores(fit.exact.log_marginal, fit.theta, Data(unit * x))
            lost = -2 * (log_likelihood_draws(fit.exact.log_marginal, fit.theta, Data(unit * x), 4000) - value).sum(1)
            assert lost.mean() == pytest.approx(free, abs=4 * float(lost.std()) / 4000**0.5)

    def test_scores_are_gradients(self):
        data = ppvae.load_data("iris").take([0, 50, 100])
        model = ppvae.models.PPCA(n_latents=2)
        theta = started(model, data)
        _, scores = row_scores(model.closed_forms.log_marginal, theta, data)
        for row in range(3):
            value = model.closed_forms.log_marginal(theta, data.batch(torch.tensor([row])))
            gradient = torch.autograd.grad(value.sum(), list(theta.parameters()))
            torch.testing.assert_close(scores[row], torch.cat([g.flatten() for g in gradient]))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_small_units_leave_the_spread_as_it_is(self, dtype):
        """A table in other units has the same leverages; in float32 its variances, and their derivatives, would leave the range."""
        rows = np.random.default_rng(3).normal(size=(50, 3)) @ np.array([[1, 0.8, 0.2], [0, 0.5, 0.1], [0, 0, 0.6]])
        model, draws = ppvae.models.PPCA(n_latents=1), {}
        for unit in (1.0, 3e-10):
            data = ppvae.Data(rows * unit).to(getattr(torch, dtype))
            fit = ppvae.fit(model, rows * unit, dtype=dtype)
            draws[unit] = log_likelihood_draws(model.closed_forms.log_marginal, fit.theta, data, 200)
        shift = 3 * np.log(3e-10)
        rounding = 1e3 * torch.finfo(getattr(torch, dtype)).eps  # of a log-likelihood near 70 nats a row, and of leverages
        torch.testing.assert_close(draws[3e-10] + shift, draws[1.0], rtol=0, atol=rounding)
