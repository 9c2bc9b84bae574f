"""Fit: names, shapes and units of the contract, and what it refuses."""

import copy

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import ppvae
from ppvae import imputation
from ppvae.criticism import latents
from ppvae.models import GMM, PPCA, VAE
from ppvae.scores import Scores

ONE_STEP = {"em": ppvae.EM(max_steps=1), "svi": ppvae.SVI(steps=1, learning_rate=1e-12, compile=False)}


@pytest.fixture(scope="module")
def iris() -> ppvae.Data:
    return ppvae.load_data("iris")


@pytest.fixture(scope="module")
def ppca(iris) -> ppvae.Fit:
    return ppvae.fit(PPCA(2), iris)


@pytest.fixture(scope="module")
def gmm(iris) -> ppvae.Fit:
    return ppvae.fit(GMM(3), iris, ppvae.EM(max_steps=30))


@pytest.fixture(scope="module")
def vae(iris) -> ppvae.Fit:
    return ppvae.fit(VAE(2, (8,), "gaussian"), iris, ppvae.SVI(steps=30, compile=False))


SHAPES = {
    "full": {"weights": (3,), "means": (3, 4), "covariances": (3, 4, 4)},
    "tied": {"weights": (3,), "means": (3, 4), "covariances": (4, 4)},
    "diag": {"weights": (3,), "means": (3, 4), "covariances": (3, 4)},
    "spherical": {"weights": (3,), "means": (3, 4), "covariances": (3,)},
}


@pytest.mark.parametrize("covariance", SHAPES)
def test_parameters_of_a_mixture(iris, covariance):
    fit = ppvae.fit(GMM(3, covariance=covariance), iris, ppvae.EM(max_steps=2))
    assert {name: value.shape for name, value in fit.params.items()} == SHAPES[covariance]
    assert fit.params["weights"].sum() == pytest.approx(1)
    assert fit.n_parameters == {"full": 2 + 12 + 30, "tied": 2 + 12 + 10, "diag": 2 + 12 + 12, "spherical": 2 + 12 + 3}[covariance]


def test_parameters_of_ppca_and_of_a_network(ppca, vae):
    assert {name: value.shape for name, value in ppca.params.items()} == {"loadings": (4, 2), "mean": (4,), "noise_variance": ()}
    assert ppca.n_parameters == 8 + 4 + 1 - 1  # less a rotation of two latents
    assert {"noise_variance", "decoder.0.weight", "decoder.2.bias"} <= set(vae.params)
    assert vae.params["decoder.0.weight"].shape == (8, 2)


def test_parameters_are_copies(ppca):
    ppca.params["mean"][:] = 0
    assert ppca.params["mean"].any()


def test_information_criteria(gmm, iris):
    total = float(gmm.log_likelihood(iris).sum())
    assert gmm.bic(iris) == pytest.approx(gmm.n_parameters * np.log(150) - 2 * total)
    assert gmm.aic(iris) == pytest.approx(2 * gmm.n_parameters - 2 * total)


def test_an_estimated_divergence_is_a_difference_with_the_error_of_both(vae, iris):
    evidence, bound, lost = vae.log_likelihood(iris), vae.elbo(iris), vae.kl(iris)
    assert np.asarray(lost) == pytest.approx(np.asarray(evidence) - np.asarray(bound))
    assert np.asarray(lost.standard_error) == pytest.approx(np.hypot(evidence.standard_error, bound.standard_error))


def test_scores_say_how_they_were_found(ppca, vae, iris):
    exact, estimate = ppca.log_likelihood(iris), vae.log_likelihood(iris)
    assert exact.shape == estimate.shape == (150,)
    assert exact.exact
    assert exact.standard_error is None
    assert not estimate.exact
    assert estimate.how == "importance sampling, 1000 draws a row"
    assert estimate.standard_error.shape == (150,)
    assert 0 < estimate.mean_standard_error < 0.05
    assert (np.asarray(vae.elbo(iris, draws=500)).mean() - np.asarray(estimate).mean()) < 0  # the bound lies below
    assert isinstance(exact, Scores)


