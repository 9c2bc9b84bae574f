"""Fits in ArviZ, whichever generation is installed. The tests on arrays need neither torch nor Pyro."""

import copy
import warnings

import matplotlib
import numpy as np
import pytest

from ppvae.criticism.arviz import to_arviz

with warnings.catch_warnings():  # ArviZ 0.23 announces 1.0 at the first import of a day
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

# ArviZ 0.23 calls Matplotlib in a way that 3.11 deprecates, and warns of a few large Pareto k.
pytestmark = [pytest.mark.filterwarnings("ignore:.*alias_mapping"), pytest.mark.filterwarnings("ignore:Estimated shape parameter")]

NEW = int(az.__version__.split(".")[0]) >= 1
ELPD, P = ("elpd", "p") if NEW else ("elpd_loo", "p_loo")

matplotlib.use("agg")


def plot_predictive(container):
    """The replicates over the data, by each generation's own plot."""
    return az.plot_ppc_dist(container) if NEW else az.plot_ppc(container, num_pp_samples=10, random_seed=0)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    draws, rows = 200, 40
    x = rng.standard_normal((rows, 2))
    x[3, 1] = np.nan
    replicated = rng.standard_normal((1, draws, rows, 2))
    replicated[..., 3, 1] = np.nan
    return {
        "posterior": {"z": rng.standard_normal((1, draws, rows, 1))},
        "posterior_predictive": {"x": replicated},
        "log_likelihood": {"log_marginal": -1 + 0.1 * rng.standard_normal((1, draws, rows))},
        "observed_data": {"x": x},
        "constant_data": {"mean": np.array([0.0, 1.0])},
    }


