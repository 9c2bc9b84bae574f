"""Variational EM: the guide and theta take turns, each raises the bound, and they end where EM does."""

import math

import numpy as np
import pytest

import ppvae
from ppvae import cli
from ppvae.models import GMM, PCA, PPCA, VAE


def test_turns_end_where_em_does():
    """Adam's last steps are 1e-4 of the peak; what is left is the noise of one draw a row, averaged over the fall of the learning rate."""
    iris = ppvae.load_data("iris")
    fit = ppvae.fit(PPCA(2), iris, ppvae.VariationalEM())
    truth = float(ppvae.fit(PPCA(2), iris).log_likelihood(iris).mean())
    assert fit.history.log_likelihood[0] < truth - 0.5
    assert truth - 0.005 < float(fit.elbo(iris).mean()) <= float(fit.log_likelihood(iris).mean()) <= truth
    assert fit.converged
    assert fit.status == "ran all its steps; the ELBO has settled"
    assert fit.steps == 50 * (30 + 30)


def test_each_turn_moves_its_own():
    """A guided mixture has no draws, so nothing but the size of Adam's steps can lower the bound."""
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(
        GMM(2, component="guided"), data, ppvae.VariationalEM(rounds=20, e_steps=20, m_steps=20), init={"means": [[2, 50], [3, 90]]}
    )
    elbo, evidence = fit.history.elbo.to_numpy(), fit.history.log_likelihood.to_numpy()
    assert fit.history.step.tolist() == list(range(0, 801, 20))
    assert (evidence[1::2] == evidence[:-1:2]).all()  # an E-step leaves theta alone
    assert (elbo <= evidence + 1e-10).all()
    assert (np.diff(elbo)[:20] > 0).all()  # and each turn raises the bound, while there is something to raise
    best = float(ppvae.fit(GMM(2), data, ppvae.EM()).log_likelihood(data).mean())
    assert elbo[-1] == pytest.approx(best, abs=0.01)


def test_a_story_that_sums_its_latents_out_takes_only_m_steps():
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(GMM(2), data, ppvae.VariationalEM(rounds=20))
    assert float(fit.log_likelihood(data).mean()) == pytest.approx(ppvae.fit(GMM(2), data).history.log_likelihood.iloc[-1], abs=1e-4)
    assert fit.steps == 20 * 30
    assert fit.status.endswith("the guide has nothing to learn, since the story sums its latents out: every step was an M-step")


def test_holes_batches_and_networks():
    air = ppvae.load_data("airquality")
    fit = ppvae.fit(PPCA(1), air, ppvae.VariationalEM(rounds=40, e_steps=10, m_steps=10, batch_size=51))
    best = float(ppvae.fit(PPCA(1), air, ppvae.EM()).log_likelihood(air).mean())
    assert float(fit.elbo(air).mean()) <= float(fit.log_likelihood(air).mean()) <= best
    assert float(fit.log_likelihood(air).mean()) > fit.history.log_likelihood[0] + 0.8 * (best - fit.history.log_likelihood[0])
    net = ppvae.fit(VAE(1, (4,), "gaussian"), air, ppvae.VariationalEM(rounds=4, e_steps=5, m_steps=5, compile=False))
    assert np.isfinite(net.history.elbo).all()
    assert math.isnan(net.history.log_likelihood.iloc[-1])


def test_many_rounds_are_logged_some_at_a_time():
    data = ppvae.load_data("faithful")
    fit = ppvae.fit(GMM(2, component="guided"), data, ppvae.VariationalEM(rounds=101, e_steps=1, m_steps=2, compile=False))
    assert fit.history.step.tolist()[:5] == [0, 7, 9, 16, 18]  # every third round: after its E-step, and after its M-steps
    assert fit.history.step.iloc[-1] == fit.steps == 303


def test_seeds_repeat_and_differ():
    data, method = ppvae.load_data("iris"), ppvae.VariationalEM(rounds=2, e_steps=2, m_steps=2, compile=False)
    first, again, other = (ppvae.fit(PPCA(1), data, method, seed=seed).params["loadings"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_what_it_cannot_do_is_refused():
    iris = ppvae.load_data("iris")
    for settings in ({"rounds": 0}, {"e_steps": 0}, {"m_steps": -1}, {"batch_size": 0}, {"particles": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=f"^(?!SVI).*{next(iter(settings))}"):
            ppvae.VariationalEM(**settings)
    with pytest.raises(ValueError, match="batch_size=151 is larger than the data"):
        ppvae.fit(PPCA(2), iris, ppvae.VariationalEM(batch_size=151))
    frozen = type("PCA", (PCA,), {"init": lambda self, data, generator: PCA.init(self, data, generator).freeze("loadings", "mean")})
    with pytest.raises(ValueError, match="has no free parameters"):
        ppvae.fit(frozen(2), iris, ppvae.VariationalEM())


def test_the_command_line_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "ppca", "iris", "--method", "variational_em:rounds=2:e_steps=3:compile=false", "--out", "flowers"])
    assert not stop.value.code
    assert ppvae.load("flowers").method == ppvae.VariationalEM(rounds=2, e_steps=3, compile=False)
