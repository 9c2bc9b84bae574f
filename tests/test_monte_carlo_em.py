"""Monte Carlo EM: with draws for integrals it follows EM, holes or not, and knows how uncertain its last step was."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from classic import observed_density

import ppvae
from ppvae import cli
from ppvae.inference.draws import Prior, exact_posterior, posterior_draws, trained_guide
from ppvae.inference.fit import start
from ppvae.inference.method import Task, seeded
from ppvae.models import GMM, PCA, PPCA, VAE, Autoencoder, BayesianGMM, Gaussian, MixturePPCA
from ppvae.program.derive import exact_forms


def noise(fit: ppvae.Fit, data: ppvae.Data, draws: int) -> float:
    """Parameters fitted to S draws of each of N rows lose p / 2NS nats per row if all they say is in the latents, and less if not; the
    loss is a sum of squares, and four times its mean is far out."""
    return 4 * fit.n_parameters / (2 * data.n_rows * draws)


@pytest.mark.parametrize(("model", "name"), [(GMM(2), "faithful"), (MixturePPCA(2, 1), "iris")], ids=["gmm", "mixture-ppca"])
def test_it_ends_where_em_does(model, name):
    data = ppvae.load_data(name)
    best = ppvae.fit(model, data, ppvae.EM()).history.log_likelihood.iloc[-1]
    fit = ppvae.fit(model, data, ppvae.MonteCarloEM(draws=20))
    assert fit.history.log_likelihood[0] < best - noise(fit, data, 20)
    assert float(fit.log_likelihood(data).mean()) > best - noise(fit, data, 20)
    assert fit.converged
    assert fit.status.startswith("converged: the last step gained ")
    assert fit.engine == "draws from the exact posterior"
    assert fit.history.log_likelihood.iloc[-1] == pytest.approx(float(fit.log_likelihood(data).mean()), abs=1e-9)


def test_holes_and_slow_climbs():
    """It follows EM step by step. On a slope a small error of theta costs as much as it is large, here 2 % of the climb at most."""
    air = ppvae.load_data("airquality")
    em = ppvae.fit(PPCA(1), air, ppvae.EM()).history.log_likelihood
    fit = ppvae.fit(PPCA(1), air, ppvae.MonteCarloEM(steps=8, draws=200, growth=1))
    np.testing.assert_allclose(fit.history.log_likelihood, em[:9], rtol=0, atol=0.02 * (em[8] - em[0]))
    assert not fit.converged
    assert fit.status.startswith("stopped at steps=8: the last step gained ")
    assert fit.status.endswith(" nats per row at 200 draws a row, and may gain more: raise steps")


def test_draws_grow_when_a_step_is_lost_in_noise():
    iris = ppvae.load_data("iris")
    top = ppvae.fit(PPCA(2), iris).params
    fit = ppvae.fit(PPCA(2), iris, ppvae.MonteCarloEM(steps=3, draws=2, growth=3, max_draws=5, tolerance=1e-9), init=top)
    assert fit.status.endswith("at 5 draws a row, lost in noise: raise max_draws")
    assert not fit.converged


def test_the_standard_error_is_that_of_the_gain():
    """Over repeated draws at the same two thetas, the estimates of the gain spread as their standard errors say, around the truth."""
    from ppvae.inference.monte_carlo_em import NoisyClimb

    iris, model = ppvae.load_data("iris"), PPCA(2)
    before = start(model, iris, 0)
    climb = NoisyClimb(Task(model, iris, start(model, iris, 0), None, 0), ppvae.MonteCarloEM(draws=2))  # few, so that a biased spread shows
    with seeded(0):
        draws = [climb.e_step() for _ in range(200)]  # theta has not moved yet
        climb.task.theta.assign(ppvae.fit(model, iris, ppvae.EM(max_steps=3)).theta.values())
        gains, errors = map(torch.tensor, zip(*(climb.gain(before, found) for found in draws), strict=True))
    assert float(gains.std()) == pytest.approx(
        float(errors.mean()), rel=4 / math.sqrt(2 * 199)
    )  # 4 standard errors of a standard deviation


def expected_gain(rows: np.ndarray, old: dict, new: dict) -> float:
    """PPCA(1): the gain in E[log p(x, z)] under the posterior at `old`, nats per row, by dense algebra over the observed entries."""
    total = 0.0
    for row in rows:
        seen = ~np.isnan(row)
        x, w, v = row[seen] - old["mean"][seen], old["loadings"][seen, 0], old["noise_variance"]
        variance = 1 / (1 + w @ w / v)
        z = variance * (w @ x) / v
        for sign, theta in ((1, new), (-1, old)):
            left = row[seen] - theta["mean"][seen] - theta["loadings"][seen, 0] * z
            squares = left @ left + variance * (theta["loadings"][seen, 0] ** 2).sum()
            total -= sign * (squares / theta["noise_variance"] + seen.sum() * np.log(theta["noise_variance"])) / 2
    return total / len(rows)


@pytest.mark.parametrize("source", ["exact", "weighted"])
def test_the_gain_is_that_of_the_expected_log_joint(source):
    """Draws from the posterior, or weighted ones from the prior: the gains are around the dense value, as far from it as they say."""
    from ppvae.inference.monte_carlo_em import NoisyClimb

    rows, model = ppvae.load_data("iris").take(range(0, 150, 6)).with_holes(0.2), PPCA(1)
    task = Task(model, rows, start(model, rows, 0), None, 0)
    climb, before = NoisyClimb(task, ppvae.MonteCarloEM()), start(model, rows, 0)
    task.theta.assign(ppvae.fit(model, rows, ppvae.EM(max_steps=2)).theta.values())
    old, new = ({name: value.numpy() for name, value in theta.values().items()} for theta in (before, task.theta))
    at_before = replace(task, theta=before)
    drawn_from, draws = (climb.exact, 5) if source == "exact" else (Prior(at_before), 400)
    with seeded(0):
        found = [climb.gain(before, posterior_draws(at_before, drawn_from, draws)) for _ in range(100)]
    gains, errors = np.array(found).T
    known = expected_gain(rows.numpy(), old, new)
    assert gains.mean() == pytest.approx(known, abs=4 * errors.mean() / 10)
    assert np.sqrt((((gains - known) / errors) ** 2).mean()) == pytest.approx(1, abs=4 / math.sqrt(200))


def test_without_an_exact_posterior_a_guide_draws():
    """The weights make up for a guide that is not the posterior: the expected z^2 is the exact one."""
    iris, model = ppvae.load_data("iris"), PPCA(2)
    task = Task(model, iris, ppvae.fit(model, iris).theta, "diagonal", 0)
    exact = exact_posterior(task, exact_forms(model, task.theta, iris.head()))
    with seeded(0):
        guide = trained_guide(task, 200, compile=False)
        found, sound = (posterior_draws(task, source, 2000)[0] for source in (guide, exact))
    squares, truth = ((part.weights * part.latents["z"].square().sum(-1)).sum(0) for part in (found, sound))
    error = ((found.weights * (found.latents["z"].square().sum(-1) - squares)).square().sum(0) * 2).sqrt()  # of both, about
    assert ((squares - truth).abs() < 5 * error).float().mean() > 0.95  # weights of heavy tails: a few rows may be further out
    assert torch.allclose(sound.weights, sound.weights.new_tensor(1 / 2000))


def test_weighted_draws_know_the_evidence():
    """Each row's evidence against the dense formula: draws from the prior of one latent, whose weights are mild."""
    iris, model = ppvae.load_data("iris").with_holes(0.3), PPCA(1)
    theta = start(model, iris, 0)
    task = Task(model, iris, theta, None, 0)
    with seeded(0):
        parts = posterior_draws(task, Prior(task), 5000)
    w, m, v = (theta.values()[name].numpy() for name in ("loadings", "mean", "noise_variance"))
    truth = observed_density(iris.numpy(), m, w @ w.T + v * np.eye(4))
    error = torch.cat([part.weights.square().sum(0) - 1 / 5000 for part in parts]).sqrt().numpy()  # of a log of a mean: the delta method
    assert error.max() < 0.2
    assert (np.abs(torch.cat([part.evidence for part in parts]).numpy() - truth) < 4 * error + 4 * error**2).all()


