"""Imputation: conditional means against regression formulas, proper draws, coverage, pooling, hidden entries."""

import math
import re
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch
from classic import observed_density
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ppvae
import ppvae.inference.fit
from ppvae.criticism import missingness
from ppvae.distributions import MaskedLowRankNormal, MaskedMultinomial, MaskedMultivariateNormal
from ppvae.imputation import proper_draws
from ppvae.inference.method import seeded
from ppvae.models import GMM, PCA, PPCA, VAE, Die, FactorAnalysis, Gaussian, MixtureFA, MixturePPCA

RANDOM = np.random.default_rng(7)
inference = sys.modules["ppvae.inference.fit"]  # the module: `ppvae.fit` is the function


@pytest.fixture(scope="module")
def half_missing():
    """Gold D10: iris standardised, half of the entries removed by the published recipe; (truth, table, mask)."""
    x = ppvae.load_data("iris").numpy()
    x = (x - x.mean(0)) / x.std(0)
    state = np.random.RandomState(1234)
    mask = np.zeros(x.size, dtype=bool)
    mask[state.choice(x.size, x.size // 2, replace=False)] = True
    mask = mask.reshape(x.shape)
    return x, np.where(mask, np.nan, x), mask


LOC, SLOPES = np.array([2.0, 0.0, -1.0]), np.array([1.5, -1.0, 0.5])


@dataclass(frozen=True)
class Bent(ppvae.Model):
    """z ~ N(0, 1), x ~ N(m + w tanh(z), 0.5^2): nothing about it is in closed form."""

    def init(self, data, generator):
        return ppvae.Parameters(loc=torch.tensor(LOC), slopes=torch.tensor(SLOPES))

    def model(self, theta, batch):
        with batch.rows:
            z = pyro.sample("z", dist.Normal(batch.x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta.loc + theta.slopes * z.tanh(), 0.5).mask(batch.observed).to_event(1), obs=batch.x)


def beside_the_prior(batch):
    with batch.rows:
        pyro.sample("z", dist.Normal(batch.x.new_tensor([0.2]), 1.3).to_event(1))


def mean_square(fit, case):
    truth, table, mask = case
    return float(((fit.impute(table) - truth)[mask] ** 2).mean())


class TestGoldD10:
    def test_gaussian(self, half_missing):
        fit = ppvae.fit(GMM(1), half_missing[1], ppvae.EM(acceleration="squarem"))
        assert mean_square(fit, half_missing) == pytest.approx(0.40726, abs=1e-3)

    def test_ppca(self, half_missing):
        fit = ppvae.fit(PPCA(2), half_missing[1], ppvae.EM(acceleration="squarem"))
        assert mean_square(fit, half_missing) == pytest.approx(0.4370, abs=1e-3)

    def test_column_means_are_worse(self, half_missing):
        """The negative twin: what filling in means gives does not pass for a model's imputation."""
        truth, table, mask = half_missing
        assert float(((np.nanmean(table, 0) - truth) ** 2)[mask].mean()) == pytest.approx(0.9777, abs=0.01)


def dense_mean(theta_mean, covariance, row):
    seen = ~np.isnan(row)
    if not seen.any():
        return theta_mean
    gain = covariance[:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    return np.where(seen, row, theta_mean + gain @ (row[seen] - theta_mean[seen]))


class TestConditionalMean:
    def test_ppca_is_regression(self):
        table = RANDOM.standard_normal((40, 5)) @ RANDOM.standard_normal((5, 5))
        table[RANDOM.random(table.shape) < 0.4] = np.nan
        table[3] = np.nan
        fit = ppvae.fit(PPCA(2), table, ppvae.EM(max_steps=30))
        w, m, v = (fit.params[n] for n in ("loadings", "mean", "noise_variance"))
        expected = np.stack([dense_mean(m, w @ w.T + v * np.eye(5), row) for row in table])
        np.testing.assert_allclose(fit.impute(table), expected, atol=1e-9)

    def test_mixture_weighs_its_components(self):
        air = ppvae.load_data("airquality")
        fit = ppvae.fit(GMM(2), air)
        params, whole = fit.params, fit.impute(air)
        weights = fit.posterior(air).log_weights.exp().numpy()
        parts = np.stack(
            [[dense_mean(m, c, row) for row in air.numpy()] for m, c in zip(params["means"], params["covariances"], strict=True)]
        )
        np.testing.assert_allclose(whole, np.einsum("nk,knd->nd", weights, parts), rtol=1e-9)

    @pytest.mark.parametrize("covariance", ["tied", "diag", "spherical"])
    def test_observed_entries_stay(self, covariance):
        air = ppvae.load_data("airquality")
        fit = ppvae.fit(GMM(2, covariance=covariance), air, ppvae.EM(max_steps=20))
        seen = air.observed.numpy()
        np.testing.assert_array_equal(fit.impute(air)[seen], air.numpy()[seen])


def _state(module):
    return {name: value.tolist() for name, value in module.state_dict().items()}


class TestDraws:
    def test_moments_are_the_conditional_ones(self):
        """Mean and variance of 4000 draws of one row against the regression formulas, 4 Monte Carlo standard errors."""
        fit = ppvae.fit(GMM(1), ppvae.load_data("iris"))
        row = np.array([[5.0, np.nan, np.nan, 0.2]])
        draws = fit.impute(row, draws=4000, seed=3)[:, 0]
        covariance, seen = fit.params["covariances"][0], np.array([True, False, False, True])
        gain = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        left = covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)]
        expected = fit.params["means"][0][~seen] + gain @ (row[0, seen] - fit.params["means"][0][seen])
        spread = np.sqrt(np.diag(left))
        assert (np.abs(draws[:, ~seen].mean(0) - expected) < 4 * spread / math.sqrt(4000)).all()
        assert (np.abs(draws[:, ~seen].var(0) - spread**2) < 4 * spread**2 * math.sqrt(2 / 4000)).all()
        assert (draws[:, seen] == row[0, seen]).all()

    def test_seed(self, half_missing):
        fit = ppvae.fit(PPCA(1), half_missing[1], ppvae.EM(max_steps=20))
        first, second, other = (fit.impute(half_missing[1], draws=2, seed=s) for s in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()

    def test_bootstrap_is_wider(self):
        """With theta drawn too an entry spreads more where its row lies far out: 10 sd, at which a slope from 30 rows is off by
        10 / sqrt(30) noise sds, so that the spread should about double."""
        table = np.random.default_rng(0).standard_normal((31, 2))
        fit = ppvae.fit(GMM(1), table[1:])
        table[0] = np.nan, 10.0
        plain = fit.impute(table, draws=4000)[:, 0, 0]
        wide = fit.impute(table, draws=40, bootstrap=True)[:, 0, 0]
        assert wide.std() > plain.std() * (1 + 4 / math.sqrt(2 * 40))

    def test_bootstrap_observes_every_column(self):
        """A column with two entries among 40: one resample in seven holds neither."""
        table = RANDOM.standard_normal((40, 2))
        table[2:, 0] = np.nan
        fit = ppvae.fit(Gaussian(), table, ppvae.EM(max_steps=20))
        assert np.isfinite(fit.impute(table, draws=20, bootstrap=True)).all()
        with pytest.raises(ValueError, match="x1 has fewest"):
            fit.impute(np.where([False, True], np.nan, table), draws=2, bootstrap=True)

    def test_bootstrap_starts_from_the_fit(self, monkeypatch):
        """What a refit is given: the parameters and the guide of the fit, neither of them changed by it."""
        fit = ppvae.fit(VAE(1, hidden=(4,), likelihood="gaussian"), RANDOM.standard_normal((20, 2)), ppvae.SVI(steps=2, compile=False))
        given, run, before = [], inference.run, (_state(fit.theta), _state(fit.guide))

        def watched(*args, guide, **kwargs):
            given.append((_state(args[3]), _state(guide)))
            return run(*args, guide=guide, **kwargs)

        monkeypatch.setattr(inference, "run", watched)
        fit.impute(np.array([[0.0, np.nan], [1.0, 2.0]]), draws=2, bootstrap=True)
        assert given == [before] * 2
        assert (_state(fit.theta), _state(fit.guide)) == before

    @pytest.mark.parametrize("draws", [2.5, "5", True, 0])
    def test_draws_are_counted(self, draws):
        fit = ppvae.fit(PPCA(1), ppvae.load_data("iris"))
        for ask in (fit.impute, fit.log_likelihood, fit.elbo, fit.kl, fit.replicate):
            with pytest.raises(ValueError, match=r"^draws must be "):
                ask(ppvae.load_data("iris"), draws=draws)
        with pytest.raises(ValueError, match="draws=20"):
            fit.impute(ppvae.load_data("iris"), bootstrap=True)

    @pytest.mark.parametrize(
        ("table", "draws", "sentence"),
        [
            ([[1.0, 2, np.nan], [2, 2, 2]], None, "MaskedMultinomial does not say how the missing entries"),
            ([[1.0, 2, np.nan], [2, 2, 2]], 2, "MaskedMultinomial does not say how the missing entries"),
            ([[1.0], [np.nan], [3]], None, "no finite mean"),
        ],
    )
    def test_a_die_says_what_it_cannot_impute(self, table, draws, sentence):
        fit = ppvae.fit(Die(3), table)
        with pytest.raises(ValueError, match=sentence):
            fit.impute(table, draws=draws)

    def test_importance_weights(self, half_missing):
        fit = ppvae.fit(VAE(1, hidden=(8,), likelihood="gaussian"), half_missing[1], ppvae.SVI(steps=200))
        sizes = fit.imputation_sample_size(half_missing[1])
        assert ((sizes >= 1) & (sizes <= 1000 * (1 + 1e-4))).all()
        assert fit.impute(half_missing[1], draws=3).shape == (3, 150, 4)
        assert np.isfinite(fit.impute(half_missing[1])).all()

    def test_weights_are_those_of_quadrature(self):
        """One latent on a grid: E[x | observed] and, with the density of the guide and the wider ones, how many of 1000 draws count."""
        table = np.random.default_rng(0).standard_normal((12, 3)) + LOC
        table[:6, 0] = np.nan
        fit = ppvae.fit(Bent(), table, ppvae.SVI(steps=1, learning_rate=1e-12, compile=False), guide=beside_the_prior)
        z = np.linspace(-9, 9, 4001)[:, None, None]
        loc, data = LOC + np.tanh(z) * SLOPES, table[:6]
        terms = np.where(np.isnan(data), 0.0, stats.norm.logpdf(np.nan_to_num(data), loc, 0.5)).sum(-1) + stats.norm.logpdf(z[..., 0])
        posterior = np.exp(terms - terms.max(0))
        posterior /= posterior.sum(0)
        expected = (posterior[..., None] * loc).sum(0)
        q = np.mean([stats.norm.pdf(z[..., 0], 0.2, 1.3 * width) for width in (1, 2, 4)], 0) * 18 / 4000
        share = 1 / (posterior**2 / q).sum(0)  # (E w)^2 / E w^2 under the mixture
        assert 0.1 < share.min() < 0.9
        error = np.sqrt(((posterior**2 / q)[..., None] * (loc - expected) ** 2).sum(0)[:, 0] / 1000)
        assert fit.imputation_sample_size(table)[:6] / 1000 == pytest.approx(share, rel=0.2)
        assert (np.abs(fit.impute(table)[:6, 0] - expected[:, 0]) < 4 * error).all()
        drawn = fit.impute(table, draws=2000)[:, :6, 0]
        spread = np.sqrt((posterior[..., None] * (loc - expected) ** 2).sum(0)[:, 0] + 0.25)
        assert (np.abs(drawn.mean(0) - expected[:, 0]) < 4 * np.hypot(spread / 2000**0.5, error)).all()
        assert drawn.std(0) == pytest.approx(spread, rel=0.1)

    def test_too_few_effective_draws_are_said(self):
        """A guide that no step has trained proposes latents that a far-away row does not have."""
        table = RANDOM.standard_normal((30, 8))
        fit = ppvae.fit(VAE(4, hidden=(4,), likelihood="gaussian"), table, ppvae.SVI(steps=1, compile=False))
        table[0] = [*np.full(7, 200.0), np.nan]
        for ask in (fit.log_likelihood, fit.impute):
            with pytest.warns(UserWarning, match="in 1 of 1 rows with missing entries fewer than 20 of 1000"):
                ask(table)

    def test_nothing_observed_scores_nothing(self):
        """log 1, also where the log-likelihood of other rows is an estimate."""
        table = RANDOM.standard_normal((30, 3))
        table[0] = np.nan
        for model, method in (
            (VAE(1, hidden=(4,), likelihood="gaussian"), ppvae.SVI(steps=5, compile=False)),
            (GMM(2), ppvae.EM(max_steps=5)),
        ):
            scores = ppvae.fit(model, table, method).log_likelihood(table)
            assert scores[0] == 0
            assert scores.standard_error is None or scores.standard_error[0] == 0


class TestCoverage:
    @pytest.mark.parametrize("model", [PPCA(2), GMM(2)], ids=["ppca", "gmm"])
    def test_on_data_of_the_model(self, model):
        fit = ppvae.fit(model, ppvae.load_data("iris"))
        found = ppvae.coverage(fit, fit.sample(1500, seed=5), share=0.2, draws=400).set_index("level")
        assert 0.92 <= found.covered[0.95] <= 0.98
        for level, row in found.iterrows():
            # 4 binomial standard errors (entries of a row are not independent: twice as many), and the 400 draws' own quantile error
            assert abs(row.covered - level) < 8 * row.standard_error + 4 * math.sqrt(level * (1 - level) / 400)

    def test_intervals_are_those_of_the_conditional_normal(self):
        """With many draws an entry is covered where it lies within so many conditional sds; a few lie at an edge."""
        fit = ppvae.fit(GMM(1), ppvae.load_data("iris"))
        data, (mean,), (covariance,) = ppvae.load_data("iris"), fit.params["means"], fit.params["covariances"]
        holes, levels = data.with_holes(0.3, 7), (0.5, 0.9)
        off = []
        for row, whole in zip(holes.numpy(), data.numpy(), strict=True):
            o, m = ~np.isnan(row), np.isnan(row)
            left = covariance[np.ix_(m, m)] - covariance[np.ix_(m, o)] @ np.linalg.pinv(covariance[np.ix_(o, o)]) @ covariance[np.ix_(o, m)]
            off += list(np.abs(whole - dense_mean(mean, covariance, row))[m] / np.sqrt(np.diag(left)))
        found = ppvae.coverage(fit, data, share=0.3, draws=4000, levels=levels, seed=7)
        assert found.entries.tolist() == [len(off)] * 2
        for level, row in zip(levels, found.itertuples(), strict=True):
            assert row.covered == pytest.approx((np.array(off) < stats.norm.ppf((1 + level) / 2)).mean(), abs=0.015)
            assert row.standard_error == pytest.approx(math.sqrt(level * (1 - level) / len(off)))

    def test_only_entries_that_are_known_are_hidden_and_counted(self):
        """On a table with holes of its own, from 19 draws: the 80 % interval runs from the 2nd to the 18th, at places of 1 in M + 1."""
        air = ppvae.load_data("airquality")
        fit = ppvae.fit(GMM(1), air, ppvae.EM(max_steps=5))
        found = ppvae.coverage(fit, air, share=0.3, draws=19, levels=0.8, seed=3).iloc[0]
        holes = air.with_holes(0.3, 3)
        hidden = (air.observed & ~holes.observed).numpy()
        with seeded(3):
            air.with_holes(0.3, 3)
            drawn = np.sort(proper_draws(fit, holes, 19)[0].numpy()[:, hidden], 0)
        inside = (air.numpy()[hidden] >= drawn[1]) & (air.numpy()[hidden] <= drawn[17])
        assert found.entries == hidden.sum()
        assert found.covered == pytest.approx(inside.mean())

    def test_a_fit_that_is_too_sure_fails(self):
        fit = ppvae.fit(GMM(1), ppvae.load_data("iris"))
        rows = fit.sample(1500, seed=5)
        fit.theta.assign({"covariances": fit.theta.covariances.detach() / 4})
        assert ppvae.coverage(fit, rows, share=0.2).covered.iloc[-1] < 0.92

    def test_useless_share(self):
        fit = ppvae.fit(PPCA(1), ppvae.load_data("iris"))
        for wrong in ({"share": 1.5}, {"share": "all"}, {"levels": [0.5, 1.5]}, {"levels": ["a"]}):
            with pytest.raises(ValueError, match="between 0 and 1"):
                ppvae.coverage(fit, ppvae.load_data("iris"), **wrong)
        with pytest.raises(ValueError, match="at least one level"):
            ppvae.coverage(fit, ppvae.load_data("iris"), levels=())
        with pytest.raises(ValueError, match="a seed is a whole number"):
            ppvae.coverage(fit, ppvae.load_data("iris"), seed="x")

    @pytest.mark.parametrize(("level", "least"), [(0.5, 3), (0.8, 9), (0.95, 39)])
    def test_a_level_needs_draws(self, level, least):
        """M draws reach from 1 / (M + 1) to M / (M + 1): with as many as the level needs, the interval is all of them."""
        fit = ppvae.fit(GMM(1), ppvae.load_data("iris"))
        rows = fit.sample(1500, seed=5)
        with pytest.raises(ValueError, match=f"a {level} interval needs at least {least} draws"):
            ppvae.coverage(fit, rows, draws=least - 1, levels=level)
        found = ppvae.coverage(fit, rows, share=0.2, draws=least, levels=level).iloc[0]
        assert abs(found.covered - level) < 8 * found.standard_error


class TestWithoutADensity:
    """PCA's noise is next to nothing, so a row of as few observed entries as latents is filled in from rounding and noise."""

    @pytest.fixture(scope="class")
    def found(self):
        return ppvae.compare(PCA(2), ppvae.load_data("airquality"), [ppvae.EM(max_steps=200)], holdout_entries=0.1)

    @pytest.mark.filterwarnings("ignore:Solar.R of row")
    def test_hidden_entries_have_no_likelihood(self, found):
        assert np.isnan(found.table.hidden_log_likelihood).all()
        assert np.isfinite(found.table.hidden_rmse).all()
        assert found.absent.score.tolist() == ["hidden_log_likelihood"]

    def test_coverage_is_refused(self, found):
        with pytest.raises(ValueError, match="no coverage: PCA has no density"):
            ppvae.coverage(found.best, found.data)

    @pytest.mark.parametrize("draws", [None, 2])
    def test_what_runs_off_is_said(self, found, draws):
        with pytest.warns(
            UserWarning, match=r"Solar.R of row \d+ is imputed \d+ standard deviations from its mean: PCA .* use PPCA"
        ) as said:
            filled = found.best.impute(found.data, draws)
        assert len(said) == 1
        row, distance = map(int, re.findall(r"row (\d+) is imputed (\d+)", str(said[0].message))[0])
        x = found.data.numpy()
        assert np.abs((filled[..., row, 1] - np.nanmean(x[:, 1])) / np.nanstd(x[:, 1])).max() == pytest.approx(distance, rel=0.02)

    def test_what_follows_an_outlier_does_not_run_off(self, recwarn):
        table = RANDOM.standard_normal((50, 1)) + 0.01 * RANDOM.standard_normal((50, 2))
        fit = ppvae.fit(Gaussian(), table)
        assert fit.impute([[1000.0, np.nan]])[0, 1] > 900
        assert not recwarn.list


class TestForms:
    def test_pandas(self):
        frame = ppvae.load_data("airquality").frame().astype({"Temp": int})
        frame.index = [f"day {i}" for i in range(len(frame))]
        whole = ppvae.fit(PPCA(1), frame, ppvae.EM(max_steps=20)).impute(frame)
        assert list(whole.columns) == list(frame.columns)
        assert whole.index.equals(frame.index)
        assert whole.dtypes.equals(frame.dtypes)
        assert not whole.isna().any().any()

    def test_polars(self):
        frame = pl.from_pandas(ppvae.load_data("airquality").frame()).cast({"Ozone": pl.Float32, "Solar.R": pl.Int64})
        whole = ppvae.fit(PPCA(1), frame, ppvae.EM(max_steps=20)).impute(frame)
        assert isinstance(whole, pl.DataFrame)
        assert whole.schema == frame.cast({"Solar.R": pl.Float64}).schema

    @pytest.mark.filterwarnings("ignore:.* is imputed")  # five steps are no fit
    @pytest.mark.parametrize("model", [PPCA(1), ppvae.models.VAE(1, (4,), "gaussian")], ids=lambda model: model.name)
    def test_a_fit_in_float32_leaves_what_is_observed_as_it_was(self, model):
        """To the last bit, in every form; 123456789.1 is 123456792 in float32."""
        random = np.random.default_rng(0)
        z = random.normal(size=60)
        x = np.column_stack([5e7 + 2e7 * z, 1.1 + z + 0.1 * random.normal(size=60)])
        x[0, 0] = 123456789.1
        x[::7, 1] = np.nan
        seen, names = ~np.isnan(x), ["a", "b"]
        fit = ppvae.fit(
            model, pd.DataFrame(x, columns=names), *([ppvae.SVI(steps=5, compile=False)] * (model.name == "vae")), dtype="float32"
        )
        frame = pd.DataFrame(x, columns=names)
        arrow = pytest.importorskip("pyarrow").Table.from_pandas(frame)
        for filled in (
            fit.impute(x),
            fit.impute(ppvae.Data(x, columns=names)),
            fit.impute(frame).to_numpy(),
            fit.impute(pl.from_pandas(frame)).to_numpy(),
            fit.impute(arrow).to_pandas().to_numpy(),
            fit.impute(x, draws=2)[1],
            fit.impute(frame[["b", "a"]], draws=2)[1][:, ::-1],
        ):
            assert (filled[seen] == x[seen]).all()
            assert np.isfinite(filled).all()

    def test_whole_numbers_beyond_float64(self):
        """A frame keeps them; where they are to be float64, a warning says what becomes of them."""
        large = [2**53 + 1 + 2 * i for i in range(40)]
        holed = pd.DataFrame({"a": pd.array([None, *large[1:]], "Int64"), "b": np.random.default_rng(0).normal(size=40)})
        fit = ppvae.fit(Gaussian(), holed.assign(a=np.arange(40.0)))
        for whole in (fit.impute(holed).a, fit.impute(pl.from_pandas(holed))["a"].to_pandas()):
            assert [int(value) for value in whole][1:] == large[1:]
        with pytest.warns(UserWarning, match="what is observed in a is rounded to float64"):
            fit.impute(holed, draws=2)
        with pytest.warns(UserWarning, match="what is observed in x0 is rounded to float64"):
            fit.impute(np.array([[2**53 + 1, 1]]))

    def test_columns_in_another_order_keep_it(self):
        """Also where turning them twice does not bring them back."""
        iris = ppvae.load_data("iris").with_holes(0.1)
        fit = ppvae.fit(PPCA(1), iris, ppvae.EM(max_steps=20))
        order = [2, 0, 1, 3]
        turned = iris.frame().iloc[:, order]
        np.testing.assert_array_equal(fit.impute(turned), fit.impute(iris)[:, order])
        np.testing.assert_array_equal(fit.impute(turned, draws=2, seed=1), fit.impute(iris, draws=2, seed=1)[..., order])

    def test_frames_without_names(self):
        frame = pd.DataFrame(ppvae.load_data("airquality").numpy())
        whole = ppvae.fit(PPCA(1), frame, ppvae.EM(max_steps=20)).impute(frame)
        assert whole.columns.equals(frame.columns)
        assert not whole.isna().any(axis=None)

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
    def test_columns_that_the_fit_does_not_know_stay(self, kind):
        air = ppvae.load_data("airquality")
        fit = ppvae.fit(PPCA(1), air, ppvae.EM(max_steps=20))
        frame = air.frame().assign(day="monday").iloc[:, ::-1]
        whole = fit.impute(kind(dict(frame)))
        assert list(whole.columns) == list(frame.columns)
        assert set(whole["day"]) == {"monday"}
        np.testing.assert_array_equal(whole["Ozone"], fit.impute(air)[:, 0])
        assert fit.impute(frame, draws=2).shape == (2, 153, 4)


class TestPooling:
    def test_rubin(self):
        """Against the formulas written out for numbers small enough to do by hand."""
        pooled = ppvae.pool([1.0, 2.0, 3.0], lambda t: (t, 0.5))
        total = 0.5 + (1 + 1 / 3) * 1.0
        share = (1 + 1 / 3) * 1.0 / total
        assert pooled.estimate[0] == 2.0
        assert pooled.standard_error[0] == pytest.approx(math.sqrt(total))
        freedom = 2 / share**2
        increase = (1 + 1 / 3) * 1.0 / 0.5
        assert pooled.missing_variance[0] == pytest.approx(share)
        assert pooled.degrees_of_freedom[0] == pytest.approx(freedom)
        # Rubin 1987, section 3.3: gamma = (r + 2 / (nu + 3)) / (r + 1), r the relative increase in variance.
        assert pooled.missing_information[0] == pytest.approx((increase + 2 / (freedom + 3)) / (increase + 1))
        low, high = pooled.interval(0.9)
        assert (low[0], high[0]) == pytest.approx(stats.t(freedom, 2.0, math.sqrt(total)).interval(0.9))
        with pytest.raises(ValueError, match="between 0 and 1"):
            pooled.interval(95)

    def test_no_holes_cost_nothing(self):
        pooled = ppvae.pool([2.0, 2.0], lambda t: (t, 0.5))
        assert (pooled.missing_variance, pooled.missing_information, pooled.degrees_of_freedom) == (0, 0, np.inf)

    def test_rounding_is_no_difference(self):
        pooled = ppvae.pool([0.1, 0.1 + 2e-17, 0.1, 0.1 - 1e-17], lambda t: (t, 0.5))
        assert (pooled.missing_variance, pooled.degrees_of_freedom) == (0, np.inf)

    def test_no_variance_is_no_share(self):
        pooled = ppvae.pool([1.0, 2.0, 3.0], lambda t: (t, 0.0))
        assert np.isnan([pooled.missing_variance, pooled.missing_information]).all()
        assert pooled.degrees_of_freedom == 2

    def test_mistakes(self):
        with pytest.raises(ValueError, match="at least 2"):
            ppvae.pool([1.0], lambda t: (t, 1.0))
        for single in (np.eye(2), pd.DataFrame(np.eye(2)), 3):
            with pytest.raises(ValueError, match="not a single one"):
                ppvae.pool(single, lambda t: (t, 1.0))
        for result in (1.0, None, (1, 2, 3), ("a", "b")):
            with pytest.raises(ValueError, match=r"must give .estimate, its variance."):
                ppvae.pool([1, 2], lambda t, result=result: result)
        for result in ((1.0, -1.0), (1.0, np.nan)):
            with pytest.raises(ValueError, match="finite estimates"):
                ppvae.pool([1, 2], lambda t, result=result: result)
        with pytest.raises(ValueError, match="function of a table"):
            ppvae.pool([1, 2], "mean")
        with pytest.raises(ValueError, match="same shapes"):
            ppvae.pool([1, 2], lambda t: (np.ones(t), np.ones(t)))
        with pytest.raises(ValueError, match=r"variances of shape .1,.: one variance"):
            ppvae.pool([1, 2], lambda t: (np.ones(2), 1.0))
        with pytest.raises(ValueError, match="take the diagonal"):
            ppvae.pool([1, 2], lambda t: (np.ones(2), -np.eye(2)))


class TestMaskedDistributions:
    @pytest.mark.parametrize("seed", range(3))
    def test_low_rank_is_dense(self, seed):
        torch.manual_seed(seed)
        factor, diagonal = torch.randn(3, 1, 6, 2, dtype=torch.float64), torch.rand(3, 1, 6, dtype=torch.float64) + 0.1
        observed, x = torch.rand(20, 6) < 0.5, torch.randn(20, 6, dtype=torch.float64)
        low = MaskedLowRankNormal(torch.zeros(6, dtype=torch.float64), factor, diagonal, observed)
        dense = MaskedMultivariateNormal(low.loc, low.covariance_matrix, observed)
        torch.testing.assert_close(low.log_prob(x), dense.log_prob(x), rtol=1e-10, atol=1e-10)
        for ours, theirs in zip(low.conditional(x), dense.conditional(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    def test_gradient(self):
        observed = torch.tensor([[True, False, True], [False, False, False]])
        x = torch.randn(2, 3, dtype=torch.float64)

        def score(loc, factor, diagonal):
            return MaskedLowRankNormal(loc, factor, diagonal.exp(), observed).log_prob(x)

        inputs = (
            torch.zeros(3).double().requires_grad_(),
            torch.ones(3, 1).double().requires_grad_(),
            torch.zeros(3).double().requires_grad_(),
        )
        assert torch.autograd.gradcheck(score, inputs)

    @pytest.mark.parametrize(
        ("mask", "sentence"),
        [
            ([True, False], "a tensor of booleans .*, not list"),
            (torch.tensor([1.0, 0.0]), "not torch.float32"),
            (torch.tensor([True]), r"observed \(..., D\) came as .* and \(1,\)"),
            (torch.ones(3, 3, dtype=torch.bool), "do not go together"),
        ],
    )
    def test_a_mask_is_one_of_booleans(self, mask, sentence):
        for make in (
            lambda: MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), mask),
            lambda: MaskedLowRankNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2), mask),
        ):
            with pytest.raises(ValueError, match=sentence):
                make()

    def test_shapes_go_together(self):
        with pytest.raises(ValueError, match=r"covariance \(..., D, D\) came as \(3, 2\) and \(3, 3\)"):
            MaskedMultivariateNormal(torch.zeros(3, 2), torch.eye(3))
        with pytest.raises(ValueError, match="do not go together"):
            MaskedMultivariateNormal(torch.zeros(3, 2), torch.eye(2).expand(4, 2, 2))

    @pytest.mark.parametrize(
        ("make", "sentence"),
        [
            (lambda: MaskedMultivariateNormal(torch.zeros(2), -torch.eye(2)), "parameter covariance"),
            (lambda: MaskedMultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "parameter covariance"),
            (lambda: MaskedLowRankNormal(torch.zeros(2), torch.ones(2, 1), torch.tensor([1.0, -1.0])), "parameter diagonal"),
            (lambda: MaskedMultinomial(torch.ones(2), torch.tensor(1.0)), "parameter probabilities"),
            (lambda: MaskedMultivariateNormal(np.zeros(2), torch.eye(2)), "loc must be a tensor, not ndarray"),
        ],
    )
    def test_parameters_are_validated(self, make, sentence):
        with pytest.raises(ValueError, match=sentence):
            make()

    def test_rounding_beside_large_entries_is_no_asymmetry(self):
        covariance = torch.tensor([[1e12, 1.0], [1.01, 1.0]])
        assert MaskedMultivariateNormal(torch.zeros(2), covariance).covariance is covariance

    @pytest.mark.parametrize("observed", [None, torch.tensor([True, False])])
    def test_values_are_validated(self, observed):
        d = MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), observed)
        for one in (d, d.expand((3,))):
            with pytest.raises(ValueError, match="within the support"):
                one.log_prob(torch.tensor([torch.nan, 0.0]))
            with pytest.raises(ValueError, match=r"do not go together|must match event_shape"):
                one.log_prob(torch.zeros(3))
        if observed is not None:
            assert torch.isfinite(d.log_prob(torch.tensor([0.0, torch.nan])))
        unwatched = MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), observed, validate_args=False)
        assert torch.isnan(unwatched.log_prob(torch.tensor([torch.nan, 0.0])))

    def test_mean_and_variance_are_of_all_entries(self):
        factor, diagonal = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 0.25])
        low = MaskedLowRankNormal(torch.ones(2), factor, diagonal, torch.tensor([[True, False]] * 3))
        for d in (low, MaskedMultivariateNormal(low.loc, low.covariance_matrix, low.observed)):
            assert d.mean.tolist() == [[1, 1]] * 3
            assert d.variance.tolist() == [[1.5, 4.25]] * 3

    def test_infinity_is_not_missing(self):
        d = MaskedMultivariateNormal(torch.zeros(2), torch.eye(2), torch.tensor([True, True]))
        assert not torch.isfinite(d.log_prob(torch.tensor([torch.inf, 0.0])))

    def test_complete_keeps_and_draws(self):
        torch.manual_seed(0)
        covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()
        d = MaskedMultivariateNormal(torch.zeros(2).double(), covariance, torch.tensor([True, False]))
        drawn = d.complete(torch.tensor([2.0, 0.0]).double().expand(5000, 2))
        assert (drawn[:, 0] == 2.0).all()
        sd = math.sqrt(1 - 0.81)
        assert abs(float(drawn[:, 1].mean()) - 1.8) < 4 * sd / math.sqrt(5000)
        assert abs(float(drawn[:, 1].std()) - sd) < 4 * sd / math.sqrt(2 * 5000)