def test_an_estimate_of_the_evidence_is_right_within_its_error(iris):
    """Importance sampling and Monte Carlo against the exact evidence and ELBO of PPCA, within 4 standard errors."""
    fit = ppvae.fit(PPCA(2), iris, ppvae.SVI(steps=300, compile=False), guide="full")
    from ppvae.inference.method import seeded
    from ppvae.scores import sampled_elbo, sampled_evidence

    with seeded(0):
        evidence = sampled_evidence(fit.program, fit.guide, iris, 2000)
        bound = sampled_elbo(fit.program, fit.guide, iris, 500)
    exact = fit.log_likelihood(iris)
    assert abs(float(evidence.mean() - exact.mean())) < 4 * evidence.mean_standard_error
    assert abs(float(bound.mean()) - float(fit.elbo(iris).mean())) < 4 * bound.mean_standard_error
    assert abs(float(bound.mean() - exact.mean())) > 4 * bound.mean_standard_error  # and the two are told apart


def test_transform_and_predict(ppca, gmm, iris):
    assert ppca.transform(iris).shape == (150, 2)
    labels = gmm.predict(iris)
    assert labels.shape == (150,)
    assert set(labels) == {0, 1, 2}
    agree = pd.crosstab(labels, iris.labels).max(axis=1).sum()
    assert agree > 140  # three species, of which a mixture confuses a few rows
    with pytest.raises(ValueError, match="ppca has no components: use transform"):
        ppca.predict(iris)
    with pytest.raises(ValueError, match="gmm has no continuous latents: use predict"):
        gmm.transform(iris)


def test_posterior_shapes(ppca, gmm, iris):
    assert ppca.posterior(iris).mean.shape == (150, 2)
    assert gmm.posterior(iris).log_weights.exp().sum(-1).numpy() == pytest.approx(1)


def test_samples(ppca, iris):
    draws = ppca.sample(5000, seed=1)
    assert draws.shape == (5000, 4)
    assert (draws == ppca.sample(5000, seed=1)).all()
    assert (draws != ppca.sample(5000, seed=2)).any()
    error = np.sqrt(np.diag(np.cov(draws.T)) / 5000)
    assert (np.abs(draws.mean(0) - ppca.params["mean"]) < 4 * error).all()
    marginal = ppca.params["loadings"] @ ppca.params["loadings"].T + ppca.params["noise_variance"] * np.eye(4)
    spread = np.sqrt(np.outer(np.diag(marginal), np.diag(marginal)))
    assert (np.abs(np.cov(draws.T) - marginal) < 4 * spread * np.sqrt(2 / 5000)).all()
    with pytest.raises(ValueError, match="sample: n must be at least 1, not 0"):
        ppca.sample(0)


def test_replicates(ppca, iris):
    same, new = (ppca.replicate(iris, draws=60, seed=1, rows=rows) for rows in ("same", "new"))
    assert same.shape == new.shape == (60, 150, 4)
    assert (same == ppca.replicate(iris, draws=60, seed=1)).all()
    x = iris.numpy()
    # The same rows come back near themselves; new rows come from anywhere.
    assert np.square(same.mean(0) - x).mean() < 0.2 * np.square(new.mean(0) - x).mean()
    with pytest.raises(ValueError, match="unknown kind of rows 'sane': did you mean 'same'"):
        ppca.replicate(iris, rows="sane")


def test_tables_of_any_kind_are_the_same_table(iris):
    values = iris.numpy()
    columns = list(iris.columns)
    tables = [values, torch.as_tensor(values), pd.DataFrame(values, columns=columns), pl.DataFrame(values, schema=columns), values.tolist()]
    first, *others = (ppvae.fit(PPCA(2), table) for table in tables)
    for other in others:
        assert all((other.params[name] == value).all() for name, value in first.params.items())
    assert (first.log_likelihood(tables[2]) == first.log_likelihood(values)).all()