def test_a_network_is_fitted_to_data_with_holes():
    air = ppvae.load_data("airquality")
    fit = ppvae.fit(VAE(1, (4,), "gaussian"), air, ppvae.MonteCarloEM(steps=3, guide_steps=20))
    assert fit.engine == "weighted draws from a trained guide"
    assert fit.history.elbo.iloc[-1] > fit.history.elbo[0] + 0.5
    assert math.isnan(fit.history.log_likelihood.iloc[-1])
    assert fit.transform(air).shape == (153, 1)


def test_frozen_parameters_stay():
    half = type("GMM", (GMM,), {"init": lambda self, data, generator: GMM.init(self, data, generator).freeze("weights")})
    fit = ppvae.fit(half(2), ppvae.load_data("faithful"), ppvae.MonteCarloEM(steps=2), init={"weights": [0.5, 0.5]})
    assert fit.params["weights"] == pytest.approx([0.5, 0.5])
    assert fit.history.log_likelihood.iloc[-1] > fit.history.log_likelihood[0]


def test_seeds_repeat_and_differ():
    data, method = ppvae.load_data("faithful"), ppvae.MonteCarloEM(steps=2)
    first, again, other = (ppvae.fit(GMM(2), data, method, seed=seed).params["means"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_what_it_cannot_do_is_refused():
    iris = ppvae.load_data("iris")
    for settings in ({"steps": 0}, {"draws": 1}, {"guide_steps": 0}, {"tolerance": 0.0}, {"growth": 0.9}, {"max_draws": 9}):
        with pytest.raises(ValueError, match=r"must be (at least|above)"):
            ppvae.MonteCarloEM(**settings)
    with pytest.raises(ValueError, match="gaussian has no latents to draw: use ClosedForm, DirectML, EM, OnlineEM,"):
        ppvae.fit(Gaussian(), iris, ppvae.MonteCarloEM())
    with pytest.raises(
        ValueError,
        match="the rows of bayesian_gmm share 'weights', and this method draws only what each row has of its own: use CAVI, NUTS or SVI",
    ):
        ppvae.fit(BayesianGMM(2), ppvae.load_data("faithful"), ppvae.MonteCarloEM())
    with pytest.raises(ValueError, match="autoencoder has no prior over z, so its rows have no likelihood: use SVI"):
        ppvae.fit(Autoencoder(1), iris, ppvae.MonteCarloEM())
    frozen = type("PCA", (PCA,), {"init": lambda self, data, generator: PCA.init(self, data, generator).freeze("loadings", "mean")})
    with pytest.raises(ValueError, match="has no free parameters"):
        ppvae.fit(frozen(2), iris, ppvae.MonteCarloEM())


def test_the_command_line_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "gmm", "faithful", "--method", "monte_carlo_em:steps=2:draws=5", "--out", "geyser"])
    assert not stop.value.code
    assert ppvae.load("geyser").method == ppvae.MonteCarloEM(steps=2, draws=5)