class TestHiddenEntries:
    def test_scores(self):
        found = ppvae.compare(GMM(1), ppvae.load_data("iris"), [ppvae.EM()], holdout_entries=0.2)
        row = found.table.iloc[0]
        # A Gaussian predicts iris' entries far better than their columns' means and spreads do (rms 1, and some -1.4 nats).
        assert row.hidden_rmse < 0.7
        whole, train = found.hidden, found.data
        gained = found.fits[0].log_likelihood(whole).sum() - found.fits[0].log_likelihood(train).sum()
        assert row.hidden_log_likelihood == pytest.approx(gained / int((whole.observed & ~train.observed).sum()))

    def test_against_dense_algebra(self):
        """Errors in standard deviations of the columns that were fitted; log p(x_hidden, x_observed) - log p(x_observed)."""
        found = ppvae.compare(GMM(1), ppvae.load_data("airquality"), [ppvae.EM(max_steps=3)], holdout_entries=0.3)
        whole, train = found.hidden.numpy(), found.data.numpy()
        (mean,), (covariance,) = (found.best.params[name] for name in ("means", "covariances"))
        hidden = ~np.isnan(whole) & np.isnan(train)
        error = np.stack([dense_mean(mean, covariance, row) for row in train]) - whole
        row = found.table.iloc[0]
        assert row.hidden_rmse == pytest.approx(math.sqrt(((error / np.nanstd(train, 0))[hidden] ** 2).mean()))
        both, seen = (observed_density(x, mean, covariance).sum() for x in (whole, train))
        assert row.hidden_log_likelihood == pytest.approx((both - seen) / hidden.sum())