def test_another_number_of_features_is_refused(ppca):
    with pytest.raises(ValueError, match=r"the fit knows 4 features .* the data have 2"):
        ppca.log_likelihood(ppvae.load_data("faithful"))


def test_a_fit_scores_rows_with_holes(ppca, iris):
    holes = iris.numpy().copy()
    holes[0, 1], holes[1] = np.nan, np.nan
    scores = ppca.log_likelihood(holes)
    assert scores[1] == 0
    assert scores[0] != ppca.log_likelihood(iris)[0]
    assert (scores[2:] == ppca.log_likelihood(iris)[2:]).all() or np.allclose(scores[2:], ppca.log_likelihood(iris)[2:], atol=1e-10)


@pytest.mark.parametrize("method", [None, ppvae.EM(max_steps=50), ppvae.SVI(steps=5)], ids=["closed form", "em", "svi"])
def test_single_precision(iris, method):
    fit = ppvae.fit(PPCA(2), iris, method, dtype=torch.float32)
    assert all(value.dtype == np.float32 for value in fit.params.values())
    assert fit.log_likelihood(iris).dtype == np.float32
    assert np.isfinite(fit.log_likelihood(iris)).all()
    if method is None:
        assert float(fit.log_likelihood(iris).mean()) == pytest.approx(-2.69975187, abs=1e-4)


def test_networks_train_in_single_precision_and_closed_forms_in_double(vae, ppca):
    assert vae.dtype == torch.float32
    assert ppca.dtype == torch.float64


@pytest.mark.parametrize("method", ONE_STEP)
def test_init_takes_public_names_and_constrained_values(iris, method):
    values = {"loadings": np.ones((4, 2)) * [1, -1], "mean": [1.0, 2.0, 3.0, 4.0], "noise_variance": 0.7}
    fit = ppvae.fit(PPCA(2), iris, ppvae.SVI(steps=1, learning_rate=1e-12, compile=False), init=values)
    for name, value in values.items():
        np.testing.assert_allclose(fit.params[name], value, rtol=1e-9)
    start = ppvae.fit(PPCA(2), iris, ONE_STEP[method], init=values).history.log_likelihood.iloc[0]
    marginal = values["loadings"] @ values["loadings"].T + 0.7 * np.eye(4)
    from scipy.stats import multivariate_normal

    assert start == pytest.approx(multivariate_normal(values["mean"], marginal).logpdf(iris.numpy()).mean(), rel=1e-9)


@pytest.mark.parametrize("method", ONE_STEP)
def test_init_of_a_mixture(method):
    data = ppvae.load_data("faithful")
    init = {"means": [[2.0, 50.0], [4.0, 80.0]], "covariances": np.stack([np.diag([0.1, 30.0])] * 2)}
    fit = ppvae.fit(GMM(2), data, ONE_STEP[method], init=init)
    assert fit.params["means"][0, 0] < 3 < fit.params["means"][1, 0]
    if method == "svi":
        np.testing.assert_allclose(fit.params["covariances"], init["covariances"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ({"mean": [0, 0]}, "unknown parameter 'mean': did you mean 'means'"),
        ({"means": [[0.0, 0.0]]}, r"parameter 'means' has shape \(2, 2\), not \(1, 2\): give so many, or set the model's options"),
        ({"means": [[0.0, 0.0], [np.nan, 0.0]]}, "parameter 'means' must be finite"),
        ({"weights": [0.9, 0.9]}, "parameter 'weights' is outside its constraint: give numbers from 0 up that sum to 1"),
        ({"covariances": -np.stack([np.eye(2)] * 2)}, "outside its constraint: give symmetric matrices with eigenvalues above 0"),
    ],
)
@pytest.mark.parametrize("method", [*ONE_STEP.values(), None], ids=[*ONE_STEP, "default"])
def test_a_wrong_init_is_refused(method, init, sentence):
    with pytest.raises(ValueError, match=sentence):
        ppvae.fit(GMM(2), ppvae.load_data("faithful"), method, init=init)