class TestArrays:
    @pytest.fixture
    def container(self, arrays):
        dims = {"z": ["row", "latent"], "x": ["row", "feature"], "log_marginal": ["row"]}
        return to_arviz(arrays, dims, {"row": np.arange(10, 50), "feature": ["length", "width"]})

    def test_groups_keep_names_dims_and_values(self, arrays, container):
        for group, values in arrays.items():
            for name, value in values.items():
                np.testing.assert_array_equal(container[group][name].values, value)
        assert container["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "feature")
        assert container["observed_data"]["x"].dims == ("row", "feature")
        assert container["log_likelihood"]["log_marginal"].sel(row=10).dims == ("chain", "draw")

    def test_loo(self, container):
        loo = az.loo(container)
        assert getattr(loo, ELPD) == pytest.approx(-40, abs=1)
        assert 0 < getattr(loo, P) < 2

    def test_predictive_plot(self, container):
        plot_predictive(container)


class TestFits:
    @pytest.fixture(autouse=True)
    def _needs_torch(self):
        pytest.importorskip("torch")

    @pytest.fixture
    def iris_fit(self):
        import ppvae

        data = ppvae.load_data("iris")
        return ppvae.fit(ppvae.models.PPCA(n_latents=2), data), data

    def test_groups(self, iris_fit):
        fit, data = iris_fit
        container = fit.to_arviz(data, draws=50, seed=1)
        assert container["posterior"]["z"].dims == ("chain", "draw", "row", "latent")
        assert container["posterior"]["z"].shape == (1, 50, 150, 2)
        assert list(container["posterior_predictive"]["x"].coords["feature"].values) == list(data.columns)
        np.testing.assert_array_equal(container["observed_data"]["x"].values, data.numpy())
        np.testing.assert_array_equal(container["constant_data"]["loadings"].values, fit.params["loadings"])
        replicated = fit.replicate(data, draws=50, seed=1, rows="same")
        np.testing.assert_array_equal(container["posterior_predictive"]["x"].values[0], replicated)

    def test_loo_is_the_score_of_rows_left_out(self, iris_fit):
        """Against 150 refits: PSIS with 400 draws is right to about a nat in total, the log-likelihood itself is 12 nats off."""
        fit, data = iris_fit
        theta, left_out = copy.deepcopy(fit.theta), 0.0
        for row in range(data.n_rows):
            theta.assign(fit.exact.solve(data.take([i for i in range(data.n_rows) if i != row])))
            left_out += fit.exact.log_marginal(theta, data.take([row]).batch()).item()
        loo = az.loo(fit.to_arviz(data, draws=400))
        assert getattr(loo, ELPD) == pytest.approx(left_out, abs=2.0)
        assert abs(fit.log_likelihood(data).sum() - left_out) > 10
        assert getattr(loo, P) == pytest.approx(fit.n_parameters, abs=2.0)

    def test_missing_entries_stay_missing(self):
        import ppvae

        x = ppvae.load_data("iris").numpy()
        x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
        x[7] = np.nan
        data = ppvae.Data(x)
        container = ppvae.fit(ppvae.models.PPCA(n_latents=2), data, ppvae.EM(max_steps=20)).to_arviz(data, draws=100)
        kept = np.delete(x, 7, 0)
        np.testing.assert_array_equal(container["observed_data"]["x"].values, kept)
        assert 7 not in container["observed_data"].coords["row"]
        replicated = container["posterior_predictive"]["x"].values[0]
        assert all(np.array_equal(np.isnan(table), np.isnan(kept)) for table in replicated)
        assert np.isfinite(getattr(az.loo(container), ELPD))
        plot_predictive(container)

    @pytest.mark.parametrize("name", ["gmm", "vae"])
    def test_mixtures_and_networks(self, name):
        import ppvae

        data = ppvae.load_data("faithful")
        options = {"gmm": {"n_components": 2}, "vae": {"n_latents": 1, "likelihood": "gaussian"}}[name]
        method = {"gmm": ppvae.EM(), "vae": ppvae.SVI(steps=20)}[name]
        fit = ppvae.fit(ppvae.load_model(name, **options), data, method)
        container = fit.to_arviz(data, draws=100)
        latent = {"gmm": "component", "vae": "z"}[name]
        assert container["posterior"][latent].shape[:3] == (1, 100, 272)
        loo = az.loo(container)
        assert np.isfinite(getattr(loo, ELPD))
        if name == "gmm":
            assert getattr(loo, P) == pytest.approx(fit.n_parameters, abs=3.0)
        else:
            assert abs(getattr(loo, P)) < 1.0
            drawn, scores = container["log_likelihood"]["log_marginal"].values[0], fit.log_likelihood(data)
            apart = (drawn - np.asarray(scores)) / np.asarray(scores.standard_error)  # an estimate varies by its own error
            assert apart.std() == pytest.approx(1, abs=4 / (2 * apart.size) ** 0.5)
            assert apart.mean() == pytest.approx(0, abs=4 / apart.size**0.5)
        plot_predictive(container)

    def test_default_draws_are_enough_for_summaries(self, iris_fit):
        """1000 of what all rows share and of the log-likelihood; 100 of what each row has of its own."""
        import ppvae

        rows = ppvae.load_data("faithful").take(range(40))
        shared = ppvae.fit(ppvae.models.BayesianGMM(2), rows, ppvae.CAVI(max_sweeps=3)).to_arviz(rows)
        assert shared["posterior"]["means"].shape == (1, 1000, 2, 2)
        assert az.summary(shared, var_names=["means"])["ess_bulk"].astype(float).min() > 400
        fit, data = iris_fit
        for container in (shared, fit.to_arviz(data)):
            assert container["log_likelihood"]["log_marginal"].shape[:2] == (1, 1000)
            assert container["posterior_predictive"]["x"].shape[:2] == (1, 100)
            assert np.isfinite(getattr(az.loo(container), ELPD))

    def test_a_check_has_the_same_draws(self, iris_fit):
        import ppvae

        fit, data = iris_fit
        criticism = ppvae.check(fit, data, draws=20, seed=3)
        replicated = criticism.to_arviz()["posterior_predictive"]["x"].values[0]
        np.testing.assert_allclose(replicated.mean(1), criticism.draws["same"]["mean"])