class TestMissingness:
    def test_plain_dependence_is_said(self):
        frame = ppvae.load_data("iris").frame().rename(columns=lambda c: c.split(" (")[0])
        frame.loc[frame["petal length"] > 4.8, "sepal width"] = np.nan
        said = missingness.warning(ppvae.Data(frame))
        assert said is not None
        assert "sepal width" in said
        assert "petal" in said

    def test_columns_never_together_are_named_in_their_order(self):
        x = np.full((9, 4), np.nan)
        x[:, 0], x[:3, 1], x[3:6, 2], x[6:, 3] = 1.0, 2.0, 3.0, 4.0
        assert missingness.apart(x) == [("x1", "x2"), ("x1", "x3"), ("x2", "x3")]

    def test_columns_never_together_are_named(self):
        frame = pd.DataFrame(np.random.default_rng(1).standard_normal((60, 3)), columns=["dose", "height", "weight"])
        frame.loc[:29, "dose"], frame.loc[30:, "weight"] = np.nan, np.nan
        assert "no row holds both dose and weight" in missingness.warning(ppvae.Data(frame))
        assert missingness.apart(frame) == [("dose", "weight")]
        assert len(missingness.dependence(frame)) == 4  # of each column with holes: on height, in value and in distance

    def test_chance_is_not(self):
        frame = pd.DataFrame(np.random.default_rng(1).standard_normal((300, 4)))
        assert missingness.warning(ppvae.Data(frame.mask(np.random.default_rng(2).random(frame.shape) < 0.2))) is None
        assert missingness.warning(ppvae.Data(frame)) is None