def test_the_best_method_is_chosen(iris):
    assert ppvae.fit(PPCA(2), iris).method == ppvae.ClosedForm()
    assert ppvae.fit(PPCA(2), ppvae.load_data("airquality")).method == ppvae.EM()
    assert ppvae.fit(GMM(2), ppvae.load_data("faithful")).method == ppvae.EM()


def test_methods_that_do_not_apply_are_refused(iris):
    with pytest.raises(ValueError, match=r"gmm has no closed-form maximum likelihood: use .*EM.* SVI"):
        ppvae.fit(GMM(2), iris, ppvae.ClosedForm())
    with pytest.raises(ValueError, match=r"closed form for complete data only: use .*EM"):
        ppvae.fit(PPCA(2), ppvae.load_data("airquality"), ppvae.ClosedForm())


@pytest.mark.parametrize(
    ("model", "table", "sentence"),
    [
        (lambda: PPCA(4), "iris", "n_latents=4 must be below the number of features, 4: choose fewer latents"),
        (lambda: PPCA(0), "iris", "n_latents must be at least 1, not 0"),
        (lambda: GMM(0), "iris", "n_components must be at least 1, not 0"),
        (lambda: GMM(200), "iris", "200 components need at least as many rows, but there are 150: ask for fewer components"),
        (lambda: GMM(2), "digits", "likelihood is unbounded where a column is constant"),
        (lambda: GMM(2, covariance="ful"), "iris", "unknown covariance 'ful': did you mean 'full'"),
        (lambda: GMM(2, component="sumed"), "iris", "unknown component 'sumed': did you mean 'summed'"),
        (lambda: VAE(2), "digits", r"takes entries in \[0, 1\], but .* rescale the data"),
    ],
)
def test_what_a_model_cannot_take_is_refused(model, table, sentence):
    with pytest.raises(ValueError, match=sentence) as refusal:
        ppvae.fit(model(), ppvae.load_data(table))
    assert "\n" not in str(refusal.value)


def test_constant_columns_do_not_hurt_ppca():
    fit = ppvae.fit(PPCA(3), ppvae.load_data("digits"))
    assert fit.converged
    assert np.isfinite(fit.log_likelihood(ppvae.load_data("digits"))).all()


def test_a_device_that_is_not_there_is_refused(iris):
    for device in ("cuda:7", "gpu"):
        with pytest.raises(ValueError, match=f"device '{device}' is not there: use 'cpu'"):
            ppvae.fit(PPCA(2), iris, device=device)


def test_progress_is_told(iris):
    told = []
    ppvae.fit(PPCA(2), iris, ppvae.EM(max_steps=5), progress=lambda *said: told.append(said))
    assert [(done, total) for done, total, _ in told] == [(n, 5) for n in range(6)]  # 0: the start
    assert all(note.endswith("nats per row") for *_, note in told)


def test_history_has_the_columns_of_the_contract(ppca, gmm, vae):
    for fit in (ppca, gmm, vae):
        assert list(fit.history.columns)[:5] == ["step", "seconds", "elbo", "log_likelihood", "heldout_elbo"]
        assert fit.history.seconds.is_monotonic_increasing
        assert fit.history.step.is_monotonic_increasing
    assert vae.history.log_likelihood.isna().all()


def test_a_fit_is_frozen_and_can_be_copied(ppca, iris):
    with pytest.raises(AttributeError):
        ppca.seed = 3
    again = copy.deepcopy(ppca)
    assert (again.log_likelihood(iris) == ppca.log_likelihood(iris)).all()


def test_seeds_give_other_starts(iris):
    starts = [ppvae.fit(GMM(3), iris, ppvae.EM(max_steps=1), seed=seed).history.log_likelihood.iloc[0] for seed in range(4)]
    assert len(set(starts)) > 1