def test_columns_in_another_order_keep_their_places():
    """What is filled in belongs to its column, whatever the order in which the table came."""
    air = ppvae.load_data("airquality")
    fit = ppvae.fit(ppvae.models.Gaussian(), air)
    frame = air.frame()
    turned = frame[["Temp", "Wind", "Ozone", "Solar.R"]]
    expected = fit.impute(frame)
    assert np.allclose(fit.impute(turned)[list(frame.columns)], expected)
    assert np.allclose(fit.impute(ppvae.Data(turned)), expected[list(turned.columns)])
    assert np.allclose(fit.impute(turned, draws=2), fit.impute(frame, draws=2)[..., [3, 2, 0, 1]])


class Largest(TorchDispatchMode):
    """Watches every tensor that is made, and remembers the largest: how many doubles its memory could hold, and what made it."""

    def __init__(self):
        super().__init__()
        self.doubles, self.made_by = 0.0, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() / 8 > self.doubles:
                self.doubles, self.made_by = tensor.untyped_storage().nbytes() / 8, f"{function} {tuple(tensor.shape)}"
        return result


EXACT = [
    Gaussian(),
    PPCA(2),
    FactorAnalysis(2),
    *(GMM(6, covariance=c) for c in ("full", "tied", "diag", "spherical")),
    MixturePPCA(6, 2),
    MixtureFA(6, 2),
]


@pytest.mark.parametrize("model", EXACT, ids=str)
def test_no_array_of_em_is_larger_than_four_tables(model):
    """Rows are worked on in chunks of at most 4,096 with a few patterns; whatever grows with the rows stays below 4 doubles an entry."""
    table = RANDOM.standard_normal((20_000, 6))
    table[RANDOM.random(table.shape) < 0.3] = np.nan
    data = ppvae.Data(table)
    with Largest() as largest:
        ppvae.fit(model, data, ppvae.EM(max_steps=2))
    assert largest.doubles <= 4 * table.size, largest.made_by