def test_rows_that_hold_nothing_are_no_observations():
    """They score 0 and change no criterion: BIC is p ln N - 2 l by hand."""
    x = ppvae.load_data("iris").numpy()
    blank = np.vstack([x, np.full((30, 4), np.nan)])
    fit = ppvae.fit(ppvae.models.Gaussian(), x)
    assert fit.bic(x) == pytest.approx(14 * np.log(150) - 2 * fit.log_likelihood(x).sum(), rel=1e-12)
    assert fit.bic(blank) == pytest.approx(fit.bic(x), rel=1e-12)
    assert fit.aic(blank) == pytest.approx(fit.aic(x), rel=1e-12)


def test_fit_takes_one_method():
    for words, named in (("em,svi", "em and svi"), ("em,svi:steps=5,cavi", "em, svi and cavi")):
        with pytest.raises(ValueError, match=f"fit takes one method, not {named}: choose one, or use ppvae.compare for all of them"):
            ppvae.fit(ppvae.models.GMM(2), ppvae.load_data("faithful"), words)


SEEDED = {
    "fit": lambda fit, data, seed: ppvae.fit(fit.model, data, ppvae.SVI(steps=1), seed=seed),
    "log_likelihood": lambda fit, data, seed: fit.log_likelihood(data, seed=seed),
    "elbo": lambda fit, data, seed: fit.elbo(data, seed=seed),
    "kl": lambda fit, data, seed: fit.kl(data, seed=seed),
    "sample": lambda fit, data, seed: fit.sample(2, seed=seed),
    "replicate": lambda fit, data, seed: fit.replicate(data, draws=2, seed=seed),
    "replicate new": lambda fit, data, seed: fit.replicate(data, draws=2, seed=seed, rows="new"),
    "impute": lambda fit, data, seed: fit.impute(data, seed=seed),
    "impute draws": lambda fit, data, seed: fit.impute(data, draws=2, seed=seed),
    "bootstrap": lambda fit, data, seed: fit.impute(data, draws=2, seed=seed, bootstrap=True),
    "imputation_sample_size": lambda fit, data, seed: fit.imputation_sample_size(data, seed=seed),
    "shared_draws": lambda fit, data, seed: fit.shared_draws(2, seed=seed),
    "shared_chains": lambda fit, data, seed: fit.shared_chains(2, seed=seed),
    "to_arviz": lambda fit, data, seed: fit.to_arviz(data, draws=2, seed=seed),
    "check": lambda fit, data, seed: ppvae.check(fit, data, draws=20, seed=seed),
    "laws": lambda fit, data, seed: ppvae.laws.check(fit.model, data, seed=seed, only=[8]),
    "examine": lambda fit, data, seed: latents.examine(fit, data, seed=seed),
    "coverage": lambda fit, data, seed: imputation.coverage(fit, data, seed=seed),
    "with_holes": lambda fit, data, seed: data.with_holes(0.1, seed=seed),
    "split": lambda fit, data, seed: data.split(0.1, seed=seed),
}


@pytest.mark.parametrize("ask", SEEDED.values(), ids=SEEDED)
def test_seeds_are_checked_wherever_one_is_taken(ppca, ask):
    """Where the answer is exact too, so that a slip shows before it matters."""
    data = ppvae.load_data("iris").take(range(30))
    for seed in (-1, 1.5, "0", True, None, 2**63):
        with pytest.raises(ValueError, match=r"a seed is a whole number from 0 up to 2\^63, not"):
            ask(ppca, data, seed)
    ask(ppca, data, np.int64(3))


@pytest.mark.parametrize("model", [PPCA(1), ppvae.models.BayesianGMM(2)], ids=lambda model: model.name)
def test_laws_leave_torchs_generator_as_it_was(model):
    data = ppvae.load_data("faithful").take(range(30))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    ppvae.laws.check(model, data, only=[2, 4, 5, 6, 7, 8, 10])
    assert torch.equal(before, torch.get_rng_state())
